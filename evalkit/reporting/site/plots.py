"""Plots as SVG in percent of the width and pixels of the height: they fit any screen, and letters keep their size.

Colours come from the style sheet (light, dark, print); a number stands beside every mark.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evalkit.reporting.html import Safe, tag
from evalkit.reporting.site.profile import Profile

ROW = 40
"""Pixels of height of one encoder in a dot-and-whisker plot."""
LOWEST = -0.3
"""Where the profile ends below: what lies lower is drawn on the edge, hollow."""


@dataclass(frozen=True)
class Dot:
    """A row of the plot. control, best: how it is drawn. said: the number as text."""

    label: str
    value: float
    low: float
    high: float
    said: str
    control: bool = False
    best: bool = False


def dots(rows: Sequence[Dot], *, unit: str, label: str) -> Safe:
    """Values with their intervals, one above the other on one scale."""
    first, last = _span(rows, unit)

    def x(value: float) -> str:
        return f"{1 + 98 * (value - first) / (last - first):.2f}%"

    height = ROW * len(rows)
    marks = [tag("line", class_="grid", x1=x(t), x2=x(t), y1=0, y2=height) for t in _ticks(first, last)]
    for i, row in enumerate(rows):
        marks.append(_row(row, ROW * i, x))
    marks += [_number(t, x(t), height + 16, edge=i) for i, t in _edges(_ticks(first, last))]
    return tag("svg", marks, class_="plot", height=height + 24, role="img", aria_label=label)


def _row(row: Dot, top: float, x: Callable[[float], str]) -> Safe:
    kind = "dot" + (" control" if row.control else "") + (" best" if row.best else "")
    whisker = None
    if not (math.isnan(row.low) or math.isnan(row.high)):
        whisker = tag("line", class_=f"whisker{' control' if row.control else ''}", x1=x(row.low), x2=x(row.high),
                      y1=top + 28, y2=top + 28)  # fmt: skip
    return tag(
        "g",
        tag("text", row.label, x="1%", y=top + 16, class_="label"),
        tag("text", row.said, x="99%", y=top + 16, class_="said", text_anchor="end"),
        whisker,
        tag("circle", class_=kind, cx=x(row.value), cy=top + 28, r=5),
    )


def _span(rows: Sequence[Dot], unit: str) -> tuple[float, float]:
    """Percent begin at 0; the scale ends at a round number."""
    known = [v for row in rows for v in (row.value, row.low, row.high) if not math.isnan(v)]
    low, high = min(known), max(known)
    first, last = (0.0, high) if unit == "%" and low >= 0 else (low, high)
    if last <= first:
        last = first + (abs(first) or 1.0)
    step = _step(last - first)
    return math.floor(first / step + 1e-9) * step, math.ceil(last / step - 1e-9) * step


def _step(span: float) -> float:
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1.0, 2.0, 5.0, 10.0) if power * m >= rough * 0.999)


def _ticks(first: float, last: float) -> list[float]:
    step = _step(last - first)
    return [first + i * step for i in range(round((last - first) / step) + 1)]


def _edges(ticks: Sequence[float]) -> list[tuple[str, float]]:
    names = ["start", *["middle"] * (len(ticks) - 2), "end"]
    return list(zip(names, ticks, strict=True))


def _number(value: float, x: str, y: float, *, edge: str) -> Safe:
    return tag("text", f"{value:.4g}", x=x, y=y, class_="tick", text_anchor=edge)


def profile(found: Profile, names: Mapping[str, str], controls: set[str], *, label: str) -> Safe:
    """Parallel axes, one per grain; a line per encoder, broken for controls."""
    height, top, bottom = 300, 24, 262
    count = len(found.axes)
    across = [50.0] if count == 1 else [12 + 76 * i / (count - 1) for i in range(count)]

    def y(place: float) -> float:
        return round(bottom - (max(place, LOWEST) - LOWEST) / (1.05 - LOWEST) * (bottom - top), 1)

    marks = [tag("line", class_="grid", x1=0, x2="100%", y1=y(v), y2=y(v)) for v in (0.0, 1.0)]
    for at, axis in zip(across, found.axes, strict=True):
        marks.append(tag("line", class_="axis", x1=f"{at}%", x2=f"{at}%", y1=top, y2=bottom))
        marks.append(tag("text", axis.grain, x=f"{at}%", y=height - 18, class_="label", text_anchor="middle"))
    marks += [
        tag("text", "best measured", x=0, y=y(1) - 6, class_="tick"),
        tag("text", "weakest control", x=0, y=y(0) + 14, class_="tick"),
    ]
    for number, who in enumerate(names):
        marks.append(_line(found, who, across, y, kind=_kind(number, who in controls), name=names[who]))
    return tag("svg", marks, class_="plot profile", height=height, role="img", aria_label=label)


def _kind(number: int, control: bool) -> str:
    return f"s{number % 7}" + (" control" if control else "")


def legend(names: Mapping[str, str], controls: set[str]) -> Safe:
    """Which line is whose."""
    items = [
        tag("li", tag("svg", tag("line", x1=0, x2=28, y1=6, y2=6, class_=f"series {_kind(i, who in controls)}"),
                      width=28, height=12, aria_hidden="true"), " ", name, " (control)" if who in controls else "")
        for i, (who, name) in enumerate(names.items())
    ]  # fmt: skip
    return tag("ul", items, class_="legend")


def _line(
    found: Profile, who: str, across: Sequence[float], y: Callable[[float], float], *, kind: str, name: str
) -> Safe:
    known = [
        (x, axis.places[who], axis.grain) for x, axis in zip(across, found.axes, strict=True) if who in axis.places
    ]
    lines = [
        tag("line", class_=f"series {kind}", x1=f"{a[0]}%", y1=y(a[1]), x2=f"{b[0]}%", y2=y(b[1]))
        for a, b in itertools.pairwise(known)
    ]
    points = [
        tag("circle", tag("title", f"{name}, {grain}: {place:.2f}"), cx=f"{x}%", cy=y(place), r=5,
            class_=f"point {kind}{' below' if place < LOWEST else ''}")
        for x, place, grain in known
    ]  # fmt: skip
    return tag("g", lines, points)


def curve(points: Sequence[tuple[float, float]], *, title: str, label: str) -> Safe:
    """A line over steps, with its first, last, least and largest value as text."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    wide, tall = (max(xs) - min(xs)) or 1, (max(ys) - min(ys)) or 1
    path = " ".join(f"{1000 * (a - min(xs)) / wide:.1f},{200 - 196 * (b - min(ys)) / tall - 2:.1f}" for a, b in points)
    drawn = tag("svg", tag("polyline", points=path, class_="curve", vector_effect="non-scaling-stroke"),
                viewBox="0 0 1000 200", preserveAspectRatio="none", role="img", aria_label=label)  # fmt: skip
    sides = tag("div", tag("span", f"{max(ys):.3g}"), tag("span", f"{min(ys):.3g}"), class_="sides", aria_hidden="true")
    steps = tag("div", tag("span", f"step {min(xs):,.0f}"), tag("span", f"{max(xs):,.0f}"), class_="steps")
    said = tag("figcaption", f"{title}: {ys[0]:.4g} at first, {ys[-1]:.4g} at the end")
    return tag("figure", said, tag("div", sides, drawn, class_="curvebox"), steps, class_="chart")
