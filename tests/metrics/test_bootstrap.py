"""The bootstrap: coverage on simulated data, agreement with drawing groups one by one, and what cannot be resampled."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.errors import ProtocolError, UsageError
from evalkit.metrics import bootstrap, intervals


def slow_interval(outcomes, groups, resamples=2000, seed=0):
    """Whole groups drawn one resample at a time."""
    rng = np.random.default_rng(seed)
    members = [outcomes[groups == g] for g in np.unique(groups)]
    means = []
    for _ in range(resamples):
        drawn = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        means.append(drawn.mean())
    return np.quantile(means, [0.025, 0.975])


def covered(groups_per_trial, size, trials=300):
    """How often the interval holds the truth 0.7 when all units of a group share their outcome."""
    rng = np.random.default_rng(1)
    grouped = alone = 0
    for trial in range(trials):
        outcomes = np.repeat(rng.random(groups_per_trial) < 0.7, size)
        groups = np.repeat(np.arange(groups_per_trial), size)
        inside = bootstrap.interval(outcomes, groups, resamples=400, seed=trial)
        grouped += inside.low <= 0.7 <= inside.high
        inside = bootstrap.interval(outcomes, resamples=400, seed=trial)
        alone += inside.low <= 0.7 <= inside.high
    return grouped / trials, alone / trials


def test_covers_the_truth_at_its_level():
    _, alone = covered(200, 1)
    assert 0.91 <= alone <= 0.98


def test_groups_matter_where_units_share_an_image():
    grouped, alone = covered(100, 8)
    assert 0.90 <= grouped <= 0.98
    assert alone < 0.6


@pytest.mark.parametrize("continuous", [False, True])
def test_agrees_with_drawing_groups_one_by_one(continuous):
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 300)
    outcomes = rng.random(300) if continuous else (rng.random(300) < 0.4).astype(float)
    mine = bootstrap.interval(outcomes, groups, resamples=4000)
    low, high = slow_interval(outcomes, groups)
    assert mine.low == pytest.approx(low, abs=0.006)
    assert mine.high == pytest.approx(high, abs=0.006)


def test_both_ways_of_drawing_have_the_same_distribution(monkeypatch):
    outcomes = (np.random.default_rng(0).random(500) < 0.3).astype(float)
    by_kind = bootstrap.interval(outcomes, resamples=8000)
    monkeypatch.setattr(bootstrap, "KINDS_SHARE", 10**9)
    by_index = bootstrap.interval(outcomes, resamples=8000)
    assert by_kind != by_index
    assert by_kind.low == pytest.approx(by_index.low, abs=0.004)
    assert by_kind.high == pytest.approx(by_index.high, abs=0.004)


def test_chunks_do_not_change_the_law(monkeypatch):
    outcomes = np.random.default_rng(0).random(400)
    whole = bootstrap.interval(outcomes)
    monkeypatch.setattr(bootstrap, "CHUNK", 1000)
    pieces = bootstrap.interval(outcomes)
    assert whole.low == pytest.approx(pieces.low, abs=0.005)
    assert whole.high == pytest.approx(pieces.high, abs=0.005)


def test_nothing_to_resample_is_nan_never_zero():
    nothing = bootstrap.score("top1", [])
    assert nothing.n == 0
    assert all(math.isnan(x) for x in (nothing.value, nothing.low, nothing.high))
    one_image = bootstrap.interval([0.0, 1.0, 1.0], [7, 7, 7])
    assert math.isnan(one_image.low)
    assert math.isnan(one_image.high)
    assert math.isnan(bootstrap.interval([1.0]).low)
    assert math.isnan(bootstrap.paired([], []).difference)
    assert math.isnan(bootstrap.paired([1.0, 0.0], [0.0, 0.0], [3, 3]).p)


def test_seed_decides():
    outcomes = np.random.default_rng(0).random(50)
    assert bootstrap.interval(outcomes, seed=3) == bootstrap.interval(outcomes, seed=3)
    assert bootstrap.interval(outcomes, seed=3) != bootstrap.interval(outcomes, seed=4)


def test_paired_sees_what_two_intervals_cannot():
    rng = np.random.default_rng(0)
    hard = rng.random(1000)
    a, b = (hard < 0.50).astype(float), (hard < 0.47).astype(float)
    found = bootstrap.paired(a, b)
    assert found.difference == pytest.approx((a - b).mean())
    assert found.low > 0
    assert found.p < 0.01
    assert bootstrap.interval(a).low < bootstrap.interval(b).high


def test_paired_is_antisymmetric_and_calm_where_nothing_differs():
    rng = np.random.default_rng(0)
    a, b = rng.random(80), rng.random(80)
    there, back = bootstrap.paired(a, b), bootstrap.paired(b, a)
    assert there.difference == pytest.approx(-back.difference)
    same = bootstrap.paired(a, a)
    assert (same.difference, same.p, same.apart) == (0, 1, False)
    assert math.isnan(same.low)


def test_p_is_uniform_enough_under_no_difference():
    rng = np.random.default_rng(5)
    small = sum(bootstrap.paired(rng.random(60), rng.random(60), resamples=300, seed=i).p <= 0.1 for i in range(200))
    assert 6 <= small <= 36


def test_score_keeps_its_outcomes():
    score = bootstrap.score("top1", np.array([True, False, True]), np.array([0, 0, 1]), note="seed")
    assert score.value == pytest.approx(2 / 3)
    assert (score.n, score.note, score.unit) == (3, "seed", "fraction")
    assert score.outcomes.dtype == np.float32
    assert score.groups.dtype == np.int64
    assert score.interval == "none"


@pytest.mark.parametrize(
    ("outcomes", "groups"), [([1.0, float("nan")], None), ([[1.0]], None), ([1.0, 0.0], [1]), ([float("inf")], [0])]
)
def test_refuses_what_is_no_list_of_outcomes(outcomes, groups):
    with pytest.raises(ProtocolError):
        bootstrap.interval(outcomes, groups)


def test_refuses_options_that_cannot_be():
    with pytest.raises(UsageError, match="level"):
        bootstrap.interval([1.0, 0.0], level=1.0)
    with pytest.raises(UsageError, match="resamples"):
        bootstrap.interval([1.0, 0.0], resamples=0)
    with pytest.raises(ProtocolError, match="same units"):
        bootstrap.paired([1.0], [1.0, 0.0])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-5, 5), st.integers(-3, 9)), min_size=2, max_size=60),
    st.sampled_from([0.5, 0.95]),
)
def test_bounds_lie_within_the_outcomes(units, level):
    outcomes, groups = [u[0] for u in units], [u[1] for u in units]
    found = bootstrap.interval(outcomes, groups, level=level, resamples=50, bounded=False)
    if len(set(groups)) < intervals.FEWEST or found.method == "none":
        assert math.isnan(found.low)
    else:
        assert min(outcomes) - 1e-9 <= found.low <= found.high <= max(outcomes) + 1e-9


def test_by_class_takes_each_class_apart_with_its_groups():
    right, labels, groups = np.array([1, 0, 1, 1, 0.0]), np.array([2, 2, 0, 0, 2]), np.array([7, 7, 8, 9, 9])
    whole = bootstrap.score("top1", right, groups, labels=labels)
    first, second = bootstrap.by_class(whole, ("a", "b", "c"), seed=3)
    assert (first.name, first.value, first.n, first.groups.tolist()) == ("top1/a", 1.0, 2, [8, 9])
    assert (second.name, second.n, second.groups.tolist()) == ("top1/c", 3, [7, 7, 9])
    assert second.value == pytest.approx(1 / 3)
    assert (first.interval, second.interval) == ("clopper-pearson", "none")


def test_without_labels_or_with_very_many_classes_there_is_nothing_by_class():
    many = np.arange(bootstrap.CLASSES + 1)
    names = [str(i) for i in many]
    assert not list(bootstrap.by_class(bootstrap.score("s", many % 2), names))
    assert not list(bootstrap.by_class(bootstrap.score("s", many % 2, labels=many), names))
    assert (
        len(list(bootstrap.by_class(bootstrap.score("s", many[1:] % 2, labels=many[1:]), names))) == bootstrap.CLASSES
    )
