"""Average precision against scikit-learn and against plain loops, with all that breaks published code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from evalkit.errors import FeatureError, ProtocolError
from evalkit.metrics import ranking
from evalkit.metrics.similarity import cosines, normalise


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_ap(scores, relevant):
    """One query in Python numbers: items of equal score enter together."""
    hits, total = [s for s, r in zip(scores, relevant, strict=True) if r], 0.0
    for score in hits:
        total += sum(s >= score for s in hits) / sum(s >= score for s in scores)
    return total / len(hits) if hits else math.nan


def slow_leave_one_out(rows, labels, itself=False):
    similarity = rows @ rows.T
    found = []
    for query in range(len(rows)):
        others = [i for i in range(len(rows)) if itself or i != query]
        found.append(
            slow_ap([similarity[query, i].item() for i in others], [labels[i] == labels[query] for i in others])
        )
    return torch.tensor(found, dtype=torch.float64)


def corners(count, seed):
    """Signs in four dimensions, of length 1: exact cosines of 0, +-0.5, +-1, and hardly any row alone."""
    return normal(count, 4, seed=seed).sign() / 2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 10**6), st.booleans(), st.floats(0, 1))
def test_equals_scikit_learn(queries, items, seed, ties, share):
    scores = normal(queries, items, seed=seed)
    scores = scores.mul(2).round() if ties else scores
    relevant = torch.rand(queries, items, generator=torch.Generator().manual_seed(seed)) < share
    found = ranking.average_precision(scores, relevant)
    for row, (score, wanted) in enumerate(zip(scores, relevant, strict=True)):
        assert found[row].item() == pytest.approx(slow_ap(score.tolist(), wanted.tolist()), abs=1e-12, nan_ok=True)
        if wanted.any():
            expected = average_precision_score(wanted.numpy(), score.numpy())
            assert found[row].item() == pytest.approx(expected, abs=1e-12)
        else:
            assert math.isnan(found[row])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 6),
    st.integers(0, 10**6),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 3, None]),
)
def test_leave_one_out_equals_the_slow_loop(count, classes, seed, ties, itself, block):
    labels = torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed)) * 3
    rows = corners(count, seed) if ties else torch.nn.functional.normalize(normal(count, 4, seed=seed))
    found = ranking.leave_one_out(rows, labels, itself=itself, block=block)
    expected = slow_leave_one_out(rows if ties else rows.double(), labels.tolist(), itself)
    assert torch.allclose(found, expected, atol=1e-12, equal_nan=True)


def test_leave_one_out_agrees_with_scikit_learn_at_size():
    rows, labels = normal(300, 16, seed=1), torch.arange(300) % 7
    same = (labels[:, None] == labels).numpy()
    rows[50:60] = rows[0]  # duplicates over several classes
    similarity = cosines(normalise(rows), normalise(rows)).numpy()
    assert (similarity < 0).mean() > 0.4
    expected = [average_precision_score(np.delete(same[q], q), np.delete(similarity[q], q)) for q in range(300)]
    assert np.allclose(ranking.leave_one_out(rows, labels, block=17), expected, atol=1e-12)
    exact = rows.sign()[:, :4]  # 16 different rows: ties everywhere, and every product rounds alike
    similarity = (exact @ exact.T / 4).numpy()
    expected = [average_precision_score(np.delete(same[q], q), np.delete(similarity[q], q)) for q in range(300)]
    assert np.allclose(ranking.leave_one_out(exact, labels), expected, atol=1e-12)


def test_no_order_of_the_gallery_changes_a_number():
    rows, labels = corners(60, 0), torch.arange(60) % 4
    shuffle = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    first = ranking.leave_one_out(rows, labels)
    assert torch.equal(ranking.leave_one_out(rows[shuffle], labels[shuffle]), first[shuffle])


def test_features_that_are_all_alike_score_the_share_of_relevant_items():
    labels = torch.tensor([0] * 5 + [1] * 3 + [2])
    found = ranking.leave_one_out(torch.ones(9, 6), labels)
    expected = torch.tensor([4 / 8] * 5 + [2 / 8] * 3 + [math.nan], dtype=torch.float64)
    assert torch.allclose(found, expected, equal_nan=True)


def test_all_negative_cosines_are_ranked_as_any():
    rows = torch.tensor([[1.0, 0.0], [-0.1, 1.0], [-0.2, -1.0], [-0.9, 0.1]])
    assert ranking.leave_one_out(rows, torch.tensor([0, 0, 1, 1]))[0] == 1.0
    assert ranking.leave_one_out(rows, torch.tensor([0, 1, 0, 1]))[0] == 0.5


def test_one_class_and_one_image():
    assert ranking.leave_one_out(normal(5, 3, seed=0), torch.zeros(5, dtype=torch.long)).tolist() == [1.0] * 5
    assert math.isnan(ranking.leave_one_out(normal(1, 3, seed=0), torch.tensor([4])))
    assert ranking.leave_one_out(normal(1, 3, seed=0), torch.tensor([4]), itself=True).tolist() == [1.0]


def test_the_query_is_its_own_hit_only_where_asked():
    rows, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    assert ranking.leave_one_out(rows, labels).tolist() == pytest.approx([1 / 3] * 4)
    assert ranking.leave_one_out(rows, labels, itself=True).tolist() == pytest.approx([0.75] * 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_type(dtype):
    rows, labels = corners(20, 5).to(dtype), torch.arange(20) % 3
    assert torch.equal(ranking.leave_one_out(rows, labels), ranking.leave_one_out(rows.float(), labels))
    scores, relevant = normal(3, 8, seed=0).to(dtype), normal(3, 8, seed=1) > 0
    found, expected = (ranking.average_precision(given, relevant) for given in (scores, scores.double()))
    assert torch.allclose(found, expected, atol=0, equal_nan=True)


def test_arguments_stay_as_they_came():
    rows, labels, scores = normal(9, 3, seed=0), torch.arange(9) % 2, normal(2, 9, seed=1)
    before = rows.clone(), scores.clone()
    ranking.leave_one_out(rows, labels)
    ranking.average_precision(scores, torch.ones(2, 9, dtype=torch.bool))
    assert torch.equal(rows, before[0]) and torch.equal(scores, before[1])


@pytest.mark.parametrize(
    ("rows", "labels", "block", "error"),
    [
        (torch.ones(0, 2), torch.zeros(0, dtype=torch.long), None, ProtocolError),
        (torch.ones(3, 2), torch.zeros(2, dtype=torch.long), None, ProtocolError),
        (torch.ones(3, 2), torch.tensor([0, -1, 0]), None, ProtocolError),
        (torch.ones(3, 2), torch.zeros(3, dtype=torch.long), 0, ProtocolError),
        (torch.tensor([[1.0], [math.nan]]), torch.zeros(2, dtype=torch.long), None, FeatureError),
    ],
)
def test_what_cannot_be_is_refused(rows, labels, block, error):
    with pytest.raises(error):
        ranking.leave_one_out(rows, labels, block=block)


def test_scores_that_cannot_be_are_refused():
    with pytest.raises(FeatureError, match="finite"):
        ranking.average_precision(torch.tensor([[1.0, math.inf]]), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ProtocolError, match=r"\(Q, N\)"):
        ranking.average_precision(torch.ones(2, 3), torch.ones(2, 2, dtype=torch.bool))


# ---------------------------------------------------------------- revisited landmarks


def slow_landmark(order, relevant, junk, kappas):
    """The published definition, said again: walk down the list without junk; at each relevant image add the trapezoid
    between the precision before and after it; precision at k ends at the last relevant image."""
    kept = [item for item in order if item not in junk or item in relevant]
    area, seen, places = 0.0, 0, []
    place = 0
    for item in kept:
        if item in relevant:
            before = 1.0 if place == 0 else seen / place
            seen += 1
            area += (before + seen / (place + 1)) / 2 / len(relevant)
            places.append(place + 1)
        place += item not in junk
    at = {k: sum(p <= min(k, max(places)) for p in places) / min(k, max(places)) for k in kappas} if places else {}
    return area, at


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 25), st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_trapezoid_and_precision_equal_the_definition(count, seed, share, junk_share):
    rng = np.random.default_rng(seed)
    order = rng.permutation(count)
    relevant, junk = rng.random(count) < share, rng.random(count) < junk_share
    found = ranking.ranks(*map(torch.from_numpy, (order, relevant, junk)))
    wanted = set(np.flatnonzero(relevant))
    area, at = slow_landmark(order.tolist(), wanted, set(np.flatnonzero(junk)), (1, 5, 10))
    if not wanted:
        assert math.isnan(ranking.trapezoid(found)) and math.isnan(ranking.precision_at(found, 5))
        return
    assert ranking.trapezoid(found) == pytest.approx(area, abs=1e-12)
    for k, expected in at.items():
        assert ranking.precision_at(found, k) == pytest.approx(expected, abs=1e-12)


def test_trapezoid_by_hand():
    """Relevant at ranks 0 and 2: (1 + 1)/2 and (1/2 + 2/3)/2, halved."""
    assert ranking.trapezoid(torch.tensor([0, 2])) == pytest.approx((1 + 7 / 12) / 2)
    assert ranking.trapezoid(torch.tensor([1])) == pytest.approx(0.25)
    assert ranking.precision_at(torch.tensor([0, 2]), 10) == pytest.approx(2 / 3)
    assert ranking.precision_at(torch.tensor([0, 2]), 2) == 0.5
    with pytest.raises(ProtocolError, match="at least 1"):
        ranking.precision_at(torch.tensor([0]), 0)
