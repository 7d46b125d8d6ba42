"""Speed of J and F: ours against a plain scorer, object by object and frame by frame, in one run.

What:   label maps of 90 frames of 480 x 854 in memory, with one object and with five that hide each other; the prediction is
        the truth a few pixels off, with holes. plain: the published procedure straight from its description
        (davisvideochallenge/davis2017-evaluation ac7c43f, davis2017/results.py:24-30, metrics.py:7-111, 114-171): a mask of
        the whole clip per object, J over all its pixels, then for every frame two boundary maps of the whole frame by
        shifted copies, dilated with a disk of 8 pixels. Reading PNG files is not part of either side.
Run:    python bench/video_score.py [--quick] [--threads N]. Each line: name, values, target, met or NOT MET; exit code 1
        where not met.
Expect: at least 5 times as fast (6 to 12 times), and the same values to the last bits of float64.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from evalkit.metrics import video

Array = npt.NDArray[Any]

HEIGHT, WIDTH, FRAMES = 480, 854, 90
REPEATS = 3


def make(objects: int, frames: int) -> tuple[Array, Array]:
    """(T, H, W) uint8 label maps of ellipses that move, and a prediction that is off by a few pixels, with holes."""
    rng = np.random.default_rng(0)
    start, speed = rng.uniform(0.2, 0.8, (objects, 2)), rng.uniform(-0.3, 0.3, (objects, 2))
    axes = rng.uniform(0.10, 0.22, (objects, 2)) * HEIGHT
    truth = np.zeros((frames, HEIGHT, WIDTH), np.uint8)
    for number, labels in enumerate(truth):
        for k in range(objects):
            centre = (start[k] + speed[k] * number / frames) * (WIDTH, HEIGHT)
            place = (int(centre[0]), int(centre[1]))
            cv2.ellipse(labels, place, (int(axes[k, 0]), int(axes[k, 1])), 3 * number, 0, 360, k + 1, -1)
    predicted = np.roll(truth, (3, -5), axis=(1, 2))
    predicted[rng.random(predicted.shape) < 0.001] = 0
    return predicted, truth


def outline(mask: Array) -> Array:
    """A pixel differs from its right, lower or lower right neighbour."""
    east, south, both = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    east[:, :-1], south[:-1], both[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    found = (mask ^ east) | (mask ^ south) | (mask ^ both)
    found[-1], found[:, -1] = mask[-1] ^ east[-1], mask[:, -1] ^ south[:, -1]
    found[-1, -1] = False
    return found


def boundary_f(predicted: Array, truth: Array) -> float:
    """F of one object in one frame, on the whole frame."""
    reach = math.ceil(0.008 * float(np.linalg.norm(truth.shape)))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x**2 + y**2 <= reach**2).astype(np.uint8)
    found, wanted = outline(predicted), outline(truth)
    near_found, near_wanted = (cv2.dilate(lines.astype(np.uint8), disk) for lines in (found, wanted))
    if not found.sum() or not wanted.sum():
        return float(found.sum() == wanted.sum())
    precision = (found * near_wanted).sum() / found.sum()
    recall = (wanted * near_found).sum() / wanted.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def plain(predicted: Array, truth: Array, objects: int) -> tuple[Array, Array]:
    """(objects, frames) J and F."""
    j, f = np.zeros((objects, len(truth) - 2)), np.zeros((objects, len(truth) - 2))
    for k in range(objects):
        guess, true = predicted[1:-1] == k + 1, truth[1:-1] == k + 1
        union = (guess | true).sum(axis=(1, 2))
        j[k] = np.where(union == 0, 1, (guess & true).sum(axis=(1, 2)) / np.maximum(union, 1))
        f[k] = [boundary_f(*pair) for pair in zip(guess, true, strict=True)]
    return j, f


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest repeat."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def report(name: str, values: str, target: str, met: bool) -> bool:
    """Print one line."""
    print(f"{name:<26} {values:<62} target {target:<8} {'met' if met else 'NOT MET'}", flush=True)
    return met


def compare(objects: int, frames: int, repeats: int) -> bool:
    """Both sides on one clip."""
    predicted, truth = make(objects, frames)
    found = video.evaluate(predicted, truth, objects=objects)
    j, f = plain(predicted, truth, objects)
    wrong = float(max(np.abs(found.j - j).max(), np.abs(found.f - f).max()))
    mine = fastest(lambda: video.evaluate(predicted, truth, objects=objects), repeats)
    other = fastest(lambda: plain(predicted, truth, objects), repeats)
    name = f"J&F {frames} frames, {objects} object{'s' if objects > 1 else ''}"
    values = f"ours {mine:.2f} s  plain {other:.2f} s  ratio {other / mine:.1f}"
    return all(
        [
            report(name, values, ">= 5", other >= 5 * mine),
            report("same values", f"largest difference {wrong:.1e}", "<= 1e-12", wrong <= 1e-12),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(description="J&F of a clip: ours against a plain scorer")
    parser.add_argument("--quick", action="store_true", help="a third of the frames, once")
    parser.add_argument("--threads", type=int, default=1, help="of OpenCV")
    options = parser.parse_args(arguments)
    cv2.setNumThreads(options.threads)
    frames, repeats = (FRAMES // 3, 1) if options.quick else (FRAMES, REPEATS)
    return 0 if all([compare(objects, frames, repeats) for objects in (1, 5)]) else 1


if __name__ == "__main__":
    sys.exit(main())
