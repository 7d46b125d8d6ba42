"""A recipe's score by class, part, keypoint or clip, for encoders side by side, as far as their records hold it.

Runners name such a score `SCORE/CLASS`; recipes of video tell their clips among the facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalkit.records import Record
from evalkit.reporting.site import board
from evalkit.reporting.site.board import Value


@dataclass(frozen=True)
class Breakdown:
    """rows: name of the class or clip, a value per encoder (None where there is none), n of the first that says it."""

    score: str
    what: str
    encoders: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Value | None, ...], int], ...]


def of(records: Sequence[tuple[str, Record]]) -> list[Breakdown]:
    """records: (encoder's name, its record) of one recipe. The headline's own classes come first, then what most encoders have."""
    if not records:
        return []
    names = tuple(name for name, _ in records)
    tables: dict[str, dict[str, list[Value | None]]] = {}
    for at, (_, record) in enumerate(records):
        for score, member, value in _members(record):
            row = tables.setdefault(score, {}).setdefault(member, [None] * len(records))
            row[at] = value
    what = "clips" if records[0][1].recipe.get("runner") == "video" else "classes"
    headline = str(records[0][1].recipe["headline"]).split("@")[0].removeprefix("m")
    filled = {score: sum(value is not None for row in rows.values() for value in row) for score, rows in tables.items()}
    order = sorted(tables, key=lambda score: (score.split("@")[0] != headline, -filled[score], score))
    return [
        Breakdown(score, what, names, tuple((m, tuple(row), _count(row)) for m, row in sorted(tables[score].items())))
        for score in order
    ]


def _count(row: Sequence[Value | None]) -> int:
    return next((value.n for value in row if value), 0)


def _members(record: Record) -> list[tuple[str, str, Value]]:
    """(score, class or clip, value) of all that is not a score of the whole."""
    classes = set((record.data.get("test") or {}).get("classes") or ())
    found = []
    for score in record.scores:
        base, slash, member = str(score["name"]).rpartition("/")
        if slash and member in classes and score["n"]:
            found.append((base, member, board.printed(score)))
    clips = record.facts.get("videos") if record.recipe.get("runner") == "video" else None
    return found + (_clips(clips) if isinstance(clips, Mapping) else [])


def _clips(clips: Mapping[str, Any]) -> list[tuple[str, str, Value]]:
    nan = float("nan")
    return [
        (score, clip, Value(100.0 * float(facts[score]), nan, nan, int(facts.get("scored_frames", 0)), "%", 1))
        for clip, facts in clips.items()
        for score in ("J&F", "J", "F")
        if isinstance(facts, Mapping) and isinstance(facts.get(score), (int, float))
    ]
