"""Two encoders on the same test images: the difference of a score with its paired bootstrap interval, from records alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evalkit import records
from evalkit.errors import RecordError
from evalkit.metrics import bootstrap
from evalkit.records import Record
from evalkit.reporting.comparable import named, who


@dataclass(frozen=True)
class Difference:
    """one minus other, in the score's unit, with its 95 % interval; p of no difference (two-sided, bootstrap).

    n: units of the score. groups: how many were resampled, those of one image or video together.
    """

    recipe: str
    score: str
    one: float
    other: float
    difference: bootstrap.Paired
    n: int
    groups: int
    unit: str

    @property
    def units(self) -> str:
        """`6 units in 2 groups`: what was resampled, for messages."""
        return f"{self.n} units" if self.groups == self.n else f"{self.n} units in {self.groups} groups"


def differences(one: str, other: str, out: Path, *, recipe: str = "*", score: str = "") -> list[Difference]:
    """One `Difference` for each recipe that both encoders have comparable records of, the newest of each.

    one, other: see `comparable.named`. recipe: its id, "*" for all. Records that cannot be read, and recipes whose outcomes
    cannot, are told on standard error and left out. Raises RecordError where there is none, where a name is that of several
    networks, or where no outcomes belong to the same units.
    """
    held = [r for r in records.find(out) if recipe in ("*", r.recipe["id"])]
    mine, theirs = ([r for r in held if who(r) == name] for name in (named(held, one), named(held, other)))
    latest = {(r.recipe["id"], r.comparable): r for r in theirs if r.status == "done"}
    pairs = {
        (r.recipe["id"], r.comparable): (r, latest[r.recipe["id"], r.comparable])
        for r in mine
        if r.status == "done" and (r.recipe["id"], r.comparable) in latest
    }
    if not pairs:
        raise RecordError(
            f"{out}: {one} and {other} have no record of the same recipe on the same data; measure both first"
        )
    found: list[Difference] = []
    wrong: list[RecordError] = []
    for a, b in pairs.values():
        try:
            found.append(difference(a, b, out, score))
        except RecordError as error:
            wrong.append(error)
    if not found:
        raise wrong[0]
    for why in wrong:
        records.leave_out(why)
    return found


def difference(one: Record, other: Record, out: Path, score: str = "") -> Difference:
    """The `Difference` of two comparable records. score: "" for the headline.

    Raises RecordError where outcomes are missing, or do not belong to the same units.
    """
    name = score or str(one.recipe["headline"])
    if (found := _of_resamples(one, other, out, name)) is not None:
        return found
    (a, groups), (b, others) = (records.outcomes(r, out, name) for r in (one, other))
    alike = np.array_equal(groups, others) if groups is not None and others is not None else groups is others
    if len(a) != len(b) or not alike:
        raise RecordError(
            f"{one.recipe['id']}: {one.encoder['id']} and {other.encoder['id']} were not scored on the same units "
            f"({len(a)} and {len(b)}), perhaps because broken images were skipped for one of them"
        )
    paired, unit = bootstrap.paired(a, b, groups, seed=0), _unit(one, name)
    return Difference(one.recipe["id"], name, bootstrap.statistic(a), bootstrap.statistic(b), paired, len(a),
                      len(a) if groups is None else len(np.unique(groups)), unit)  # fmt: skip


def _of_resamples(one: Record, other: Record, out: Path, name: str) -> Difference | None:
    """From what the score is on the same resamples of the images, where both records kept that."""
    kept = [records.resamples(record, out, name) for record in (one, other)]
    if None in kept:
        return None
    (a, seed), (b, seed_of_other) = (found for found in kept if found is not None)
    if seed != seed_of_other:
        raise RecordError(
            f"{one.recipe['id']}: the images were resampled with seed {seed} for {one.encoder['id']} and "
            f"{seed_of_other} for {other.encoder['id']}; measure both with the same --seed"
        )
    mine, theirs = (next(s for s in record.scores if s["name"] == name) for record in (one, other))
    paired = bootstrap.paired_resamples(mine["value"] - theirs["value"], a, b)
    n = min(mine["n"], theirs["n"])
    return Difference(one.recipe["id"], name, mine["value"], theirs["value"], paired, n, n, _unit(one, name))


def _unit(record: Record, name: str) -> str:
    return next((str(s["unit"]) for s in record.scores if s["name"] == name), "fraction")
