"""Learning rates over time, as factors of the peak rate.

What:   `cosine` falls from 1 to 0; `factor` says how far along a run is, counted in epochs (DINO's linear probe,
        facebookresearch/dino 7c446df eval_linear.py: the rate changes between epochs) or in steps (DINOv2's).
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


def factor(schedule: Schedule, *, epoch: int, epochs: int, step: int, steps: int) -> float:
    """What the peak rate is multiplied by, in [0, 1].

    epoch: from 0, of `epochs`. step: within the epoch, from 0, of `steps`. "epoch": cosine of epoch / epochs, so the
    last epoch still learns; "iteration": cosine of all steps done; "constant": 1.
    Raises UsageError for an unknown schedule.
    """
    if schedule == "epoch":
        return cosine(epoch / epochs)
    if schedule == "iteration":
        return cosine((epoch + step / steps) / epochs)
    if schedule == "constant":
        return 1.0
    raise UsageError(f"schedule is {schedule!r}; it can be epoch, iteration or constant")


def peak(base: float, batch: int) -> float:
    """The rate that is applied: base x batch / 256, with the batch that is really used."""
    return base * batch / 256
