"""The regression gate: measure a suite anew and hold every score to a stored baseline.

    model_zoo/baselines/<suite>.json   what was measured, where, why it was last changed; written by `update`

A score may move by its tolerance. Whether a recipe is deterministic is found, not declared: the baseline is measured with
several seeds, and where they agree the tolerance is `EXACT`; where they do not (trained heads, drawn samples), it is
`SPREAD` standard deviations of what another seed may give. Nothing is reused: neither records nor stored features.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evalkit import catalog, records
from evalkit.engine.evaluate import Options, Session, load
from evalkit.errors import RecordError
from evalkit.progress import RichProgress
from evalkit.records import Record
from evalkit.types import Suite
from evalkit.version import __version__

SCHEMA = 1
EXACT = 1e-4
"""Tolerance of what does not depend on a seed."""

SPREAD = 4.0
"""Standard deviations of the difference between two seeds that are allowed where it does."""

Key = tuple[str, str]
"""Encoder id, recipe id."""


@dataclass(frozen=True)
class Held:
    """What a score is held to. n: of the score."""

    value: float
    tolerance: float
    n: int


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
            yield Moved(*key, name, "no longer measured", was.value)
            continue
        value, n = float(now[name]["value"]), int(now[name]["n"])
        if n != was.n:
            yield Moved(*key, name, f"n is {n}; it was {was.n}", was.value, value, was.tolerance)
        elif not _near(value, was):
            yield Moved(*key, name, "moved", was.value, value, was.tolerance)
    for name in sorted(now.keys() - held.scores.keys()):
        yield Moved(*key, name, "the baseline does not have it; write one with --update", now=float(now[name]["value"]))


def _near(value: float, held: Held) -> bool:
    if math.isnan(value) or math.isnan(held.value):
        return math.isnan(value) == math.isnan(held.value)
    return abs(value - held.value) <= held.tolerance


def cell(repeats: Sequence[Record]) -> Cell:
    """What several seeds of one measurement hold later ones to; values are the first seed's."""
    first = repeats[0]
    scores = {}
    for score in first.scores:
        values = [float(s["value"]) for r in repeats if (s := r.score(score["name"])) is not None]
        scores[score["name"]] = Held(float(score["value"]), _tolerance(values), int(score["n"]))
    return Cell(first.comparable, first.encoder["digest"], first.status, scores)


def _tolerance(values: Sequence[float]) -> float:
    """Of the difference between two draws, each with the deviation of the values: sqrt(2) times one's."""
    known = [v for v in values if not math.isnan(v)]
    if len(known) < 2 or max(known) - min(known) <= EXACT:
        return EXACT
    return max(EXACT, SPREAD * math.sqrt(2) * statistics.stdev(known))


def repeat(
    suite: Suite, encoders: Sequence[str], options: Options, seeds: int, progress: RichProgress
) -> dict[Key, list[Record]]:
    """The suite once for each seed. Raises RecordError where a cell cannot be measured."""
    found: dict[Key, list[Record]] = {}
    with tempfile.TemporaryDirectory() as cache:
        for seed in range(options.seed, options.seed + seeds):
            for key, record in measure(suite, encoders, fresh(options, seed, Path(cache)), progress):
                if isinstance(record, str):
                    raise RecordError(f"{key[0]} under {key[1]} cannot be measured, no baseline is written: {record}")
                found.setdefault(key, []).append(record)
    return found


def once(suite: Suite, encoders: Sequence[str], options: Options, progress: RichProgress) -> dict[Key, Record | str]:
    """The suite measured anew with the baseline's first seed."""
    with tempfile.TemporaryDirectory() as cache:
        return dict(measure(suite, encoders, fresh(options, options.seed, Path(cache)), progress))


def updated(before: Baseline | None, suite: str, found: Mapping[Key, Sequence[Record]], reason: str) -> Baseline:
    """The baseline with these cells in place of what it had for them."""
    cells = dict(before.cells if before else {}) | {key: cell(repeats) for key, repeats in found.items()}
    change = {"date": records.now(), "reason": reason, "evalkit": __version__}
    environment = next(iter(found.values()))[0].environment
    return Baseline(suite, environment, (*(before.changes if before else ()), change), cells)


def path_of(folder: Path, suite: str) -> Path:
    """Where a suite's baseline lies."""
    return folder / f"{Path(suite).stem}.json"


def write(baseline: Baseline, path: Path) -> None:
    """One line a score, so that a change reads well in a diff."""
    nested: dict[str, dict[str, Any]] = {}
    for (encoder, recipe), held in sorted(baseline.cells.items()):
        nested.setdefault(encoder, {})[recipe] = asdict(held)
    content = {"schema": SCHEMA, **asdict(baseline), "cells": nested}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def read(path: Path) -> Baseline:
    """Raises RecordError where there is none, or none that can be read."""
    if not path.exists():
        raise RecordError(f"{path}: no baseline to hold this suite to; write one with --update --reason TEXT")
    try:
        content = json.loads(path.read_text())
        if content["schema"] != SCHEMA:
            raise RecordError(f"{path} has schema {content['schema']}, this evalkit reads {SCHEMA}; update evalkit")
        cells = {
            (encoder, recipe): Cell(**{**held, "scores": {n: Held(**s) for n, s in held["scores"].items()}})
            for encoder, recipes in content["cells"].items()
            for recipe, held in recipes.items()
        }
        return Baseline(content["suite"], content["environment"], tuple(content["changes"]), cells)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"{path}: no baseline that can be read ({error}); restore it, or write one anew with --update"
        ) from None
