"""The leaderboard: per recipe one column of comparable records, the best marked, and who cannot be told apart from it.

A column is what `reporting.comparable` selects: one recipe version, the same options and data. `reporting.standing` says who
is tied with the best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalkit.records import Record
from evalkit.reporting import comparable, intervals, standing
from evalkit.reporting.site import collected, grains
from evalkit.reporting.site.collected import Collected


@dataclass(frozen=True)
class Value:
    """A score as it is printed: percent for fractions. low, high: its 95 % interval, NaN where there is none. spread: the
    interval as it is printed after the value; method: how it was found, "" where nothing tries."""

    value: float
    low: float
    high: float
    n: int
    unit: str
    digits: int
    spread: str = ""
    method: str = ""

    def plain(self) -> str:
        """`51.2 ± 4.1`."""
        if math.isnan(self.value):
            return "no value"
        return f"{self.value:.{self.digits}f}{self.spread}"

    def interval(self) -> str:
        """`[47.1, 55.3]`; "" where there is none."""
        known = not (math.isnan(self.low) or math.isnan(self.high))
        exact = " exact" if self.method == "clopper-pearson" else ""
        return f"[{self.low:.{self.digits}f}, {self.high:.{self.digits}f}]{exact}" if known else ""


@dataclass(frozen=True)
class Cell:
    """One record in its column. p: of no difference to the best. why: of n/a, or why it could not be tested."""

    record: Record
    value: Value | None
    standing: standing.Word = ""
    p: float = math.nan
    why: str = ""


@dataclass(frozen=True)
class Column:
    """The comparable records of one recipe, by network. said: what was left out, and why."""

    recipe: Mapping[str, Any]
    title: str
    grain: str
    unit: str
    higher: bool
    cells: Mapping[str, Cell]
    said: tuple[str, ...]

    @property
    def id(self) -> str:
        """Of the recipe."""
        return str(self.recipe["id"])


@dataclass(frozen=True)
class Encoder:
    """A network with records. name: the id, longer where two networks bear it."""

    who: str
    name: str
    spec: Mapping[str, Any]
    control: bool


@dataclass(frozen=True)
class Board:
    """Columns from scene to video, rows with controls last. broken: a message for each file that was left out."""

    columns: tuple[Column, ...]
    encoders: tuple[Encoder, ...]
    broken: tuple[str, ...] = field(default=())


def printed(score: Mapping[str, Any]) -> Value:
    """A record's score in the unit in which it is printed."""
    scale, digits, unit = intervals.printed_in(str(score["unit"]))
    value, low, high = (scale * float(score[key]) for key in ("value", "low", "high"))
    spread, how = intervals.spread(score, scale=scale, digits=digits), intervals.method(score)
    return Value(value, low, high, int(score["n"]), unit, digits, spread, how)


def build(read: Collected) -> Board:
    """The board of all records of a folder."""
    titles = collected.short_titles()
    by_recipe: dict[str, list[Record]] = {}
    for record in read.found:
        by_recipe.setdefault(str(record.recipe["id"]), []).append(record)
    columns = [_column(found, read.out, titles) for found in by_recipe.values()]
    columns.sort(key=lambda c: (grains.ORDER.index(c.grain), c.id))
    return Board(tuple(columns), _encoders(read.found), read.broken)


def _encoders(found: Iterable[Record]) -> tuple[Encoder, ...]:
    newest = {comparable.who(record): record for record in found}
    names = comparable.short(newest)
    made = [Encoder(w, names[w], r.encoder, comparable.is_control(r.encoder)) for w, r in newest.items()]
    return tuple(sorted(made, key=lambda e: (e.control, e.name)))


def _column(found: list[Record], out: Path, titles: Mapping[str, str]) -> Column:
    chosen, said = comparable.select(found, None)
    said = [line for line in said if not line.startswith("left out")] + _left_out(found, chosen)
    recipe = next(iter(chosen.values())).recipe
    higher = recipe.get("best", "max") == "max"
    scores = {who: record.score() for who, record in chosen.items()}
    units = [printed(score).unit for score in scores.values() if score]
    return Column(
        recipe,
        titles.get(str(recipe["id"]), ""),
        grains.of(recipe),
        units[0] if units else "",
        higher,
        _judged(chosen, scores, out, higher),
        tuple(said),
    )


def _left_out(found: Iterable[Record], chosen: Mapping[str, Record]) -> list[str]:
    """A line for each record that stands in no column, and in what it differs from those that do."""
    reference = next(iter(chosen.values()))
    others = [record for record in found if record.comparable != reference.comparable]
    return list(
        dict.fromkeys(f"left out, not comparable: {r.encoder['id']} ({_differs(r, reference)})" for r in others)
    )


def _differs(record: Record, reference: Record) -> str:
    asked, given = record.recipe.get("version"), reference.recipe.get("version")
    mine, theirs = (r.identity.get("config") or {} for r in (record, reference))
    options = sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k))
    limit = comparable.limit_of(record)
    told = [
        f"version {asked} of the recipe, not {given}" if asked != given else "",
        f"measured with --limit {limit}" if limit is not None else "",
        f"other options: {', '.join(options)}" if options else "",
        "other data" if _digests(record) != _digests(reference) and limit is None else "",
    ]
    return "; ".join(part for part in told if part) or "the recipe's file was another"


def _digests(record: Record) -> dict[str, object]:
    return {role: part.get("digest") for role, part in record.data.items() if isinstance(part, Mapping)}


def _judged(
    chosen: Mapping[str, Record], scores: Mapping[str, Mapping[str, Any] | None], out: Path, higher: bool
) -> dict[str, Cell]:
    found = standing.of(chosen, out, best="max" if higher else "min")
    return {who: _cell(record, scores[who], found[who]) for who, record in chosen.items()}


def _cell(record: Record, score: Mapping[str, Any] | None, found: standing.Standing) -> Cell:
    if not score or math.isnan(score["value"]):
        return Cell(record, None, why=record.reason or f"the record has no value of {record.recipe['headline']}")
    return Cell(record, printed(score), found.word, found.p, found.why)
