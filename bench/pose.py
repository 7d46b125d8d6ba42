"""Speed of a training step of the pose probe: ours on the patch grid against the plain one on heatmaps, in one run.

What:   64 people, 16 x 12 patch tokens of 768 dimensions, 17 keypoints, heatmaps of 64 x 48. plain: linear layer, bilinear
        enlargement, squared error to full targets, autograd, clipping, torch.optim's AdamW, as ViTPose's simple head is
        trained. ours: `probing.heatmap_head`.
Run:    python bench/pose.py [--quick] [--threads N]. Each line: name, values, target, met or NOT MET; exit code 1 where
        not met.
Expect: at least 3 times as fast per step; the gradients of both, after 20 steps, within 1e-4 of the largest.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from evalkit.metrics.pose import Targets, targets
from evalkit.probing.heatmap_head import HeatmapHead, Learner, loss

PEOPLE, GRID, DIM, KEYPOINTS, CELLS = 64, (16, 12), 768, 17, (64, 48)
RATE, STEPS = 5e-4, 20


def head() -> HeatmapHead:
    """The same layer every time."""
    return HeatmapHead(DIM, KEYPOINTS, CELLS, rng=torch.Generator().manual_seed(0))


def make() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, and places of the keypoints, some of them not labelled."""
    rng = torch.Generator().manual_seed(1)
    points = torch.rand(PEOPLE, KEYPOINTS, 2, generator=rng) * torch.tensor([48.0, 64.0])
    tokens = torch.randn(PEOPLE, *GRID, DIM, generator=rng)
    return tokens, points, torch.rand(PEOPLE, KEYPOINTS, generator=rng) > 0.2


def wanted(points: Tensor, labelled: Tensor) -> Targets:
    """What both learn."""
    return targets(points, labelled, CELLS, sigma=2.0)


def ours() -> tuple[HeatmapHead, Callable[[], None]]:
    """A layer, and one step on it."""
    tokens, points, labelled = make()
    learner = Learner(head(), weight_decay=0.1, clip=1.0)
    return learner.head, lambda: learner.step(tokens, wanted(points, labelled), RATE)


def plain() -> tuple[HeatmapHead, Callable[[], None]]:
    """The same, by autograd."""
    tokens, points, labelled = make()
    layer = head()
    groups = [{"params": [layer.weight], "weight_decay": 0.1}, {"params": [layer.bias], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=RATE)

    def step() -> None:
        optimiser.zero_grad()
        loss(layer(tokens), wanted(points, labelled)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimiser.step()

    return layer, step


def seconds(step: Callable[[], None], steps: int) -> float:
    """The fastest of so many steps."""
    found = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        found.append(time.perf_counter() - start)
    return min(found)


def difference(layer: HeatmapHead) -> float:
    """Between the two ways to the gradient of a layer's weight, as a share of its largest entry."""
    tokens, points, labelled = make()
    target = wanted(points, labelled)
    slope = torch.autograd.grad(loss(layer(tokens), target), layer.weight)[0]
    return float((layer.slopes(tokens, target)[0] - slope).abs().max() / slope.abs().max())


def report(name: str, values: str, target: str, met: bool) -> bool:
    """Print one line."""
    print(f"{name:<26} {values:<62} target {target:<8} {'met' if met else 'NOT MET'}", flush=True)
    return met


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(description="pose probe: a step of ours against a plain one")
    parser.add_argument("--quick", action="store_true", help="fewer steps are timed")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    (_, my_step), (other, other_step) = ours(), plain()
    for _ in range(STEPS):
        my_step()
        other_step()
    apart = difference(other)
    steps = 10 if options.quick else 40
    fast, slow = seconds(my_step, steps), seconds(other_step, steps)
    values = f"ours {fast * 1e3:.1f} ms  plain {slow * 1e3:.1f} ms  ratio {slow / fast:.1f}"
    met = [
        report("pose, one step", values, ">= 3", slow >= 3 * fast),
        report("gradients", f"largest difference {apart:.1e} of the largest", "<= 1e-4", apart <= 1e-4),
    ]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
