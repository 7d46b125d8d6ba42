"""Points of classes in the plane: each class its own pair of colour and shape, with a legend."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from evalkit.reporting.figures import canvas

SHAPES = "osD^vPX*<>"
"""Markers; with the palette's seven colours 70 classes can be told apart."""


def points(
    places: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], classes: Sequence[str], *, title: str, note: str
) -> Image.Image:
    """places: (N, 2). labels: (N,) from 0. classes: names by label; those without a point are left out of the legend."""
    figure = Figure(figsize=(9.6, 6.4), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, label in enumerate(np.unique(labels)):
        own = places[labels == label]
        colour = np.array(canvas.PALETTE[number % len(canvas.PALETTE)]) / 255
        shape = SHAPES[number // len(canvas.PALETTE) % len(SHAPES)]
        axes.scatter(own[:, 0], own[:, 1], s=22, color=colour, marker=shape, edgecolors="white", linewidths=0.4,
                     label=f"{classes[label]} ({len(own)})")  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", "datalim")
    for spine in axes.spines.values():
        spine.set_color("#cccccc")
    axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8, ncols=1 + len(np.unique(labels)) // 31
    )
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    return canvas.bordered(canvas.titled(Image.open(buffer).convert("RGB"), title, note))
