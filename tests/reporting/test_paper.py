"""A paper's table holds every printed value once, beside it only what was measured on that network with that protocol."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from evalkit import catalog, records
from evalkit.cli.main import main
from evalkit.errors import CatalogError
from evalkit.probing import selection
from evalkit.reporting import paper, paper_formats, printed
from evalkit.types import Measure, PaperColumn, PaperNetwork, PaperRow, PaperTable
from tests.making import a_record

IMAGE_LEVEL = {
    "knn", "linear_probe", "attentive_probe", "semi_supervised_logreg", "few_shot_1shot_nn", "few_shot_1shot_threshold",
    "object_retrieval", "image_retrieval", "feature_variance",
}  # fmt: skip

LEFT_OUT: dict[tuple[str, str], str] = {}
"""(paper, table) with image-level values that no suite prints, and why."""

NOT_YET: set[str] = set()
"""Recipes that tables may name before they exist: a mistyped id is none of these."""

RECIPE = "knn-imagenet1k"
WHOLE = {
    "train": {"classes": ["a class"] * 1000, "images": 1_281_167},
    "test": {"classes": ["a class"] * 1000, "images": 50_000},
}
"""What a record says of ImageNet."""


def identity_of(row: printed.Printed) -> tuple[str, ...]:
    return tuple(row.values())


# ---------------------------------------------------------------- the shipped tables


@pytest.mark.parametrize("name", catalog.paper_tables())
def test_every_value_of_the_table_is_placed_once(name: str) -> None:
    table = catalog.paper_table(name)
    placed = [identity_of(row) for _, _, row in printed.cells(table)]
    theirs = [identity_of(r) for r in catalog.papers() if (r["paper"], r["table"]) == (table.paper, table.table)]
    assert sorted(placed) == sorted(theirs) and placed


def test_every_table_with_image_level_values_is_a_suite() -> None:
    wanted = {(r["paper"], r["table"]) for r in catalog.papers() if r["protocol"] in IMAGE_LEVEL}
    tables = map(catalog.paper_table, catalog.paper_tables())
    assert wanted == {(t.paper, t.table) for t in tables if (t.paper, t.table) in wanted} | set(LEFT_OUT)


@pytest.mark.parametrize("name", catalog.paper_tables())
def test_measures_name_recipes_and_fit_every_encoder(name: str) -> None:
    table = catalog.paper_table(name)
    for column in table.columns:
        assert {m.recipe for m in column.measures} <= {*catalog.recipes(), *NOT_YET}
    sheet = paper.build(table, Path("there is none"))
    for line in sheet.lines:
        for column, cell in zip(table.columns, line.cells, strict=True):
            if cell.printed and cell.encoder and column.measures:
                assert printed.fitting(column, cell.printed), (column.title, cell.encoder)
    used = {cell.encoder for line in sheet.lines for cell in line.cells}
    assert {n.encoder for n in table.networks} <= used


@pytest.mark.parametrize("name", catalog.paper_tables())
def test_a_table_without_records_prints_what_the_paper_prints(name: str) -> None:
    table = catalog.paper_table(name)
    text = paper_formats.comma_separated(paper.build(table, Path("there is none")))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [r["published"] for r in rows] == [row["value"] for _, _, row in printed.cells(table)]
    assert {r["remark"] for r in rows} <= {"no record", "no recipe yet", "not in the zoo"}
    assert all(r["note"].startswith("uncertain:") == bool(r["doubtful"]) for r in rows)


# ---------------------------------------------------------------- a table made by hand


COLUMN = PaperColumn("k-NN", "knn", "imagenet1k", "top1", measures=(Measure(RECIPE),))
TABLE = PaperTable(
    "t", "a title", "mugs", "Table 1", ("method",), (PaperRow("dino", "vit_base_16"), PaperRow("swav", "vit_small_16")),
    (COLUMN,),
)  # fmt: skip
"""DINO ViT-B/16 (76.1, in the zoo) and SwAV (66.3, doubtful, not in the zoo)."""


def measured_by(*measures: Measure, **fields: Any) -> PaperTable:
    return dataclasses.replace(TABLE, columns=(dataclasses.replace(COLUMN, measures=measures),), **fields)


def put(out: Path, name: str = "dino-b16", value: float = 0.75, **fields: Any) -> None:
    known = catalog.manifest(name if name in catalog.manifests() else "dino-b16")
    recipe = catalog.recipe(RECIPE)
    given: dict[str, Any] = {
        "encoder": {"id": name, "digest": "d", "network": known.network},
        "recipe": {"id": RECIPE, "version": 1, "headline": "top1@k=10", "digest": recipe.digest},
        "identity": {"preprocessing": dataclasses.asdict(known.preprocessing) | {"source": ""}},
    }
    limit = fields.pop("limit", None)
    given |= {} if limit else {"data": WHOLE}
    record = a_record(name, RECIPE, value, limit=limit)
    records.save(dataclasses.replace(record, **given | fields), [], {}, out)


def cell(out: Path, table: PaperTable = TABLE, line: int = 0, **options: Any) -> paper.PaperCell:
    return paper.build(table, out, **options).lines[line].cells[0]


def test_printed_measured_half_and_difference(tmp_path: Path) -> None:
    put(tmp_path)
    found = cell(tmp_path)
    assert (found.value, found.half, found.difference, found.n) == pytest.approx((75, 10, -1.1, 10))
    assert (found.encoder, found.recipe, found.score) == ("dino-b16", RECIPE, "top1@k=10")
    assert paper_formats.text(found) == "76.1 / 75.0 ± 10.0 (-1.1)"


def test_a_value_in_doubt_has_its_note_as_a_footnote_and_a_network_we_lack_a_mark(tmp_path: Path) -> None:
    sheet = paper.build(TABLE, tmp_path)
    assert paper_formats.text(sheet.lines[1].cells[0]) == "66.3[1] / ×"
    assert sheet.footnotes[0].startswith("uncertain: pretrain_epochs printed as 3200")
    assert paper_formats.text(sheet.lines[0].cells[0]) == "76.1 / —"
    assert f"— no record here: evalkit eval dino-b16 --recipe {RECIPE}" in sheet.notes


def test_another_protocol_is_measured_beside_without_a_difference(tmp_path: Path) -> None:
    put(tmp_path)
    table = measured_by(Measure(RECIPE, differs="other crops"))
    found = cell(tmp_path, table)
    assert found.value == pytest.approx(75) and math.isnan(found.difference)
    assert paper_formats.text(found) == "76.1 / 75.0 ± 10.0[1]"
    assert paper.build(table, tmp_path).footnotes[0] == f"{RECIPE}: other crops"


def test_a_network_that_is_only_likely_has_no_difference(tmp_path: Path) -> None:
    put(tmp_path, "dino-s16")
    network = PaperNetwork("dino-s16", "dino", "a guess")
    assert cell(tmp_path, measured_by(Measure(RECIPE), networks=(network,))).remarks == (1,)
    assert math.isnan(cell(tmp_path, measured_by(Measure(RECIPE), networks=(network,))).difference)
    sure = dataclasses.replace(network, certain=True)
    assert cell(tmp_path, measured_by(Measure(RECIPE), networks=(sure,))).difference == pytest.approx(-1.1)


def test_what_test_data_chose_is_said_and_compared(tmp_path: Path) -> None:
    score = {"name": "best", "value": 0.75, "n": 5, "low": 0.7, "high": 0.8, "unit": "fraction", "note": "best-on-test"}
    put(tmp_path, scores=(score,))
    table = measured_by(Measure(RECIPE, "best"))
    assert cell(tmp_path, table).difference == pytest.approx(-1.1)
    assert paper.build(table, tmp_path).footnotes[0].startswith(f"{RECIPE} best: test data chose it")


def test_what_was_chosen_at_the_end_of_its_grid_is_said(tmp_path: Path) -> None:
    told = selection.fact("T", (0.1, 0.5, 0.9), 0.9, selection.choose(torch.eye(3)))
    score = {"name": "F1", "value": 0.75, "n": 5, "low": 0.7, "high": 0.8, "unit": "fraction", "note": ""}
    put(tmp_path, scores=(score,), facts={"choices": {"F1": told}})
    table = measured_by(Measure(RECIPE, "F1"))
    assert cell(tmp_path, table).difference == pytest.approx(-1.1)
    (note,) = paper.build(table, tmp_path).footnotes[:1]
    assert note.startswith(f"{RECIPE} F1 of dino-b16: T = 0.9 is the highest of the 3 tried (0.1 to 0.9)")


@pytest.mark.parametrize(
    ("role", "facts", "said"),
    [
        ("train", {"classes": ["a", "b", "c"], "images": 24}, "train: 3 classes, published 1,000; train: 24 photos"),
        ("test", {"images": 49_999}, "val: 49,999 photos, published 50,000"),
        ("test", {"skipped": ["one"]}, "val: 1 that could not be read are left out"),
        ("train", {"images": None}, "train: the record does not say how many classes and photos it has"),
    ],
)
def test_other_data_than_were_printed_have_no_difference(
    tmp_path: Path, role: str, facts: dict[str, Any], said: str
) -> None:
    put(tmp_path, data=WHOLE | {role: WHOLE[role] | facts})
    found = cell(tmp_path)
    assert found.value == pytest.approx(75) and math.isnan(found.difference)
    assert paper_formats.text(found) == "76.1 / 75.0 ± 10.0[1]"
    (note,) = paper.build(TABLE, tmp_path).footnotes[:1]
    assert note.startswith(f"{RECIPE}, dino-b16: other data than printed: ") and said in note


def test_a_recipe_whose_data_nobody_stated_has_no_difference(tmp_path: Path) -> None:
    other = "mini-knn-ccp-items"
    put(tmp_path, recipe={"id": other, "version": 1, "headline": "top1@k=10", "digest": catalog.recipe(other).digest})
    table = measured_by(Measure(other))
    assert math.isnan(cell(tmp_path, table).difference)
    assert "it is not known which data" in paper.build(table, tmp_path).footnotes[0]


def test_a_subset_of_the_data_has_no_difference(tmp_path: Path) -> None:
    put(tmp_path, limit=20)
    for found in (cell(tmp_path), cell(tmp_path, limit=20)):
        assert found.value == pytest.approx(75) and math.isnan(found.difference)
    assert any("--limit 20" in note for note in paper.build(TABLE, tmp_path).notes)
    assert math.isnan(cell(tmp_path, limit=30).value)


@pytest.mark.parametrize(
    "fields",
    [
        {"encoder": {"id": "dino-b16", "digest": "d", "network": "student"}},
        {"identity": {"preprocessing": {"size": 224}}},
        {"recipe": {"id": RECIPE, "version": 1, "headline": "top1@k=10", "digest": "older"}},
    ],
)
def test_what_is_another_network_or_recipe_is_left_out_and_told(tmp_path: Path, fields: dict[str, Any]) -> None:
    put(tmp_path, **fields)
    assert cell(tmp_path).text == paper.NO_RECORD
    assert any("left out" in note and "dino-b16" in note for note in paper.build(TABLE, tmp_path).notes)


def test_another_file_of_the_same_name_is_left_out(tmp_path: Path) -> None:
    table = dataclasses.replace(TABLE, networks=(PaperNetwork("mugs-s16-800", "dino", "", certain=True),))
    put(tmp_path, "mugs-s16-800")
    assert cell(tmp_path, table).text == paper.NO_RECORD
    known = catalog.manifest("mugs-s16-800")
    put(tmp_path, "mugs-s16-800", encoder={"id": known.id, "digest": known.sha256, "network": known.network})
    assert cell(tmp_path, table).value == pytest.approx(75)


def test_the_first_measure_that_fits_and_has_a_record_counts(tmp_path: Path) -> None:
    put(tmp_path)
    table = measured_by(
        Measure(RECIPE, "no such score", methods=("ibot",)),
        Measure(RECIPE, "nor this", archs=("vit_small_16",)),
        Measure("no-such-recipe"),
        Measure("mini-knn-coco-objects"),
        Measure(RECIPE, differs="the fourth choice"),
    )
    assert cell(tmp_path, table).value == pytest.approx(75)


def test_no_recipe_yet_is_marked_and_named(tmp_path: Path) -> None:
    table = measured_by(Measure("no-such-recipe"))
    sheet = paper.build(table, tmp_path)
    assert paper_formats.text(sheet.lines[0].cells[0]) == "76.1 / ·"
    assert "k-NN (%) ·" in paper_formats.heads(sheet)
    assert any("no recipe yet: no-such-recipe" in note for note in sheet.notes)
    assert any("no recipe yet: k-NN" in note for note in paper.build(measured_by(), tmp_path).notes)


def test_what_an_encoder_lacks_is_na_with_the_reason(tmp_path: Path) -> None:
    put(tmp_path, scores=(), status="n/a", reason="it has no cls")
    sheet = paper.build(TABLE, tmp_path)
    assert paper_formats.text(sheet.lines[0].cells[0]) == "76.1 / n/a[1]"
    assert sheet.footnotes[0] == "it has no cls"


def test_a_score_that_is_not_there_and_a_unit_that_differs_are_told(tmp_path: Path) -> None:
    score = {"name": "top1@k=10", "value": 3.0, "n": 5, "low": 2.0, "high": 4.0, "unit": "px", "note": ""}
    put(tmp_path, scores=(score,))
    found = cell(tmp_path)
    assert found.value == 3 and math.isnan(found.difference) and found.remarks == (1,)
    assert cell(tmp_path, measured_by(Measure(RECIPE, "other"))).text == "n/a"


def test_scores_are_named_by_the_variant(tmp_path: Path) -> None:
    column = PaperColumn(
        "CIFAR-10", "knn", "cifar10", "top1",
        measures=(Measure("a", "x@{k}", variant=("pat",)), Measure("a", "y@{k}")),
    )  # fmt: skip
    table = PaperTable("t", "t", "mmc", "Table 6", ("variant", "k"), (PaperRow(variant=("pat", "k=50")),), (column,))
    ((_, _, row),) = printed.cells(table)
    assert row["value"] == "83.3"
    assert [printed.score_of(m, row) for m in printed.fitting(column, row)] == ["x@50", "y@50"]
    assert paper.build(table, tmp_path).lines[0].labels == ("patches", "50")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ((PaperRow("dino"),), "3 rows of papers.csv, not 1"),
        ((PaperRow("dino", "vit_huge_14"),), "0 rows of papers.csv, not 1"),
        ((PaperRow("dino", "vit_base_16", blank=("k-NN",)),), "1 rows of papers.csv, not 0"),
    ],
)
def test_a_cell_is_exactly_one_row_of_papers(rows: tuple[PaperRow, ...], said: str) -> None:
    with pytest.raises(CatalogError, match=said):
        list(printed.cells(dataclasses.replace(TABLE, rows=rows)))


def test_a_stub_and_a_key_that_the_cell_has_not_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="a stub is 'metod'"):
        paper.build(dataclasses.replace(TABLE, stubs=("metod",)), tmp_path)
    put(tmp_path)
    with pytest.raises(CatalogError, match=r"score 'top1@k=\{k\}' needs 'k'"):
        cell(tmp_path, measured_by(Measure(RECIPE, "top1@k={k}")))


def test_a_value_of_nothing_is_not_a_number(tmp_path: Path) -> None:
    nothing = {"name": "top1@k=10", "value": math.nan, "n": 0, "low": math.nan, "high": math.nan, "unit": "fraction"}
    put(tmp_path, scores=({**nothing, "note": ""},))
    assert paper_formats.text(cell(tmp_path)) == "76.1 / NaN"


def test_as_many_decimals_as_printed(tmp_path: Path) -> None:
    row = next(r for r in catalog.papers() if r["value"] == "0.12")
    found = paper.PaperCell(row, value=0.1249, spread=" ± 0.00", difference=-0.0001, text="")
    assert paper_formats.text(found) == "0.12 / 0.12 ± 0.00 (+0.00)"


def test_the_formats(tmp_path: Path) -> None:
    put(tmp_path)
    table = dataclasses.replace(TABLE, section="arch")
    sheet = paper.build(table, tmp_path)
    text = paper_formats.markdown(sheet)
    assert "| method | k-NN (%) |\n|---|---:|\n| **ViT-B/16** |  |\n| DINO | 76.1 / 75.0 ± 10.0 (-1.1) |" in text
    row = next(csv.DictReader(io.StringIO(paper_formats.comma_separated(sheet))))
    assert (row["method"], row["published"], row["encoder"], row["n"]) == ("DINO", "76.1", "dino-b16", "10")
    assert float(row["measured"]) == pytest.approx(75) and float(row["difference"]) == pytest.approx(-1.1)
    text = paper_formats.latex(sheet)
    assert r"DINO & 76.1 / 75.0 $\pm$ 10.0 (-1.1) \\" in text and r"method & k-NN (\%) \\" in text
    assert r"\multicolumn{2}{l}{ViT-B/16} \\" in text and r"66.3[1] / $\times$" in text


# ---------------------------------------------------------------- the other way round, and the commands


def test_a_recipe_finds_what_papers_print_for_it() -> None:
    found = list(printed.links("knn-imagenet1k"))
    assert len({(table.id, identity_of(row)) for table, _, _, row in found}) == len(found)
    values = {(row["method"], row["arch"], row["value"]): (m, score) for _, m, score, row in found}
    measure, score = values["dino", "vit_base_16", "76.1"]
    assert score == "top1@k=20" and not measure.differs
    assert values["ibot", "vit_base_16", "77.1"][0].differs
    assert list(printed.links("mini-knn-ccp-items")) == []


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["evalkit", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "table", "mugs-table1", "--write")
    drawn = capsys.readouterr().out
    assert "ResNet-50" in drawn and "82.3[5]" in drawn and "[5] uncertain: text label says ViT-T" in drawn
    assert "82.3[5]" in (tmp_path / "runs/tables/mugs-table1.md").read_text()
    for form, mark in (("md", "| **ViT-B/16** |"), ("csv", "ViT-B/16,DINO,"), ("latex", r"\begin{tabular}")):
        run(monkeypatch, "table", "mugs-table1", "--format", form)
        assert mark in capsys.readouterr().out
    run(monkeypatch, "describe", "knn-imagenet1k")
    said = capsys.readouterr().out
    assert "  mugs, Table 1 (evalkit table mugs-table1)\n" in said
    assert "    dino, vit_small_16, imagenet1k, 3200: knn, imagenet1k, top1: 74.5 %" in said
    assert "k not stated" in said and "no difference is shown: the paper does not state k" in said
    run(monkeypatch, "describe", "mugs-table1")
    assert "evalkit table mugs-table1" in capsys.readouterr().out
    run(monkeypatch, "list", "suites")
    assert "mugs-table1" in capsys.readouterr().out


def test_a_row_of_a_table_asks_for_its_own_recipes() -> None:
    table = catalog.paper_table("mugs-table1")
    assert printed.recipes_of(table, "dino-s16") == ["linear-imagenet1k-dino-s", "knn-imagenet1k"]
    assert printed.recipes_of(table, "dino-b16") == ["linear-imagenet1k-dino-b", "knn-imagenet1k"]
    assert printed.recipes_of(table, "micro-dino") == []
    projected = printed.recipes_of(catalog.paper_table("part-aware-table2"), "dino-b16-full")
    assert projected == ["retrieval-objects-cifar10", "retrieval-objects-coco"]


def test_eval_takes_the_row_of_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    from evalkit.cli.measure import _of_suite

    assert _of_suite("mugs-table1", "mugs-b16-400") == ["linear-imagenet1k-mugs-b", "knn-imagenet1k-mugs-bl"]
    assert not capsys.readouterr().err
    every = _of_suite("mugs-table1", "micro-dino")
    assert "linear-imagenet1k-mocov3" in every and "knn-imagenet1k" in every
    assert "micro-dino has no row in mugs-table1" in capsys.readouterr().err


def test_html_has_sections_over_the_whole_width_and_every_value() -> None:
    sheet = paper.build(catalog.paper_table("mugs-table1"), Path("there is none"))
    text = paper_formats.page(sheet)
    sections = [section for section, _ in paper_formats.sections(sheet) if section]
    assert text.count(f'<th scope="rowgroup" colspan="{len(paper_formats.heads(sheet))}">') == len(sections) > 0
    printed_values = [c.printed["value"] for line in sheet.lines for c in line.cells if c.printed]
    assert all(value in text for value in printed_values)
    assert "http" not in text.replace("arxiv", "").split("<body>")[0]


# ---------------------------------------------------------------- controls


def test_controls_that_were_measured_stand_below_the_papers_rows(tmp_path: Path) -> None:
    put(tmp_path, value=0.75)
    put(tmp_path, "pixels", 0.25, identity={"preprocessing": fed("pixels")})
    put(tmp_path, "random-vit_base_patch16", 0.125, encoder={"id": "random-vit_base_patch16", "network": "untrained"})
    sheet = paper.build(TABLE, tmp_path)
    assert [line.section for line in sheet.lines] == ["", "", "controls, measured here", "controls, measured here"]
    assert [line.labels for line in sheet.lines[2:]] == [("random-vit_base_patch16",), ("pixels",)]
    assert "| random-vit_base_patch16 | 12.5 ± 10.0 |" in paper_formats.markdown(sheet)
    rows = list(csv.DictReader(io.StringIO(paper_formats.comma_separated(sheet))))
    assert [(r["encoder"], r["published"], r["measured"]) for r in rows[2:]] == [
        ("random-vit_base_patch16", "", "12.5"),
        ("pixels", "", "25.0"),
    ]
    assert math.isnan(sheet.lines[2].cells[0].difference)


def fed(name: str) -> dict[str, Any]:
    return dataclasses.asdict(catalog.manifest(name).preprocessing) | {"source": ""}
