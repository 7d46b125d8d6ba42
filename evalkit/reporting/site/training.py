"""Training curves of an encoder of the zoo: the log beside its weights, `<weights>.log.csv`, whose first column is step."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from evalkit.errors import NotARegularFile
from evalkit.files import read_regular
from evalkit.reporting.html import Safe, sentence, tag
from evalkit.reporting.site import plots
from evalkit.types import Manifest

DRAWN = 400
"""Points of a curve at most; of more, every so manieth."""


def read(path: Path) -> dict[str, list[tuple[float, float]]]:
    """(step, value) by column; columns without two numbers are left out, and all where the file is no such log."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_regular(path).decode("utf-8"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error, NotARegularFile):
        return {}
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        step = _number(row.get("step"))
        for name, text in row.items():
            value = _number(text)
            if name not in (None, "step", "seconds") and math.isfinite(step) and math.isfinite(value):
                found.setdefault(name, []).append((step, value))
    return {name: _thinned(points) for name, points in found.items() if len(points) > 1}


def _number(text: object) -> float:
    try:
        return float(str(text))
    except ValueError:
        return math.nan


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    every = math.ceil(len(points) / DRAWN)
    return [*points[:-1:every], points[-1]]


def curves(manifest: Manifest) -> Safe | None:
    """The section of a page; None where there is no log."""
    path = Path(manifest.file).with_suffix(".log.csv") if manifest.file else None
    found = read(path) if path is not None else {}
    if path is None or not found:
        return None
    drawn = [
        plots.curve(
            points,
            title=name,
            label=f"{name} over the steps of training, from {points[0][1]:.4g} to {points[-1][1]:.4g}",
        )
        for name, points in found.items()
    ]
    said = "; ".join(f"{key}: {value}" for key, value in manifest.training.items())
    return tag(
        "section",
        tag("h2", "Training"),
        tag("p", sentence(said), class_="quiet") if said else None,
        tag("div", drawn, class_="charts"),
        tag("p", "From ", tag("code", path.name), class_="quiet"),
        id="training",
    )
