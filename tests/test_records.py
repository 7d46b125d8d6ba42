"""Records are written whole or not at all, read strictly, and lead to outcomes per unit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evalkit import records
from evalkit.errors import RecordError
from tests.making import a_record, a_score


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    record = a_record()
    path = records.save(record, [a_score()], {}, tmp_path)
    assert records.read(path) == record
    assert [p.name for p in path.parent.iterdir() if p.name.endswith(".part")] == []
    values, groups = records.outcomes(record, tmp_path)
    assert values.tolist() == [0.5] * 10
    assert groups is None


def test_a_score_that_is_not_a_number_survives(tmp_path: Path) -> None:
    record = a_record(
        scores=(
            {
                "name": "x",
                "value": float("nan"),
                "n": 0,
                "low": float("nan"),
                "high": float("nan"),
                "unit": "",
                "note": "",
            },
        )
    )
    assert np.isnan(records.read(records.save(record, [], {}, tmp_path)).scores[0]["value"])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: "[]", "damaged"),
        (lambda text: json.dumps(json.loads(text) | {"schema": 99}), "upgrade"),
        (lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "data"}), "'data' is missing"),
    ],
)
def test_a_damaged_or_newer_record_is_one_clear_error(tmp_path: Path, damage: object, said: str) -> None:
    path = records.save(a_record(), [], {}, tmp_path)
    path.write_text(damage(path.read_text()))  # type: ignore[operator]
    with pytest.raises(RecordError, match=said) as caught:
        records.read(path)
    assert str(path) in str(caught.value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="--out"):
        records.save(a_record(), [], {}, tmp_path / "file")


def test_asking_for_outcomes_that_are_not_there(tmp_path: Path) -> None:
    record = a_record()
    records.save(record, [a_score()], {}, tmp_path)
    with pytest.raises(RecordError, match="top9"):
        records.outcomes(record, tmp_path, "top9")


def test_the_key_depends_on_every_part_of_the_identity_and_on_nothing_else() -> None:
    one = {"encoder": ["a"], "seed": 0}
    assert records.key_of(one) == records.key_of(dict(reversed(one.items())))
    assert records.key_of(one) != records.key_of(one | {"seed": 1})


def test_records_as_a_pandas_table(tmp_path: Path) -> None:
    for encoder, value in (("one", 0.5), ("two", 0.75)):
        records.save(a_record(encoder, value=value), [], {}, tmp_path)
    frame = records.load(tmp_path)
    assert dict(zip(frame.encoder, frame.value, strict=True)) == {"one": 0.5, "two": 0.75}
