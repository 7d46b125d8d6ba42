"""Paired differences come from outcomes on the same units, or are refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evalkit import records
from evalkit.cli.main import main
from evalkit.errors import ProtocolError, RecordError
from evalkit.reporting.compare import differences
from evalkit.types import Score
from tests.making import a_record

RECIPE = "mini-knn-ccp-items"


def put(out: Path, encoder: str, right: np.ndarray, groups: np.ndarray, **fields: object) -> None:
    score = Score("top1@k=10", float(right.mean()), len(right), 0, 1, outcomes=right.astype(np.float32), groups=groups)
    records.save(a_record(encoder, value=score.value, **fields), [score], {}, out)


def test_a_clear_difference_is_found_and_its_sign_is_one_minus_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    groups = np.arange(200) // 2
    put(tmp_path, "good", rng.random(200) < 0.8, groups)
    put(tmp_path, "bad", rng.random(200) < 0.4, groups)
    (found,) = differences("good", "bad", tmp_path)
    assert found.n == 200
    assert 0 < found.difference.low < found.difference.difference < found.difference.high
    assert found.difference.difference == pytest.approx(found.one - found.other)


def test_an_encoder_does_not_differ_from_itself(tmp_path: Path) -> None:
    right = np.random.default_rng(0).random(50) < 0.5
    for name in ("a", "b"):
        put(tmp_path, name, right, np.arange(50))
    (found,) = differences("a", "b", tmp_path)
    assert (found.difference.difference, found.difference.p, found.difference.apart) == (0, 1, False)
    assert np.isnan(found.difference.low)  # that they never differed on 50 images is no certainty of it


def put_resamples(out: Path, encoder: str, value: float, drawn: np.ndarray, seed: int = 0) -> None:
    kept = {"resamples": {"seed": torch.tensor([seed]), "overlap": torch.from_numpy(drawn)}}
    score = Score("overlap", value, 20, 0, 1, unit="ratio")
    plain = a_record(encoder, value=value).scores[0] | {"name": "overlap", "value": value, "n": 20, "unit": "ratio"}
    record = replace(a_record(encoder, value=value), scores=(plain,))
    records.save(record, [score], kept, out)


def test_a_score_of_pairs_is_compared_on_the_same_resamples(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.2, 2000)  # what both share cancels
    put_resamples(tmp_path, "a", 0.7, 0.7 + noise)
    own = np.random.default_rng(1).normal(0, 0.001, 2000)
    put_resamples(tmp_path, "b", 0.8, np.where(np.arange(2000) == 7, np.nan, 0.8 + noise + own))
    (found,) = differences("a", "b", tmp_path, score="overlap")
    d = found.difference
    assert (found.one, found.other, found.n) == (0.7, 0.8, 20)
    assert (d.difference, d.low, d.high) == pytest.approx((-0.1, -0.102, -0.098), abs=0.001) and d.p == 2 / 2000
    put_resamples(tmp_path, "c", 0.8, 0.8 + noise, seed=1)
    with pytest.raises(RecordError, match="seed 0 for a and 1 for c"):
        differences("a", "c", tmp_path, score="overlap")
    put_resamples(tmp_path, "d", 0.8, 0.8 + noise[:9])
    with pytest.raises(ProtocolError, match="same resamples: 2000 came for a, 9 for b"):
        differences("a", "d", tmp_path, score="overlap")
    put_resamples(tmp_path, "e", 0.8, np.full(2000, np.nan))  # one image: nothing to resample
    (found,) = differences("a", "e", tmp_path, score="overlap")
    assert np.isnan([found.difference.low, found.difference.high, found.difference.p]).all()


def test_the_command_prints_a_score_in_its_own_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).normal(0, 0.2, 2000)
    put_resamples(tmp_path, "a", 0.7, 0.7 + noise)
    put_resamples(tmp_path, "b", 0.8, 0.8 + noise + np.random.default_rng(1).normal(0, 0.001, 2000))
    monkeypatch.setattr(sys, "argv", ["evalkit", "compare", "a", "b", "--score", "overlap", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert "overlap: a 0.700 ratio, b 0.800 ratio, difference -0.100 [-0.102, -0.098] (p" in capsys.readouterr().out


def test_other_units_and_other_data_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "a", np.ones(10, bool), np.arange(10))
    put(tmp_path, "b", np.ones(9, bool), np.arange(9))
    with pytest.raises(RecordError, match="same units"):
        differences("a", "b", tmp_path)
    put(tmp_path, "c", np.ones(10, bool), np.arange(10), comparable="other")
    with pytest.raises(RecordError, match="no record of the same recipe on the same data"):
        differences("a", "c", tmp_path)
