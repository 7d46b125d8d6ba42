"""One battery for every runner, on the fake encoder and data whose right answers are known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from evalkit import runners
from evalkit.engine.evaluate import evaluate
from evalkit.errors import CatalogError, ProtocolError
from evalkit.records import Record
from evalkit.types import DatasetRef, Manifest, Recipe, Source
from tests.contract.makers import RUNNERS, Exempt

FAKE = Manifest("fake", "fake", "fake_patch8")
BLIND = Manifest("blind", "fake", "fake_blind_patch8")


BLIND_SCORES = {"retrieval": 9 / 39}
"""What an encoder that sees nothing scores on four classes of ten, where it is not 1 / 4: a query is not in its ranking."""


def test_every_runner_is_held_by_this_battery() -> None:
    assert set(RUNNERS) == set(runners.names()), "add the new runner to tests/contract/makers.py"


@pytest.fixture(params=sorted(RUNNERS))
def runner(request: pytest.FixtureRequest) -> str:
    if isinstance(exempt := RUNNERS[request.param], Exempt):
        pytest.skip(exempt.reason)
    return str(request.param)


def measured(runner: str, manifest: Manifest, data: Mapping[str, Any], **options: Any) -> Record:
    from evalkit import adapters

    config = RUNNERS[runner]
    assert not isinstance(config, Exempt)
    headline = {"knn": "top1@k=5", "retrieval": "mAP"}.get(runner, "top1")
    recipe = Recipe(
        "r", 1, "t", runner, headline, Source("none"), DatasetRef("fake", "fake", config=data), config=config
    )
    return evaluate(adapters.load(manifest), recipe, data={"fake": Path.cwd()}, **options)


def test_config_is_a_frozen_dataclass_with_defaults(runner: str) -> None:
    config = runners.configure(runner, {})
    assert dataclasses.is_dataclass(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.__setattr__(dataclasses.fields(config)[0].name, None)
    with pytest.raises(CatalogError, match="no_such_option"):
        runners.configure(runner, {"no_such_option": 1})


def test_what_is_certain_scores_exactly_one(runner: str) -> None:
    record = measured(runner, FAKE, {"classes": 4, "per_class": 8})
    score = record.score()
    assert score is not None
    assert (score["value"], score["high"], score["n"]) == (1.0, 1.0, 32)
    assert score["interval"] == "clopper-pearson" and 0.85 < score["low"] < 0.95  # 1 - 3.7 / 32: it is not certain


def test_what_is_noise_scores_chance(runner: str) -> None:
    score = measured(runner, FAKE, {"classes": 4, "per_class": 40, "noise": 1.0}).score()
    assert score is not None
    assert abs(score["value"] - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 160)
    assert score["low"] < score["value"] < score["high"]


def test_an_encoder_that_sees_nothing_scores_chance(runner: str) -> None:
    score = measured(runner, BLIND, {"classes": 4, "per_class": 10}).score()
    assert score is not None
    assert score["value"] == pytest.approx(BLIND_SCORES.get(runner, 0.25))


def test_every_score_has_n_an_interval_and_a_name_of_its_own(runner: str) -> None:
    record = measured(runner, FAKE, {"classes": 3, "per_class": 10, "noise": 0.5})
    names = [s["name"] for s in record.scores]
    assert len(names) == len(set(names)) >= 1
    for score in record.scores:
        assert score["n"] == (10 if _class_of(score, record) else 30)
        assert score["low"] <= score["value"] <= score["high"]


def _class_of(score: Mapping[str, Any], record: Record) -> str:
    """The class that a score is about; "" for one of the whole."""
    member = score["name"].rpartition("/")[2] if "/" in score["name"] else ""
    return member if member in record.data["test"]["classes"] else ""


def test_classes_one_by_one_come_to_the_whole(runner: str) -> None:
    record = measured(runner, FAKE, {"classes": 3, "per_class": 10, "noise": 0.5})
    of_classes = [s for s in record.scores if s["name"].startswith(f"{record.recipe['headline']}/")]
    if not of_classes:
        pytest.skip("this runner tells no classes")
    assert len(of_classes) == 3
    assert sum(s["value"] * s["n"] for s in of_classes) / 30 == pytest.approx(record.score()["value"])


def test_images_that_hold_several_samples_widen_the_interval(runner: str) -> None:
    """Tiles of one picture are resampled together; with as many samples the interval rests on fewer units."""
    alone = measured(runner, FAKE, {"classes": 2, "per_class": 32, "noise": 0.6})
    shared = measured(runner, FAKE, {"classes": 2, "per_class": 32, "noise": 0.6, "groups_of": 16})
    width = lambda r: r.score()["high"] - r.score()["low"]
    assert width(shared) != pytest.approx(width(alone), abs=1e-6)


def test_the_same_question_has_the_same_answer(runner: str) -> None:
    data = {"classes": 3, "per_class": 10, "noise": 0.5}
    assert measured(runner, FAKE, data).scores == measured(runner, FAKE, data).scores


def test_one_class_alone_is_refused_in_words(runner: str) -> None:
    with pytest.raises(ProtocolError, match="class"):
        measured(runner, FAKE, {"classes": 1, "per_class": 6})
