"""A recipe's page: what it measures and where it comes from, all encoders on one scale, and the classes one by one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from evalkit import catalog, runners
from evalkit.datasets import published as sizes
from evalkit.errors import EvalkitError
from evalkit.reporting.html import Safe, breakable, sentence, table, tag, text
from evalkit.reporting.site import breakdown, grains, parts, plots, published
from evalkit.reporting.site.board import Board, Cell, Column, Encoder
from evalkit.reporting.site.encoder_page import definitions


def page(board: Board, column: Column) -> str:
    """The page of one recipe."""
    rows = [(e, column.cells[e.who]) for e in board.encoders if e.who in column.cells]
    rows.sort(key=lambda row: _rank(column, row[1]))
    return parts.page(
        f"{column.id} · evalkit report",
        tag("h1", breakable(column.id)),
        tag("p", column.recipe.get("title", ""), class_="lead"),
        tag("p", parts.grain_chip(column.grain), " ", grains.MEANING[column.grain], class_="quiet"),
        _measures(column),
        _all(column, rows),
        _broken_down(rows),
        _source(column, rows),
        _published(column),
        up="../",
    )


def _rank(column: Column, cell: Cell) -> tuple[bool, float]:
    if cell.value is None:
        return True, 0.0
    return False, -cell.value.value if column.higher else cell.value.value


def _measures(column: Column) -> Safe:
    said = _of_runner(str(column.recipe.get("runner", "")))
    note = (column.recipe.get("source") or {}).get("note", "")
    return tag(
        "section",
        tag("h2", "What it measures"),
        tag("p", said) if said else None,
        tag("p", sentence(note)) if note else None,
        tag("p", "Score: ", tag("strong", parts.unit_of(column)), ".", class_="quiet"),
    )


def _of_runner(name: str) -> str:
    """The first sentence that the runner says of itself."""
    try:
        return (runners.module(name).__doc__ or "").split("\n\n")[0].replace("\n", " ")
    except EvalkitError:
        return ""


def _all(column: Column, rows: Sequence[tuple[Encoder, Cell]]) -> Safe:
    drawn = [
        plots.Dot(e.name, c.value.value, c.value.low, c.value.high, c.value.plain(), e.control, c.standing == "best")
        for e, c in rows
        if c.value
    ]
    words = "; ".join(f"{d.label} {d.said}" for d in drawn)
    label = f"{column.recipe['headline']} with 95 % intervals: {words}"
    told = f"{parts.unit_of(column)}; lines are 95 % intervals, controls are hollow."
    figure = tag("figure", plots.dots(drawn, unit=column.unit, label=label), tag("figcaption", told)) if drawn else None
    return tag(
        "section",
        tag("h2", "All encoders"),
        figure,
        table(["encoder", "value", "95 % interval", "n", "p of no difference to the best"], [_row(*row) for row in rows],
              label=f"All encoders on {column.id}", numbers=1),
        tag("p", parts.FOOTNOTE, class_="quiet"),
        parts.notes(f"{e.name}: not tested against the best: {c.why}" for e, c in rows if c.standing == "untested"),
        parts.notes(column.said, "Left out or remarkable"),
        id="encoders",
    )  # fmt: skip


def _row(encoder: Encoder, cell: Cell) -> list[object]:
    link = parts.encoder_link(encoder, up="../")
    if cell.value is None:
        return [link, tag("span", "n/a: ", cell.why, class_="why"), "", "", ""]
    p = "" if math.isnan(cell.p) else ("< 0.001" if cell.p < 0.001 else f"{cell.p:.3f}")
    return [link, text([cell.value.plain(), " ", parts.mark(cell)]), cell.value.interval(), f"{cell.value.n:,}", p]


def _broken_down(rows: Sequence[tuple[Encoder, Cell]]) -> Safe | None:
    found = breakdown.of([(e.name, c.record) for e, c in rows if c.value])
    if not found:
        return None
    shown = [
        tag("details", tag("summary", f"{one.score}: {len(one.rows)} {one.what}"), _split(one), open=i == 0)
        for i, one in enumerate(found)
    ]
    return tag("section", tag("h2", "One by one"), shown, id="breakdown")


def _split(one: breakdown.Breakdown) -> Safe:
    rows = [[name, *(v.plain() if v else "–" for v in values), f"{n:,}" if n else ""] for name, values, n in one.rows]
    return table([one.what, *one.encoders, "n"], rows, label=f"{one.score} by {one.what}", numbers=1)


def _source(column: Column, rows: Sequence[tuple[Encoder, Cell]]) -> Safe:
    source: Mapping[str, Any] = column.recipe.get("source") or {}
    known: dict[str, object] = {key: _linked(str(source[key])) for key in ("paper", "table", "code") if source.get(key)}
    known["version"] = f"{column.recipe['version']} of {column.id}"
    record = rows[0][1].record
    for role in ("train", "test"):
        if isinstance(split := record.data.get(role), Mapping):
            known[f"data, {role}"] = _data(split, record.data)
    if config := (column.recipe.get("resolved") or {}).get("config"):
        known["parameters"] = tag("code", ", ".join(f"{k} = {v}" for k, v in config.items()))
    return tag("section", tag("h2", "Source and data"), definitions(known), id="source")


def _data(split: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    name = split.get("dataset") or data.get("name") or "data"
    counts = [f"{split[key]:,} {key}" for key in ("samples", "images", "objects") if isinstance(split.get(key), int)]
    classes = f"{len(split['classes'])} classes" if split.get("classes") else ""
    told = ", ".join(part for part in (*counts, classes) if part)
    return f"{name} ({split.get('split', '')}): {told}; digest {str(split.get('digest', ''))[:8]}"


def _linked(said: str) -> Safe:
    """An arXiv number as a link; it is followed only by who clicks."""
    number = re.search(r"arXiv:(\d{4}\.\d{4,5})", said)
    return tag("a", said, href=f"https://arxiv.org/abs/{number[1]}") if number else text(said)


def _measured_on(column: Column) -> str:
    """Whether the column was measured on the data that papers measured."""
    if column.id not in catalog.recipes():
        return ""
    gaps = sizes.differences(catalog.recipe(column.id).dataset, next(iter(column.cells.values())).record.data)
    return f"Here the data are others: {'; '.join(gaps)}." if gaps else "Here the data are those."


def _published(column: Column) -> Safe:
    rows = published.of(column.recipe)
    said = f"What papers print for this recipe. It compares only with the same network on the same data. {_measured_on(column)}"
    shown = table(published.HEADS, rows, label="Published values")
    none = tag("p", "No paper prints a number for exactly this recipe and these data.", class_="quiet")
    return tag(
        "section",
        tag("h2", "Published values"),
        [tag("p", said, class_="quiet"), shown] if rows else none,
        id="published",
    )
