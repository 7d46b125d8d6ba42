"""Histograms of cosine between patches of one kind and of two, and the area under both (MMC fig. 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from evalkit.reporting.figures import canvas

DPI = 120


@dataclass(frozen=True, eq=False)
class Panel:
    """counts: (2, B) pairs by bin from -1 to 1, of one kind and of two. overlap, means: as scored. note: below the title."""

    counts: npt.NDArray[np.int64]
    overlap: float
    means: tuple[float, float]
    note: str = ""


def draw(panels: Mapping[str, Panel], title: str) -> Image.Image:
    """One plot per scope, side by side: densities of both kinds (one filled and solid, one hatched and dashed), their
    means as vertical lines, the area under both shaded."""
    figure = Figure(figsize=(5.2 * len(panels), 3.7), dpi=DPI, layout="constrained")
    drawing = FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (scope, panel) in zip(axes, panels.items(), strict=True):
        _plot(axis, scope, panel)
    drawing.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(drawing.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
    return canvas.bordered(canvas.titled(Image.fromarray(pixels.copy()), title))


def densities(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(2, B): histograms whose area over [-1, 1] is 1; zeros for one without pairs."""
    whole = counts.sum(axis=1, keepdims=True)
    found: npt.NDArray[np.float64] = counts / np.maximum(whole, 1) * counts.shape[1] / 2
    return found


def _plot(axis: Axes, scope: str, panel: Panel) -> None:
    intra, inter = densities(panel.counts)
    edges = np.linspace(-1, 1, len(intra) + 1)
    blue, orange = (tuple(part / 255 for part in colour) for colour in (canvas.BLUE, canvas.VERMILION))
    axis.stairs(np.minimum(intra, inter), edges, fill=True, color="0.8", label=f"both: O = {panel.overlap:.2f}")
    kinds = (("same", intra, blue, "-"), ("different", inter, orange, "--"))
    what = "category" if scope == "across" else scope
    for (name, values, colour, line), mean in zip(kinds, panel.means, strict=True):
        axis.stairs(values, edges, color=colour, linestyle=line, linewidth=1.6, label=f"{name} {what}: mean {mean:.2f}")
        axis.axvline(mean, color=colour, linestyle=line, linewidth=0.8)
    held = np.flatnonzero(panel.counts.any(axis=0))
    axis.set_xlim(edges[held[0]] - 0.02, edges[held[-1] + 1] + 0.02)
    axis.set_ylim(0, 1.4 * float(max(intra.max(), inter.max())))  # room for the legend
    axis.set_xlabel("cosine of two patches")
    axis.set_ylabel("density of pairs")
    axis.set_title(panel.note, fontsize=9, loc="left")
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    axis.spines[["top", "right"]].set_visible(False)
