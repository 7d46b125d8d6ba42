"""Extraction against its limits, both sides in one run: `python bench/extraction.py [--quick]`.

(a) images decoded already: `extract` against the bare forward of the same timm ViT-S/16 at the same batch size and
precision. (b) JPEG files on the CPU, where decoding and forward share the cores: images per second against
    1 / (1 / decode + 1 / forward), with decoding measured alone on all cores.
(c) peak memory of processes that extract 500, 3,000 and 10,000 images, class tokens and means in one run, patch tokens in
    another: the most over the least. The encoder costs nothing and cuts its tokens out of one tensor, as all of them do.
    Where batches come from worker processes, the gaps that glibc keeps between them differ from run to run, by up to 110 MB
    with any number of images; so each count is the least of several processes, and their span is printed.
With `--device cuda` (b) compares with the slower of decoding and forward, which overlap there; (c) stays on the CPU.

Each line: name, ours, plain, ratio, target, met or NOT MET. The exit code is 1 where a target is not met. Both sides
are timed in turn, and the best of the rounds counts, which is what a shared machine disturbs least.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from evalkit import records
from evalkit.features import view as views
from evalkit.features.extract import ExtractOptions, extract
from evalkit.features.key import Request
from evalkit.features.store import FeatureStore
from evalkit.types import EncoderSpec, Preprocessing, Sample, Tokens, View

THREADS = 2
BATCH = 64
VIEW = View(224, 256)
REQUEST = Request(("cls", "mean"))


def plain_spec(name: str) -> EncoderSpec:
    """Of a ViT-S/16 at 224."""
    return EncoderSpec(name, "timm", name, 384, 12, 6, 16, (14, 14), Preprocessing(), "untrained", "", 1,
                       frozenset({"cls"}), seed=0)  # fmt: skip


class Plain:
    """A timm vision transformer as an encoder, with nothing between."""

    device = torch.device("cpu")

    def __init__(self, name: str = "vit_small_patch16_224") -> None:
        self.model: Any = timm.create_model(name, pretrained=False, num_classes=0).eval()
        self.spec = plain_spec(name)

    def to(self, device: torch.device) -> Plain:
        """The same encoder there."""
        self.device = device
        self.model.to(device)
        return self

    def encode(self, images: Tensor, blocks: Sequence[int] = (-1,), norm: Any = True) -> tuple[Tokens, ...]:
        """The last block after the final norm."""
        tokens = self.model.forward_features(images)
        return (Tokens(tokens[:, 0], tokens[:, 1:].reshape(len(images), 14, 14, 384)),)

    def project(self, tokens: Tokens, at: str = "output") -> Tensor:
        """Not measured."""
        raise NotImplementedError

    def attention(self, images: Tensor, queries: Sequence[str | int] = ("cls",)) -> Tensor:
        """Not measured."""
        raise NotImplementedError


class Dim(Plain):
    """An encoder that costs nothing, so that memory is what extraction itself takes."""

    def __init__(self) -> None:
        self.model, self.spec = torch.nn.Identity(), plain_spec("dim")

    def encode(self, images: Tensor, blocks: Sequence[int] = (-1,), norm: Any = True) -> tuple[Tokens, ...]:
        """Constant tokens, all of an image in one tensor."""
        tokens = torch.ones(len(images), 1 + 14 * 14, 384)
        return (Tokens(tokens[:, 0], tokens[:, 1:].reshape(len(images), 14, 14, 384)),)


@dataclass
class Files:
    """JPEG files as a data set; with `held` the decoded images instead."""

    paths: list[Path]
    held: list[Image.Image] | None = None
    name: str = "bench"
    split: str = "test"
    classes: tuple[str, ...] = ("one",)
    digest: str = "bench"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Sample:
        return Sample(str(index), str(index), 0)

    def image(self, group: str) -> Image.Image:
        """One photograph."""
        number = int(group) % len(self.held or self.paths)
        return self.held[number] if self.held is not None else Image.open(self.paths[number]).convert("RGB")

    def describe(self) -> dict[str, Any]:
        """Nothing to tell."""
        return {}

    def __getitems__(self, numbers: list[int]) -> list[int]:
        """Decoding alone, for the plain side: as simple as a loader can be."""
        for number in numbers:
            views.apply(self.image(str(number)), None, VIEW)
        return numbers


def photographs(folder: Path, count: int) -> Files:
    """Smooth noise of the size of ImageNet's photographs, as JPEG files of some 60 kB."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (94, 125, 3), dtype=np.uint8)).resize((500, 375))
        coarse.save(folder / f"{number}.jpg", quality=90)
    return Files(sorted(folder.iterdir()))


def ours(encoder: Any, dataset: Files, workers: int | None = None) -> None:
    """One extraction that keeps its result in memory."""
    options = ExtractOptions(device=encoder.device, precision="fp32", batch_size=BATCH, workers=workers)
    extract(encoder, dataset, VIEW, REQUEST, options=options)


def bare(encoder: Plain, images: int) -> None:
    """The forward alone, over normalised batches."""
    batch = torch.randn(BATCH, 3, 224, 224, device=encoder.device)
    with torch.inference_mode():
        for _ in range(images // BATCH):
            tokens = encoder.model.forward_features(batch)
        tokens[0, 0, 0].item()  # on a GPU: wait for it


def decode(dataset: Files) -> None:
    """Decoding, resizing and cropping alone, one process per core."""
    loader: DataLoader[Any] = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=16,
        num_workers=os.cpu_count() or THREADS,
        collate_fn=list,
        generator=torch.Generator(),
    )
    for _ in loader:
        pass


def seconds(rounds: int, *works: Callable[[], None]) -> list[float]:
    """Least time of each work, taken in turn so that a disturbance meets all."""
    best = [float("inf")] * len(works)
    for _ in range(rounds):
        for number, work in enumerate(works):
            start = time.perf_counter()
            work()
            best[number] = min(best[number], time.perf_counter() - start)
    return best


def peak(images: int, parts: str) -> float:
    """Peak memory in MB of a process that extracts `images` images into a store."""
    command = [sys.executable, __file__, "--peak", str(images), parts]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1e6


def extract_and_tell(images: int, parts: str) -> int:
    """The work of the process whose memory is measured; prints its peak in bytes."""
    torch.set_num_threads(THREADS)
    rng = np.random.default_rng(0)
    held = [Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)) for _ in range(BATCH)]
    request = Request(tuple(parts.split("+")))  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        options = ExtractOptions(batch_size=BATCH, store=FeatureStore(Path(folder)))
        extract(Dim(), Files([Path()] * images, held=held), VIEW, request, options=options)
    print(records.peak_memory())
    return 0


def memory_of(parts: str, counts: Sequence[int], processes: int) -> bool:
    """One line: the largest of the counts' peaks over the least."""
    peaks = {count: sorted(peak(count, parts) for _ in range(processes)) for count in counts}
    told = (f"{count:,} images {found[0]:.0f} to {found[-1]:.0f} MB" for count, found in peaks.items())
    print(f"    {parts}: {', '.join(told)} in {processes} processes")
    large, small = max(found[0] for found in peaks.values()), min(found[0] for found in peaks.values())
    return line(f"(c) peak memory, {parts}", (large, small), "MB", large / small, 1.05, at_most=True)


def line(
    name: str, values: tuple[float, float], unit: str, ratio: float, target: float, *, at_most: bool = False
) -> bool:
    """Prints one comparison; whether its target is met."""
    met = ratio <= target if at_most else ratio >= target
    left, right = (f"{value:8.1f} {unit}" for value in values)
    sign = "<=" if at_most else ">="
    verdict = "met" if met else "NOT MET"
    print(f"{name:34} ours {left}   plain {right}   ratio {ratio:5.3f}   target {sign} {target}   {verdict}")
    return met


def main() -> int:
    """Runs the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the images, two rounds")
    parser.add_argument("--workers", type=int, help="decoding processes in (b); default: what extraction chooses")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        return extract_and_tell(int(arguments.peak[0]), arguments.peak[1])
    torch.set_num_threads(THREADS)
    gpu = arguments.device == "cuda"
    count, rounds = (64, 2) if arguments.quick else (4096 if gpu else 256, 3)
    with tempfile.TemporaryDirectory() as folder:
        encoder = Plain().to(torch.device(arguments.device))
        return compare(Path(folder), count, rounds, encoder=encoder, workers=arguments.workers)


def compare(folder: Path, count: int, rounds: int, *, encoder: Plain, workers: int | None) -> int:
    """All lines; 0 where all are met."""
    (folder / "jpeg").mkdir()
    files = photographs(folder / "jpeg", count)
    crops = [image.resize((224, 224)) for image in map(files.image, map(str, range(count)))]
    memory, gpu = Files(files.paths, held=crops), encoder.device.type == "cuda"
    bare(encoder, BATCH)
    inside, forward, outside, decoding = seconds(
        rounds,
        lambda: ours(encoder, memory, 0),
        lambda: bare(encoder, count),
        lambda: ours(encoder, files, workers),
        lambda: decode(files),
    )
    limit = max(decoding, forward) if gpu else decoding + forward
    speeds = [count / inside, count / forward, count / outside, count / limit]
    met = [
        line("(a) decoded images", (speeds[0], speeds[1]), "images/s", speeds[0] / speeds[1], 0.95),
        line("(b) JPEG files", (speeds[2], speeds[3]), "images/s", speeds[2] / speeds[3], 0.9 if gpu else 0.85),
    ]
    print(
        f"    decoding alone {count / decoding:.1f} images/s on {os.cpu_count()} cores, "
        f"forward alone {speeds[1]:.1f} images/s on {encoder.device}"
    )
    counts, processes = ((500, 3_000), 3) if count < 256 else ((500, 3_000, 10_000), 5)
    met += [memory_of(parts, counts, processes) for parts in ("cls+mean", "patches")]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
