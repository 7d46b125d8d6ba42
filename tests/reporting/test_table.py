"""Tables hold only what is comparable, mark the best, and say what they leave out."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from evalkit import records
from evalkit.errors import RecordError
from evalkit.reporting import table
from evalkit.types import Column, Suite
from tests.making import a_record

SUITE = Suite("s", "a title", (Column("mini-knn-ccp-items", title="k-NN"),), ("two", "one"))


def put(out: Path, *args: object, **fields: object) -> None:
    records.save(a_record(*args, **fields), [], {}, out)  # type: ignore[arg-type]


def test_value_half_interval_unit_and_the_best_in_bold(tmp_path: Path) -> None:
    put(tmp_path, "one", value=0.5)
    put(tmp_path, "two", value=0.625)
    text = table.markdown(table.build(SUITE, tmp_path))
    assert "| encoder | k-NN (%) |" in text
    assert text.index("| two | **62.5 ± 10.0** |") < text.index("| one | 50.0 ± 10.0 |")


def test_records_of_other_data_never_share_a_column(tmp_path: Path) -> None:
    put(tmp_path, "one", value=0.5)
    put(tmp_path, "two", value=0.6)
    put(tmp_path, "three", value=0.99, comparable="other", data={"test": {"digest": "f" * 64}})
    found = table.build(SUITE, tmp_path)
    assert set(found.rows) == {"one", "two"}
    assert any("left out, not comparable: three" in n and "ffffffff" in n for n in found.notes)


def test_a_subset_gives_way_to_the_whole_and_is_found_when_asked_for(tmp_path: Path) -> None:
    put(tmp_path, "one", value=0.5)
    put(tmp_path, "one", value=0.9, limit=20)
    put(tmp_path, "two", value=0.8, limit=20)
    assert set(table.build(SUITE, tmp_path).rows) == {"one"}
    assert set(table.build(SUITE, tmp_path, limit=20).rows) == {"one", "two"}


def test_a_table_of_a_subset_says_so(tmp_path: Path) -> None:
    put(tmp_path, "one", value=0.9, limit=20)
    assert any("--limit 20" in n for n in table.build(SUITE, tmp_path).notes)


def test_what_an_encoder_lacks_is_na_with_the_reason(tmp_path: Path) -> None:
    put(tmp_path, "one", scores=(), status="n/a", reason="one has no cls")
    put(tmp_path, "two", value=0.2)
    found = table.build(SUITE, tmp_path)
    assert found.rows["one"][0].plain() == "n/a"
    assert "one: one has no cls" in found.notes


def test_no_records_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="evalkit eval ENCODER --suite s"):
        table.build(SUITE, tmp_path)


def test_csv_has_value_half_and_n(tmp_path: Path) -> None:
    put(tmp_path, "one", value=0.5)
    rows = list(csv.reader(io.StringIO(table.comma_separated(table.build(SUITE, tmp_path)))))
    assert rows[0] == ["encoder", "k-NN %", "k-NN ±", "k-NN n"]
    assert [float(x) for x in rows[1][1:]] == pytest.approx([50, 10, 10])


def test_latex_escapes_and_closes(tmp_path: Path) -> None:
    put(tmp_path, "my_net", value=0.5)
    text = table.latex(table.build(SUITE, tmp_path))
    assert r"my\_net & \textbf{50.0 $\pm$ 10.0} \\" in text
    assert text.rstrip().endswith(r"\end{tabular}")


def test_two_networks_of_one_name_have_two_rows(tmp_path: Path) -> None:
    put(tmp_path, "one", value=0.5, identity={"encoder": ["digest a"]})
    put(tmp_path, "one", value=0.6, identity={"encoder": ["digest b"]})
    rows = table.build(SUITE, tmp_path).rows
    assert len(rows) == 2
    assert all(name.startswith("one (") for name in rows)


def test_records_that_differ_only_in_seed_are_counted_in_a_note(tmp_path: Path) -> None:
    put(tmp_path, "one", value=0.5, created="2026-01-01")
    put(tmp_path, "one", value=0.6, created="2026-01-02")
    found = table.build(SUITE, tmp_path)
    assert found.rows["one"][0].value == pytest.approx(60)
    assert any("one: the newest of 2 records" in n for n in found.notes)


def test_a_unit_that_is_no_percentage_has_three_decimals(tmp_path: Path) -> None:
    score = {"name": "top1@k=10", "value": 0.1234, "n": 5, "low": 0.1, "high": 0.11, "unit": "variance", "note": ""}
    put(tmp_path, "one", scores=(score,))
    text = table.markdown(table.build(SUITE, tmp_path))
    assert "| encoder | k-NN (variance) |" in text and "**0.123 ± 0.005**" in text


def test_data_with_fewer_samples_than_the_limit_are_whole_under_it(tmp_path: Path) -> None:
    put(tmp_path, "one", value=0.5, data={"test": {"digest": "0" * 64, "n": 9}})
    assert set(table.build(SUITE, tmp_path, limit=9).rows) == {"one"}
    with pytest.raises(RecordError):
        table.build(SUITE, tmp_path, limit=8)


def test_a_column_without_a_value_counts_nothing(tmp_path: Path) -> None:
    put(tmp_path, "one", value=0.5)
    suite = Suite("s", "t", (*SUITE.columns, Column("mini-knn-coco-objects", title="objects")))
    assert "n of the test set: k-NN 10" in table.build(suite, tmp_path).notes


def test_a_wide_table_is_drawn_with_encoders_as_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from evalkit.cli.table import _draw

    monkeypatch.setenv("COLUMNS", "100")
    put(tmp_path, "one", value=0.5)
    put(tmp_path, "two", value=0.4)
    columns = (
        Column("mini-knn-ccp-items", title="k-NN"),
        *(Column("mini-knn-ccp-items", title=f"c{i}") for i in range(9)),
    )
    for suite, first in ((SUITE, ["encoder", "(%)"]), (Suite("s", "t", columns), ["one", "two"])):
        _draw(table.build(suite, tmp_path))
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert first in lines
    assert ["k-NN", "(%)", "50.0", "±", "10.0", "40.0", "±", "10.0"] in lines
