"""Speed and memory of video label propagation, features to J&F: ours against the released procedure, in one run.

What:   a real 480p clip of DAVIS-2016 (its frames, its masks). Both sides are given the same features: the pixels of each
        patch through a fixed random projection to 384 numbers, which cost nothing and have a video's likeness from frame
        to frame. released: written from the description of facebookresearch/dino 7c446df, eval_video_segmentation.py:
        the neighbourhood by four loops for each video, affinities of every patch of 8 contexts to every patch, four copies
        of them, one PNG per frame; then the plain scorer of bench/video_score.py on the files. ours: what the runner
        `video` does between features and scores. memory: by how much a process of its own grows
        that does one frame of 480 x 832 at patch 8 with all 8 contexts, features included. side by side: the runner on two
        clips with an untrained ViT-S/16 and all threads, encoder to scores: both clips at once, one thread each, against
        one after the other, each with all threads.
Run:    python bench/video.py --data-root DIR [--quick] [--threads N]: DIR holds davis16/ (without it, synthetic frames).
        --gpu: a load of the size of DAVIS-2017 val (30 clips of 67 frames) with an untrained ViT-S/16 and ViT-S/8.
        Each line: name, values, target, met or NOT MET; exit code 1 where not met.
Expect: at least 3 times as fast at patch 14 and 16, at least 4 times at patch 8 with at most a fifth of the memory; the
        same label maps. Side by side: never slower, and the same scores to the last bit; more cores gain more.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
import video_score
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from evalkit import adapters, catalog, records
from evalkit.datasets import davis
from evalkit.engine.evaluate import Options, Session
from evalkit.metrics import video
from evalkit.metrics.propagation import Rules, Tracker, label_map
from evalkit.probing.frames import Geometry, nearest
from evalkit.runners import video as runner
from evalkit.types import Encoder, Manifest

Maps = npt.NDArray[Any]
DIM, RADIUS, CONTEXT, NEIGHBOURS = 384, 12, 7, 5
CLIP, SIZE = "car-shadow", (480, 854)
DEVICE = torch.device("cuda")
FRAMES = {14: 16, 16: 16, 8: 6}
"""Frames that are propagated by patch: the released procedure takes half a minute for one at patch 8."""


def clip(root: Path | None, frames: int) -> tuple[list[Maps], Maps]:
    """Frames (H, W, 3) uint8 and masks (T, H, W) of the real clip, or of a square that moves over noise."""
    folder = None if root is None else root / "davis16"
    if folder is not None and folder.exists():
        clips = davis.open(folder, "val", davis.Config(year=2016))
        index = [clips[number].id for number in range(len(clips))].index(CLIP)
        truth = [clips.truth(index, number) for number in range(frames)]
        return [np.asarray(clips.frame(index, number)) for number in range(frames)], np.stack(
            [t for t in truth if t is not None]
        )
    rng = np.random.default_rng(0)
    back, masks = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8), np.zeros((frames, *SIZE), np.uint8)
    pictures = [back.copy() for _ in range(frames)]
    for number, picture in enumerate(pictures):
        here = slice(150, 300), slice(100 + 8 * number, 300 + 8 * number)
        picture[here], masks[number][here] = back[150:300, 100:300] // 2, 1
    return pictures, masks


def features(frames: Sequence[Maps], patch: int) -> Iterator[Tensor]:
    """(h, w, 384) of each frame: its patches through one random projection, and their place."""
    rng = torch.Generator().manual_seed(0)
    weights = torch.randn(3 * patch * patch, DIM, generator=rng) / patch
    geometry = Geometry(patch)
    places = torch.randn(*(side // patch for side in geometry.fitted(SIZE)), DIM, generator=rng)
    for frame in frames:
        pixels = geometry.resized(Image.fromarray(frame)).float() / 255 - 0.45
        rows = F.unfold(pixels[None], patch, stride=patch)[0].T @ weights
        yield rows.view_as(places) + 0.5 * places


def neighbourhood(h: int, w: int) -> Tensor:
    """(h * w, h * w): 1 where two patches are near, entry by entry."""
    near = torch.zeros(h, w, h, w)
    for i in range(h):
        for j in range(w):
            for p in range(max(0, i - RADIUS), min(h, i + RADIUS + 1)):
                for q in range(max(0, j - RADIUS), min(w, j + RADIUS + 1)):
                    near[i, j, p, q] = 1
    return near.reshape(h * w, h * w)


def dense(frame: Tensor, contexts: Sequence[Tensor], labels: Sequence[Tensor], near: Tensor) -> Tensor:
    """(C, h, w): one frame of the released procedure. frame, contexts: (h * w, D), (D, h * w). near: one per context."""
    count, (_, h, w) = len(contexts), labels[0].shape
    sources = F.normalize(torch.stack(list(contexts)), dim=1)
    target = F.normalize(frame, dim=1)[None].repeat(count, 1, 1)
    affinity = torch.exp(torch.bmm(target, sources) / 0.1)
    affinity *= near[:count]
    affinity = affinity.transpose(2, 1).reshape(-1, h * w)
    least = torch.topk(affinity, NEIGHBOURS, dim=0).values.min(dim=0).values
    affinity[affinity < least] = 0
    affinity = affinity / affinity.sum(dim=0, keepdim=True)
    return (torch.cat([label.flatten(1) for label in labels], dim=1) @ affinity).reshape(-1, h, w)


def stretched(soft: Tensor, patch: int) -> Maps:
    """(H, W) uint8 label map."""
    fine = F.interpolate(soft[None], scale_factor=patch, mode="bilinear", align_corners=False)[0]
    for label in fine:
        if label.max() > 0:
            label -= label.min().clone()
            label /= label.max().clone()
    return fine.max(dim=0).indices.cpu().numpy().astype(np.uint8)


def released(given: Sequence[Tensor], truth: Maps, patch: int, folder: Path) -> Maps:
    """Label maps (T, H, W), through files as the released scripts hand them on."""
    h, w, _ = given[0].shape
    near = neighbourhood(h, w)[None].repeat(1 + CONTEXT, 1, 1).to(given[0].device)
    small = np.array(Image.fromarray(truth[0]).resize((w, h), Image.Resampling.NEAREST))
    soft = F.one_hot(torch.from_numpy(small).long()).permute(2, 0, 1).float().to(given[0].device)
    first, queue = (given[0].flatten(0, 1).T, soft), deque[tuple[Tensor, Tensor]](maxlen=CONTEXT)
    Image.fromarray(truth[0]).save(folder / "00000.png")
    for number, frame in enumerate(given[1:], 1):
        rows = frame.flatten(0, 1)
        used = [first, *queue]
        soft = dense(rows, [columns for columns, _ in used], [labels for _, labels in used], near)
        queue.append((rows.T, soft))
        image = Image.fromarray(stretched(soft, patch)).resize(truth.shape[:0:-1], Image.Resampling.NEAREST)
        image.save(folder / f"{number:05d}.png")
    return np.stack([np.array(Image.open(folder / f"{number:05d}.png")) for number in range(len(given))])


def ours(given: Sequence[Tensor], truth: Maps, patch: int) -> Maps:
    """Label maps (T, H, W)."""
    tracker = Tracker(given[0], Geometry(patch).mask(truth[0]).to(given[0].device), Rules())
    size = (truth.shape[1], truth.shape[2])
    maps = [nearest(label_map(tracker.step(frame), patch).cpu().numpy(), size) for frame in given[1:]]
    return np.stack([truth[0], *maps])


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def report(name: str, values: str, target: str, met: bool) -> bool:
    """Print one line."""
    print(f"{name:<26} {values:<62} target {target:<8} {'met' if met else 'NOT MET'}", flush=True)
    return met


def speed(root: Path | None, patch: int, frames: int) -> bool:
    """Both sides on one clip, features to J&F."""
    pictures, truth = clip(root, frames)
    given = list(features(pictures, patch))
    least = 4 if patch == 8 else 3

    def theirs() -> tuple[Maps, float]:
        with tempfile.TemporaryDirectory() as folder:
            maps = released(given, truth, patch, Path(folder))
        j, f = video_score.plain(maps, truth, 1)
        return maps, float((j.mean() + f.mean()) / 2)

    def mine() -> tuple[Maps, float]:
        maps = ours(given, truth, patch)
        return maps, float(video.evaluate(maps, truth).per_object.mean())

    quick, (found, value) = timed(mine)
    quick = min(quick, timed(mine)[0])
    slow, (expected, other) = timed(theirs)
    differ = float((found != expected).mean())
    values = f"ours {quick:.2f} s  released {slow:.1f} s for {frames} frames  ratio {slow / quick:.1f}"
    return all(
        [
            report(f"patch {patch}", values, f">= {least}", slow >= least * quick),
            report("same maps", f"{differ:.1e} of the pixels differ, J&F {value:.4f} and {other:.4f}", "<= 1e-4",
                   differ <= 1e-4 and abs(value - other) <= 1e-4),
        ]
    )  # fmt: skip


def side_by_side(root: Path | None, frames: int) -> bool:
    """Two clips at once against one after the other; the better of two turns each."""
    if torch.get_num_threads() < 2:
        print("side by side               one thread: nothing to measure")
        return True
    encoder = adapters.load(Manifest("random", "random", "vit_small_patch16", seed=0))
    seconds: dict[int, float] = {}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        pictures, truth = clip(root, frames)
        for name in ("a", "b"):
            written(Path(folder), name, pictures if name == "a" else pictures[::-1], truth)
        options = Options(data={"davis2016": Path(folder)}, device="cpu", out=None, cache=Path(folder) / "cache")
        for at_once in (1, 2, 2, 1):
            job = Session(options).job(encoder, catalog.recipe("video-davis2016"))
            job.checkpoint.clear()
            runner.AT_ONCE = at_once
            took, scores = timed(partial(lambda job: list(runner.run(job)), job))
            seconds[at_once] = min(took, seconds.get(at_once, took))
            found[at_once] = [(score.name, score.value, score.outcomes.tobytes()) for score in scores]
    values = f"at once {seconds[2]:.2f} s  in turn {seconds[1]:.2f} s for 2 x {frames} frames  "
    values += f"ratio {seconds[1] / seconds[2]:.2f}"
    return all(
        [
            report("side by side", values, ">= 1", seconds[1] >= seconds[2]),
            report("same scores", "to the last bit", "equal", found[1] == found[2]),
        ]
    )


def written(folder: Path, name: str, pictures: Sequence[Maps], truth: Maps) -> None:
    """A clip in the layout of DAVIS-2016."""
    for number, (picture, labels) in enumerate(zip(pictures, truth, strict=True)):
        for kind, ending, pixels in (("JPEGImages", "jpg", picture), ("Annotations", "png", labels * np.uint8(255))):
            file = folder / kind / "480p" / name / f"{number:05d}.{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    split = folder / "ImageSets" / "2016" / "val.txt"
    split.parent.mkdir(parents=True, exist_ok=True)
    with split.open("a") as lines:
        lines.write(f"{name}\n")


def peak(side: str) -> int:
    """Bytes by which this process grew at its peak: features of 9 frames, and one frame at patch 8 with all contexts."""
    records.forget_peak()
    before = records.peak_memory()
    rng = torch.Generator().manual_seed(0)
    h, w = 60, 104
    base = torch.randn(h, w, DIM, generator=rng)
    given = [base + 0.5 * torch.randn(h, w, DIM, generator=rng) for _ in range(CONTEXT + 2)]
    soft = F.one_hot((torch.arange(h * w) % 7 == 0).long()).T.reshape(2, h, w).float()
    if side == "ours":
        tracker = Tracker(given[0], soft[1].long(), Rules())
        for frame in given[1:]:
            tracker.step(frame)
    else:
        near = neighbourhood(h, w)[None].repeat(1 + CONTEXT, 1, 1)
        contexts = [frame.flatten(0, 1).T for frame in given[:-1]]
        dense(given[-1].flatten(0, 1), contexts, [soft] * len(contexts), near)
    return records.peak_memory() - before


def memory() -> bool:
    """The growth of two processes."""
    grown = {}
    for side in ("ours", "released"):
        command = [sys.executable, __file__, "--threads", str(torch.get_num_threads()), "--peak", side]
        grown[side] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    values = f"ours {grown['ours'] / 1e6:.0f} MB  released {grown['released'] / 1e6:.0f} MB"
    values += f"  ratio {grown['released'] / grown['ours']:.1f}"
    return report("patch 8, peak memory", values, ">= 5", grown["released"] >= 5 * grown["ours"])


@dataclass(frozen=True)
class Load:
    """A clip that a GPU is given again and again. images: (T, 3, h, w) uint8."""

    encoder: Encoder
    images: Tensor
    truth: Maps

    @classmethod
    def of(cls, patch: int, frames: int) -> Load:
        """Synthetic frames of 480 x 854 with an untrained ViT-S of this patch."""
        spec = Manifest("random", "random", f"vit_small_patch{patch}", seed=0)
        pictures, truth = clip(None, frames)
        images = torch.stack([Geometry(patch).resized(Image.fromarray(picture)) for picture in pictures])
        return cls(adapters.load(spec).to(DEVICE), images, truth)

    @property
    def patch(self) -> int:
        """Of the encoder."""
        return self.encoder.spec.patch

    def features(self) -> list[Tensor]:
        """(h, w, D) of each frame, batches of 65,536 tokens in bfloat16."""
        at_once = 65536 * self.patch**2 // (480 * 832)
        found = []
        with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16):
            for start in range(0, len(self.images), at_once):
                part = self.images[start : start + at_once].to(DEVICE).float() / 255
                found.append(self.encoder.encode(part)[0].patches.float())
        return list(torch.cat(found))

    def whole(self, clips: int) -> None:
        """Encoder, propagation and J&F, so many times."""
        for _ in range(clips):
            video.evaluate(ours(self.features(), self.truth, self.patch), self.truth)

    def released(self, given: Sequence[Tensor]) -> None:
        """The released propagation of some frames."""
        with tempfile.TemporaryDirectory() as folder:
            released(given, self.truth[: len(given)], self.patch, Path(folder))

    def ours(self, given: Sequence[Tensor]) -> None:
        """Our propagation of the same."""
        ours(given, self.truth[: len(given)], self.patch)


def held(work: Callable[[], None]) -> tuple[float, int]:
    """Seconds, and the bytes of the GPU at the peak."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    seconds, _ = timed(work)
    return seconds, torch.cuda.max_memory_allocated()


def on_gpu(clips: int, patches: Sequence[int]) -> bool:
    """A load of DAVIS-2017 val's size, and both propagations on a part of one clip."""
    ok = True
    for patch in patches:
        load = Load.of(patch, 67)
        load.whole(1)
        seconds, size = held(partial(load.whole, clips))
        values = f"{clips * 67} frames, encoder to J&F {seconds:.0f} s, {size / 1e9:.2f} GB"
        ok &= report(f"patch {patch}, {clips} clips", values, "< 200 s", seconds < 200)
        given = load.features()[:12]
        fast, small = held(partial(load.ours, given))
        slow, large = held(partial(load.released, given))
        values = f"ours {fast:.2f} s, {small / 1e9:.2f} GB  released {slow:.1f} s, {large / 1e9:.2f} GB"
        ok &= report(f"patch {patch}, 12 frames", f"{values}  ratio {slow / fast:.1f}", ">= 3", slow >= 3 * fast)
    return ok


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(description="video label propagation: ours against the released procedure")
    parser.add_argument("--data-root", type=Path, help="folder that holds davis16/")
    parser.add_argument("--quick", action="store_true", help="fewer frames, patch 8 for memory only")
    parser.add_argument("--threads", type=int, default=0, help="of torch and OpenCV; 0 leaves their defaults")
    parser.add_argument("--gpu", action="store_true", help="the load for a GPU, and nothing else")
    parser.add_argument("--patch", type=int, choices=(16, 8), help="with --gpu: this one alone")
    parser.add_argument("--peak", choices=("ours", "released"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
        cv2.setNumThreads(options.threads)
    if options.peak:
        print(peak(options.peak))
        return 0
    if options.gpu:
        patches = [options.patch] if options.patch else [16, 8]
        return 0 if on_gpu(3 if options.quick else 30, patches) else 1
    if options.data_root is None or not (options.data_root / "davis16").exists():
        print("no davis16 under --data-root: synthetic frames instead of a real clip")
    plan = {14: 6, 16: 6} if options.quick else FRAMES
    met = [speed(options.data_root, patch, frames) for patch, frames in plan.items()]
    met.append(side_by_side(options.data_root, 4 if options.quick else 8))
    return 0 if all([*met, memory()]) else 1


if __name__ == "__main__":
    sys.exit(main())
