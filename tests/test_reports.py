"""reports/: its tables are what its records say, and the records are of the recipes and weights of today."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from evalkit import catalog, records
from evalkit.cli import main as cli

REPORTS = Path(__file__).parents[1] / "reports"


@pytest.fixture
def here(tmp_path: Path) -> SimpleNamespace:
    """The script, on a folder of its own with tables and records as committed."""
    shutil.copytree(REPORTS, tmp_path / "reports", ignore=shutil.ignore_patterns("published"))
    return SimpleNamespace(**runpy.run_path(str(tmp_path / "reports" / "tables.py")))


@pytest.mark.parametrize("suite", ["demo", "mini", "zoo"])
def test_the_tables_are_what_their_records_say(here: SimpleNamespace, suite: str) -> None:
    assert here.check(suite) == []


def test_every_encoder_of_a_suite_stands_in_its_table(here: SimpleNamespace, tmp_path: Path) -> None:
    assert here.encoders("mini") == here.encoders("zoo") == set(catalog.shipped_encoders())
    for suite in here.SUITES:
        runs = here.unpacked(here.zip_of(suite), tmp_path / suite)
        found = here.table.build(catalog.suite(suite), runs, limit=here.SUITES[suite])
        assert set(found.rows) == here.rows(suite, runs)
        assert all(cell.measured or cell.text == "n/a" for row in found.rows.values() for cell in row)


def test_a_number_that_somebody_changed_is_found(here: SimpleNamespace) -> None:
    written = here.HERE / "demo.md"
    text = written.read_text("utf-8")
    written.write_text(text.replace(" ± ", " ± 1", 1), "utf-8")
    assert here.check("demo") == ["reports/demo.md is not what its records say"]


def test_other_weights_and_other_recipes_make_a_record_old(here: SimpleNamespace, tmp_path: Path) -> None:
    record = next(
        r for r in records.find(here.unpacked(here.zip_of("demo"), tmp_path / "runs")) if r.encoder["id"] == "micro-mgc"
    )
    assert here.stale(record) == ""
    record.encoder["digest"] = "0" * 64  # type: ignore[index]
    assert "other weights" in here.stale(record)
    record.recipe["digest"] = "0" * 64  # type: ignore[index]
    assert "has changed" in here.stale(record)


def contents(packed: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(packed) as entries:
        return {name: entries.read(name) for name in entries.namelist()}


def test_packing_what_was_packed_gives_the_same(here: SimpleNamespace, tmp_path: Path) -> None:
    before = contents(here.zip_of("demo"))
    here.pack("demo", here.unpacked(here.zip_of("demo"), tmp_path / "runs"), tmp_path / "demo.zip")
    assert contents(tmp_path / "demo.zip") == before


def test_a_stale_record_is_not_packed(here: SimpleNamespace, tmp_path: Path) -> None:
    runs = here.unpacked(here.zip_of("demo"), tmp_path / "runs")
    path = next(runs.glob("random/mini-knn-ccp-items.*.json"))
    content = json.loads(path.read_text("utf-8"))
    content["recipe"]["digest"] = "0" * 64
    path.write_text(json.dumps(content), "utf-8")
    here.pack("demo", runs, tmp_path / "demo.zip")
    assert not any(name.startswith("random/mini-knn") for name in contents(tmp_path / "demo.zip"))


def test_what_was_not_measured_whole_stays_as_it_is(
    here: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {suite: contents(here.zip_of(suite)) for suite in here.SUITES}
    (tmp_path / "empty").mkdir()
    assert here.main([str(tmp_path / "empty")]) == 0
    assert capsys.readouterr().out.count("stays as it is") == len(here.SUITES)
    assert here.main([str(here.unpacked(here.zip_of("demo"), tmp_path / "runs"))]) == 0
    told = capsys.readouterr().out
    assert told.startswith("reports/demo.md\n") and "mini.md stays as it is: no record of mini-" in told
    assert {suite: contents(here.zip_of(suite)) for suite in here.SUITES} == before
    assert here.main(["--check"]) == 0


@pytest.mark.parametrize("words", [[], ["nowhere"], ["a", "b"]])
def test_other_words_are_told_how(here: SimpleNamespace, words: list[str]) -> None:
    assert str(here.main(words)).startswith("usage")


def test_records_name_no_folder_of_the_machine_that_measured(here: SimpleNamespace, tmp_path: Path) -> None:
    found = {
        "file": str(here.CLONE / "model_zoo/w.safetensors"),
        "root": "/data/cifar10.zip",
        "data": [{"out": "../runs"}],
        "n": 3,
    }
    assert here._without_places(found) == {
        "file": "model_zoo/w.safetensors", "root": "cifar10.zip", "data": [{"out": "runs"}], "n": 3,
    }  # fmt: skip
    for suite in here.SUITES:
        for file in here.unpacked(here.zip_of(suite), tmp_path / suite).rglob("*.json"):
            assert not re.search(r'"(/|\.\./|~)', file.read_text("utf-8")), file


def test_the_report_of_the_packed_records(
    here: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`evalkit table` on an unpacked zip prints what lies beside it."""
    runs = here.unpacked(here.zip_of("demo"), tmp_path / "runs")
    monkeypatch.setattr("sys.argv", ["evalkit", "table", "demo", "--out", str(runs), "--write"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert (runs / "tables" / "demo.md").read_text("utf-8") == (here.HERE / "demo.md").read_text("utf-8")
