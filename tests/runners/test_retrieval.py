"""Object retrieval: what is yielded, what is left out and why, against scikit-learn one query at a time."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from evalkit.errors import CatalogError, NoProjection, ProtocolError
from evalkit.probing import projection
from evalkit.runners import configure, retrieval
from tests.runners.fakes import FakeJob, features


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Head(torch.nn.Module):
    """An encoder with a linear head of so many outputs (0: none, -1: the bottleneck alone)."""

    def __init__(self, dim, width, cls=True):
        super().__init__()
        self.spec = SimpleNamespace(id="e", dim=dim, offers=frozenset({"patches"} | ({"cls"} if cls else set())))
        self.width = width
        self.weight = torch.nn.Parameter(normal(dim, max(width, 1), seed=9), requires_grad=False)

    def project(self, tokens, at="output"):
        if self.width == 0 or (self.width < 0 and at == "output"):
            raise NoProjection("e: no head")
        assert tokens.cls.dtype == torch.float32 and not torch.is_grad_enabled()
        return tokens.cls * 2 if at == "bottleneck" else tokens.cls @ self.weight


def job(width=7, cls=True, roles=("test",), **splits):
    train = splits.get("train") or split(30, 4, seed=0)
    test = splits.get("test") or split(24, 4, seed=5)
    return FakeJob(retrieval.Config(roles=roles), train, test, encoder=Head(6, width, cls))


def split(count, classes, seed, groups=None):
    labels = torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))
    rows = [normal(count, 6, seed=seed + n) + 1.5 * normal(classes, 6, seed=n)[labels] for n in (1, 2)]
    return features(labels, *rows, groups=groups)


def expected(rows, labels):
    rows, labels = torch.nn.functional.normalize(rows.double()).numpy(), labels.numpy()
    similarity = rows @ rows.T
    found = []
    for query in range(len(rows)):
        wanted = np.delete(labels == labels[query], query)
        if wanted.any():
            found.append(average_precision_score(wanted, np.delete(similarity[query], query)))
    return np.array(found)


def test_every_representation_equals_scikit_learn():
    given = job()
    scores = {s.name: s for s in retrieval.run(given)}
    cls, mean, labels = given.test.rows["cls"], given.test.rows["mean"], given.test.labels
    for name, rows in {
        "mAP@cls": cls,
        "mAP@mean": mean,
        "mAP@projected": cls @ given.encoder.weight,
        "mAP@bottleneck": cls,
    }.items():
        outcomes = expected(rows, labels)
        assert np.allclose(scores[name].outcomes, outcomes, atol=1e-4)
        assert scores[name].value == pytest.approx(outcomes.mean(), abs=1e-5)
        assert scores[name].n == len(outcomes)
        assert scores[name].low < scores[name].value < scores[name].high
    assert list(scores) == ["mAP", "mAP@cls", "mAP@mean", "mAP@encoded", "mAP@projected", "mAP@bottleneck"]
    assert given.asked == [("test", (-1,), True, ("cls", "mean"))]


def test_the_headline_is_the_class_token_and_the_better_one_is_marked():
    given = job()
    given.test.rows["mean"] = torch.eye(4)[given.test.labels]
    scores = {s.name: s for s in retrieval.run(given)}
    assert scores["mAP"].value == scores["mAP@cls"].value < scores["mAP@mean"].value == scores["mAP@encoded"].value == 1
    assert {name for name, s in scores.items() if s.note == "best-on-test"} == {"mAP@encoded"}
    assert given.facts["representation"] == {"mAP": "cls", "mAP@encoded": "mean"}


def test_without_a_class_token_the_patch_mean_stands_and_the_reasons_are_told():
    given = job(cls=False)
    scores = {s.name: s for s in retrieval.run(given)}
    assert list(scores) == ["mAP", "mAP@mean", "mAP@encoded"]
    assert scores["mAP"].value == scores["mAP@mean"].value
    assert set(given.facts["absent"]) == {"mAP@cls", "mAP@projected", "mAP@bottleneck"}
    assert given.asked == [("test", (-1,), True, ("mean",))]


@pytest.mark.parametrize(("width", "absent"), [(0, {"projected", "bottleneck"}), (-1, {"projected"})])
def test_a_head_that_is_not_there_is_a_fact_and_the_encoded_scores_stay(width, absent):
    given = job(width=width)
    names = {s.name for s in retrieval.run(given)}
    assert {"mAP", "mAP@cls", "mAP@mean"} <= names
    assert {f"mAP@{n}" for n in absent}.isdisjoint(names)
    assert given.facts["absent"] == {f"mAP@{n}": "e: no head" for n in absent}


def test_both_splits_ask_one_another_and_their_images_stay_apart():
    """Groups are numbered from 0 in each split: image 0 of one is not image 0 of the other."""
    train, test = split(30, 4, 0, groups=torch.arange(30) // 2), split(24, 4, 5, groups=torch.arange(24) // 3)
    given = job(roles=("train", "test"), train=train, test=test)
    score = next(iter(retrieval.run(given)))
    rows, labels = (torch.cat(pair) for pair in ((train.rows["cls"], test.rows["cls"]), (train.labels, test.labels)))
    assert np.allclose(score.outcomes, expected(rows, labels), atol=1e-4)
    assert len(np.unique(score.groups)) == 15 + 8


def test_queries_with_nothing_to_find_are_left_out_and_counted():
    labels = torch.tensor([0, 0, 1, 2, 2, 9])
    given = job(test=features(labels, normal(6, 6, seed=1), normal(6, 6, seed=2)))
    scores = list(retrieval.run(given))
    assert {s.n for s in scores} == {4}
    assert given.facts["queries_without_relevant"] == 2


@pytest.mark.parametrize(("labels", "message"), [([3, 3, 3], "same class"), ([0, 1, 2], "two images"), ([5], "class")])
def test_data_without_a_question_are_refused(labels, message):
    given = job(test=features(labels, torch.ones(len(labels), 6), torch.ones(len(labels), 6)))
    with pytest.raises(ProtocolError, match=message):
        list(retrieval.run(given))


@pytest.mark.parametrize(
    "mapping", [{"roles": []}, {"roles": ["test", "test"]}, {"roles": ["val"]}, {"projections": ["x"]}]
)
def test_options_that_cannot_be_are_named(mapping):
    with pytest.raises(CatalogError, match=next(iter(mapping))):
        configure("retrieval", mapping)


# ---------------------------------------------------------------- the head's output from stored class tokens


@pytest.mark.parametrize("width", [40, 3000])
def test_coordinates_of_a_wide_output_keep_all_inner_products(width):
    encoder, cls = Head(6, width), normal(1200, 6, seed=3)
    found = projection.of_class_tokens(encoder, cls, "projection", torch.device("cpu"))
    assert found.shape == (1200, width if width <= projection.WIDE else projection.SAMPLE)
    full = cls @ encoder.weight
    assert torch.allclose(found @ found[:50].T, full @ full[:50].T, rtol=1e-4, atol=1e-2)


def test_an_output_that_fills_its_space_is_kept_whole():
    class Curved(Head):
        def project(self, tokens, at="output"):
            return (tokens.cls @ self.weight * 40).sin()

    encoder, cls = Curved(6, 2100), normal(600, 6, seed=3)
    found = projection.of_class_tokens(encoder, cls, "projection", torch.device("cpu"))
    assert torch.equal(found, (cls @ encoder.weight * 40).sin())
