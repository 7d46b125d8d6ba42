"""Bootstrap of a mean: the interval beside every score, and the paired comparison of two encoders.

What:   units (images, objects, queries) that share a group (the image that they were cut from) are resampled together;
        the statistic of a resample is the sum of its outcomes divided by the number of its units. Scores over classes
        (mIoU) are means of ratios of sums: there a unit's outcome is (2, C), what it adds above and below each class's
        fraction bar, and a resample leaves out the classes that it has nothing of.
Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 (percentile interval) and 16 (tests).
How:    groups with equal sum and equal size are exchangeable, so how often each *kind* of group is drawn follows one
        multinomial law. For outcomes such as right/wrong there are a handful of kinds, and 2,000 resamples of 50,000
        images cost microseconds, with exactly the distribution that drawing indices has. Where outcomes are continuous,
        indices are drawn in chunks of bounded size. Everything follows from `seed`; no global random state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.errors import ProtocolError, UsageError
from evalkit.metrics import intervals
from evalkit.metrics.intervals import FEWEST, NONE, Interval
from evalkit.types import Score

Floats = npt.NDArray[np.float64]

CHUNK = 1 << 21
"""Numbers drawn at once: bounds the memory to some 50 MB whatever the number of units."""

KINDS_SHARE = 16
"""A multinomial count costs about this many index draws; above that ratio of kinds to groups, indices are drawn."""


CLASSES = 1000
"""As many classes are told one by one (`by_class`)."""


ALPHA = 0.05
"""Two encoders are told apart by a p below this."""


@dataclass(frozen=True)
class Paired:
    """Two encoders on the same units.

    difference: mean of a minus mean of b. low, high: its interval, NaN for fewer than `FEWEST` groups and where all
    resamples are alike. p: two-sided, in (0, 1]: how often a resample puts the difference on the other side of zero,
    doubled; never below 2 / (resamples + 1) nor 2 ** (1 - D), the least that the signs of the D groups that differ can
    say; 1 where the two never differ; NaN for fewer than `FEWEST` groups.
    """

    difference: float
    low: float
    high: float
    p: float

    @property
    def apart(self) -> bool | None:
        """Whether the two differ: p is below `ALPHA` and the interval, where there is one, does not hold 0; None where
        there are too few groups to tell."""
        if math.isnan(self.p):
            return None
        return self.p < ALPHA and not self.low <= 0 <= self.high


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
    bounded: bool = True,
) -> Interval:
    """The interval of the mean outcome: percentiles of the bootstrap, or what `intervals` has where they say too little.

    outcomes: (n,) finite numbers, one per unit. groups: (n,) integers, units with the same number are resampled
    together; None makes every unit its own group. level: share of resamples inside, in (0, 1). Deterministic in seed.
    bounded: outcomes cannot leave [0, 1]. NaN bounds for fewer than `FEWEST` groups, and where all are alike, unless the
    exact interval of a proportion holds. Raises ProtocolError for outcomes that are not finite or not
    one-dimensional or that do not match groups, UsageError for a level or a number of resamples that cannot be.
    """
    _check_options(level, resamples)
    kinds = _kinds(_units(outcomes), groups)
    exact = intervals.of_shares(kinds.total / kinds.size, kinds.size, kinds.count, level) if bounded else None
    if exact is not None or kinds.count.sum() < FEWEST:
        return exact or NONE
    return intervals.of_resamples(_means(kinds, resamples, seed), int(kinds.count.sum()), level)


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

    a, b: (n,) finite outcomes of the two, in the same order of units, or (n, 2, C) as `ratios` makes them. groups, level,
    resamples, seed: as in `interval`. All numbers are NaN for n = 0; bounds and p as `Paired` has them. Raises
    as `interval`, and ProtocolError where a and b differ in length.
    """
    _check_options(level, resamples)
    if np.ndim(a) == 3 and np.ndim(b) == 3:
        return _paired_ratios(_fractions(a), _fractions(b), groups, level=level, resamples=resamples, seed=seed)
    first, second = _units(a), _units(b)
    if first.size != second.size:
        raise ProtocolError(
            f"a paired test needs the same units: {first.size} outcomes came for a, {second.size} for b"
        )
    difference = first - second
    mean = float(difference.mean()) if difference.size else float("nan")
    kinds = _kinds(difference, groups)
    units, differing = int(kinds.count.sum()), int(kinds.count[kinds.total != 0].sum())
    if units < FEWEST:
        return _few(mean, differs=bool(difference.any()), n=difference.size)
    return _judged(mean, _means(kinds, resamples, seed), level, units=units, differing=differing)


def paired_resamples(difference: float, a: npt.ArrayLike, b: npt.ArrayLike, *, level: float = 0.95) -> Paired:
    """Compare two encoders by a statistic on resamples, drawn alike for both, where no unit has an outcome of its own.

    difference: of the two on all units. a, b: (R,) the statistic of each on the same R resamples; where one is NaN, the
    resample is left out. Bounds and p are NaN where none is left: whoever draws them for too few units makes them NaN.
    Raises ProtocolError where a and b differ in length.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape:
        raise ProtocolError(f"a paired test needs the same resamples: {first.size} came for a, {second.size} for b")
    found = first - second
    found = found[~np.isnan(found)]
    if not found.size:
        return Paired(difference, float("nan"), float("nan"), float("nan"))
    return _judged(difference, found, level)


def _few(difference: float, *, differs: bool, n: int) -> Paired:
    """Of fewer than `FEWEST` groups nothing can be told, but that two that never differ do not."""
    return Paired(difference, float("nan"), float("nan"), float("nan") if differs or not n else 1.0)


def score(
    name: str,
    outcomes: Any,
    groups: Any | None = None,
    *,
    labels: Any | None = None,
    unit: str = "fraction",
    note: str = "",
    seed: int = 0,
) -> Score:
    """A `Score` whose value is the mean outcome, with its 95 % interval and the outcomes that it comes from.

    outcomes, groups: as in `interval`, arrays or CPU tensors; stored as float32 and int64. labels: (n,) class of each
    unit. unit: those of a "fraction" are bounded. An empty list gives NaN with n = 0. Raises as `interval`.
    """
    values = _units(outcomes)
    bounds = interval(values, groups, seed=seed, bounded=unit == "fraction")
    return Score(
        name=name,
        value=float(values.mean()) if values.size else float("nan"),
        n=values.size,
        low=bounds.low,
        high=bounds.high,
        unit=unit,
        note=note,
        interval=bounds.method,
        outcomes=values.astype(np.float32),
        groups=None if groups is None else np.asarray(groups, dtype=np.int64),
        labels=None if labels is None else np.asarray(labels, dtype=np.int64),
    )


def by_class(whole: Score, classes: Sequence[str], *, seed: int = 0) -> Iterator[Score]:
    """A `Score` "NAME/CLASS" for each class that has units, in the order of the ids; classes: their names.

    whole: with outcomes and labels. Nothing where it has none, and where there are more than `CLASSES`: nobody reads so
    many, and a record would be mostly them.
    """
    if whole.outcomes is None or whole.labels is None:
        return
    seen = np.unique(whole.labels)
    for label in seen if len(seen) <= CLASSES else ():
        own = whole.labels == label
        groups = None if whole.groups is None else whole.groups[own]
        yield score(f"{whole.name}/{classes[label]}", whole.outcomes[own], groups, unit=whole.unit, seed=seed)


def ratios(
    name: str,
    tops: Any,
    bottoms: Any,
    groups: Any | None = None,
    *,
    unit: str = "fraction",
    note: str = "",
    seed: int = 0,
) -> Score:
    """A `Score` whose value is the mean over classes of sum(tops) / sum(bottoms), with its 95 % interval.

    tops, bottoms: (n, C) finite, bottoms at least 0, arrays or CPU tensors: what each unit adds to each class. mIoU: the
    intersections and unions of each image. Classes whose bottoms sum to 0 are left out of the mean; so are, of n, units
    that add to no bottom. outcomes: (n, 2, C) float32. groups: as in `interval`. NaN with n = 0 where nothing is left.
    Raises ProtocolError for other shapes and for numbers that are not finite or bottoms below 0.
    """
    pair = _fractions(np.stack([np.asarray(tops, np.float64), np.asarray(bottoms, np.float64)], axis=1))
    counted = pair[:, 1].any(axis=1)
    numbers = None if groups is None else np.asarray(groups, dtype=np.int64)[counted]
    pair = pair[counted]
    bounds = _percentiles_of_ratios(pair, numbers, seed)
    return Score(
        name=name,
        value=statistic(pair),
        n=len(pair),
        low=bounds.low,
        high=bounds.high,
        unit=unit,
        note=note,
        interval=bounds.method,
        outcomes=pair.astype(np.float32),
        groups=numbers,
    )


def statistic(outcomes: npt.ArrayLike) -> float:
    """What stored outcomes come to: the mean of (n,), the mean of ratios of (n, 2, C); NaN for n = 0."""
    values = np.asarray(outcomes, dtype=np.float64)
    if values.ndim == 3:
        return float(_mean_of_ratios(values.sum(axis=0, keepdims=True))[0])
    return float(values.mean()) if values.size else float("nan")


def _fractions(outcomes: npt.ArrayLike) -> Floats:
    values = np.asarray(outcomes, dtype=np.float64)
    if values.ndim != 3 or values.shape[1] != 2:
        raise ProtocolError(f"outcomes of ratios are (n, 2, C); what came has shape {values.shape}")
    if not np.isfinite(values).all() or (values[:, 1] < 0).any():
        raise ProtocolError("outcomes of ratios are finite numbers, those below the bar at least 0")
    return values


def _mean_of_ratios(sums: Floats) -> Floats:
    """(R,) from sums (R, 2, C); NaN where no class has a bottom."""
    there = sums[:, 1] > 0
    shares = np.divide(sums[:, 0], sums[:, 1], out=np.zeros_like(sums[:, 0]), where=there)
    count = there.sum(axis=1)
    means: Floats = np.divide(shares.sum(axis=1), count, out=np.full(len(sums), np.nan), where=count > 0)
    return means


def _summed(values: Floats, groups: npt.ArrayLike | None) -> Floats:
    """(G, 2C): what each group adds."""
    flat: Floats = values.reshape(len(values), values.shape[1] * values.shape[2])
    if groups is None:
        return flat
    numbers = np.asarray(groups)
    if numbers.shape != values.shape[:1]:
        raise ProtocolError(f"every unit needs a group: {len(values)} outcomes, groups of shape {numbers.shape}")
    inverse = np.unique(numbers, return_inverse=True)[1].reshape(-1)
    total = np.zeros((int(inverse.max(initial=-1)) + 1, flat.shape[1]))
    np.add.at(total, inverse, flat)
    return total


def _resampled(totals: Floats, resamples: int, seed: int) -> Floats:
    """(resamples, W) sums of as many groups as there are, drawn with replacement; totals: (G, W)."""
    rng, groups = np.random.default_rng(seed), len(totals)
    sums = []
    for rows in _chunks(resamples, groups):
        drawn = rng.integers(0, groups, size=(rows, groups), dtype=np.int64)
        drawn += np.arange(rows)[:, None] * groups
        sums.append(np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups) @ totals)
    return np.concatenate(sums)


def _percentiles_of_ratios(values: Floats, groups: npt.ArrayLike | None, seed: int) -> Interval:
    totals = _summed(values, groups)
    if len(totals) < FEWEST:
        return NONE
    drawn = _mean_of_ratios(_resampled(totals, 2000, seed).reshape(2000, *values.shape[1:]))
    return intervals.of_resamples(drawn, len(totals))


def _paired_ratios(
    a: Floats, b: Floats, groups: npt.ArrayLike | None, *, level: float, resamples: int, seed: int
) -> Paired:
    if a.shape != b.shape:
        raise ProtocolError(f"a paired test needs the same units: outcomes {a.shape} came for a, {b.shape} for b")
    difference = statistic(a) - statistic(b)
    totals = _summed(np.concatenate([a, b], axis=1), groups)
    mine, theirs = np.split(totals, 2, axis=1)
    differing = int((mine != theirs).any(axis=1).sum())
    if len(totals) < FEWEST:
        return _few(difference, differs=bool(differing), n=len(a))
    sums = _resampled(totals, resamples, seed).reshape(resamples, 4, -1)
    drawn = _mean_of_ratios(sums[:, :2]) - _mean_of_ratios(sums[:, 2:])
    return _judged(difference, drawn, level, units=len(totals), differing=differing)


def _judged(difference: float, means: Floats, level: float, *, units: int = FEWEST, differing: int = 64) -> Paired:
    """units, differing: groups, and those among them that differ; many enough where only resamples are known."""
    bounds = intervals.of_resamples(means, units, level)
    other_side = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p = max(2 * (other_side + 1) / (len(means) + 1), 2.0 ** (1 - differing))
    return Paired(difference, bounds.low, bounds.high, min(1.0, p))


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
