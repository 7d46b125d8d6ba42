"""Records are written whole or not at all, read strictly, and lead to outcomes per unit."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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


def changed(path: Path, change: Any, *, seal: bool = False) -> None:
    """The record with its content changed by hand; seal: with a new digest."""
    content = json.loads(path.read_text())
    found = change(content)
    content = found if isinstance(found, dict) else content
    path.write_text(json.dumps(records.sealed(content) if seal else content))


def without_digest(content: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in content.items() if k not in ("files", "sha256")} | {"schema": 1}


def test_a_value_that_somebody_changed_is_noticed(tmp_path: Path) -> None:
    path = records.save(a_record(), [a_score()], {}, tmp_path)
    changed(path, lambda c: c["scores"][0].update(value=0.9))
    with pytest.raises(RecordError, match="its content is not what its sha256 says") as caught:
        records.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    changed(path, lambda c: None, seal=True)
    assert records.read(path).scores[0]["value"] == 0.9
    changed(path, lambda c: {k: v for k, v in c.items() if k != "sha256"})
    with pytest.raises(RecordError, match="sha256 is missing"):
        records.read(path)


def test_every_flipped_bit_of_a_record_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = records.save(a_record(), [a_score()], {}, tmp_path)
    whole, held = path.read_bytes(), records.read(path)
    for bit in random.Random(0).sample(range(8 * len(whole)), 250):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            assert records.read(path) == held  # another white space
        except RecordError as error:
            assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["scores"][0].update(value="high"),
        lambda c: c["scores"][0].update(n=10**30),
        lambda c: c["scores"][0].update(n=2.5),
        lambda c: c["scores"][0].update(value=True),
        lambda c: c["scores"][0].pop("unit"),
        lambda c: c.update(scores={}),
        lambda c: c.update(scores=[1]),
        lambda c: c["encoder"].update(id="../../etc"),
        lambda c: c["encoder"].pop("id"),
        lambda c: c["recipe"].update(version="1"),
        lambda c: c["data"].update(test=[]),
        lambda c: c["data"]["test"].update(samples="many"),
        lambda c: c.update(recipe=None),
        lambda c: c.update(status="perhaps"),
    ],
)
def test_missing_and_mistyped_fields_are_one_line_in_either_schema(tmp_path: Path, change: Any) -> None:
    path = records.save(a_record(), [a_score()], {}, tmp_path)
    changed(path, change, seal=True)
    text = path.read_text()
    for content in (json.loads(text), without_digest(json.loads(text))):
        path.write_text(json.dumps(content))
        with pytest.raises(RecordError, match="delete it to measure again") as caught:
            records.read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"a":' * 200_000, '{"schema": 1, "scores": [{"value": 1e999}]}', '{"schema": ' + "9" * 5000 + "}",
     '{"schema": 1, "scores": NaN}', "", "\x00", "null", "[[]]", '{"scores": 3}'],
)  # fmt: skip
def test_what_is_no_record_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "r.00000000.json"
    path.write_text(text)
    with pytest.raises(RecordError) as caught:
        records.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_record_of_schema_1_is_read(tmp_path: Path) -> None:
    path = records.save(a_record(), [a_score()], {}, tmp_path)
    path.write_text(json.dumps(without_digest(json.loads(path.read_text()))))
    record = records.read(path)
    assert record.schema == 1 and records.outcomes(record, tmp_path)[0].tolist() == [0.5] * 10


@pytest.mark.parametrize("name", ["units", "resamples", "head"])
@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "fifo"])
def test_a_damaged_file_beside_a_record_is_one_line(tmp_path: Path, name: str, damage: str) -> None:
    kept = {part: {"x": torch.arange(9.0), "seed": torch.tensor([0])} for part in ("resamples", "head")}
    path = records.save(a_record(), [a_score("x")], kept, tmp_path)
    record, file = records.read(path), path.with_suffix(f".{name}.safetensors")
    records.check_beside(record, tmp_path)
    assert records.outcomes(record, tmp_path, "x")[1] is None and records.resamples(record, tmp_path, "x") is not None
    whole = file.read_bytes()
    flipped = whole[:-3] + bytes([whole[-3] ^ 4]) + whole[-2:]
    file.write_bytes({"cut": whole[:-5], "empty": b"", "flipped": flipped, "fifo": b""}[damage])
    if damage == "fifo":
        file.unlink()
        os.mkfifo(file)
    readers = {"units": lambda: records.outcomes(record, tmp_path, "x"),
               "resamples": lambda: records.resamples(record, tmp_path, "x"),
               "head": lambda: records.beside(record, tmp_path, "head")}  # fmt: skip
    for read in (readers[name], lambda: records.check_beside(record, tmp_path)):
        with pytest.raises(RecordError, match=r"damaged|a FIFO") as caught:
            read()
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_units_of_schema_1_are_one_line(tmp_path: Path) -> None:
    path = records.save(a_record(), [a_score()], {}, tmp_path)
    path.write_text(json.dumps(without_digest(json.loads(path.read_text()))))
    file = path.with_suffix(".units.safetensors")
    for damage in (b"", file.read_bytes()[:-5], b"\xff" * 99):
        file.write_bytes(damage)
        with pytest.raises(RecordError, match="damaged"):
            records.outcomes(records.read(path), tmp_path)


def test_what_cannot_be_read_is_left_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records.save(a_record("good"), [], {}, tmp_path)
    bad = records.save(a_record("bad"), [], {}, tmp_path)
    bad.write_text("[" * 200_000)
    told: list[str] = []
    assert [r.encoder["id"] for r in records.find(tmp_path, left_out=told)] == ["good"]
    assert len(told) == 1 and str(bad) in told[0]
    assert list(records.load(tmp_path).encoder) == ["good"]
    assert capsys.readouterr().err.splitlines() == [f"evalkit: {told[0]}"] * 2


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
