"""Speed of a sweep of 45 linear heads: ours in one stacked pass against 45 modules with 45 optimisers, in one run.

What:   the rates {1..9} x 10^{-4..0} (iBOT's sweep) on features in memory with noisy class centres, the same batches
        for both.
        plain: for each batch and each head forward, cross-entropy, backward, `torch.optim.SGD` step.
Run:    python bench/linear.py [--quick]. Each line: name, ours, plain, ratio, target, met or NOT MET; exit code 1
        where not met.
Expect: at least 2 times faster at 384 features, 100 classes, batch 512, and 4 times at 192, 15, 128; weights within
        1e-5 relative for rates up to 4 as applied; the same rate chosen on held-out features.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evalkit.probing import schedules, train
from evalkit.probing.heads import Heads, first_weights

BASES = tuple(digit * 10.0**power for power in range(-4, 1) for digit in range(1, 10))
LARGEST = 4.0
CLOSE = 1e-5


@dataclass(frozen=True)
class Size:
    """dim, classes, batch: of the features. steps: in one epoch. epochs: compared. target: how many times faster."""

    dim: int
    classes: int
    batch: int
    steps: int
    epochs: int
    target: float


@dataclass(frozen=True)
class Data:
    """Features (N, D) and labels (N,) to train on, the same to choose on, the first weights (D, C), an order per
    epoch."""

    features: Tensor
    labels: Tensor
    held_features: Tensor
    held_labels: Tensor
    first: Tensor
    orders: tuple[Tensor, ...]
    rates: tuple[float, ...]


def make(size: Size) -> Data:
    """Draw the data; the same every time."""
    rng = torch.Generator().manual_seed(0)
    count, held = size.batch * size.steps, 1000
    centres = torch.randn(size.classes, size.dim, generator=rng)
    labels = torch.randint(size.classes, (count + held,), generator=rng)
    features = (centres[labels] + 4 * torch.randn(count + held, size.dim, generator=rng)) / size.dim**0.5
    orders = tuple(torch.randperm(count, generator=rng) for _ in range(size.epochs))
    rates = tuple(schedules.peak(base, size.batch) for base in BASES)
    first = first_weights(size.dim, size.classes, rng)
    return Data(features[:count], labels[:count], features[count:], labels[count:], first, orders, rates)


def stacked(data: Data, size: Size) -> Heads:
    """All heads in one pass."""
    heads = Heads(data.first, data.rates)
    plan = train.Plan(size.epochs, size.batch)
    train.fit({"": heads}, {"": data.features}, data.labels, plan=plan, order=data.orders.__getitem__)
    return heads


def separate(data: Data, size: Size) -> list[nn.Linear]:
    """One module and one optimiser per rate."""
    modules = [nn.Linear(size.dim, size.classes) for _ in data.rates]
    for module in modules:
        module.weight.data.copy_(data.first.T)
        module.bias.data.zero_()
    optimisers = [torch.optim.SGD(m.parameters(), lr=r, momentum=0.9) for m, r in zip(modules, data.rates, strict=True)]
    for epoch, order in enumerate(data.orders):
        for optimiser, rate in zip(optimisers, data.rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * schedules.cosine(epoch / size.epochs)
        for start in range(0, len(order), size.batch):
            rows = order[start : start + size.batch]
            features, labels = data.features[rows], data.labels[rows]
            for module, optimiser in zip(modules, optimisers, strict=True):
                loss = F.cross_entropy(module(features), labels)
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
    return modules


def distance(heads: Heads, modules: Sequence[nn.Linear]) -> float:
    """The largest relative distance of two heads' weights, among rates up to LARGEST."""
    distances = []
    for index, module in enumerate(modules):
        if heads.rates[index] <= LARGEST:
            mine, other = heads.head(index)[0], module.weight.detach()
            distances.append(float((mine - other).norm() / other.norm()))
    return max(distances)


def chosen(accuracy: Tensor) -> int:
    """The head with the highest held-out accuracy, the smallest rate among equals."""
    return int((accuracy == accuracy.max()).nonzero()[0])


def report(name: str, values: str, target: str, met: bool) -> bool:
    """Print one line."""
    print(f"{name:<34} {values:<50} target {target:<10} {'met' if met else 'NOT MET'}", flush=True)
    return met


def compare(size: Size) -> bool:
    """Measure one size and print its three lines."""
    data = make(size)
    stacked(data, Size(size.dim, size.classes, size.batch, size.steps, 1, size.target))
    start = time.perf_counter()
    heads = stacked(data, size)
    mine = time.perf_counter() - start
    start = time.perf_counter()
    modules = separate(data, size)
    other = time.perf_counter() - start
    ours = train.measure(heads, data.held_features, data.held_labels).correct.double().mean(dim=1)
    with torch.no_grad():
        plain = torch.stack([(m(data.held_features).argmax(1) == data.held_labels).double().mean() for m in modules])
    name, far, same = (
        f"linear {size.dim}/{size.classes}/{size.batch}",
        distance(heads, modules),
        chosen(ours) == chosen(plain),
    )
    values = f"ours {mine:.2f} s  plain {other:.2f} s  ratio {other / mine:.2f}"
    return all(
        [
            report(name, values, f">= {size.target:g}", other >= size.target * mine),
            report(f"{name} weights", f"relative distance {far:.1e}", f"<= {CLOSE:g}", far <= CLOSE),
            report(f"{name} choice", f"rate {BASES[chosen(ours)]:g} and {BASES[chosen(plain)]:g}", "the same", same),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(description="linear sweep: stacked heads against separate modules")
    parser.add_argument("--quick", action="store_true", help="a quarter of the steps")
    share = 4 if parser.parse_args(arguments).quick else 1
    sizes = [Size(384, 100, 512, 40 // share, 5, 2), Size(192, 15, 128, 80 // share, 5, 4)]
    return 0 if all([compare(size) for size in sizes]) else 1


if __name__ == "__main__":
    sys.exit(main())
