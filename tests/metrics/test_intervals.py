"""No number claims certainty that it does not have: which interval a score gets, and that it covers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from evalkit.metrics import bootstrap, intervals, video
from evalkit.metrics.intervals import FEWEST, clopper_pearson


def right_of(count: int, n: int) -> np.ndarray:
    return (np.arange(n) < count).astype(float)


@pytest.mark.parametrize("count", [0, 1, 7, 19, 20])
def test_the_exact_interval_is_that_of_scipy(count: int) -> None:
    mine, theirs = clopper_pearson(count, 20), binomtest(count, 20).proportion_ci()
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize("n", [5, 10, 20, 100])
def test_the_rule_covers_every_proportion(n: int) -> None:
    """Exactly, not by simulation: right or wrong, an interval depends on how many are right alone."""
    found = [bootstrap.interval(right_of(count, n)) for count in range(n + 1)]
    low, high = np.array([i.low for i in found]), np.array([i.high for i in found])
    for p in (0.001, 0.02, *np.linspace(0.05, 0.95, 91), 0.98, 0.999):
        covered = binom.pmf(np.arange(n + 1), n, p)[(low <= p) & (p <= high)].sum()
        assert covered >= (0.95 if p in (0.001, 0.02, 0.98) else 0.92), (n, p)


def test_groups_of_nearly_perfect_outcomes_are_covered() -> None:
    """Simulated: in each of 20 videos three objects share their outcome, which is 1 but for one video in fifty."""
    rng, held, trials = np.random.default_rng(0), 0, 400
    for seed in range(trials):
        outcomes = np.repeat(np.where(rng.random(20) < 0.98, 1, rng.random(20)), 3)
        found = bootstrap.interval(outcomes, np.repeat(np.arange(20), 3), resamples=400, seed=seed)
        held += found.low <= 0.99 <= found.high
    assert held / trials >= 0.93


@pytest.mark.parametrize(
    ("outcomes", "groups", "method"),
    [
        (right_of(0, 20), None, "clopper-pearson"),  # 0.0 % of 20
        (right_of(20, 20), None, "clopper-pearson"),
        (right_of(1, 20), None, "clopper-pearson"),  # nearly 0
        (right_of(100, 200), None, "bootstrap"),
        (right_of(3, 6), None, "clopper-pearson"),  # few, but right or wrong and independent
        (np.full(20, 0.5), None, "none"),  # all alike, and nothing bounds them there
        (np.linspace(0.3, 0.6, 9), None, "none"),  # few
        (np.linspace(0.3, 0.6, 10), None, "bootstrap"),
        (right_of(6, 6), [0, 0, 0, 1, 1, 1], "clopper-pearson"),  # of two videos
        (right_of(3, 40), np.arange(40) // 2, "bootstrap"),  # units of a photo are not independent
        (right_of(3, 18), np.arange(18) // 2, "none"),
        (right_of(1, 1), None, "none"),
    ],
)
def test_which_interval(outcomes: np.ndarray, groups: object, method: str) -> None:
    found = bootstrap.score("top1", outcomes, groups)
    assert found.interval == method
    if method == "none":
        assert math.isnan(found.low) and math.isnan(found.high)
    else:
        assert found.low < found.high and found.low <= found.value <= found.high


def test_groups_count_not_their_units() -> None:
    together = bootstrap.score("J&F", right_of(60, 60), np.arange(60) // 5)
    assert (together.low, together.high) == (clopper_pearson(12, 12).low, 1)


def test_what_zero_does_not_bound_has_no_interval_there() -> None:
    assert bootstrap.score("cls", np.zeros(30), unit="variance").interval == "none"
    clips = [video.ClipScore(np.ones((1, 4)), np.ones((1, 4))) for _ in range(12)]
    found = {score.name: score.interval for score in video.scores(clips)}
    assert found["J&F"] == "clopper-pearson" and found["J-decay"] == "none"


def test_ratios_of_sums_have_no_exact_interval() -> None:
    same = bootstrap.ratios("mIoU", np.ones((30, 4)), np.ones((30, 4)))
    assert (same.value, same.interval) == (1, "none")
    few = bootstrap.ratios("mIoU", *np.random.default_rng(0).random((2, 9, 4)))
    assert few.interval == "none"


def test_resamples_need_units_and_spread() -> None:
    drawn = np.random.default_rng(0).random(500)
    assert intervals.of_resamples(drawn, FEWEST).method == "bootstrap"
    for values, units in ((drawn, FEWEST - 1), (np.full(500, 0.7), 99), (np.full(500, np.nan), 99)):
        assert intervals.of_resamples(values, units) is intervals.NONE
    assert intervals.of_resamples(0.1 + 1e-17 * drawn, 99).method == "none"  # rounding is no spread


# ---------------------------------------------------------------- paired tests


def test_nothing_is_told_of_few_units() -> None:
    found = bootstrap.paired(np.zeros(3), np.ones(3))  # 0 % against 100 %, n 3
    assert found.difference == -1 and found.apart is None
    assert math.isnan(found.low) and math.isnan(found.p)
    videos = bootstrap.paired(np.linspace(0.5, 0.6, 6), np.linspace(0.2, 0.3, 6), [0, 0, 0, 1, 1, 1])
    assert videos.apart is None
    alike = bootstrap.paired(np.full(3, 0.5), np.full(3, 0.5))
    assert (alike.p, alike.apart) == (1, False)


def test_what_differs_everywhere_differs_without_an_interval() -> None:
    found = bootstrap.paired(np.zeros(20), np.ones(20))
    assert found.apart is True and math.isnan(found.low)
    assert 0 < found.p < 0.01


@pytest.mark.parametrize(("differing", "apart"), [(4, False), (5, False), (6, True)])
def test_p_is_not_below_what_the_signs_can_say(differing: int, apart: bool) -> None:
    a, b = right_of(differing, 40), np.zeros(40)
    found = bootstrap.paired(a, b)
    assert found.p >= 2 ** (1 - differing) and found.apart is apart
    ratio = bootstrap.paired(*(np.stack([x, np.ones(40)], 1)[..., None] for x in (a, b)))
    assert ratio.p >= 2 ** (1 - differing) and ratio.apart is apart
