"""Paired differences come from outcomes on the same units, or are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evalkit import records
from evalkit.errors import RecordError
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
    assert (found.difference.low, found.difference.high) == (0, 0)


def test_other_units_and_other_data_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "a", np.ones(10, bool), np.arange(10))
    put(tmp_path, "b", np.ones(9, bool), np.arange(9))
    with pytest.raises(RecordError, match="same units"):
        differences("a", "b", tmp_path)
    put(tmp_path, "c", np.ones(10, bool), np.arange(10), comparable="other")
    with pytest.raises(RecordError, match="no record of the same recipe on the same data"):
        differences("a", "c", tmp_path)
