"""A paper's table in its own layout: the printed values, and beside each what was measured here for the same cell.

Printed values come from reports/published/papers.csv alone, found by the selectors of a `PaperTable`. The encoder of a cell
is the one in the zoo whose `published_as` selects the printed row, the recipe is the column's first `Measure` that fits
and has a record. A difference is shown where the recipe is the printed protocol, the encoder the printed network, and the
data are those that were published (`datasets.published`), all of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit import catalog, records
from evalkit.datasets import published
from evalkit.errors import CatalogError
from evalkit.records import Record
from evalkit.reporting import choices, comparable, intervals
from evalkit.reporting.names import name
from evalkit.reporting.printed import Printed, doubtful, fitting, label, printed, score_of
from evalkit.reporting.printed import network as network_of
from evalkit.types import Measure, PaperColumn, PaperNetwork, PaperRow, PaperTable

NO_RECORD, NO_ENCODER, NO_RECIPE, BLANK = "—", "×", "·", ""
"""What stands for a measured value; BLANK where the paper prints nothing either."""


@dataclass(frozen=True)
class PaperCell:
    """printed: None where the paper has nothing. value, half, difference: in the printed unit, NaN where there is none.

    spread: the interval as it is printed after the value; interval: how it was found.
    doubt, remarks: numbers of footnotes on the printed and on the measured value. text: instead of a measured value.
    """

    printed: Printed | None
    doubt: int = 0
    encoder: str = ""
    recipe: str = ""
    score: str = ""
    value: float = math.nan
    half: float = math.nan
    spread: str = ""
    interval: str = "bootstrap"
    n: int = 0
    difference: float = math.nan
    remarks: tuple[int, ...] = ()
    text: str = NO_RECORD

    @property
    def digits(self) -> int:
        """Decimals of the printed value."""
        return len(self.printed["value"].partition(".")[2]) if self.printed else 0


@dataclass(frozen=True)
class PaperLine:
    """A row of the table: the section above it, its labels and its cells."""

    section: str
    labels: tuple[str, ...]
    cells: tuple[PaperCell, ...]


@dataclass(frozen=True)
class PaperSheet:
    """stubs: what the labels are. columns: (title, unit). pending: columns without a recipe. footnotes: by number, from 1.

    notes: what a reader must know.
    """

    title: str
    stubs: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    pending: tuple[bool, ...]
    lines: tuple[PaperLine, ...]
    footnotes: tuple[str, ...]
    notes: tuple[str, ...]


def build(table: PaperTable, out: Path, *, limit: int | None = None) -> PaperSheet:
    """The table with what the records under `out` hold. limit: only records measured with this --limit.

    Raises CatalogError where a cell is not exactly one row of papers.csv.
    """
    found = _Found(table, out, limit)
    lines = []
    for row in table.rows:
        cells = tuple(_cell(table, row, column, found) for column in table.columns)
        first = next(cell.printed for cell in cells if cell.printed is not None)
        section = name(label(first, row, table.section)) if table.section else ""
        lines.append(PaperLine(section, tuple(name(label(first, row, stub)) for stub in table.stubs), cells))
    lines += [_control(table, encoder, found) for encoder in found.controls()]
    known = set(catalog.recipes())
    pending = tuple(not any(m.recipe in known for m in c.measures) for c in table.columns)
    columns = tuple((c.title, _unit(lines, i)) for i, c in enumerate(table.columns))
    stubs = tuple(name(stub) for stub in table.stubs)
    notes = tuple(dict.fromkeys([*found.notes, *_notes(table, lines)]))
    return PaperSheet(table.title, stubs, columns, pending, tuple(lines), tuple(found.footnotes), notes)


class _Found:
    """What the records hold, by recipe, and the footnotes and notes collected on the way."""

    def __init__(self, table: PaperTable, out: Path, limit: int | None) -> None:
        self.table, self.out, self.limit = table, out, limit
        self.footnotes: list[str] = []
        self.notes: list[str] = []
        self._records: dict[str, dict[str, Record]] = {}

    def footnote(self, text: str) -> int:
        """Its number, from 1; the same text has one number."""
        if text not in self.footnotes:
            self.footnotes.append(text)
        return self.footnotes.index(text) + 1

    def record(self, recipe: str, encoder: str) -> Record | None:
        """The record of this network of the zoo with the recipe as it is now."""
        if recipe not in self._records:
            held = records.find(self.out, recipe=recipe, left_out=self.notes)
            digest = catalog.recipe(recipe).digest
            kept = [r for r in held if r.recipe.get("digest") == digest and (_is_of_the_zoo(r) or _is_untrained(r))]
            if left := {r.encoder["id"] for r in held} - {r.encoder["id"] for r in kept}:
                self.notes.append(
                    f"{recipe}: left out, another version of the recipe or no network of the zoo: {', '.join(sorted(left))}"
                )
            best, said = comparable.select(kept, self.limit)
            self.notes += [f"{recipe}: {line}" for line in said]
            newest = sorted(best.values(), key=lambda r: r.created)
            self._records[recipe] = {r.encoder["id"]: r for r in newest}
        return self._records[recipe].get(encoder)

    def controls(self) -> list[str]:
        """Ids of the controls that the recipes asked for so far have records of."""
        held = {i: r for records_of in self._records.values() for i, r in records_of.items()}
        return sorted(
            (i for i, r in held.items() if comparable.is_control(r.encoder)), key=lambda i: (i == "pixels", i)
        )


def _is_untrained(record: Record) -> bool:
    return record.encoder.get("network") == "untrained"


def _is_of_the_zoo(record: Record) -> bool:
    """Whether the record's network is the zoo's of that id: its file, which network, how it is fed."""
    if record.encoder["id"] not in catalog.manifests():
        return False
    known = catalog.manifest(record.encoder["id"])
    fed = dataclasses.asdict(known.preprocessing) | {"source": ""}
    return (
        known.sha256 in ("", record.encoder.get("digest"))
        and known.network in ("", record.encoder.get("network"))
        and catalog.digest(fed) == catalog.digest(record.identity.get("preprocessing"))
    )


def _cell(table: PaperTable, row: PaperRow, column: PaperColumn, found: _Found) -> PaperCell:
    value = printed(table, row, column)
    if value is None:
        return PaperCell(None, text=BLANK)
    doubt = found.footnote(value["note"]) if doubtful(value) else 0
    network = network_of(table, value)
    if network is None:
        return PaperCell(value, doubt, text=NO_ENCODER)
    cell = PaperCell(value, doubt, network.encoder)
    existing = [m for m in fitting(column, value) if m.recipe in catalog.recipes()]
    if not existing:
        return dataclasses.replace(cell, text=NO_RECIPE)
    for measure in existing:
        if (record := found.record(measure.recipe, network.encoder)) is not None:
            return _measured(cell, measure, network, record=record, found=found)
    return dataclasses.replace(cell, recipe=existing[0].recipe, score=score_of(existing[0], value))


def _control(table: PaperTable, encoder: str, found: _Found) -> PaperLine:
    """What was measured here of a control, which the paper does not have, below its rows."""
    cells = []
    for column in table.columns:
        printed_like = {"split_or_variant": ";".join(column.variant), "unit": "percent", "value": ""}
        cell = PaperCell(None, encoder=encoder, text=BLANK)
        for measure in column.measures:
            if measure.recipe in catalog.recipes() and (record := found.record(measure.recipe, encoder)) is not None:
                cell = _of_control(cell, measure, printed_like, record)
                break
        cells.append(cell)
    return PaperLine("controls, measured here", (encoder, *[""] * (len(table.stubs) - 1)), tuple(cells))


def _of_control(cell: PaperCell, measure: Measure, like: Printed, record: Record) -> PaperCell:
    try:
        wanted = score_of(measure, like) or str(record.recipe["headline"])
    except CatalogError:  # a score that only a row's variant names
        return cell
    score = record.score(wanted)
    if score is None:
        return cell
    scale = _scale(like, score)[0]
    return dataclasses.replace(cell, recipe=measure.recipe, score=wanted, **_value(score, scale, cell.digits))


def _value(score: Mapping[str, Any], scale: float, digits: int) -> dict[str, Any]:
    """The fields of a cell that tell a score and its interval, in the printed unit."""
    how = intervals.method(score)
    half = math.nan if how == "none" else (score["high"] - score["low"]) / 2 * scale
    spread = intervals.spread(score, scale=scale, digits=max(1, digits))
    return {"value": score["value"] * scale, "half": half, "n": int(score["n"]), "interval": how, "spread": spread}


def _measured(cell: PaperCell, measure: Measure, network: PaperNetwork, *, record: Record, found: _Found) -> PaperCell:
    value = cell.printed or {}
    cell = dataclasses.replace(cell, recipe=measure.recipe, score=score_of(measure, value) or record.recipe["headline"])
    if record.status == "n/a":
        return dataclasses.replace(cell, text="n/a", remarks=(found.footnote(record.reason),))
    score = record.score(cell.score)
    if score is None:
        return dataclasses.replace(
            cell, text="n/a", remarks=(found.footnote(f"{measure.recipe} has no score {cell.score!r} here"),)
        )
    scale, same = _scale(value, score)
    against = [
        *([f"{measure.recipe}: {measure.differs}"] if measure.differs else []),
        *([] if network.certain else [f"{network.encoder}: {network.why}"]),
        *([] if same else [f"{measure.recipe} is in the unit {score['unit']}, the paper's is {value['unit']}"]),
    ]
    whole = comparable.limit_of(record) is None
    if whole and not against:  # a reason against a difference is enough
        gaps = published.differences(catalog.recipe(measure.recipe).dataset, record.data)
        against += [f"{measure.recipe}, {network.encoder}: other data than printed: {'; '.join(gaps)}"] if gaps else []
    told = [_CHOSEN.format(measure.recipe, cell.score)] if score["note"] == "best-on-test" else []
    if sentence := choices.at_edges(record).get(cell.score):
        told.append(f"{measure.recipe} {cell.score} of {network.encoder}: {sentence}")
    ours = score["value"] * scale
    difference = math.nan if against or not whole else ours - float(value["value"])
    numbers = tuple(found.footnote(text) for text in (*against, *told))
    text = "NaN" if math.isnan(ours) else ""
    return dataclasses.replace(
        cell, **_value(score, scale, cell.digits), difference=difference, remarks=numbers, text=text
    )


_CHOSEN = "{} {}: test data chose it, as in the paper; the record's headline is chosen without them"


def _scale(value: Printed, score: Mapping[str, Any]) -> tuple[float, bool]:
    """The factor from the score's unit to the printed one, and whether they are one unit."""
    if value["unit"] == "percent":
        return (100.0, True) if score["unit"] == "fraction" else (1.0, False)
    return 1.0, score["unit"] == value["unit"]


def _unit(lines: Sequence[PaperLine], column: int) -> str:
    """A column has one unit."""
    units = {c.printed["unit"] for c in (line.cells[column] for line in lines) if c.printed}
    return ", ".join(sorted("%" if unit == "percent" else unit for unit in units))


def _notes(table: PaperTable, lines: Sequence[PaperLine]) -> Iterator[str]:
    held = [cell for line in lines for cell in line.cells]
    texts = {cell.text for cell in held}
    yield "printed / measured here ± half of the 95 % interval (difference, where network, protocol and data are the printed ones)"
    yield from intervals.notes(cell.interval for cell in held if not math.isnan(cell.value))
    for recipe, encoders in _unmeasured(held).items():
        yield f"{NO_RECORD} no record here: evalkit eval {' '.join(encoders)} --recipe {recipe}"
    if NO_ENCODER in texts:
        yield f"{NO_ENCODER} the zoo has no checkpoint of this network"
    if missing := _missing(table):
        yield f"{NO_RECIPE} no recipe yet: {'; '.join(missing)}"
    if counts := _counts(table, lines):
        yield f"n of measured values: {'; '.join(counts)}"
    told = [cell.printed["note"] for cell in held if cell.printed and not doubtful(cell.printed)]
    if pieces := dict.fromkeys(piece for note in told for piece in note.split("; ") if piece):
        yield f"of printed values, some or all: {'; '.join(pieces)}"
    if table.notes:
        yield table.notes
    yield f"printed values: reports/published/papers.csv, paper {table.paper}, {table.table}"


def _unmeasured(held: Sequence[PaperCell]) -> dict[str, list[str]]:
    """Encoders without a record, by the recipe that asks for one."""
    wanted: dict[str, list[str]] = {}
    for recipe, encoder in dict.fromkeys((c.recipe, c.encoder) for c in held if c.text == NO_RECORD):
        wanted.setdefault(recipe, []).append(encoder)
    return wanted


def _counts(table: PaperTable, lines: Sequence[PaperLine]) -> list[str]:
    held = {c.title: sorted({line.cells[i].n for line in lines} - {0}) for i, c in enumerate(table.columns)}
    return [f"{title} {', '.join(map(str, counts))}" for title, counts in held.items() if counts]


def _missing(table: PaperTable) -> list[str]:
    """Recipes that a cell names and that do not exist; the titles of columns that name none."""
    known = set(catalog.recipes())
    absent = dict.fromkeys(m.recipe for c in table.columns for m in c.measures if m.recipe not in known)
    return [*absent, *(c.title for c in table.columns if not c.measures)]
