"""Zero-shot segmentation of all objects of one photo at ten thresholds: ours against a pass per object and threshold.

What:   the photo of the shipped COCO with the most objects, 480 x 480, a ViT-S/16 with random weights. one pass each: for
        every object and every threshold the image is encoded, the prompt's row is compared with all others, and mask and
        object are compared pixel by pixel, as a script would do it. ours: one pass, all prompts in one product, all
        thresholds from one count. The plain side is measured on some objects, since all of them would take minutes.
        Beside it, without a target: the same script with the image encoded once, so that arithmetic meets arithmetic.
Run:    python bench/prompt.py [--quick] [--threads N]. Each line: name, values, target, met or NOT MET; exit code 1 where
        not met.
Expect: at least 20 times as fast, and the same IoU to 1e-6.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evalkit import adapters
from evalkit.datasets import coco_instances
from evalkit.features import view
from evalkit.probing import outlines
from evalkit.runners import prompt
from evalkit.types import Encoder, Manifest, Outlined, ViewRef

SHIPPED = Path(__file__).resolve().parents[1] / "mini" / "coco"
THRESHOLDS = tuple(number / 10 for number in range(10))
TARGET, LARGEST = 20, 1e-6


def photo() -> tuple[Any, tuple[Outlined, ...]]:
    """The image with the most objects, and them."""
    data: Any = coco_instances.open(SHIPPED, "val", coco_instances.Config())
    every = [data.objects(position) for position in range(len(data))]
    most = max(range(len(every)), key=lambda position: len(every[position]))
    return data.image(data[most].group), every[most]


def ours(encoder: Encoder, batch: Tensor, objects: Sequence[Outlined]) -> Tensor:
    """(O, T) IoU; reading the outlines, which workers do, is counted too."""
    with torch.no_grad():
        tokens = encoder.encode(batch)[0].patches[0]
    found = outlines.outline(objects, (tokens.shape[0], tokens.shape[1]))
    prompts, owner = prompt.choose(found, "deepest", 1, torch.Generator())
    return prompt.at_pixels(prompt.similarity(tokens, prompts), owner, found, THRESHOLDS)


def plain(tokens_of: Callable[[], Tensor], objects: Sequence[Outlined], places: Sequence[int]) -> Tensor:
    """(O, T) IoU, for every object and threshold anew. places: flat index of each object's prompt."""
    rows = []
    for one, place in zip(objects, places, strict=True):
        truth, row = torch.from_numpy(one.mask), []
        for threshold in THRESHOLDS:
            tokens = tokens_of()
            h, w, _ = tokens.shape
            cosines = F.cosine_similarity(tokens.flatten(0, 1), tokens.flatten(0, 1)[place][None], dim=1).view(
                1, 1, h, w
            )
            mask = F.interpolate(cosines, truth.shape, mode="nearest-exact")[0, 0] > threshold
            row.append(float((mask & truth).sum() / (mask | truth).sum()))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest repeat."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(description="prompts of one photo: ours against one pass per object and threshold")
    parser.add_argument("--quick", action="store_true", help="one object by the plain way, and one repeat")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    encoder = adapters.load(Manifest("random", "random", "vit_small_patch16", seed=0))
    image, objects = photo()
    square = view.resolve(ViewRef(size=480, fit="squash"), encoder.spec)[0]
    batch = view.normalise(view.apply(image, None, square)[None], square)

    def encoded() -> Tensor:
        with torch.no_grad():
            return encoder.encode(batch)[0].patches[0]

    tokens, some = encoded(), objects[: 1 if options.quick else 3]
    places = outlines.outline(objects, (tokens.shape[0], tokens.shape[1])).deepest.tolist()
    mine = fastest(lambda: ours(encoder, batch, objects), 1 if options.quick else 3)
    passes = fastest(lambda: plain(encoded, some, places[: len(some)]), 1) / len(some) * len(objects)
    counted = fastest(lambda: ours(_Held(tokens), batch, objects), 3)  # type: ignore[arg-type]
    scripted = fastest(lambda: plain(lambda: tokens, objects, places), 1)
    wrong = float((ours(encoder, batch, objects) - plain(lambda: tokens, objects, places)).abs().max())
    what, met = f"{len(objects)} objects x {len(THRESHOLDS)} thresholds", passes >= TARGET * mine
    _line(what, f"ours {mine:.2f} s  a pass each {passes:.1f} s  ratio {passes / mine:.0f}", f">= {TARGET}", met)
    _line(
        "encoded once",
        f"ours {counted * 1e3:.0f} ms  script {scripted * 1e3:.0f} ms  ratio {scripted / counted:.1f}",
        "none",
        True,
    )
    _line("IoU", f"largest difference {wrong:.1e}", "<= 1e-6", wrong <= LARGEST)
    return 0 if met and wrong <= LARGEST else 1


class _Held:
    """An encoder that has encoded already."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def encode(self, images: Tensor) -> tuple[Any]:
        from evalkit.types import Tokens

        return (Tokens(None, self.tokens[None]),)


def _line(name: str, values: str, target: str, met: bool) -> None:
    print(f"{name:<28} {values:<60} target {target:<8} {'met' if met else 'NOT MET'}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
