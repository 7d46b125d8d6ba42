"""k-NN against obvious implementations and scikit-learn, also on the inputs that crash published scripts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from evalkit.errors import FeatureError, ProtocolError, UsageError
from evalkit.runners import knn
from tests.runners.fakes import FakeJob, features


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_votes(queries, bank, labels, ks, temperature, classes):
    """One query, one k, one neighbour at a time, in Python numbers."""
    unit = [torch.nn.functional.normalize(rows.double(), dim=1) for rows in (queries, bank)]
    similarity = (unit[0] @ unit[1].T).tolist()
    votes = torch.zeros(len(ks), len(queries), classes)
    for q, row in enumerate(similarity):
        order = sorted(range(len(row)), key=lambda j: (-round(row[j], 6), j))
        for i, k in enumerate(ks):
            for j in order[:k]:
                votes[i, q, labels[j]] += math.exp((row[j] - max(row)) / temperature)
    return votes


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 60), st.integers(1, 5), st.integers(0, 10**6), st.booleans())
def test_equals_the_slow_vote(queries, rows, dim, seed, ties):
    asked, bank = normal(queries, dim, seed=seed), normal(rows, dim, seed=seed + 1)
    if ties:
        # signs in four dimensions have exact cosines, and hardly any row is alone
        asked, bank = normal(queries, 4, seed=seed).sign(), normal(rows, 4, seed=seed + 1).sign()
    labels = torch.randint(9, (rows,), generator=torch.Generator().manual_seed(seed))
    ks = sorted({1, max(1, rows // 2), rows}, reverse=True)
    found = knn.vote(asked, bank, labels, ks=ks, temperature=0.2, classes=9)
    assert found.shape == (len(ks), queries, 9)
    assert torch.allclose(found, slow_votes(asked, bank, labels, ks, 0.2, 9), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("k", [1, 5, 20, 300])
def test_agrees_with_scikit_learn(k):
    queries, bank = normal(80, 12, seed=0), normal(300, 12, seed=1)
    labels = (bank @ normal(12, 6, seed=2)).argmax(1)
    model = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp(-distance / 0.07))
    expected = model.fit(bank.numpy(), labels.numpy()).predict_proba(queries.numpy())
    votes = knn.vote(queries, bank, labels, ks=[k], temperature=0.07)[0]
    assert np.allclose(votes / votes.sum(1, keepdim=True), expected, atol=1e-4)
    best = knn.predict(queries, bank, labels, ks=[k], temperature=0.07)[0, :, 0]
    assert best.tolist() == expected.argmax(1).tolist()


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 400), st.integers(1, 12), st.integers(0, 999), st.sampled_from([1, 3, None]))
def test_predict_ranks_the_votes(rows, classes, seed, block):
    queries, bank = normal(6, 4, seed=seed).sign(), normal(rows, 4, seed=seed + 1).sign()
    labels = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed))
    ks = (1, 2, rows)[: 3 if rows > 2 else 2]
    options = {"ks": ks, "temperature": 0.5, "classes": classes}
    votes = knn.vote(queries, bank, labels, **options)
    expected = votes.sort(dim=2, descending=True, stable=True).indices[..., :5]
    assert torch.equal(knn.predict(queries, bank, labels, block=block, **options), expected)


def test_ks_in_any_order():
    queries, bank, labels = normal(3, 4, seed=0), normal(30, 4, seed=1), torch.arange(30) % 3
    up = knn.vote(queries, bank, labels, ks=[1, 5, 20], temperature=0.1)
    down = knn.vote(queries, bank, labels, ks=[20, 5, 1], temperature=0.1)
    assert torch.equal(up, down.flip(0))


def test_a_tie_at_rank_k_goes_to_the_earlier_row():
    bank = torch.tensor([[1.0, 0.0]]).repeat(6, 1)
    for k in range(1, 6):
        votes = knn.vote(bank[:1], bank, torch.arange(6), ks=[k], temperature=0.07)
        assert votes[0, 0].tolist() == [1.0] * k + [0.0] * (6 - k)
    assert knn.predict(bank[:1], bank, torch.tensor([5, 3, 4, 3, 1, 5]), ks=[2], temperature=0.1)[
        0, 0, :2
    ].tolist() == [3, 5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_temperature_does_not_overflow_in_half_precision(dtype):
    bank = torch.eye(4, dtype=dtype)
    votes = knn.vote(bank, bank, torch.arange(4), ks=[4], temperature=1e-3)
    assert torch.equal(votes[0], torch.eye(4))


def test_gaps_in_labels_and_absent_classes():
    bank = torch.eye(3)
    assert knn.vote(bank, bank, torch.tensor([7, 0, 1200]), ks=[1], temperature=0.07).shape == (1, 3, 1201)
    assert knn.predict(bank, bank, torch.tensor([7, 0, 1200]), ks=[1], temperature=0.07)[0, :, 0].tolist() == [
        7,
        0,
        1200,
    ]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ks": [11]}, ProtocolError, r"k = 11 .* N = 10"),
        ({"ks": []}, UsageError, "ks"),
        ({"ks": [0]}, UsageError, "ks"),
        ({"ks": [2, 2]}, UsageError, "ks"),
        ({"temperature": 0.0}, UsageError, "temperature"),
        ({"temperature": float("nan")}, UsageError, "temperature"),
        ({"queries": torch.ones(0, 3)}, ProtocolError, "0 queries"),
        ({"bank": torch.ones(0, 3), "labels": torch.zeros(0, dtype=torch.int64)}, ProtocolError, "bank of 0"),
        ({"labels": torch.zeros(9, dtype=torch.int64)}, ProtocolError, "shape"),
        ({"labels": torch.full((10,), -1)}, ProtocolError, "label -1"),
        ({"labels": torch.full((10,), 4), "classes": 4}, ProtocolError, "only 4 classes"),
        ({"queries": torch.full((2, 3), float("nan"))}, FeatureError, "queries are not finite"),
        ({"queries": torch.ones(2, 4)}, FeatureError, "dimensions"),
    ],
)
def test_says_what_is_wrong(change, error, message):
    given = {"queries": torch.ones(2, 3), "bank": torch.ones(10, 3), "labels": torch.arange(10)}
    given |= {"ks": [2], "temperature": 0.07} | change
    for function in (knn.vote, knn.predict):
        with pytest.raises(error, match=message):
            function(given["queries"], given["bank"], given["labels"], **{k: given[k] for k in given if k in OPTIONS})


OPTIONS = ("ks", "temperature", "classes")


def by_name(job):
    return {score.name: score for score in knn.run(job)}


def test_perfect_features_score_exactly_one():
    job = FakeJob(knn.Config(ks=(1, 5, 10)), features(torch.arange(200) % 8), features(torch.arange(40) % 8))
    scores = by_name(job)
    assert list(scores) == ["top1@k=1", "top1@k=5", "top5@k=5", "top1@k=10", "top5@k=10"]
    assert all(s.value == s.low == s.high == 1.0 and s.n == 40 for s in scores.values())


def test_random_labels_score_chance():
    rng = torch.Generator().manual_seed(0)
    train, test = (
        features(torch.randint(10, (n,), generator=rng), torch.randn(n, 6, generator=rng)) for n in (2000, 1500)
    )
    scores = by_name(FakeJob(knn.Config(ks=(1, 20)), train, test))
    for name, chance in (("top1@k=1", 0.1), ("top1@k=20", 0.1), ("top5@k=20", 0.5)):
        assert scores[name].low - 0.01 <= chance <= scores[name].high + 0.01
        assert scores[name].high - scores[name].low > 0.02


def test_every_pooling_from_one_request():
    labels = torch.arange(60) % 6
    train, test = features(labels, mean=torch.ones(60, 3)), features(labels[:12], mean=torch.ones(12, 3))
    job = FakeJob(knn.Config(ks=(5,), pooling=("cls", "mean", "cls+mean")), train, test)
    scores = by_name(job)
    assert [n for n in scores if "top1" in n] == ["top1@k=5", "mean/top1@k=5", "cls+mean/top1@k=5"]
    assert scores["top1@k=5"].value == scores["cls+mean/top1@k=5"].value == 1.0
    # all equal: the five first rows vote, one for each of the classes 0 to 4, and the lowest class wins
    assert scores["mean/top1@k=5"].value == pytest.approx(1 / 6)
    assert scores["mean/top5@k=5"].value == pytest.approx(5 / 6)
    assert job.asked == [("train", (-1,), True, ("cls", "mean")), ("test", (-1,), True, ("cls", "mean"))]


def test_ks_beyond_the_bank_are_left_out_and_told():
    job = FakeJob(knn.Config(ks=(2, 10, 20)), features(torch.arange(10) % 2), features(torch.tensor([1])))
    scores = by_name(job)
    assert list(scores) == ["top1@k=2", "top1@k=10"]
    assert job.facts["ks_left_out"]["ks"] == [20]
    assert math.isnan(scores["top1@k=2"].low)
    with pytest.raises(ProtocolError, match="N = 10"):
        list(knn.run(FakeJob(knn.Config(ks=(11, 12)), job.train, job.test)))


def test_a_test_class_without_training_images_is_always_wrong():
    job = FakeJob(knn.Config(ks=(1,)), features(torch.arange(10) % 2), features(torch.tensor([0, 9])))
    assert by_name(job)["top1@k=1"].outcomes.tolist() == [1.0, 0.0]


def test_intervals_resample_whole_images():
    rng = torch.Generator().manual_seed(0)
    labels, rows = torch.arange(100) % 4, torch.randn(100, 3, generator=rng)
    train = features(labels, rows)
    alone = features(labels.repeat(3), rows.roll(1, 0).repeat(3, 1))
    shared = features(labels.repeat(3), rows.roll(1, 0).repeat(3, 1), groups=torch.arange(100).repeat(3))
    widths = [s.high - s.low for t in (alone, shared) for s in knn.run(FakeJob(knn.Config(ks=(5,)), train, t))]
    assert widths[1] > 1.4 * widths[0]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [([], [0, 1], "train has 0"), ([0, 1], [], "test has 0"), ([3, 3, 3], [3], "same class")],
)
def test_refuses_splits_that_cannot_be_scored(train, test, message):
    made = [features(torch.tensor(labels, dtype=torch.int64)) for labels in (train, test)]
    with pytest.raises(ProtocolError, match=message):
        list(knn.run(FakeJob(knn.Config(ks=(1,)), *made)))


def test_names_features_that_are_not_finite():
    broken = features(torch.arange(4), torch.full((4, 3), float("nan")))
    with pytest.raises(FeatureError, match="not finite"):
        list(knn.run(FakeJob(knn.Config(ks=(1,)), broken, broken)))
