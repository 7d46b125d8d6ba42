"""Speed and memory of object retrieval: ours against the released procedure, in one run.

What:   4,000 crops of 384 dimensions in 10 classes, each asking all others. released: cosine by broadcasting in batches
        of 16 queries and one call of scikit-learn per query, written here from the description of
        JiePKU/understand-ssl-part-aware ffea818, pr_patch_retrieval.py:341-364; on some of the queries, since all of
        them would take minutes. memory: the growth of this process over 60,000 crops, whose blocks are all alike, so
        that some of them are enough.
Run:    python bench/retrieval.py [--quick] [--threads N]. Each line: name, values, target, met or NOT MET; exit code 1
        where not met.
Expect: at least 50 times as fast per query, the same average precision to 1e-4 (cosines that differ in their
        last bit swap neighbours), less than 2 GB at 60,000.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence

import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional as F

from evalkit.metrics.ranking import LeaveOneOut, leave_one_out

BATCH = 16
"""Queries that the released procedure broadcasts at once."""

REPEATS = 3
LIMIT = 2.0e9


def make(rows: int, dim: int, classes: int) -> tuple[Tensor, Tensor]:
    """Noisy class centres, so that there is something to find; the same every time."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (rows,), generator=rng)
    centres = torch.randn(classes, dim, generator=rng)
    return centres[labels] + 3 * torch.randn(rows, dim, generator=rng), labels


def released(rows: Tensor, labels: Tensor, queries: int) -> Tensor:
    """Average precision of the first queries, which count as their own match there."""
    found = []
    for start in range(0, queries, BATCH):
        part = rows[start : start + BATCH]
        similarity = F.cosine_similarity(part[:, None], rows[None], 2)
        for row, label in zip(similarity, labels[start : start + BATCH], strict=True):
            found.append(average_precision_score((labels == label).int().numpy(), row.numpy()))
    return torch.tensor(found, dtype=torch.float64)


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


def speed(rows: int, queries: int) -> bool:
    """Ours on all queries, the released procedure on some; time per query, and the largest difference."""
    features, labels = make(rows, 384, 10)
    mine = fastest(lambda: leave_one_out(features, labels, itself=True), REPEATS) / rows
    other = fastest(lambda: released(features, labels, queries), REPEATS) / queries
    wrong = float(
        (leave_one_out(features, labels, itself=True)[:queries] - released(features, labels, queries)).abs().max()
    )
    values = f"ours {mine * 1e3:.3f} ms  released {other * 1e3:.1f} ms per query  ratio {other / mine:.0f}"
    return all(
        [
            report(f"retrieval {rows}x{rows}", values, ">= 50", other >= 50 * mine),
            report("average precision", f"largest difference {wrong:.1e}", "<= 1e-4", wrong <= 1e-4),
        ]
    )


def memory(rows: int, blocks: int) -> bool:
    """Peak of the process over what it was with the features alone."""
    features, labels = make(rows, 384, 10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rankings = LeaveOneOut.of(features, labels)
    start, done = time.perf_counter(), 0
    for number, (index, _) in enumerate(rankings, 1):
        done += len(index)
        if number == blocks:
            break
    each = (time.perf_counter() - start) / done
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before + features.nbytes
    values = f"{peak / 1e9:.2f} GB with features  {each * 1e3:.2f} ms per query: {each * rows:.0f} s for all"
    return report(f"memory {rows}x{rows}", values, "< 2 GB", peak < LIMIT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(description="object retrieval: ours against the released procedure")
    parser.add_argument("--quick", action="store_true", help="fewer queries of the released procedure")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    return 0 if all([memory(60_000, 4), speed(4_000, 32 if options.quick else 96)]) else 1


if __name__ == "__main__":
    sys.exit(main())
