"""The regression gate: measure a suite anew and hold every score to a stored baseline.

    model_zoo/baselines/<suite>.json   what was measured, on which processors, why it was last changed; written by `update`

A score may move by what can move it, and by no more (`tolerance`): the last bits of sums, which differ between processors;
one unit, where the score counts units, since such a bit may turn one answer; another seed, where heads are trained or
samples drawn; and as far as the processors of the baseline lie apart. Which of these apply is found in what was
measured, not declared. Nothing is reused: neither records nor stored features.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evalkit import catalog, records
from evalkit.engine.evaluate import Options, Session, load
from evalkit.errors import RecordError
from evalkit.files import read_regular, temporary_folder, write_atomically
from evalkit.progress import RichProgress
from evalkit.records import Record
from evalkit.types import Suite
from evalkit.version import __version__

SCHEMA = 2
EXACT = 1e-4
"""Tolerance of what neither counts units nor depends on a seed: sums of floats, on any processor."""

SPREAD = 4.0
"""Standard deviations of the difference between two seeds that are allowed where it does."""

HEADS = 5
"""A score counts units where it is so many of n, or the mean of at most this many such counts (heads of several seeds)."""

Key = tuple[str, str]
"""Encoder id, recipe id."""


@dataclass(frozen=True)
class Held:
    """What a score is held to.

    n: of the score. tolerance: how far it may lie from the nearest processor's value. values: by processor, one per seed,
    the baseline's first seed first.
    """

    n: int
    tolerance: float
    values: Mapping[str, tuple[float, ...]]

    def nearest(self, value: float) -> float:
        """What the processor measured that comes nearest to this value, with the first seed."""
        return min((of[0] for of in self.values.values()), key=lambda was: (abs(value - was), was))


@dataclass(frozen=True)
class Cell:
    """One encoder and recipe of a baseline. comparable: digest of recipe, version, options and data. weights: of the file.
    status, reason: n/a where the encoder lacks what the recipe needs."""

    comparable: str
    weights: str
    status: str
    scores: Mapping[str, Held] = field(default_factory=dict)


@dataclass(frozen=True)
class Baseline:
    """A suite's cells. changes: date, reason and version of every update, oldest first."""

    suite: str
    environment: Mapping[str, Any]
    changes: tuple[Mapping[str, str], ...]
    cells: Mapping[Key, Cell]


@dataclass(frozen=True)
class Moved:
    """One thing that is not as the baseline says. was, now: NaN where there is none."""

    encoder: str
    recipe: str
    score: str
    what: str
    was: float = math.nan
    now: float = math.nan
    tolerance: float = math.nan


def measure(
    suite: Suite, encoders: Sequence[str], options: Options, progress: RichProgress
) -> Iterator[tuple[Key, Record | str]]:
    """Each encoder under each recipe of the suite: its record, or the words of the error that stopped it."""
    recipes = [catalog.recipe(name) for name in dict.fromkeys(column.recipe for column in suite.columns)]
    for name in progress.track(encoders, suite.id, len(encoders)):
        session = Session(options, progress)
        for outcome in session.run(load(name), recipes, {"encoder": name}):
            yield (name, outcome.recipe), outcome.record or str(outcome.error)


def fresh(options: Options, seed: int, cache: Path) -> Options:
    """The same question without any record or stored feature of before."""
    return Options(**{**_fields(options), "seed": seed, "out": None, "cache": cache})


def _fields(options: Options) -> dict[str, Any]:
    return {name: getattr(options, name) for name in options.__dataclass_fields__}


def compare(baseline: Baseline, found: Mapping[Key, Record | str]) -> list[Moved]:
    """What moved, in the order of measuring; cells of the baseline that were not asked for are passed by."""
    return [moved for key, record in found.items() for moved in _compare(key, baseline.cells.get(key), record)]


def _compare(key: Key, held: Cell | None, found: Record | str) -> Iterator[Moved]:
    if isinstance(found, str):
        yield Moved(*key, "", f"not measured: {found}")
    elif held is None:
        yield Moved(*key, "", "the baseline does not have it; write one with --update")
    elif held.weights != found.encoder["digest"]:
        yield Moved(*key, "", "other weights than the baseline's")
    elif held.comparable != found.comparable:
        yield Moved(*key, "", "another version of the recipe, other options or other data than the baseline's")
    elif held.status != found.status:
        yield Moved(*key, "", f"{found.status} {found.reason}".strip() + f"; it was {held.status}")
    else:
        yield from _scores(key, held, found)


def _scores(key: Key, held: Cell, found: Record) -> Iterator[Moved]:
    now = {score["name"]: score for score in found.scores}
    for name, was in held.scores.items():
        if name not in now:
            yield Moved(*key, name, "no longer measured", was.nearest(0.0))
            continue
        value, n = float(now[name]["value"]), int(now[name]["n"])
        nearest = was.nearest(value)
        if n != was.n:
            yield Moved(*key, name, f"n is {n}; it was {was.n}", nearest, value, was.tolerance)
        elif not _near(value, nearest, was.tolerance):
            yield Moved(*key, name, "moved", nearest, value, was.tolerance)
    for name in sorted(now.keys() - held.scores.keys()):
        yield Moved(*key, name, "the baseline does not have it; write one with --update", now=float(now[name]["value"]))


def _near(value: float, was: float, tolerance: float) -> bool:
    if math.isnan(value) or math.isnan(was):
        return math.isnan(value) == math.isnan(was)
    return abs(value - was) <= tolerance * (1 + 1e-6)  # a step of 1 / n, of values that were rounded to float32


def cell(repeats: Sequence[Record], before: Cell | None = None) -> Cell:
    """What several seeds of one measurement hold later ones to, beside what other processors measured before.

    before: the cell that this one replaces; the values of its other processors stay where its question is the same.
    """
    first = repeats[0]
    same = before is not None and (before.comparable, before.weights) == (first.comparable, first.encoder["digest"])
    scores = {}
    for score in first.scores:
        name, n = score["name"], int(score["n"])
        held = before.scores.get(name) if before and same else None
        values = dict(held.values) if held and held.n == n else {}
        values[first.environment["processor"]] = tuple(
            float(s["value"]) for r in repeats if (s := r.score(name)) is not None
        )
        scores[name] = Held(n, tolerance(values, n), values)
    return Cell(first.comparable, first.encoder["digest"], first.status, scores)


def tolerance(values: Mapping[str, Sequence[float]], n: int) -> float:
    """How far from the nearest of these values another processor, or this one with another seed, may lie.

    values: by processor, one per seed. n: units behind each. The largest of `EXACT`; one unit, where the values count
    units; `SPREAD` deviations of the difference between two seeds, where they differ by more than `EXACT`; and the distance
    of the processors.
    """
    known = [found for of in values.values() if (found := [v for v in of if not math.isnan(v)])]
    if not known:
        return EXACT
    # The difference of two draws has sqrt(2) times the deviation of one.
    seeds = [SPREAD * math.sqrt(2) * statistics.stdev(of) for of in known if max(of) - min(of) > EXACT]
    firsts = [of[0] for of in known]
    return max(EXACT, _unit([v for of in known for v in of], n), max(firsts) - min(firsts), *seeds)


def _unit(values: Sequence[float], n: int) -> float:
    """What one unit more or less changes: 1 / (n heads) for means, over so many heads, of how many of n units are right;
    0 for values that are no such counts. Scores were kept as float32."""
    for heads in range(1, HEADS + 1) if n else ():
        units = [value * n * heads for value in values]
        if all(abs(count - round(count)) <= 1e-6 * n * heads for count in units):
            return 1 / (n * heads)
    return 0.0


def repeat(
    suite: Suite, encoders: Sequence[str], options: Options, seeds: int, progress: RichProgress
) -> dict[Key, list[Record]]:
    """The suite once for each seed. Raises RecordError where a cell cannot be measured."""
    found: dict[Key, list[Record]] = {}
    with temporary_folder("regress") as cache:
        for seed in range(options.seed, options.seed + seeds):
            for key, record in measure(suite, encoders, fresh(options, seed, cache), progress):
                if isinstance(record, str):
                    raise RecordError(f"{key[0]} under {key[1]} cannot be measured, no baseline is written: {record}")
                found.setdefault(key, []).append(record)
    return found


def once(suite: Suite, encoders: Sequence[str], options: Options, progress: RichProgress) -> dict[Key, Record | str]:
    """The suite measured anew with the baseline's first seed."""
    with temporary_folder("regress") as cache:
        return dict(measure(suite, encoders, fresh(options, options.seed, cache), progress))


def updated(before: Baseline | None, suite: str, found: Mapping[Key, Sequence[Record]], reason: str) -> Baseline:
    """The baseline with these cells in place of what it had for them; see `cell` for what of it stays."""
    old = dict(before.cells) if before else {}
    cells = old | {key: cell(repeats, old.get(key)) for key, repeats in found.items()}
    change = {"date": records.now(), "reason": reason, "evalkit": __version__}
    environment = next(iter(found.values()))[0].environment
    return Baseline(suite, environment, (*(before.changes if before else ()), change), cells)


def path_of(folder: Path, suite: str) -> Path:
    """Where a suite's baseline lies."""
    return folder / f"{Path(suite).stem}.json"


def write(baseline: Baseline, path: Path) -> None:
    """One line a score, so that a change reads well in a diff."""
    nested: dict[str, dict[str, Any]] = {}
    lines: list[str] = []
    for (encoder, recipe), held in sorted(baseline.cells.items()):
        cell = nested.setdefault(encoder, {})[recipe] = asdict(held)
        for name, score in cell["scores"].items():
            cell["scores"][name] = f"line {len(lines)}"
            lines.append(json.dumps(score))
    content = {"schema": SCHEMA, **asdict(baseline), "cells": nested}
    text = re.sub(r'"line (\d+)"', lambda found: lines[int(found[1])], json.dumps(content, indent=1))
    write_atomically(path, lambda part: part.write_text(text + "\n"))


def read(path: Path) -> Baseline:
    """Raises RecordError where there is none, or none that can be read."""
    if not path.exists():
        raise RecordError(f"{path}: no baseline to hold this suite to; write one with --update --reason TEXT")
    try:
        content = json.loads(read_regular(path))
        if content["schema"] != SCHEMA:
            raise RecordError(f"{path} has schema {content['schema']}, this evalkit reads {SCHEMA}; update evalkit")
        cells = {
            (encoder, recipe): Cell(**{**held, "scores": {n: _held(s) for n, s in held["scores"].items()}})
            for encoder, recipes in content["cells"].items()
            for recipe, held in recipes.items()
        }
        return Baseline(content["suite"], content["environment"], tuple(content["changes"]), cells)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"{path}: no baseline that can be read ({error}); restore it, or write one anew with --update"
        ) from None


def _held(score: Mapping[str, Any]) -> Held:
    values = {processor: tuple(float(v) for v in of) for processor, of in score["values"].items()}
    if not values or not all(values.values()):
        raise ValueError("a score without values")
    return Held(int(score["n"]), float(score["tolerance"]), values)
