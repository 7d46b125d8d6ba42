"""Predicted label maps beside the truth: every class has its colour and its number, and a legend says which."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw

from evalkit.reporting.figures import canvas

SMALLEST = 1 / 150
"""Share of a picture from which a region gets its number."""

COLUMNS = ("photo", "truth", "prediction", "wrong")


@dataclass(frozen=True, eq=False)
class Example:
    """photo: (H, W) RGB. truth, predicted: (H, W) labels, truth below 0 where nothing counts. caption: lines below."""

    photo: Image.Image
    truth: np.ndarray
    predicted: np.ndarray
    caption: str = ""


def colour(label: int) -> canvas.Colour:
    """Of a class: the palette for people with any kind of colour vision first, then hues a golden angle apart."""
    if label < len(canvas.PALETTE):
        return canvas.PALETTE[label]
    turn = label - len(canvas.PALETTE)
    red, green, blue = colorsys.hsv_to_rgb(turn * 0.618034 % 1, (0.85, 0.5, 0.7)[turn % 3], (0.85, 0.95, 0.6)[turn % 3])
    return int(red * 255), int(green * 255), int(blue * 255)


def sheet(
    examples: Sequence[Example], classes: Sequence[str], *, title: str, note: str = "", width: int = 220
) -> Image.Image:
    """A row per example: the photo, truth and prediction over it, and where it is wrong; below them the legend.

    classes: names by label. width: of one picture in pixels. The first classes of the legend are those with most pixels
    of the truth shown; classes that are only predicted are in it too.
    """
    seen = np.zeros(len(classes), np.int64)
    for one in examples:
        seen += np.bincount(one.truth[one.truth >= 0], minlength=len(classes))
    shown = sorted(
        {int(v) for one in examples for labels in (one.truth, one.predicted[one.truth >= 0]) for v in np.unique(labels)}
        - {-1},
        key=lambda label: (-seen[label], label),
    )
    ranks = {label: rank for rank, label in enumerate(shown)}
    rows = [_row(one, ranks, width) for one in examples]
    heads = canvas.beside([_head(name, width) for name in COLUMNS])
    drawn = canvas.below([heads, *rows, _legend([classes[label] for label in shown], rows[0].width)])
    return canvas.bordered(canvas.titled(drawn, title, note))


def _row(one: Example, ranks: dict[int, int], width: int) -> Image.Image:
    size = (width, max(1, round(width * one.photo.height / one.photo.width)))
    photo = one.photo.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    truth, predicted = (_small(labels, size) for labels in (one.truth, one.predicted))
    counted = truth >= 0
    wrong = canvas.overlay(_pale(photo, counted), counted & (truth != predicted), canvas.VERMILION, alpha=0.8)
    pictures = [photo, _painted(photo, truth, ranks), _painted(photo, np.where(counted, predicted, -1), ranks), wrong]
    return canvas.captioned(canvas.beside(pictures), one.caption)


def _small(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(labels.astype(np.int16), size, interpolation=cv2.INTER_NEAREST)


def _pale(photo: Image.Image, counted: np.ndarray) -> Image.Image:
    grey = photo.convert("L").convert("RGB")
    return canvas.overlay(grey, ~counted, canvas.PAPER, alpha=0.65)


def _painted(photo: Image.Image, labels: np.ndarray, ranks: dict[int, int]) -> Image.Image:
    """The labels over the photo, each region large enough with the number of its class."""
    pixels = np.asarray(_pale(photo, labels >= 0)).astype(np.float32)
    for label, rank in ranks.items():
        inside = labels == label
        pixels[inside] = 0.3 * pixels[inside] + 0.7 * np.array(colour(rank), np.float32)
    out = Image.fromarray(pixels.round().astype(np.uint8))
    pen = ImageDraw.Draw(out)
    for label, rank in ranks.items():
        for x, y in _places(labels == label):
            pen.text(
                (x, y), str(rank + 1), canvas.PAPER, canvas.font(11, bold=True), anchor="mm",
                stroke_width=2, stroke_fill=canvas.INK,
            )  # fmt: skip
    return out


def _places(mask: np.ndarray) -> list[tuple[int, int]]:
    """(x, y) deepest inside each connected region that is not too small."""
    count, regions, facts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    found = []
    for region in range(1, count):
        if facts[region, cv2.CC_STAT_AREA] < mask.size * SMALLEST:
            continue
        alone = np.pad((regions == region).astype(np.uint8), 1)
        depth = cv2.distanceTransform(alone, cv2.DIST_L2, 3)
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        found.append((int(x) - 1, int(y) - 1))
    return found


def _head(text: str, width: int) -> Image.Image:
    out = Image.new("RGB", (width, canvas.TEXT + 6), canvas.PAPER)
    out.paste(canvas.written(text, canvas.TEXT + 6), (0, 0))
    return out


def _legend(names: Sequence[str], width: int) -> Image.Image:
    """Patches of colour with number and name, in as many lines as they need."""
    height = canvas.TEXT + 8
    lines: list[list[Image.Image]] = [[]]
    for rank, name in enumerate(names):
        entry = canvas.beside([_swatch(rank, height), canvas.written(name, height)], gap=4)
        taken = sum(one.width + canvas.GAP for one in lines[-1])
        if lines[-1] and taken + entry.width > width:
            lines.append([])
        lines[-1].append(entry)
    return canvas.below([canvas.beside(line) for line in lines if line] or [canvas.written("no class", height)], gap=2)


def _swatch(rank: int, height: int) -> Image.Image:
    out = Image.new("RGB", (26, height), colour(rank))
    ImageDraw.Draw(out).text(
        (13, height / 2), str(rank + 1), canvas.PAPER, canvas.font(11, bold=True), anchor="mm", stroke_width=2,
        stroke_fill=canvas.INK,
    )  # fmt: skip
    return out
