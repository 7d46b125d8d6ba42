"""A table of what label propagation found: a row per video, below it means over objects with their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from evalkit.metrics.intervals import FEWEST
from evalkit.types import IntervalMethod


class Row(NamedTuple):
    """A video. objects: how many; frames: scored ones; jf, j, f: means over its objects, fractions."""

    name: str
    objects: int
    frames: int
    jf: float
    j: float
    f: float


class Mean(NamedTuple):
    """A score of all videos: value and bounds are fractions, bounds NaN or None where there is no interval."""

    name: str
    value: float
    low: float | None
    high: float | None
    n: int
    interval: IntervalMethod = "bootstrap"


def draw(title: str, rows: list[Row], means: Iterable[Mean]) -> None:
    """Print the table on standard output. means: at least one, of n objects."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("video", overflow="fold")
    for head in ("objects", "frames", "J&F", "J", "F"):
        table.add_column(head, justify="right")
    for row in rows:
        values = (f"{100 * value:.1f}" for value in (row.jf, row.j, row.f))
        table.add_row(row.name, str(row.objects), str(row.frames), *values)
    console = Console()
    console.print(table)
    objects, bounded = 0, False
    for mean in means:
        shown = _bounds(mean, len(rows))
        console.print(f"  {mean.name:<9} {100 * mean.value:5.1f} %  {shown}", highlight=False, markup=False)
        objects, bounded = mean.n, bounded or mean.interval == "bootstrap"
    console.print(
        f"  means over {objects} objects of {len(rows)} videos; first and last frames left out"
        + ("; 95 % intervals by bootstrap over videos" if bounded else ""),
        style="dim", highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip


def _bounds(mean: Mean, videos: int) -> str:
    if mean.low is None or mean.high is None or math.isnan(mean.low):
        few = f"{videos} video{'' if videos == 1 else 's'}" if videos < FEWEST else "all alike"
        return f"({few}: no interval)"
    exact = " exact (Clopper-Pearson)" if mean.interval == "clopper-pearson" else ""
    return f"[{100 * mean.low:.1f}, {100 * mean.high:.1f}]{exact}"
