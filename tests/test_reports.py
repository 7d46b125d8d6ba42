"""reports/: its tables are what its records say, and the records are of the recipes and weights of today."""

from __future__ import annotations

import re
import runpy
import shutil
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


def test_every_shipped_encoder_and_control_stands_in_every_table(here: SimpleNamespace, tmp_path: Path) -> None:
    shipped = {name for name in catalog.manifests() if (m := catalog.manifest(name)).shipped or m.control}
    for suite in here.SUITES:
        found = here.table.build(catalog.suite(suite), here.unpacked(suite, tmp_path / suite), limit=here.SUITES[suite])
        assert set(found.rows) == shipped
        assert all(cell.measured or cell.text == "n/a" for row in found.rows.values() for cell in row)


def test_a_number_that_somebody_changed_is_found(here: SimpleNamespace) -> None:
    written = here.HERE / "demo.md"
    text = written.read_text("utf-8")
    written.write_text(text.replace(" ± ", " ± 1", 1), "utf-8")
    assert here.check("demo") == ["reports/demo.md is not what its records say"]


def test_other_weights_and_other_recipes_make_a_record_old(here: SimpleNamespace, tmp_path: Path) -> None:
    record = next(r for r in records.find(here.unpacked("demo", tmp_path / "runs")) if r.encoder["id"] == "micro-dino")
    assert here.stale(record) == ""
    record.encoder["digest"] = "0" * 64  # type: ignore[index]
    assert "other weights" in here.stale(record)
    record.recipe["digest"] = "0" * 64  # type: ignore[index]
    assert "has changed" in here.stale(record)


def test_the_same_records_give_the_same_bytes(here: SimpleNamespace, tmp_path: Path) -> None:
    packed = here.HERE / "records" / "demo.zip"
    before = packed.read_bytes()
    here.pack("demo", here.unpacked("demo", tmp_path / "runs"))
    assert packed.read_bytes() == before


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
        for file in here.unpacked(suite, tmp_path / suite).rglob("*.json"):
            assert not re.search(r'"(/|\.\./|~)', file.read_text("utf-8")), file


def test_the_report_of_the_packed_records(
    here: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`evalkit table` on an unpacked zip prints what lies beside it."""
    runs = here.unpacked("demo", tmp_path / "runs")
    monkeypatch.setattr("sys.argv", ["evalkit", "table", "demo", "--out", str(runs), "--write"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert (runs / "tables" / "demo.md").read_text("utf-8") == (here.HERE / "demo.md").read_text("utf-8")
