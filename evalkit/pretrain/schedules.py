"""Values that change over a run: learning rate, weight decay, the teacher's momentum and temperature.

`cosine` is the half cosine of SGDR without restarts (Loshchilov & Hutter 2017, arXiv:1608.03983), as DINO, Mugs, MAE and
MoCo v3 use it; `linear` is the warm-up of each.
"""

from __future__ import annotations

import math


def cosine(start: float, end: float, done: float) -> float:
    """From start (done = 0) to end (done = 1, and after) on half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0))) / 2


def linear(start: float, end: float, done: float) -> float:
    """From start (done = 0) to end (done = 1, and after) on a line."""
    return start + (end - start) * min(max(done, 0.0), 1.0)


def warmed(peak: float, end: float, *, at: float, warmup: float, total: float) -> float:
    """Linear from 0 to `peak` while `at` < `warmup`, then on half a cosine to `end` at `total`; all three in one unit."""
    if at < warmup:
        return linear(0.0, peak, at / warmup)
    return cosine(peak, end, (at - warmup) / max(total - warmup, 1e-12))
