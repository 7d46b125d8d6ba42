"""Wherever a score is printed its interval is the right one, says what it is, or says that there is none."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from evalkit import records
from evalkit.cli.main import main
from evalkit.cli.measure import describe_score
from evalkit.engine.evaluate import _plain
from evalkit.metrics import bootstrap
from evalkit.reporting import intervals, standing, table, table_formats
from evalkit.reporting.site import board
from evalkit.types import Column, Suite
from tests.making import a_record

SUITE = Suite("s", "a title", (Column("mini-knn-ccp-items", title="k-NN"),))
NEVER, OFTEN = np.zeros(20), np.ones(20)


def put(out: Path, encoder: str, outcomes: np.ndarray, groups: np.ndarray | None = None) -> records.Record:
    score = bootstrap.score("top1@k=10", outcomes, groups)
    record = a_record(encoder, value=score.value, scores=(_plain(score),))
    records.save(record, [score], {}, out)
    return record


@pytest.mark.parametrize(
    ("outcomes", "groups", "said"),
    [
        (NEVER, None, "0.0 % [0.0, 16.8] (n 20)"),
        (OFTEN, None, "100.0 % [83.2, 100.0] (n 20)"),
        (np.linspace(0.1, 0.6, 6), np.array([0, 0, 0, 1, 1, 1]), "35.0 % (n 6: no interval)"),
        (np.arange(200) % 2, None, r"50.0 % ± \d.\d (n 200)"),
    ],
)
def test_the_console(tmp_path: Path, outcomes: np.ndarray, groups: np.ndarray | None, said: str) -> None:
    put(tmp_path, "one", outcomes, groups)
    (record,) = records.find(tmp_path)
    shown = describe_score(record)
    expected = re.escape(said).replace(re.escape(r"\d.\d"), r"\d\.\d")
    assert re.fullmatch(f"top1@k=10 {expected}", shown), shown


def test_a_table_says_which_are_not_the_bootstraps_and_only_then(tmp_path: Path) -> None:
    put(tmp_path, "half", np.arange(20) % 2)
    plain = table_formats.markdown(table.build(SUITE, tmp_path))
    assert "Clopper" not in plain and "no interval" not in plain
    put(tmp_path, "never", NEVER)
    put(tmp_path, "few", np.linspace(0.1, 0.6, 6))
    text = table_formats.markdown(table.build(SUITE, tmp_path))
    assert "| never | 0.0 [0.0, 16.8]" in text and "| few | 35.0 (n 6: no interval) |" in text
    assert text.count("- [a, b] is the exact 95 % interval of a proportion (Clopper and Pearson)") == 1
    assert text.count("- no interval: fewer than 10 images") == 1


def test_the_report(tmp_path: Path) -> None:
    put(tmp_path, "never", NEVER)
    (record,) = records.find(tmp_path)
    value = board.printed(record.scores[0])
    assert (value.plain(), value.interval()) == ("0.0 [0.0, 16.8]", "[0.0, 16.8] exact")


def test_an_older_record_reads_and_its_certainty_is_not_repeated(tmp_path: Path) -> None:
    put(tmp_path, "old", np.arange(40) % 2)
    (path,) = tmp_path.glob("old/*.json")
    content = json.loads(path.read_text())
    (score,) = content["scores"]
    del score["interval"]
    path.write_text(json.dumps(records.sealed(content)))
    assert records.read(path).scores[0]["interval"] == "bootstrap"
    score.update(value=0.0, low=0.0, high=0.0)
    path.write_text(json.dumps(records.sealed(content)))
    (found,) = records.read(path).scores
    assert found["interval"] == "none" and math.isnan(found["low"])
    assert intervals.spread(found, scale=100, digits=1) == " (n 40: no interval)"


def test_few_units_have_no_star_and_say_why(tmp_path: Path) -> None:
    found = {name: put(tmp_path, name, outcomes) for name, outcomes in {"a": OFTEN[:3], "b": NEVER[:3]}.items()}
    judged = standing.of(found, tmp_path)["b"]
    assert (judged.word, judged.why) == ("untested", "3 units to resample are too few, 10 are the fewest")


@pytest.mark.parametrize(
    ("n", "groups", "said"),
    [
        (
            3,
            3,
            "difference +100.0 (no interval) (n 3): whether they differ cannot be told with 3 units (10 are the fewest)",
        ),
        (12, 2, "(n 12): whether they differ cannot be told with 12 units in 2 groups (10 are the fewest)"),
        (20, 20, "difference +100.0 (no interval) (p 0.001, n 20): they differ"),
    ],
)
def test_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], n: int, groups: int, said: str
) -> None:
    for name, outcomes in {"all": np.ones(n), "none": np.zeros(n)}.items():
        put(tmp_path, name, outcomes, np.arange(n) % groups)
    monkeypatch.setattr(sys, "argv", ["evalkit", "compare", "all", "none", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert said in capsys.readouterr().out
