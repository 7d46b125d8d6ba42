"""Learning rates over time, as factors of the peak rate.

What:   `cosine` falls from 1 to 0; `factor` says how far along a run is, counted in epochs (DINO's linear probe,
        facebookresearch/dino 7c446df eval_linear.py: the rate changes between epochs) or in steps (DINOv2's, MAE's),
        after a linear warm-up where there is one (MAE: facebookresearch/mae efb2a80 util/lr_sched.py).
        `peak` is the linear scaling rule of those papers: base rate x batch / 256.
"""

from __future__ import annotations

import math
from typing import Literal

from evalkit.errors import UsageError

Schedule = Literal["epoch", "iteration", "constant"]


def cosine(done: float) -> float:
    """0.5 (1 + cos(pi done)): 1 at done = 0, 0 at done = 1 and after. done: share of the run that lies behind, >= 0."""
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def factor(
    schedule: Schedule,
    *,
    epoch: int,
    epochs: float,
    step: int,
    steps: int,
    warmup: float = 0.0,
    lowest: float = 0.0,
) -> float:
    """What the peak rate is multiplied by, in [0, 1].

    epoch: from 0, of `epochs`, which may end within one. step: within the epoch, from 0, of `steps`. "epoch": cosine of
    epoch / epochs, so the last epoch still learns; "iteration": cosine of all steps done; "constant": 1. warmup: epochs
    of linear growth from 0, before the cosine begins. lowest: share of the peak rate that the cosine falls to.
    Raises UsageError for an unknown schedule.
    """
    if schedule not in ("epoch", "iteration", "constant"):
        raise UsageError(f"schedule is {schedule!r}; it can be epoch, iteration or constant")
    done = epoch if schedule == "epoch" else epoch + step / steps
    if done < warmup:
        return done / warmup
    if schedule == "constant":
        return 1.0
    return lowest + (1 - lowest) * cosine((done - warmup) / (epochs - warmup))


def peak(base: float, batch: int) -> float:
    """The rate that is applied: base x batch / 256, with the batch that is really used."""
    return base * batch / 256
