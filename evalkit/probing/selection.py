"""Which candidate of a sweep is taken, and which one the test split would have taken: one rule for heads, penalties and
thresholds.

Rule:   the candidate with the lowest held-out loss; of equal losses the one that is listed first. A score that counts
        images moves in steps, and the best of many candidates is ahead of the next by an image or two; heads at high rates
        oscillate, so that a rounding in the features moves their count, and with it any bound that is taken from the
        best of them (of 18 rates, 11 lay within one standard error of the best, after a rounding 2). The loss is smooth,
        and lowest where training converges: neither an image nor a rounding decides. A score that is itself smooth
        (mean F1, mean IoU) is its own loss. How far the choice is behind the best score, and how many candidates lie
        within one standard error of that, is told.
Source: cross-validated by deviance, as glmnet does for (multinomial) logistic regression: Friedman, Hastie, Tibshirani,
        Regularization Paths for Generalized Linear Models, Journal of Statistical Software 33(1), 2010, section 5. The
        standard error of a held-out score: Breiman, Friedman, Olshen, Stone, Classification and Regression Trees, 1984,
        section 3.4.3.
Edge:   a sweep that ends at the first or last value of its grid measures the grid: a better value may lie beyond. The fact
        "choices" says so, and console and tables read it from there (`evalkit.reporting.choices`).
Test:   design rule 4. The released scripts choose head and epoch on the test split (facebookresearch/dino 7c446df
        eval_linear.py: the best epoch; bytedance/ibot da316d8 eval_linear_multi.py: the best head of the best epoch): that
        is the extra score "best-on-test".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from evalkit.errors import ProtocolError
from evalkit.probing import train
from evalkit.probing.heads import Heads

DIGITS = 9
"""Losses are compared to so many decimals: the order of a sum is no difference."""


@dataclass(frozen=True)
class Choice:
    """index: the candidate taken. score: its mean held-out outcome, NaN where nothing was held out; best: the highest of any
    candidate. held_out: outcomes behind it. near: candidates within one standard error of the best. candidates: how many
    there were."""

    index: int
    score: float
    best: float
    held_out: int
    near: int
    candidates: int


def choose(outcomes: Tensor, loss: Tensor | None = None, alive: Tensor | None = None) -> Choice:
    """The candidate that the rule of this module takes.

    outcomes: (H, n) of each candidate on each held-out unit, higher is better, any real dtype; n = 0 where nothing was held
    out: then the first candidate that lives. Candidates are listed as they are preferred. loss: (H,) lower is better;
    without it, minus the mean outcome. alive: (H,) bool, those that may be taken; all without. Raises ProtocolError where
    none is.
    """
    count, held = outcomes.shape
    may = torch.ones(count, dtype=torch.bool) if alive is None else alive.cpu()
    if not bool(may.any()):
        raise ProtocolError(f"none of {count} candidates can be chosen")
    places = may.nonzero().flatten().tolist()
    if not held:
        return Choice(places[0], math.nan, math.nan, 0, len(places), count)
    rows = outcomes.cpu().double()
    mean = rows.mean(dim=1)
    lost = torch.round(-mean if loss is None else loss.cpu().double(), decimals=DIGITS)
    index = min(places, key=lambda place: float(lost[place]))  # the first of equals
    best = max(places, key=lambda place: float(mean[place]))
    error = float(rows[best].std(correction=0)) / held**0.5
    near = int((may & (mean >= mean[best] - error)).sum())
    return Choice(index, float(mean[index]), float(mean[best]), held, near, count)


def edge(grid: Sequence[float], chosen: float) -> Literal["lowest", "highest"] | None:
    """Where on the grid the chosen value lies, if at an end of it; a grid of one value has no end."""
    if len(set(grid)) < 2 or min(grid) < chosen < max(grid):
        return None
    return "lowest" if chosen == min(grid) else "highest"


def fact(
    what: str, grid: Sequence[float], chosen: float, choice: Choice, *, folds: int = 0, **more: Any
) -> dict[str, Any]:
    """One entry of the fact "choices", which is filed under the name of the score that the choice decides.

    what: that is chosen, such as "base rate". grid: its values. folds: of cross-validation, 0 for one held-out share.
    more: what was chosen along with it.
    """
    return {
        "what": what, "chosen": chosen, "lowest": min(grid), "highest": max(grid), "values": len(set(grid)),
        "edge": edge(grid, chosen) if choice.held_out else None, "held_out": choice.held_out, "folds": folds, "score": choice.score,
        "best_score": choice.best, "candidates": choice.candidates, "within_one_standard_error": choice.near, **more,
    }  # fmt: skip


class BestOnTest:
    """Remembers what the best head got right on the test split whenever it looked; the first of equals stays.

    stacks: in training. inputs: (n, D) test features by the same names. labels: (n,) int64, on the device of the heads.
    """

    def __init__(self, stacks: Mapping[str, Heads], inputs: Mapping[str, Tensor], labels: Tensor) -> None:
        self._stacks, self._inputs, self._labels = stacks, inputs, labels
        self.best = torch.zeros(0, len(labels), dtype=torch.bool)

    def look(self) -> None:
        """Measure every head as it is now."""
        rows = [self.best]
        for name, heads in self._stacks.items():
            rows.append(train.measure(heads, self._inputs[name], self._labels).correct)
        every = torch.cat(rows)
        self.best = every[max(range(len(every)), key=lambda index: int(every[index].sum()))].unsqueeze(0)

    def state(self) -> dict[str, Tensor]:
        """What was seen."""
        return {"best": self.best}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self.best = state["best"]
