"""Scores that are means of ratios of sums: value, interval and paired test."""

from __future__ import annotations

import numpy as np
import pytest

from evalkit.errors import ProtocolError
from evalkit.metrics import bootstrap


def halves(n=40, classes=3, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    bottoms = rng.integers(0, 5, (n, classes)).astype(float)
    return bottoms * np.clip(rng.random((n, classes)) + shift, 0, 1), bottoms


def test_value_is_the_mean_of_ratios_and_absent_classes_are_left_out():
    tops, bottoms = halves()
    tops[:, 1] = bottoms[:, 1] = 0
    score = bootstrap.ratios("x", tops, bottoms)
    assert score.value == pytest.approx(np.mean(tops.sum(0)[[0, 2]] / bottoms.sum(0)[[0, 2]]))
    assert score.n == (bottoms.any(1)).sum() and score.outcomes.shape == (score.n, 2, 3)
    assert bootstrap.statistic(score.outcomes) == pytest.approx(score.value, abs=1e-6)


def test_one_class_of_weight_one_is_the_plain_mean():
    outcomes = np.random.default_rng(0).random(60)
    plain = bootstrap.score("x", outcomes)
    ratio = bootstrap.ratios("x", outcomes[:, None], np.ones((60, 1)))
    assert ratio.value == pytest.approx(plain.value)
    assert (ratio.low, ratio.high) == pytest.approx((plain.low, plain.high), abs=0.01)


def test_units_of_a_group_are_drawn_together():
    tops, bottoms = halves(12, 2)
    bottoms += 1
    often = np.repeat(tops, 5, 0), np.repeat(bottoms, 5, 0)
    alone, together = bootstrap.ratios("x", tops, bottoms), bootstrap.ratios("x", *often, np.repeat(range(12), 5))
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high))
    apart = bootstrap.ratios("x", *often)
    assert apart.high - apart.low < together.high - together.low


def test_a_paired_test_sees_what_is_larger_than_its_noise():
    a, b = halves(200, 3), halves(200, 3, shift=0.2)
    better = bootstrap.paired(*(bootstrap.ratios("x", *one).outcomes for one in (b, a)))
    assert better.low > 0 and better.p < 0.01
    value = [bootstrap.ratios("x", *one).value for one in (b, a)]
    assert better.difference == pytest.approx(value[0] - value[1], abs=1e-6)
    same = bootstrap.paired(*(bootstrap.ratios("x", *a).outcomes for _ in "ab"))
    assert (same.difference, same.p) == (0, 1)


def test_one_group_and_none():
    one = bootstrap.ratios("x", [[1.0]], [[2.0]])
    assert (one.value, one.n) == (0.5, 1) and np.isnan(one.low)
    none = bootstrap.ratios("x", np.zeros((3, 2)), np.zeros((3, 2)))
    assert np.isnan(none.value) and none.n == 0
    assert np.isnan(bootstrap.paired(one.outcomes, 2 * one.outcomes * [[[1], [0.25]]]).p)
    assert bootstrap.paired(one.outcomes, one.outcomes).p == 1


@pytest.mark.parametrize(
    ("tops", "bottoms", "match"),
    [([[np.nan]], [[1.0]], "finite"), ([[1.0]], [[-1.0]], "at least 0"), ([1.0], [1.0], "shape")],
)
def test_what_is_no_ratio_is_refused(tops, bottoms, match):
    with pytest.raises(ProtocolError, match=match):
        bootstrap.ratios("x", tops, bottoms)


def test_paired_needs_the_same_units():
    with pytest.raises(ProtocolError, match="same units"):
        bootstrap.paired(np.ones((3, 2, 1)), np.ones((4, 2, 1)))
    with pytest.raises(ProtocolError, match="groups"):
        bootstrap.paired(np.ones((3, 2, 1)), np.ones((3, 2, 1)), [0, 1])
