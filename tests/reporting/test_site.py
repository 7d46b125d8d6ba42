"""The report: only comparable records in a column, true marks, escaped text, one message for each kind of bad input."""

from __future__ import annotations

import dataclasses
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest

from evalkit import records
from evalkit.cli import main as cli
from evalkit.errors import RecordError, UsageError
from evalkit.reporting import html
from evalkit.reporting.site import board, breakdown, build, collected, grains, parts, plots, profile, training
from evalkit.types import Score
from tests.making import a_record

RECIPE = {
    "id": "mini-knn-ccp-items",
    "version": 1,
    "headline": "top1@k=10",
    "runner": "knn",
    "dataset": {"name": "ccp_items"},
}


def made(encoder: str, /, name: str = "mini-knn-ccp-items", recipe: object = None, **fields: object) -> records.Record:
    given = {
        "recipe": {**RECIPE, "id": name, **(recipe or {})},
        "identity": {"encoder": [encoder]},
        "key": f"{zlib.crc32(f'{encoder} {name}'.encode()):016x}"[::-1],
    }
    return dataclasses.replace(a_record(encoder, name), **{**given, **fields})


def put(out: Path, encoder: str, right: list[int], /, **fields: object) -> Path:
    """A record whose outcomes are these."""
    value = float(np.mean(right))
    score = Score("top1@k=10", value, len(right), value - 0.1, value + 0.1, outcomes=np.array(right, np.float32))
    plain = {
        "name": score.name,
        "value": value,
        "n": score.n,
        "low": score.low,
        "high": score.high,
        "unit": "fraction",
        "note": "",
    }
    record = made(encoder, **{"scores": (plain,), **fields})
    return records.save(record, [score], {}, out)


def site(runs: Path, out: Path) -> Path:
    build.check(out)
    return build.write(board.build(collected.collect(runs)), {}, out)


def run(*words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["evalkit", *words])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def the_column(out: Path) -> board.Column:
    (column,) = board.build(collected.collect(out)).columns
    return column


def standings(out: Path) -> dict[str, str]:
    return {who.split(" ")[0]: cell.standing for who, cell in the_column(out).cells.items()}


def test_best_tied_and_apart_by_the_paired_bootstrap(tmp_path: Path) -> None:
    put(tmp_path, "top", [1] * 90 + [0] * 10)
    put(tmp_path, "near", [1] * 88 + [0] * 11 + [1])
    put(tmp_path, "far", [1] * 40 + [0] * 60)
    assert standings(tmp_path) == {"top": "best", "near": "tied", "far": "apart"}


def test_paired_beats_overlapping_intervals(tmp_path: Path) -> None:
    """2 points apart with intervals of 20, yet wrong on a superset of images: significant, because the test is paired."""
    put(tmp_path, "top", [1] * 600 + [0] * 400)
    put(tmp_path, "less", [1] * 580 + [0] * 420)
    assert standings(tmp_path) == {"top": "best", "less": "apart"}


def test_the_lowest_is_best_where_the_recipe_says_so(tmp_path: Path) -> None:
    put(tmp_path, "high", [1] * 90 + [0] * 10, name="r", recipe={"best": "min"})
    put(tmp_path, "low", [1] * 10 + [0] * 90, name="r", recipe={"best": "min"})
    assert standings(tmp_path) == {"low": "best", "high": "apart"}


def test_without_outcomes_a_value_stands_untested_and_says_why(tmp_path: Path) -> None:
    put(tmp_path, "top", [1] * 9 + [0])
    path = put(tmp_path, "other", [1] * 5 + [0] * 5)
    path.with_suffix(".units.safetensors").write_bytes(b"cut sho")
    cell = next(c for c in the_column(tmp_path).cells.values() if c.standing == "untested")
    assert cell.value is not None and cell.why
    page = site(tmp_path, tmp_path / "site").parent / "recipes/mini-knn-ccp-items.html"
    assert "not tested against the best" in page.read_text()


def test_other_data_are_left_out_with_what_differs(tmp_path: Path) -> None:
    put(tmp_path, "one", [1, 0, 1, 1])
    put(tmp_path, "two", [1, 0, 0, 1])
    put(tmp_path, "odd", [1, 1, 1, 1], comparable="other", data={"test": {"digest": "f" * 64}})
    column = the_column(tmp_path)
    assert {who.split(" ")[0] for who in column.cells} == {"one", "two"}
    assert column.said == ("left out, not comparable: odd (other data)",)
    assert "odd (other data)" in site(tmp_path, tmp_path / "site").read_text()


def test_what_files_say_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    put(tmp_path, "one", [1, 0], reason=evil, status="n/a", name="r", recipe={"title": evil})
    first = site(tmp_path, tmp_path / "site")
    for page in first.parent.rglob("*.html"):
        assert "<script>alert" not in page.read_text()
    assert html.tag("a", "<&>", title='"') == '<a title="&quot;">&lt;&amp;&gt;</a>'


def test_pages_refer_to_nothing_outside(tmp_path: Path) -> None:
    put(tmp_path, "one", [1, 0])
    first = site(tmp_path, tmp_path / "site")
    for page in [*first.parent.rglob("*.html"), first.parent / "style.css", first.parent / "script.js"]:
        text = page.read_text()
        assert not re.search(r"(src|@import|url\()\s*=?\s*[\"']?https?:", text)
        for link in re.findall(r'(?:href|src)="([^"#:]+)(?:#[^"]*)?"', text):
            assert (page.parent / link).exists(), link


def test_no_folder_and_no_records(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no such folder; measure first: evalkit eval"):
        collected.collect(tmp_path / "absent")
    with pytest.raises(RecordError, match=r"holds no record; measure first"):
        collected.collect(tmp_path)


def spoil(out: Path, how: str) -> Path:
    path = put(out, how, [1, 0])
    text = path.read_text()
    newer = json.dumps({**json.loads(text), "schema": 99})
    path.write_text({"newer": newer, "half": text[: len(text) // 2], "empty": "", "list": "[]"}[how])
    return path


@pytest.mark.parametrize(
    ("how", "said"), [("newer", "schema 99"), ("half", "damaged"), ("empty", "damaged"), ("list", "not a record")]
)
def test_a_broken_record_alone_is_an_error_and_among_good_ones_is_named(
    how: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = spoil(tmp_path / "runs", how)
    out = str(tmp_path / "site")
    assert run("report", str(tmp_path / "runs"), "--out", out, "--no-pictures", monkeypatch=monkeypatch) == 1
    told = capsys.readouterr().err
    assert said in told and path.name in told and told.count("\n") == 1
    assert not Path(out).exists()
    put(tmp_path / "runs", "good", [1, 1, 0])
    assert run("report", str(tmp_path / "runs"), "--out", out, "--no-pictures", monkeypatch=monkeypatch) == 0
    captured = capsys.readouterr()
    assert "left out" in captured.err and path.name in captured.err
    assert captured.out.strip() == f"report: {Path(out) / 'index.html'}"
    page = Path(out, "index.html").read_text()
    assert "1 record left out because it cannot be read" in page and path.name in page


def test_another_folder_is_refused_and_an_older_report_written_anew(tmp_path: Path) -> None:
    put(tmp_path / "runs", "one", [1, 0])
    put(tmp_path / "runs", "two", [1, 0])
    with pytest.raises(UsageError, match="holds other things"):
        build.check(tmp_path / "runs")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        build.check(tmp_path / "file")
    first = site(tmp_path / "runs", tmp_path / "site")
    assert (first.parent / "encoders/two.html").exists()
    for path in (tmp_path / "runs/two").iterdir():
        path.unlink()
    site(tmp_path / "runs", tmp_path / "site")
    assert [p.name for p in (first.parent / "encoders").iterdir()] == ["one.html"]


def test_names_of_files_do_not_collide() -> None:
    assert parts.slug("a-b.c") == "a-b.c"
    assert parts.slug("a/b") != parts.slug("a b")
    assert re.fullmatch(r"[A-Za-z0-9.-]+", parts.slug("../ü (12ab)"))


def test_profile_places_between_the_weakest_control_and_the_best(tmp_path: Path) -> None:
    for name, right in (("random", 20), ("pixels", 40), ("good", 70), ("middle", 45)):
        put(tmp_path, name, [1] * right + [0] * (100 - right))
    (axis,) = profile.build(board.build(collected.collect(tmp_path))).axes
    found = {who.split(" ")[0]: round(place, 6) for who, place in axis.places.items()}
    assert axis.grain == "object"
    assert found == {"random": 0.0, "pixels": 0.4, "middle": 0.5, "good": 1.0}


def test_profile_leaves_out_what_has_no_scale(tmp_path: Path) -> None:
    put(tmp_path, "one", [1, 0])
    put(tmp_path, "two", [1, 1])
    found = profile.build(board.build(collected.collect(tmp_path)))
    assert found.axes == () and "no control" in found.left_out[0]


def test_every_recipe_of_the_catalogue_has_a_grain() -> None:
    from dataclasses import asdict

    from evalkit import catalog

    found = {name: grains.of(asdict(catalog.recipe(name))) for name in catalog.recipes()}
    assert set(found.values()) == set(grains.ORDER)
    assert found["part-retrieval-cub"] == found["mini-part-linear-ccp"] == found["pose-linear-lsp"] == "part"
    assert (
        found["knn-imagenet1k"] == "scene"
        and found["mini-knn-ccp-items"] == found["retrieval-objects-coco"] == "object"
    )
    assert found["video-davis2017"] == "video" and found["seg-linear-ade20k"] == found["prompt-coco"] == "patch"


def test_classes_one_by_one(tmp_path: Path) -> None:
    def scores(*pairs: tuple[str, float]) -> tuple[dict[str, object], ...]:
        return tuple(
            {"name": n, "value": v, "n": 3, "low": v, "high": v, "unit": "fraction", "note": ""} for n, v in pairs
        )

    data = {"test": {"classes": ["hat", "bag"]}}
    recipe = {"headline": "mIoU"}
    one = made(
        "one",
        scores=scores(("mIoU", 0.5), ("IoU/hat", 0.25), ("IoU/bag", 0.75), ("mean/top1", 1)),
        data=data,
        recipe=recipe,
    )
    two = made("two", scores=scores(("mIoU", 0.5), ("IoU/hat", 0.5)), data=data, recipe=recipe)
    (found,) = breakdown.of([("one", one), ("two", two)])
    assert (found.score, found.encoders) == ("IoU", ("one", "two"))
    assert [(name, [v and v.value for v in values]) for name, values, _ in found.rows] == [
        ("bag", [75.0, None]),
        ("hat", [25.0, 50.0]),
    ]


def test_training_log(tmp_path: Path) -> None:
    log = tmp_path / "a.log.csv"
    log.write_text("step,loss,lr,seconds\n1,2.0,0.1,3\n2,nan,0.1,4\n3,1.0,x,5\n")
    assert training.read(log) == {"loss": [(1.0, 2.0), (3.0, 1.0)], "lr": [(1.0, 0.1), (2.0, 0.1)]}
    log.write_bytes(b"\xff\xfe\x00")
    assert training.read(log) == {} == training.read(tmp_path / "absent.csv")


def test_dots_lie_where_the_values_say() -> None:
    rows = [plots.Dot("a", 50, 25, 75, "50"), plots.Dot("b", 100, 100, 100, "100")]
    drawn = plots.dots(rows, unit="%", label="x")
    assert re.findall(r'cx="([^"]+)"', drawn) == ["50.00%", "99.00%"]
    assert 'x1="25.50%" x2="74.50%"' in drawn
    assert "nan" not in plots.dots([plots.Dot("a", 0.0, float("nan"), float("nan"), "0")], unit="", label="x")


def test_the_command_of_the_docs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "report.md").read_text("utf-8")
    (line,) = re.findall(r"```sh[^\n]*\n(.*?)\n```", text, re.DOTALL)
    put(tmp_path / "runs", "one", [1, 0])
    monkeypatch.chdir(tmp_path)
    assert run(*line.split()[1:], monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.strip() == "report: report/index.html"
    assert (tmp_path / "report" / "style.css").exists()
