"""The granularity profile: how an encoder stands at each grain, between the weakest control and the best encoder.

A value becomes (value - weakest control) / (best - weakest control) within its own column, so that 0 is the weakest
control (low-resolution pixels or an untrained network) and 1 the best encoder measured; recipes of one grain are then
averaged. Only columns that hold the same encoders are averaged: those with all encoders of the grain's fullest column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evalkit.reporting.site import grains
from evalkit.reporting.site.board import Board, Column


@dataclass(frozen=True)
class Axis:
    """One grain. recipes: that it averages. places: network to its place, 0 the weakest control, 1 the best."""

    grain: str
    recipes: tuple[str, ...]
    places: Mapping[str, float]


@dataclass(frozen=True)
class Profile:
    """axes: with a scale, from scene to video. left_out: recipes without one, or with fewer encoders, and the reason."""

    axes: tuple[Axis, ...]
    left_out: tuple[str, ...]


def build(board: Board) -> Profile:
    """The profile of a board; without axes where no control was measured beside another encoder."""
    controls = {e.who for e in board.encoders if e.control}
    axes, left = [], []
    for grain in grains.ORDER:
        scaled, said = _scaled([c for c in board.columns if c.grain == grain], controls)
        left += said
        if not scaled:
            continue
        fullest = max(scaled.values(), key=len).keys()
        kept = {recipe: places for recipe, places in scaled.items() if places.keys() >= fullest}
        left += [f"{r}: not measured for all of the encoders that {grain} compares" for r in scaled if r not in kept]
        means = {who: sum(places[who] for places in kept.values()) / len(kept) for who in fullest}
        axes.append(Axis(grain, tuple(kept), means))
    return Profile(tuple(axes), tuple(left))


def _scaled(columns: Sequence[Column], controls: set[str]) -> tuple[dict[str, dict[str, float]], list[str]]:
    found: dict[str, dict[str, float]] = {}
    left: list[str] = []
    for column in columns:
        values = {w: c.value.value * (1 if column.higher else -1) for w, c in column.cells.items() if c.value}
        floor = min((v for w, v in values.items() if w in controls), default=None)
        if floor is None or len(values) < 2:
            left.append(f"{column.id}: no control beside another encoder")
        elif max(values.values()) <= floor:
            left.append(f"{column.id}: nothing is better than the weakest control")
        else:
            span = max(values.values()) - floor
            found[column.id] = {w: (v - floor) / span for w, v in values.items()}
    return found, left
