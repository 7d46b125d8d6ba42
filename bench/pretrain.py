"""Pretraining steps: `python bench/pretrain.py [--quick] [--device cuda] [--methods dino mugs] [--large]`.

On the CPU: the time of a whole step (views, losses, gradients, optimiser, teacher) of each method at the micro preset,
relative to DINO's; every method takes its turn in every round.
With `--device cuda`, data on the GPU: images per second of each method at the micro preset, or with `--large` of a ViT-S/16
at 224 px with its paper's views (multi-crop methods 2 + 8), in bfloat16 with compiled networks, beside the same step
in float32 as it stands; the share of the time in which the GPU is busy; peak memory. Target: at least 3 times faster,
busy at least 90 % of the time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.fabric import Fabric

from evalkit.pretrain.corpus import Packed
from evalkit.pretrain.experiment import Experiment, compose, names
from evalkit.pretrain.trainer import Options, Trainer

LARGE_BATCH = 128


def experiment(method: str, large: bool) -> Experiment:
    """The micro preset, or the paper's views and heads on a ViT-S/16 in a batch that fits one GPU."""
    if not large:
        return compose(method, "micro")
    found = compose(method, "paper-imagenet")
    small = "vit_small_patch16"
    return replace(found, arch=small, run=replace(found.run, batch=LARGE_BATCH, accumulate=1), pixels=256)


def trainer(made: Experiment, device: str, low: bool, folder: Path) -> tuple[Trainer, torch.Tensor]:
    """A trainer and its images. low: bfloat16 and compiled networks."""
    fabric = Fabric(accelerator=device, devices=1, precision="bf16-mixed" if low else "32-true")
    images = torch.randint(0, 256, (made.run.batch * 2, 3, made.side, made.side), dtype=torch.uint8)
    corpus = Packed(images.to(fabric.device), "random")
    found = Trainer(
        made.build(), corpus, made.run, folder, fabric=fabric, question=made.facts(), options=Options(compile=low)
    )
    return found, corpus.images[: made.run.batch]


def stepper(found: Trainer, images: torch.Tensor) -> Callable[[], None]:
    """One whole step a call."""
    now = found.plan.now(0)

    def step() -> None:
        found._step(now, [images])

    return step


def on_cpu(methods: list[str], rounds: int, batch: int) -> None:
    """Median time of a step relative to DINO's."""
    with TemporaryDirectory() as folder:
        steps = {}
        for method in methods:
            made = compose(method, "micro", None, [f"run.batch={batch}"])
            steps[method] = stepper(*trainer(made, "cpu", False, Path(folder)))
            steps[method]()
        times: dict[str, list[float]] = {method: [] for method in methods}
        for _ in range(rounds):
            for method, step in steps.items():
                start = time.perf_counter()
                step()
                times[method].append(time.perf_counter() - start)
    typical = {method: statistics.median(found) for method, found in times.items()}
    for method, seconds in typical.items():
        print(f"{method:10} micro, batch {batch}   {seconds:6.2f} s a step   {batch / seconds:6.1f} images/s   "
              f"{seconds / typical['dino']:5.2f} of dino's step")  # fmt: skip


def images_per_second(step: Callable[[], None], batch: int, steps: int) -> float:
    """Of `steps` calls after a warm-up."""
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return steps * batch / (time.perf_counter() - start)


def busy(step: Callable[[], None], steps: int) -> float:
    """Share of the wall time in which a kernel runs: the union of all kernels' intervals."""
    activity = torch.profiler.ProfilerActivity
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[activity.CUDA]) as profile:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    spans = sorted((e.time_range.start, e.time_range.end) for e in profile.events() if e.device_type.name == "CUDA")
    covered, end = 0.0, float(spans[0][0])
    for low, high in spans:
        covered += max(0.0, high - max(low, end))
        end = max(end, high)
    return covered / (end - float(spans[0][0]))


def on_gpu(methods: list[str], large: bool, steps: int) -> bool:
    """Prints one line a method as it is measured; whether all targets are met."""
    met = True
    for method in methods:
        made = experiment(method, large)
        speeds, facts = [], ""
        for low in (True, False):
            torch._dynamo.reset()
            torch.set_float32_matmul_precision("high" if low else "highest")
            torch.cuda.reset_peak_memory_stats()
            with TemporaryDirectory() as folder:
                step = stepper(*trainer(made, "cuda", low, Path(folder)))
                speeds.append(images_per_second(step, made.run.batch, steps))
                if low:
                    share = busy(step, steps)
                    facts = f"GPU busy {100 * share:5.1f} %   {torch.cuda.max_memory_allocated() / 1e9:5.1f} GB"
            del step
        ratio = speeds[0] / speeds[1]
        good = ratio >= 3 and share >= 0.9
        met &= good
        print(f"{method:10} {'ViT-S/16' if large else 'micro':8} batch {made.run.batch:4}   ours {speeds[0]:8.0f} images/s   "
              f"plain {speeds[1]:8.0f} images/s   ratio {ratio:5.2f}   target >= 3   {facts}   target >= 90 %   "
              f"{'met' if good else 'NOT MET'}", flush=True)  # fmt: skip
    return met


def main() -> int:
    """Runs the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--large", action="store_true", help="ViT-S/16 at 224 px (with --device cuda)")
    parser.add_argument("--methods", nargs="+", default=list(names()), choices=names())
    parser.add_argument("--batch", type=int, default=32, help="images of a step on the CPU")
    given: Any = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.device == "cuda":
        return 0 if on_gpu(given.methods, given.large, 5 if given.quick else 20) else 1
    on_cpu(sorted({"dino", *given.methods}), 3 if given.quick else 9, given.batch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
