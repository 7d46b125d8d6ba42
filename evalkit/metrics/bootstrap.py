"""Percentile bootstrap of a mean: the interval beside every score, and the paired comparison of two encoders.

What:   units (images, objects, queries) that share a group (the image that they were cut from) are resampled together;
        the statistic of a resample is the sum of its outcomes divided by the number of its units.
Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 (percentile interval) and 16 (tests).
How:    groups with equal sum and equal size are exchangeable, so how often each *kind* of group is drawn follows one
        multinomial law. For outcomes such as right/wrong there are a handful of kinds, and 2,000 resamples of 50,000
        images cost microseconds, with exactly the distribution that drawing indices has. Where outcomes are continuous,
        indices are drawn in chunks of bounded size. Everything follows from `seed`; no global random state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.errors import ProtocolError, UsageError
from evalkit.types import Score

Floats = npt.NDArray[np.float64]

CHUNK = 1 << 21
"""Numbers drawn at once: bounds the memory to some 50 MB whatever the number of units."""

KINDS_SHARE = 16
"""A multinomial count costs about this many index draws; above that ratio of kinds to groups, indices are drawn."""


@dataclass(frozen=True)
class Interval:
    """Bounds in the unit of the outcomes; NaN where fewer than two groups leave nothing to resample."""

    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """Two encoders on the same units.

    difference: mean of a minus mean of b. low, high: its interval. p: two-sided, in (0, 1]: how often a resample puts
    the difference on the other side of zero, doubled; 1 where the two never differ; never 0, because that is more than
    a finite number of resamples can say.
    """

    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class _Kinds:
    """Groups that cannot be told apart, counted: total (V,) sum of outcomes, size (V,) units, count (V,) groups."""

    total: Floats
    size: Floats
    count: npt.NDArray[np.int64]


def interval(
    outcomes: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of the mean outcome.

    outcomes: (n,) finite numbers, one per unit. groups: (n,) integers, units with the same number are resampled
    together; None makes every unit its own group. level: share of resamples inside, in (0, 1). Deterministic in seed.
    Returns NaN bounds for n = 0 and for a single group. Raises ProtocolError for outcomes that are not finite or not
    one-dimensional or that do not match groups, UsageError for a level or a number of resamples that cannot be.
    """
    _check_options(level, resamples)
    kinds = _kinds(_units(outcomes), groups)
    if kinds.count.sum() < 2:
        return Interval(float("nan"), float("nan"))
    return _percentiles(_means(kinds, resamples, seed), level)


def paired(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Paired:
    """Compare two encoders on the same units, each resample drawing the same units for both.

    a, b: (n,) finite outcomes of the two, in the same order of units. groups, level, resamples, seed: as in `interval`.
    All numbers are NaN for n = 0; the bounds and p are NaN for a single group. Raises as `interval`, and ProtocolError
    where a and b differ in length.
    """
    _check_options(level, resamples)
    first, second = _units(a), _units(b)
    if first.size != second.size:
        raise ProtocolError(
            f"a paired test needs the same units: {first.size} outcomes came for a, {second.size} for b"
        )
    difference = first - second
    mean = float(difference.mean()) if difference.size else float("nan")
    kinds = _kinds(difference, groups)
    if kinds.count.sum() < 2:
        return Paired(mean, float("nan"), float("nan"), float("nan"))
    means = _means(kinds, resamples, seed)
    bounds = _percentiles(means, level)
    other_side = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return Paired(mean, bounds.low, bounds.high, min(1.0, 2 * (other_side + 1) / (resamples + 1)))


def score(
    name: str,
    outcomes: Any,
    groups: Any | None = None,
    *,
    unit: str = "fraction",
    note: str = "",
    seed: int = 0,
) -> Score:
    """A `Score` whose value is the mean outcome, with its 95 % interval and the outcomes that it comes from.

    outcomes, groups: as in `interval`, arrays or CPU tensors; stored as float32 and int64. An empty list gives NaN with
    n = 0. Raises as `interval`.
    """
    values = _units(outcomes)
    bounds = interval(values, groups, seed=seed)
    return Score(
        name=name,
        value=float(values.mean()) if values.size else float("nan"),
        n=values.size,
        low=bounds.low,
        high=bounds.high,
        unit=unit,
        note=note,
        outcomes=values.astype(np.float32),
        groups=None if groups is None else np.asarray(groups, dtype=np.int64),
    )


def _check_options(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise UsageError(f"the level of an interval is {level}; it must lie between 0 and 1, as 0.95")
    if resamples < 1:
        raise UsageError(f"{resamples} resamples were asked for; at least 1 is needed")


def _units(outcomes: npt.ArrayLike) -> Floats:
    values = np.asarray(outcomes, dtype=np.float64)
    if values.ndim != 1:
        raise ProtocolError(f"outcomes are one number per unit, shape (n,); what came has shape {values.shape}")
    wrong = np.flatnonzero(~np.isfinite(values))
    if wrong.size:
        raise ProtocolError(f"{wrong.size} of {values.size} outcomes are not finite, the first at unit {wrong[0]}")
    return values


def _kinds(values: Floats, groups: npt.ArrayLike | None) -> _Kinds:
    if groups is None:
        totals: Floats = values
        sizes: Floats = np.ones_like(values)
    else:
        numbers = np.asarray(groups)
        if numbers.shape != values.shape:
            raise ProtocolError(f"every unit needs a group: {values.size} outcomes, groups of shape {numbers.shape}")
        inverse = np.unique(numbers, return_inverse=True)[1].reshape(-1)
        totals = np.bincount(inverse, weights=values).astype(np.float64)
        sizes = np.bincount(inverse).astype(np.float64)
    pairs, count = np.unique(np.stack([totals, sizes], axis=1), axis=0, return_counts=True)
    return _Kinds(pairs[:, 0], pairs[:, 1], count.astype(np.int64))


def _means(kinds: _Kinds, resamples: int, seed: int) -> Floats:
    """(resamples,) ratio of sums of each resample."""
    draw = _by_kind if kinds.count.size * KINDS_SHARE <= kinds.count.sum() else _by_index
    return draw(kinds, resamples, np.random.default_rng(seed))


def _by_kind(kinds: _Kinds, resamples: int, rng: np.random.Generator) -> Floats:
    groups = int(kinds.count.sum())
    means = []
    for rows in _chunks(resamples, kinds.count.size):
        drawn = rng.multinomial(groups, kinds.count / groups, size=rows).astype(np.float64)
        means.append((drawn @ kinds.total) / (drawn @ kinds.size))
    return np.concatenate(means)


def _by_index(kinds: _Kinds, resamples: int, rng: np.random.Generator) -> Floats:
    total, size = np.repeat(kinds.total, kinds.count), np.repeat(kinds.size, kinds.count)
    equal_sizes = kinds.size.min() == kinds.size.max()
    means = []
    for rows in _chunks(resamples, total.size):
        index = rng.integers(0, total.size, size=(rows, total.size), dtype=np.int32)
        units = size[:1] * total.size if equal_sizes else size[index].sum(axis=1)
        means.append(total[index].sum(axis=1) / units)
    return np.concatenate(means)


def _chunks(resamples: int, width: int) -> list[int]:
    rows = max(1, CHUNK // width)
    return [min(rows, resamples - start) for start in range(0, resamples, rows)]


def _percentiles(means: Floats, level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))
