"""Comparison tables from records alone: rows are encoders, columns are recipes, and only comparable records share a column.

A column holds records of one recipe id and version, resolved parameters and dataset digests. Where the folder holds
several such sets, the one measured on all the data wins, then the one with more encoders, then the newest; what was left
out is told under the table. `*` is a paired bootstrap against the best of the column, or against an encoder that is named.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evalkit import catalog, records
from evalkit.errors import RecordError
from evalkit.records import Record
from evalkit.reporting import choices, comparable, intervals, standing
from evalkit.types import Column, Suite

RANDOM = "random"


@dataclass(frozen=True)
class Cell:
    """One value in the column's unit (percent for fractions), with half of its 95 % interval; text where there is none.

    spread: the interval as it is printed after the value; interval: how it was found.
    difference, p: to the reference of the column and of no such difference, NaN where that was not tested. apart: the
    difference is significant. told: the difference is printed. untested: why there is none. digits: decimals, 1 for percent
    and 3 for other units.
    """

    value: float = math.nan
    half: float = math.nan
    spread: str = ""
    interval: str = "bootstrap"
    n: int = 0
    best: bool = False
    text: str = "-"
    note: str = ""
    digits: int = 1
    difference: float = math.nan
    p: float = math.nan
    apart: bool = False
    told: bool = False
    untested: str = ""

    @property
    def measured(self) -> bool:
        return not math.isnan(self.value)

    def plain(self) -> str:
        """`51.2 ± 4.1*`, `51.2 ± 4.1 (+3.2*)` with its difference; the text where nothing was measured."""
        if not self.measured:
            return self.text
        shown = f"{self.value:.{self.digits}f}{self.spread}"
        star = "*" if self.apart else ""
        if not self.told or math.isnan(self.difference):
            return shown + star
        return f"{shown} ({round(self.difference, self.digits) + 0.0:+.{self.digits}f}{star})"


@dataclass(frozen=True)
class Table:
    """columns: (title, unit) of each. rows: encoder id to its cells. reference: what differences are to, "best" or an
    encoder. notes: what a reader must know."""

    title: str
    columns: tuple[tuple[str, str], ...]
    rows: Mapping[str, tuple[Cell, ...]]
    notes: tuple[str, ...] = field(default=())
    reference: str = "best"


def build(suite: Suite, out: Path, *, limit: int | None = None, against: str = "") -> Table:
    """The table of a suite from the records under `out`. limit: only records measured with this --limit. against: the
    encoder that all are tested against; "" for the best of each column.

    Raises RecordError where there is no record of any of its recipes, or none of `against`.
    """
    chosen: list[dict[str, Record]] = []
    notes: list[str] = []
    for column in suite.columns:
        broken: list[str] = []
        found, said = comparable.select(records.find(out, recipe=column.recipe, left_out=broken), limit)
        chosen.append(found)
        notes += broken
        notes += [f"{column.recipe}: {line}" for line in said]
    names = comparable.short({who for found in chosen for who in found})
    chosen = [{names[who]: record for who, record in found.items()} for found in chosen]
    encoders = _order(suite, {e: record.encoder for found in chosen for e, record in found.items()})
    if not encoders:
        raise RecordError(
            f"{out}: no record of suite {suite.id}; measure first: evalkit eval ENCODER --suite {suite.id}"
        )
    described = {e: record.encoder for found in chosen for e, record in found.items()}
    references = _references(against, described)
    if against and not references:
        raise RecordError(f"{out}: no record of {against} here to test against; there are: {', '.join(encoders)}")
    cells = [
        _column(column, found, encoders, out, references) for column, found in zip(suite.columns, chosen, strict=True)
    ]
    rows = {e: tuple(column[i] for column in cells) for i, e in enumerate(encoders)}
    heads = tuple(_head(column, found) for column, found in zip(suite.columns, chosen, strict=True))
    notes += [f"{e}: {c.note}" for e, row in rows.items() for c in row if c.note]
    notes += [
        f"{e}: not tested against {against or 'the best'}: {c.untested}"
        for e, row in rows.items()
        for c in row
        if c.untested
    ]
    for column, found in zip(suite.columns, chosen, strict=True):
        notes += choices.footnotes(found, column.score)
    if len(set(references.values())) > 1:
        against = "its untrained twin"
    notes += _footing(suite, cells, against) + list(_twins(described))
    return Table(suite.title, heads, rows, tuple(dict.fromkeys(notes)), against or "best")


def _order(suite: Suite, encoders: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The suite's own first, in its order; controls last, untrained twins before the others."""
    known = {e: i for i, e in enumerate(suite.encoders)}

    def place(e: str) -> tuple[bool, bool, int, str]:
        control = comparable.is_control(encoders[e])
        return control, control and not _untrained(e, encoders[e]), known.get(e, len(known)), e

    return sorted(encoders, key=place)


def _untrained(name: str, encoder: Mapping[str, Any]) -> bool:
    return name == RANDOM or encoder.get("network") == "untrained"


def _references(against: str, encoders: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """By encoder, whom it is tested against: `against`; where that is `random`, its own untrained twin, `random` itself where
    a record does not say which network it is of. Empty where there is no such row."""
    if against == RANDOM and any(_untrained(e, found) for e, found in encoders.items()):
        return {e: found.get("twin") or (e if _untrained(e, found) else RANDOM) for e, found in encoders.items()}
    return dict.fromkeys(encoders, against) if against in encoders else {}


def _twins(encoders: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Whose untrained twins the rows are, and which twins have no row."""
    of: dict[str, list[str]] = {}
    for name, encoder in encoders.items():
        if twin := encoder.get("twin"):
            of.setdefault(twin, []).append(name)
    there = [f"{twin} of {', '.join(sorted(names))}" for twin, names in of.items() if twin in encoders]
    if there:
        yield f"the same network untrained: {'; '.join(there)}"
    for twin, names in of.items():
        if twin not in encoders:
            one = next((name for name in names if name in catalog.manifests()), "FILE")
            yield f"{', '.join(sorted(names))}: not measured untrained ({twin}): evalkit eval {catalog.TWIN}{one}"


def _head(column: Column, found: Mapping[str, Record]) -> tuple[str, str]:
    scores = [s for s in (r.score(column.score) for r in found.values()) if s]
    unit = intervals.printed_in(scores[0]["unit"])[2] if scores else ""
    return column.title or column.recipe, unit


def _column(
    column: Column, found: Mapping[str, Record], encoders: Sequence[str], out: Path, references: Mapping[str, str]
) -> list[Cell]:
    best = catalog.recipe(column.recipe).best
    judged = (
        standing.against(references, found, out, score=column.score)
        if references
        else standing.of(found, out, score=column.score, best=best)
    )
    cells = [_cell(column, found.get(e), judged.get(e, standing.Standing())) for e in encoders]
    values = [c.value for c in cells if c.measured]
    top = (max if best == "max" else min)(values) if values else math.nan
    return [replace(c, best=c.value == top, told=bool(references)) for c in cells]


def _cell(column: Column, record: Record | None, found: standing.Standing) -> Cell:
    if record is None:
        return Cell()
    if record.status == "n/a":
        return Cell(text="n/a", note=record.reason)
    score = record.score(column.score)
    if score is None:
        return Cell(note=f"{column.recipe} has no score {column.score!r}")
    scale, digits, _ = intervals.printed_in(score["unit"])
    how = intervals.method(score)
    half = math.nan if how == "none" else (score["high"] - score["low"]) / 2
    return Cell(
        score["value"] * scale, half * scale, intervals.spread(score, scale=scale, digits=digits), how, int(score["n"]),
        digits=digits, difference=found.difference * scale, p=found.p, apart=found.word == "apart", untested=found.why,
    )  # fmt: skip


def _footing(suite: Suite, cells: Sequence[Sequence[Cell]], against: str) -> list[str]:
    held = {
        c.title or c.recipe: sorted({x.n for x in col if x.measured})
        for c, col in zip(suite.columns, cells, strict=True)
    }
    counts = [f"{title} {', '.join(map(str, n))}" for title, n in held.items() if n]
    lines = ["± is half of the 95 % bootstrap interval over test images; the best of a column is bold"]
    lines += intervals.notes(c.interval for col in cells for c in col if c.measured)
    lines += [_STARS.format(against or "the best of its column")] if any(c.apart for col in cells for c in col) else []
    lines.append("n of the test set: " + "; ".join(counts))
    return lines + ([suite.notes] if suite.notes else [])


_STARS = (
    "* differs from {}: the 95 % interval of the difference, from a paired bootstrap (both on the same resampled test images), "
    "does not hold 0, and p is below 0.05; one test per cell, not corrected for how many there are"
)


def write(texts: Mapping[str, str], folder: Path, name: str) -> None:
    """`name`.md, `name`.csv: each text under its suffix. Raises RecordError where the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in texts.items():
            (folder / f"{name}.{suffix}").write_text(text, "utf-8")
    except OSError as error:
        raise RecordError(f"{folder}: the table cannot be written ({error})") from None
