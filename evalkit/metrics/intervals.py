"""Which interval a score may have: the percentile bootstrap, the exact one of Clopper and Pearson, or none.

What:   the bootstrap shows how far a score moves with its units; where all units are alike it shows nothing, and where
        there are few it shows too little. A proportion that is (nearly) 0 or 1 has the exact interval instead; whatever
        else cannot be told has none. `bootstrap.score`, `bootstrap.ratios` and the runners that resample by themselves
        all ask here.
Source: Clopper and Pearson, Biometrika 26 (1934), 404-413. Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
        chapter 13 (percentiles). Hesterberg, What Teachers Should Know About the Bootstrap, 2015 (arXiv:1411.5279):
        percentile intervals are too narrow for few units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evalkit.types import IntervalMethod

Floats = npt.NDArray[np.float64]

FEWEST = 10
"""Units below which the bootstrap gives no interval. Hesterberg 2015: the percentiles of a mean of n normal outcomes are
narrow by sqrt((n - 1) / n) and use the normal where Student's t is due; of nominal 95 % that leaves 90 % for 10 units,
85 % for 5 and 60 % for 2. A proportion is taken as (nearly) 0 or 1 where fewer than so many units are of the rarer kind,
the rule of np >= 10 of textbooks."""

SPREAD = 1e-9
"""Resamples that differ by less than this share of their size are equal: sums are rounded."""


@dataclass(frozen=True)
class Interval:
    """Bounds in the unit of the outcomes and how they were found; NaN where nothing is known ("none")."""

    low: float
    high: float
    method: IntervalMethod = "bootstrap"


NONE = Interval(float("nan"), float("nan"), "none")


def clopper_pearson(count: int, n: int, level: float = 0.95) -> Interval:
    """The exact interval of a proportion, count of n independent units; it covers with at least `level`, whatever is true.

    For 0 of n it is [0, 1 - ((1 - level) / 2) ** (1 / n)], about 3.7 / n: the rule of three for both sides. Where all
    outcomes in [0, 1] are 0, or all 1, it holds for their mean too: P(all are 1) is at most mean ** n.
    """
    from scipy.special import betaincinv  # slow to import

    tail = (1 - level) / 2
    low = float(betaincinv(count, n - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, n - count, 1 - tail)) if count < n else 1.0
    return Interval(low, high, "clopper-pearson")


def of_resamples(values: npt.ArrayLike, units: int, level: float = 0.95) -> Interval:
    """Percentiles of a statistic on resamples, of how many units they were; NaN among them are left out.

    None for fewer than `FEWEST` units, and where the resamples are all alike: no spread is no certainty.
    """
    there = np.asarray(values, np.float64)
    there = there[~np.isnan(there)]
    if units < FEWEST or not there.size or np.ptp(there) <= SPREAD * np.abs(there).max():
        return NONE
    low, high = np.quantile(there, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def of_shares(shares: Floats, sizes: Floats, counts: npt.NDArray[np.int64], level: float) -> Interval | None:
    """The exact interval of a mean of outcomes in [0, 1] where it is the right one; None where the bootstrap is asked.

    Units come in kinds: shares (V,) mean outcome, sizes (V,) outcomes in a unit, counts (V,) units. It is right where all
    outcomes are 0 or all are 1, and where units of one size are all 0 or 1 and fewer than `FEWEST` are of one kind.
    """
    units = int(counts.sum())
    right = shares == 1
    if units < 2 or not (right | (shares == 0)).all():
        return None
    count = int(counts[right].sum())
    alike, one_size = count in (0, units), bool((sizes == sizes[0]).all())
    if not alike and not (one_size and min(count, units - count) < FEWEST):
        return None
    return clopper_pearson(count, units, level)
