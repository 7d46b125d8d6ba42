"""Comparison tables from records alone: rows are encoders, columns are recipes, and only comparable records share a column.

A column holds records of one recipe id and version, resolved parameters and dataset digests. Where the folder holds
several such sets, the one measured on all the data wins, then the one with more encoders, then the newest; what was left
out is told under the table.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from evalkit import catalog, records
from evalkit.errors import RecordError
from evalkit.records import Record
from evalkit.reporting import comparable
from evalkit.types import Column, Suite


@dataclass(frozen=True)
class Cell:
    """One value in the column's unit (percent for fractions), with half of its 95 % interval; text where there is none.

    digits: decimals to print, 1 for percent and 3 for other units.
    """

    value: float = math.nan
    half: float = math.nan
    n: int = 0
    best: bool = False
    text: str = "-"
    note: str = ""
    digits: int = 1

    @property
    def measured(self) -> bool:
        return not math.isnan(self.value)

    def plain(self) -> str:
        """`51.2 ± 4.1`; the text where nothing was measured."""
        if not self.measured:
            return self.text
        value, half = (f"{x:.{self.digits}f}" for x in (self.value, self.half))
        return value if math.isnan(self.half) else f"{value} ± {half}"


@dataclass(frozen=True)
class Table:
    """columns: (title, unit) of each. rows: encoder id to its cells. notes: what a reader must know."""

    title: str
    columns: tuple[tuple[str, str], ...]
    rows: Mapping[str, tuple[Cell, ...]]
    notes: tuple[str, ...] = field(default=())


def build(suite: Suite, out: Path, *, limit: int | None = None) -> Table:
    """The table of a suite from the records under `out`. limit: only records measured with this --limit.

    Raises RecordError where there is no record of any of its recipes.
    """
    chosen: list[dict[str, Record]] = []
    notes: list[str] = []
    for column in suite.columns:
        found, said = comparable.select(records.find(out, recipe=column.recipe), limit)
        chosen.append(found)
        notes += [f"{column.recipe}: {line}" for line in said]
    names = comparable.short({who for found in chosen for who in found})
    chosen = [{names[who]: record for who, record in found.items()} for found in chosen]
    encoders = _order(suite, {e for found in chosen for e in found})
    if not encoders:
        raise RecordError(
            f"{out}: no record of suite {suite.id}; measure first: evalkit eval ENCODER --suite {suite.id}"
        )
    cells = [_column(column, found, encoders) for column, found in zip(suite.columns, chosen, strict=True)]
    rows = {e: tuple(column[i] for column in cells) for i, e in enumerate(encoders)}
    heads = tuple(_head(column, found) for column, found in zip(suite.columns, chosen, strict=True))
    notes += [f"{e}: {c.note}" for e, row in rows.items() for c in row if c.note]
    return Table(suite.title, heads, rows, tuple(dict.fromkeys([*notes, *_footing(suite, cells)])))


def _order(suite: Suite, encoders: set[str]) -> list[str]:
    controls = {e for e in encoders & set(catalog.manifests()) if catalog.manifest(e).control}
    known = {e: i for i, e in enumerate(suite.encoders)}
    return sorted(encoders, key=lambda e: (e in controls, known.get(e, len(known)), e))


def _head(column: Column, found: Mapping[str, Record]) -> tuple[str, str]:
    scores = [s for s in (r.score(column.score) for r in found.values()) if s]
    unit = "%" if scores and scores[0]["unit"] == "fraction" else (scores[0]["unit"] if scores else "")
    return column.title or column.recipe, unit


def _column(column: Column, found: Mapping[str, Record], encoders: Sequence[str]) -> list[Cell]:
    cells = [_cell(column, found.get(e)) for e in encoders]
    best = catalog.recipe(column.recipe).best
    values = [c.value for c in cells if c.measured]
    top = (max if best == "max" else min)(values) if values else math.nan
    return [replace(c, best=c.value == top) for c in cells]


def _cell(column: Column, record: Record | None) -> Cell:
    if record is None:
        return Cell()
    if record.status == "n/a":
        return Cell(text="n/a", note=record.reason)
    score = record.score(column.score)
    if score is None:
        return Cell(note=f"{column.recipe} has no score {column.score!r}")
    scale, digits = (100.0, 1) if score["unit"] == "fraction" else (1.0, 3)
    half = (score["high"] - score["low"]) / 2
    return Cell(score["value"] * scale, half * scale, int(score["n"]), digits=digits)


def _footing(suite: Suite, cells: Sequence[Sequence[Cell]]) -> list[str]:
    held = {
        c.title or c.recipe: sorted({x.n for x in col if x.measured})
        for c, col in zip(suite.columns, cells, strict=True)
    }
    counts = [f"{title} {', '.join(map(str, n))}" for title, n in held.items() if n]
    lines = ["± is half of the 95 % bootstrap interval over test images; the best of a column is bold"]
    lines.append("n of the test set: " + "; ".join(counts))
    return lines + ([suite.notes] if suite.notes else [])


def markdown(table: Table) -> str:
    """GitHub's table, the best of each column bold, notes below."""
    heads = ["encoder", *(f"{t} ({u})" if u else t for t, u in table.columns)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for encoder, row in table.rows.items():
        lines.append("| " + " | ".join([encoder, *(f"**{c.plain()}**" if c.best else c.plain() for c in row)]) + " |")
    return "\n".join([f"### {table.title}", "", *lines, "", *(f"- {n}" for n in table.notes), ""])


def comma_separated(table: Table) -> str:
    """One row per encoder; value, half interval and n of each column in columns of their own."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["encoder", *(f"{t} {what}".strip() for t, u in table.columns for what in (u, "±", "n"))])
    for encoder, row in table.rows.items():
        writer.writerow(
            [encoder, *(x for c in row for x in ((c.value, c.half, c.n) if c.measured else (c.text, "", "")))]
        )
    return text.getvalue()


_LATEX = str.maketrans({"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "@": "@", "±": r"$\pm$"})


def latex(table: Table) -> str:
    """A booktabs tabular; notes as comments above."""
    heads = ["encoder", *(f"{t} ({u})" if u else t for t, u in table.columns)]
    rows = [
        [encoder, *(rf"\textbf{{{c.plain()}}}" if c.best else c.plain() for c in row)]
        for encoder, row in table.rows.items()
    ]
    body = [" & ".join(x.translate(_LATEX) for x in row) + r" \\" for row in rows]
    head = " & ".join(h.translate(_LATEX) for h in heads) + r" \\"
    comments = [f"% {n}" for n in (table.title, *table.notes)]
    frame = [
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
    ]
    return "\n".join([*comments, *frame, r"\end{tabular}", ""])


def write(texts: Mapping[str, str], folder: Path, name: str) -> None:
    """`name`.md, `name`.csv: each text under its suffix. Raises RecordError where the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in texts.items():
            (folder / f"{name}.{suffix}").write_text(text, "utf-8")
    except OSError as error:
        raise RecordError(f"{folder}: the table cannot be written ({error})") from None


FORMATS = {"md": markdown, "csv": comma_separated, "latex": latex}
