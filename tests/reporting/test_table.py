"""Tables hold only what is comparable, mark the best, and say what they leave out."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evalkit import records
from evalkit.errors import RecordError
from evalkit.reporting import table, table_formats
from evalkit.types import Column, Score, Suite
from tests.making import a_record

SUITE = Suite("s", "a title", (Column("mini-knn-ccp-items", title="k-NN"),), ("two", "one"))


def judged(out: Path, encoder: str, right: list[int], **fields: object) -> None:
    """A record whose outcomes per test image are these."""
    value = float(np.mean(right))
    score = Score("top1@k=10", value, len(right), value - 0.1, value + 0.1, outcomes=np.array(right, np.float32))
    records.save(a_record(encoder, value=value, **fields), [score], {}, out)  # type: ignore[arg-type]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    judged(tmp_path, "top", [1] * 90 + [0] * 10)
    judged(tmp_path, "near", [1] * 88 + [0] * 11 + [1])
    judged(tmp_path, "far", [1] * 40 + [0] * 60)
    return tmp_path


def test_a_star_is_significantly_apart_from_the_best(three: Path) -> None:
    found = table.build(SUITE, three)
    assert {e: row[0].apart for e, row in found.rows.items()} == {"top": False, "near": False, "far": True}
    text = table_formats.markdown(found)
    assert "| far | 40.0 ± 10.0\\* |" in text and "| near | 89.0 ± 10.0 |" in text
    assert "- \\* differs from the best of its column" in text


def test_against_an_encoder_every_other_has_its_difference(three: Path) -> None:
    found = table.build(SUITE, three, against="near")
    assert found.rows["top"][0].plain() == "90.0 ± 10.0 (+1.0)"
    assert found.rows["far"][0].plain() == "40.0 ± 10.0 (-49.0*)"
    assert found.rows["near"][0].plain() == "89.0 ± 10.0"
    assert any("differs from near" in note for note in found.notes)
    row = next(r for r in csv.DictReader(io.StringIO(table_formats.comma_separated(found))) if r["encoder"] == "far")
    assert float(row["k-NN minus near"]) == pytest.approx(-49) and 0 < float(row["k-NN p"]) < 0.01


def test_against_who_was_not_measured_names_those_who_were(three: Path) -> None:
    with pytest.raises(RecordError, match="no record of nobody here to test against; there are: far, near, top"):
        table.build(SUITE, three, against="nobody")


def test_what_cannot_be_tested_has_no_star_and_says_why(three: Path) -> None:
    judged(three, "fewer", [1, 0, 0, 0])
    found = table.build(SUITE, three)
    assert not found.rows["fewer"][0].apart
    assert any("fewer: not tested against the best" in note and "same units" in note for note in found.notes)


def test_html_is_a_page_with_all_of_it_and_escapes(three: Path) -> None:
    judged(three, "<b>", [1] * 50 + [0] * 50)
    text = table_formats.page(table.build(SUITE, three))
    assert text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")
    assert "<strong" in text and "90.0 ± 10.0" in text and "differs from the best" in text
    assert "&lt;b&gt;" in text and "<b>" not in text
    assert "http" not in text


def put(out: Path, *args: object, **fields: object) -> None:
    records.save(a_record(*args, **fields), [], {}, out)  # type: ignore[arg-type]


def test_value_half_interval_unit_and_the_best_in_bold(tmp_path: Path) -> None:
    put(tmp_path, "one", value=0.5)
    put(tmp_path, "two", value=0.625)
    text = table_formats.markdown(table.build(SUITE, tmp_path))
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
    rows = list(csv.reader(io.StringIO(table_formats.comma_separated(table.build(SUITE, tmp_path)))))
    assert rows[0] == ["encoder", "k-NN %", "k-NN ±", "k-NN n", "k-NN minus best", "k-NN p"]
    assert [float(x) for x in rows[1][1:4]] == pytest.approx([50, 10, 10]) and rows[1][4:] == ["", ""]


def test_latex_escapes_and_closes(tmp_path: Path) -> None:
    put(tmp_path, "my_net", value=0.5)
    text = table_formats.latex(table.build(SUITE, tmp_path))
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
    text = table_formats.markdown(table.build(SUITE, tmp_path))
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


def test_the_difference_of_another_unit_is_in_that_unit_and_latex_has_its_star(tmp_path: Path) -> None:
    for encoder, value in (("low_{1}", 0.1), ("high", 0.4)):
        rows = np.full(50, value, np.float32) + np.linspace(-0.01, 0.01, 50, dtype=np.float32)
        score = Score("top1@k=10", value, 50, value - 0.01, value + 0.01, unit="variance", outcomes=rows)
        plain = {f: getattr(score, f) for f in ("name", "value", "n", "low", "high", "unit", "note")}
        records.save(a_record(encoder, scores=(plain,)), [score], {}, tmp_path)
    found = table.build(SUITE, tmp_path, against="high")
    assert found.rows["low_{1}"][0].plain() == "0.100 ± 0.010 (-0.300*)"
    assert r"low\_\{1\} & 0.100 $\pm$ 0.010 (-0.300$^{*}$) \\" in table_formats.latex(found)


def test_what_people_write_stays_in_its_cell_and_its_comment(three: Path) -> None:
    suite = Suite("s", "a | title <b>", (Column("mini-knn-ccp-items", title="k|NN"),), (), "two\nlines")
    found = table.build(suite, three)
    text = table_formats.markdown(found)
    assert r"| encoder | k\|NN (%) |" in text and "&lt;b>" in text and "- two lines" in text
    assert "% two lines" in table_formats.latex(found).splitlines()


def test_words_in_brackets_are_drawn_as_they_are(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from evalkit.cli.table import _draw

    suite = Suite("s", "x [/b]", (Column("mini-knn-ccp-items", title="k-NN [cls]"),), ())
    _draw(table.build(suite, three))
    shown = capsys.readouterr().out
    assert "x [/b]" in shown and "[cls]" in shown


@pytest.mark.parametrize(("columns", "whole"), [("80", True), ("24", False)])
def test_a_terminal_folds_heads_before_values(
    three: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str, whole: bool
) -> None:
    from evalkit.cli.table import _draw

    monkeypatch.setenv("COLUMNS", columns)
    suite = Suite("s", "t", (Column("mini-knn-ccp-items", title="a long head " * 4),) * 4, ())
    _draw(table.build(suite, three))
    assert ("90.0 ± 10.0" in capsys.readouterr().out) is whole


def twinned(out: Path, name: str, right: int, twin: str = "", network: str = "") -> None:
    """A record of so many right of 100 test images, which says the id of its untrained twin."""
    outcomes = np.array([1] * right + [0] * (100 - right), np.float32)
    encoder = {"id": name, "digest": "d", "twin": twin, "network": network}
    record = replace(a_record(name, value=right / 100), encoder=encoder)
    records.save(record, [Score("top1@k=10", right / 100, 100, 0, 1, outcomes=outcomes)], {}, out)


def test_each_encoder_is_tested_against_its_own_untrained_twin(tmp_path: Path) -> None:
    twinned(tmp_path, "one", 80, "random")
    twinned(tmp_path, "two", 60, "random-cae")
    twinned(tmp_path, "three", 50, "random-mae")
    judged(tmp_path, "random", [1] * 20 + [0] * 80)
    twinned(tmp_path, "random-cae", 55, network="untrained")
    judged(tmp_path, "pixels", [1] * 30 + [0] * 70)
    found = table.build(SUITE, tmp_path, against="random")
    assert list(found.rows) == ["two", "one", "three", "random", "random-cae", "pixels"]
    differences = {name: row[0].plain().partition(" (")[2] for name, row in found.rows.items()}
    assert differences == {
        "two": "+5.0)",  # five units of a hundred differ: too few to tell from luck
        "one": "+60.0*)",
        "three": "",
        "random": "",
        "random-cae": "",
        "pixels": "+10.0*)",
    }
    said = " ".join(found.notes)
    assert "the same network untrained: random of one; random-cae of two" in said
    assert "three: not measured untrained (random-mae): evalkit eval random:FILE" in said
    assert "* differs from its untrained twin" in said


def test_records_that_do_not_say_their_network_are_tested_against_random_itself(tmp_path: Path) -> None:
    judged(tmp_path, "old", [1] * 80 + [0] * 20)
    judged(tmp_path, "random", [1] * 20 + [0] * 80)
    found = table.build(SUITE, tmp_path, against="random")
    assert found.rows["old"][0].plain().endswith("(+60.0*)")
    assert not any("the same network untrained" in note for note in found.notes)
