"""How an interval is printed, the same everywhere: half of it, its bounds where the value need not lie in its middle, or
that there is none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from evalkit.metrics.intervals import FEWEST
from evalkit.types import IntervalMethod

NOTES: Mapping[IntervalMethod, str] = {
    "clopper-pearson": "[a, b] is the exact 95 % interval of a proportion (Clopper and Pearson), where (nearly) all test "
    "images are right or wrong and the bootstrap says too little",
    "none": f"no interval: fewer than {FEWEST} images (groups of them, videos) to resample, or a spread of nothing",
}
"""What stands under a table that has such an interval; of the bootstrap the table itself speaks."""


def printed_in(unit: str) -> tuple[float, int, str]:
    """How a score of this unit is printed: the factor, the decimals, the sign. Fractions are percentages."""
    return (100.0, 1, "%") if unit == "fraction" else (1.0, 3, unit)


def method(score: Mapping[str, Any]) -> IntervalMethod:
    """How a record's score got its interval; "none" where its bounds are NaN."""
    low, high = score["low"], score["high"]
    if low is None or high is None or math.isnan(high - low):
        return "none"
    found: IntervalMethod = score.get("interval", "bootstrap")
    return found


def spread(score: Mapping[str, Any], *, scale: float, digits: int) -> str:
    """` ± 4.1`, ` [0.0, 16.8]` or ` (n 6: no interval)`: what follows a score's value, times `scale`."""
    low, high = (math.nan if score[key] is None else score[key] * scale for key in ("low", "high"))
    how = method(score)
    if how == "none":
        return f" (n {score['n']}: no interval)" if score["n"] else ""
    if how == "clopper-pearson":
        return f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f" ± {(high - low) / 2:.{digits}f}"


def notes(methods: Iterable[str]) -> list[str]:
    """The sentences that a table with these needs, in a fixed order."""
    there = set(methods)
    return [sentence for how, sentence in NOTES.items() if how in there]
