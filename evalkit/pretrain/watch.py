"""What a run is watched on: signs of collapse in its features, and the log.

A collapsed encoder gives one vector for all images (Jing et al. 2021, arXiv:2110.09348): the deviation of its features
falls to zero, or few directions are left (effective rank, Roy & Vetterli 2007).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evalkit.errors import NotARegularFile
from evalkit.files import open_regular, write_atomically

LEAST_DEVIATION = 0.05
LEAST_RANK = 2.0
LEAST_ENTROPY = 0.02
MOST_ENTROPY = 0.999
"""Share of log K above which a teacher assigns everything to everything."""


@torch.no_grad()
def signs(features: Tensor) -> dict[str, float]:
    """Of (B, D) features: `feature_std`, the deviation over images of unit vectors times sqrt(D) (0: all alike, 1: spread
    evenly), and `effective_rank`, exp of the entropy of the variances along principal axes, in [1, min(B - 1, D)]."""
    unit = F.normalize(features.float(), dim=1)
    centred = unit - unit.mean(0)
    variances = torch.linalg.eigvalsh(centred.T @ centred / len(unit)).clamp(min=0)
    total = variances.sum()
    shares = variances / total.clamp(min=1e-12)
    return {"feature_std": float(total.sqrt()), "effective_rank": float(torch.special.entr(shares).sum().exp())}


def alarms(watched: Mapping[str, float], prototypes: int | None) -> Iterator[str]:
    """One sentence for each sign of collapse. prototypes: K, where a teacher assigns some."""
    if watched["feature_std"] < LEAST_DEVIATION:
        yield f"the features of all images are nearly the same (deviation {watched['feature_std']:.3f} of 1)"
    elif watched["effective_rank"] < LEAST_RANK:
        yield f"the features lie on a line (effective rank {watched['effective_rank']:.1f})"
    entropy = watched.get("teacher_entropy")
    if entropy is not None and entropy < LEAST_ENTROPY:
        yield f"the teacher puts each image into one prototype (entropy {entropy:.3f} nats)"
    if entropy is not None and prototypes and entropy > MOST_ENTROPY * math.log(prototypes):
        yield f"the teacher tells no prototype from another (entropy {entropy:.2f} of log {prototypes} nats)"


class Window:
    """Means of scalars since the last look; nothing waits for the device before that."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._n = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Detached scalars by name, the same names every time."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().float()  # type: ignore[operator]
        self._n += 1

    def take(self) -> dict[str, float]:
        """The means, in one transfer; the window is empty afterwards."""
        means = torch.stack(list(self._sums.values())).div(self._n).tolist()
        found = dict(zip(self._sums, means, strict=True))
        self._sums, self._n = {}, 0
        return found


class Log:
    """A CSV file with one row per look; rows after the step from which a run goes on are dropped when it is opened."""

    def __init__(self, path: Path, first: int) -> None:
        self.path = path
        rows = [] if first == 0 else [row for row in read(path) if int(row["step"]) <= first]
        if rows:
            write_atomically(path, lambda part: _write(part, rows))
        else:
            path.unlink(missing_ok=True)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append; the first row makes the header."""
        _write(self.path, [row])


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    new = not path.exists() or not path.stat().st_size
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a log, none where there is no file; a row that a killed process did not end, or damaged, is left out."""
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8", "replace").replace("\0", "")
    except (OSError, NotARegularFile):
        return []
    rows = [
        row for row in csv.DictReader(io.StringIO(text, newline="")) if None not in row and None not in row.values()
    ]
    return [row for row in rows if (row.get("step") or "").isdecimal()]
