"""Speed and memory of scoring part retrieval: ours against the released procedure, in one run.

What:   4,000 crops of 768 dimensions in 4 parts, each asking all, itself included. released: cosine by broadcasting in
        batches of 16 queries and one call of scikit-learn per query, then the means over queries and over parts, written
        here from the description of JiePKU/understand-ssl-part-aware ffea818, pr_patch_retrieval.py:320-394. All of its
        queries take some minutes, so it asks a number of them, spread over the parts, and the rest is extrapolated: every
        query costs the same. ours: all queries, features to both means.
        100,000 crops: the growth of this process and the time per query over some blocks, which are all alike; `--whole`
        runs all of them.
Run:    python bench/part_retrieval.py [--quick] [--whole] [--threads N]. Each line: name, values, target, met or NOT MET;
        exit code 1 where not met.
Expect: at least 70 times as fast, both means of the same queries equal to 1e-6; less than 4 GB at 100,000, and less time
        than the released procedure would take divided by that ratio.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional as F

from evalkit.metrics.ranking import LeaveOneOut
from evalkit.metrics.retrieval import average_precision, over_classes

BATCH = 16
"""Queries that the released procedure broadcasts at once."""

DIM, PARTS = 768, 4
SPEED, MEMORY, EQUAL = 70, 4.0e9, 1e-6


def make(rows: int) -> tuple[Tensor, Tensor]:
    """Noisy centres of parts, so that there is something to find; the same every time."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(PARTS, (rows,), generator=rng)
    centres = torch.randn(PARTS, DIM, generator=rng)
    return torch.randn(rows, DIM, generator=rng).mul_(4).add_(centres[labels]), labels


def released(features: Tensor, labels: Tensor, queries: int) -> tuple[Tensor, float, float]:
    """AP of the first queries, and its means over queries and over parts."""
    masks = [(labels == part).int().numpy() for part in range(PARTS)]
    found = []
    for start in range(0, queries, BATCH):
        part = features[start : start + BATCH]
        similarity = F.cosine_similarity(part[:, None], features[None], 2)
        for row, label in zip(similarity, labels[start : start + BATCH].tolist(), strict=True):
            found.append(average_precision_score(masks[label], row.numpy()))
    precision = torch.tensor(found, dtype=torch.float64)
    return precision, *means(precision, labels[:queries])


def ours(features: Tensor, labels: Tensor) -> Tensor:
    """(N,) AP of all queries, with both means made as the runner makes them."""
    precision = average_precision(features, labels, exclude_self=False)
    means(precision, labels)
    return precision


def means(precision: Tensor, labels: Tensor) -> tuple[float, float]:
    """Over queries, and over parts."""
    return float(precision.double().mean()), float(over_classes(precision, labels).mean())


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def report(name: str, values: str, target: str, met: bool) -> bool:
    """Print one line."""
    print(f"{name:<22} {values:<78} target {target:<8} {'met' if met else 'NOT MET'}", flush=True)
    return met


def speed(rows: int, queries: int, repeats: int) -> tuple[bool, float]:
    """Both sides in turn, the fastest of each; whether the targets are met, and seconds per pair of the released side."""
    features, labels = make(rows)
    mine, theirs = [], []
    for _ in range(repeats):
        theirs.append(timed(lambda: released(features, labels, queries)) / queries * rows)
        mine.append(timed(lambda: ours(features, labels)))
    ratio = min(theirs) / min(mine)
    reference, over_queries, over_parts = released(features, labels, queries)
    precision = ours(features, labels)[:queries].double()
    ap, mean = means(precision, labels[:queries])
    wrong = max(abs(ap - over_queries), abs(mean - over_parts))
    each = float((precision - reference).abs().max())
    of = "" if queries == rows else f" (from {queries} queries)"
    values = f"ours {min(mine):.2f} s  released {min(theirs):.0f} s{of}  ratio {ratio:.0f}"
    met = [
        report(f"{rows} x {DIM}", values, f">= {SPEED}", ratio >= SPEED),
        report("AP, mAP", f"largest difference {wrong:.1e}; of one query {each:.1e}", f"<= {EQUAL:g}", wrong <= EQUAL),
    ]
    return all(met), min(theirs) / rows**2


@dataclass(frozen=True)
class Large:
    """What many rows cost. seconds: for all queries; asked: how many were asked; peak: bytes, features included."""

    rows: int
    seconds: float
    asked: int
    peak: float


def large(rows: int, blocks: int | None) -> Large:
    """Ours on many rows, some blocks of queries or all; before anything else, since a process's peak never falls."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    features, labels = make(rows)
    start, done = time.perf_counter(), 0
    rankings = LeaveOneOut.of(features, labels, itself=True)
    sorting = time.perf_counter() - start
    start = time.perf_counter()
    for number, (index, _) in enumerate(rankings, 1):
        done += len(index)
        if number == blocks:
            break
    taken = sorting + (time.perf_counter() - start) * rows / done
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return Large(rows, taken, done, peak)


def told(measured: Large, pair: float) -> bool:
    """Whether time and memory of many rows are within their targets. pair: seconds of the released side per pair."""
    of = "" if measured.asked == measured.rows else f" (from {measured.asked} queries)"
    allowed = pair * measured.rows**2 / SPEED
    name, values = f"{measured.rows} x {DIM}", f"ours {measured.seconds:.0f} s{of}"
    met = [
        report(name, values, f"< {allowed:.0f} s", measured.seconds < allowed),
        report("memory", f"{measured.peak / 1e9:.2f} GB with the features", "< 4 GB", measured.peak < MEMORY),
    ]
    return all(met)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(description="part retrieval: ours against the released procedure")
    parser.add_argument("--quick", action="store_true", help="fewer queries of the released procedure, fewer blocks")
    parser.add_argument("--whole", action="store_true", help="all queries of 100,000, which takes many minutes")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    measured = large(100_000, None if options.whole else 2 if options.quick else 8)
    fast, pair = speed(4_000, 64 if options.quick else 256, 2 if options.quick else 3)
    return 0 if all([fast, told(measured, pair)]) else 1


if __name__ == "__main__":
    sys.exit(main())
