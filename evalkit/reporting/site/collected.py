"""What a report is made of: the records under a folder that can be read, and those that cannot, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evalkit import catalog, records
from evalkit.errors import RecordError
from evalkit.records import Record

NEEDED: Mapping[str, tuple[str, ...]] = {
    "encoder": ("id",),
    "recipe": ("id", "version", "headline"),
    "data": ("test",),
}
"""Without these a file that parses is still no record that could stand beside others."""


@dataclass(frozen=True)
class Collected:
    """found: oldest first. broken: a message for each file that was left out."""

    out: Path
    found: tuple[Record, ...]
    broken: tuple[str, ...]


def collect(out: Path) -> Collected:
    """All records under a folder. Raises RecordError where not one can be read, naming what is wrong."""
    if not out.is_dir():
        raise RecordError(f"{out}: no such folder; measure first: evalkit eval shipped --suite demo --out {out}")
    found: list[Record] = []
    broken: list[str] = []
    for path in sorted(out.glob("*/*.????????.json")):
        try:
            found.append(_usable(path))
        except RecordError as error:
            broken.append(str(error))
    if not found and broken:
        more = f"; and {len(broken) - 1} more like it" if len(broken) > 1 else ""
        raise RecordError(f"no record under {out} can be read: {broken[0]}{more}")
    if not found:
        raise RecordError(f"{out} holds no record; measure first: evalkit eval shipped --suite demo --out {out}")
    return Collected(out, tuple(sorted(found, key=lambda r: r.created)), tuple(broken))


def _usable(path: Path) -> Record:
    record = records.read(path)
    lacking = [f"{part}.{key}" for part, keys in NEEDED.items() for key in keys if key not in getattr(record, part)]
    if lacking:
        raise RecordError(f"{path}: not a record, or damaged (no {', '.join(lacking)}); delete it to measure again")
    return record


def short_titles() -> dict[str, str]:
    """By recipe, what suites call the column of its headline."""
    found: dict[str, str] = {}
    for name in catalog.suites():
        if not catalog.is_paper_table(name):
            found |= {c.recipe: c.title for c in catalog.suite(name).columns if c.title and not c.score}
    return found
