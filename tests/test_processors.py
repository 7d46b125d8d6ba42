"""The same number on every processor: the packed records of `reports/` beside those of another processor, cell by cell.

`../shared/records-amd` holds the same measurements of an AMD EPYC. Every score of the same question must lie within what a
processor may move (`regress.EXACT`, one unit of a count), and what a table prints of it must be the same text.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from evalkit import records
from evalkit.records import Record
from evalkit.reporting import regress, standing, table
from evalkit.types import Column

CLONE = Path(__file__).parents[1]
ELSEWHERE = CLONE.parent / "shared" / "records-amd"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("packed")
    for path in sorted((CLONE / "reports" / "records").glob("*.zip")):
        with zipfile.ZipFile(path) as entries:
            entries.extractall(folder)
    return records.find(folder)


@pytest.fixture(scope="module")
def pairs(packed: list[Record]) -> list[tuple[Record, Record]]:
    if not ELSEWHERE.is_dir():
        pytest.skip(f"{ELSEWHERE.name} is not beside this clone")
    return list(same_question(packed, records.find(ELSEWHERE)))


def who(record: Record) -> tuple[str, str, str]:
    return record.encoder["id"], str(record.encoder["digest"]), record.comparable


def same_question(here: list[Record], there: list[Record]) -> Iterator[tuple[Record, Record]]:
    """Records of one encoder, recipe, version and data from two processors."""
    by_question = {who(r): r for r in here}
    for record in there:
        same = by_question.get(who(record))
        if same and same.environment["processor"] != record.environment["processor"]:
            yield same, record


def apart(here: Record, there: Record) -> list[str]:
    """Scores that lie further apart than rounding can bring them."""
    found = []
    for score in there.scores:
        other = here.score(score["name"])
        assert other is not None
        values = (float(other["value"]), float(score["value"]))
        allowed = max(regress.tolerance({"": [value]}, score["n"]) for value in values)
        if other["n"] != score["n"] or abs(values[0] - values[1]) > allowed * (1 + 1e-6):
            found.append(f"{there.encoder['id']} {there.recipe['id']} {score['name']}: {values[0]} and {values[1]}")
    return found


def test_the_same_question_has_the_same_answer_on_another_processor(pairs: list[tuple[Record, Record]]) -> None:
    assert [line for here, there in pairs for line in apart(here, there)] == []


def cell(record: Record) -> str:
    return table._cell(Column(record.recipe["id"], record.recipe["headline"]), record, standing.Standing()).plain()


def test_a_table_prints_the_same_of_both(pairs: list[tuple[Record, Record]]) -> None:
    assert len(pairs) > 20
    different = {(there.encoder["id"], there.recipe["id"]) for here, there in pairs if cell(here) != cell(there)}
    assert different == set()
