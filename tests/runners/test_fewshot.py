"""Few-shot episodes: how they are drawn, and their two readings against loops over Python numbers and scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from evalkit.errors import FeatureError, ProtocolError, UsageError
from evalkit.runners import fewshot
from tests.runners.fakes import FakeJob, features


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def slow(rows, episodes, episode, thresholds):
    """Accuracy and F1 per threshold of one episode, pair by pair."""
    shown, asked = episodes.shown[episode].tolist(), episodes.asked[episode].tolist()
    cosine = lambda a, b: float(torch.nn.functional.cosine_similarity(rows[a], rows[b], dim=0))
    right, pairs = [], []
    for own, queries in enumerate(asked):
        for query in queries:
            found = [(round(cosine(query, s), 6), way) for way, of in enumerate(shown) for s in of]
            best = max(value for value, _ in found)
            right.append(next(way for value, way in found if value == best) == own)
            pairs += [(own == way, value) for value, way in found]
    same = [int(true) for true, _ in pairs]
    f1 = [f1_score(same, [int(value > t) for _, value in pairs], zero_division=0) for t in thresholds]
    return sum(right) / len(right), f1


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 4), st.integers(1, 2), st.integers(1, 3), st.integers(0, 9999), st.booleans())
def test_equals_the_slow_reading(ways, shots, queries, seed, ties):
    labels = torch.arange(40) % 5
    rows = normal(40, 6, seed=seed) + 2 * torch.eye(6)[labels]
    if ties:
        rows = normal(40, 4, seed=seed).sign()  # cosines are multiples of a half, hardly any is alone
    config = fewshot.Config(ways=ways, shots=shots, queries=queries, episodes=3)
    episodes = fewshot.draw(labels, torch.arange(40), config, rng(seed))
    cosines = fewshot.similarities(rows, episodes)
    thresholds = (-0.3, 0.1, 0.45, 0.9)
    accuracy, f1 = fewshot.accuracy(cosines), fewshot.f1(cosines, thresholds)
    for episode in range(3):
        expected = slow(rows.double(), episodes, episode, thresholds)
        assert float(accuracy[episode]) == pytest.approx(expected[0])
        assert f1[:, episode].tolist() == pytest.approx(expected[1])


def test_episodes_are_what_they_promise():
    labels, groups = torch.arange(90) % 6, torch.arange(90) // 12
    config = fewshot.Config(ways=4, shots=2, queries=3, episodes=20)
    episodes = fewshot.draw(labels, groups, config, rng())
    assert (episodes.shown.shape, episodes.asked.shape) == ((20, 4, 2), (20, 4, 3))
    both = torch.cat([episodes.shown, episodes.asked], dim=2)
    for episode in both:
        assert len({int(labels[way[0]]) for way in episode}) == 4
        for way in episode:
            assert len(labels[way].unique()) == 1
            assert len(groups[way].unique()) == 5  # no photo is shown and asked for, or asked for twice
    assert len({tuple(e.flatten().tolist()) for e in both}) == 20
    again = fewshot.draw(labels, groups, config, rng())
    assert torch.equal(again.shown, episodes.shown) and torch.equal(again.asked, episodes.asked)
    assert len(both[..., 0].unique()) > 40  # every image of a group can be drawn


def test_classes_with_too_few_photos_take_no_part():
    labels = torch.tensor([0] * 10 + [1] * 10 + [2] * 10 + [3] * 2)
    groups = torch.cat([torch.arange(20), torch.full((10,), 99), torch.arange(2)])
    config = fewshot.Config(ways=2, shots=1, queries=2, episodes=30)
    episodes = fewshot.draw(labels, groups, config, rng())
    assert set(labels[episodes.shown].flatten().tolist()) == {0, 1}
    with pytest.raises(ProtocolError, match="2 of 4 classes have them"):
        fewshot.draw(labels, groups, fewshot.Config(ways=3, queries=2), rng())


def test_a_tie_goes_to_the_image_shown_first():
    cosines = torch.zeros(1, 3, 1, 3, 1)
    assert fewshot.accuracy(cosines).tolist() == [pytest.approx(1 / 3)]
    cosines[0, 1, 0, 2, 0] = 0.5
    assert fewshot.accuracy(cosines).tolist() == [pytest.approx(1 / 3)]
    cosines[0, 1, 0, 1, 0] = 0.5
    assert fewshot.accuracy(cosines).tolist() == [pytest.approx(2 / 3)]


def test_the_floor_of_f1_is_saying_yes_to_all_and_saying_no_to_all_is_zero():
    cosines = torch.zeros(1, 5, 15, 5, 1)
    assert fewshot.f1(cosines, (-0.5, 0.0, 0.5)).flatten().tolist() == [pytest.approx(1 / 3), 0, 0]


def test_a_zero_row_is_like_nothing_and_a_broken_one_is_refused():
    labels = torch.tensor([0, 0, 1, 1])
    config = fewshot.Config(ways=2, queries=1, episodes=2)
    episodes = fewshot.draw(labels, torch.arange(4), config, rng())
    assert not fewshot.similarities(torch.zeros(4, 3), episodes).any()
    with pytest.raises(FeatureError, match="not finite"):
        fewshot.similarities(torch.full((4, 3), math.nan), episodes)


# ---------------------------------------------------------------- the runner


def job(train=None, test=None, **config):
    cls = lambda labels, seed: 1.5 * torch.eye(8)[labels] + normal(len(labels), 8, seed=seed)
    labels = torch.arange(80) % 6
    train = features(labels, cls=cls(labels, 1)) if train is None else train
    test = features(labels, cls=cls(labels, 2)) if test is None else test
    return FakeJob(fewshot.Config(**({"queries": 4, "episodes": 40} | config)), train, test)


def test_scores_count_episodes_and_the_training_split_chooses_the_threshold():
    given = job()
    scores = {s.name: s for s in fewshot.run(given)}
    fixed = {name: s for name, s in scores.items() if name.startswith("f1@T=")}
    assert set(scores) == {"top1", "f1", "f1-best-T", *(f"f1@T=0.{t}" for t in range(1, 10))}
    assert all(s.n == 40 and s.low <= s.value <= s.high and s.groups is None for s in scores.values())
    assert scores["f1-best-T"].value == max(s.value for s in fixed.values())
    assert scores["f1-best-T"].note == "best-on-test"
    facts = given.facts["episodes"]
    assert scores["f1"].value == fixed[f"f1@T={facts['threshold']:g}"].value
    swapped = {s.name: s for s in fewshot.run(job(train=given.test, test=given.test))}
    assert abs(swapped["top1"].value - scores["top1"].value) < 0.2


def test_the_threshold_does_not_follow_the_scored_split():
    chosen = []
    for scale in (0.0, 3.0):
        given = job()
        given.test.rows["cls"] = given.test.rows["cls"] + scale  # all cosines move up
        list(fewshot.run(given))
        chosen.append(given.facts["episodes"])
    assert chosen[0]["threshold"] == chosen[1]["threshold"]
    assert chosen[0]["best_on_test"] < chosen[1]["best_on_test"]


def test_certain_features_are_always_right_and_blind_ones_at_chance():
    labels = torch.arange(80) % 6
    scores = {s.name: s.value for s in fewshot.run(job(features(labels), features(labels)))}
    assert (scores["top1"], scores["f1"]) == (1.0, 1.0)
    blind = features(labels, cls=torch.ones(80, 4))
    scores = {s.name: s.value for s in fewshot.run(job(blind, blind))}
    assert (scores["top1"], scores["f1"]) == (pytest.approx(0.2), pytest.approx(1 / 3))


@pytest.mark.parametrize("labels", [[0] * 60, [], [0, 1, 2, 3, 4]])
def test_splits_without_enough_classes_or_images_are_refused(labels):
    few = features(torch.tensor(labels, dtype=torch.int64))
    with pytest.raises(ProtocolError, match=r"class|no image"):
        list(fewshot.run(job(test=few)))
    with pytest.raises(ProtocolError, match=r"class|no image"):
        list(fewshot.run(job(train=few)))


@pytest.mark.parametrize(
    "wrong",
    [{"ways": 1}, {"shots": 0}, {"queries": 0}, {"episodes": 0}, {"thresholds": ()}, {"thresholds": (0.5, 0.5)}],
)
def test_options_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        fewshot.Config(**wrong)
