"""Patch maps beside their images: clusters, principal colours, attention per head, matches as lines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from evalkit.reporting.figures import canvas

TILE = 300
"""Longer side in pixels of each picture."""


def shown(image: Image.Image) -> Image.Image:
    """The image, its longer side TILE pixels."""
    scale = TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def coloured(colours: npt.NDArray[np.float64], image: Image.Image) -> Image.Image:
    """(h, w, 3) in [0, 1] as sharp blocks of the image's size."""
    blocks = Image.fromarray((colours * 255).round().astype(np.uint8))
    return blocks.resize(image.size, Image.Resampling.NEAREST)


def clustered(labels: npt.NDArray[np.int64], image: Image.Image) -> Image.Image:
    """(h, w) clusters over the image: each its colour of the palette, with a white line between them."""
    out = image
    rows, columns = (np.arange(n) * parts // n for n, parts in zip(image.size[::-1], labels.shape, strict=True))
    wide = labels[rows[:, None], columns]
    for label in np.unique(labels):
        out = canvas.overlay(out, wide == label, canvas.PALETTE[label % len(canvas.PALETTE)], alpha=0.6)
    pixels = np.array(out)
    border = np.zeros(wide.shape, bool)
    border[:, 1:] |= wide[:, 1:] != wide[:, :-1]
    border[1:] |= wide[1:] != wide[:-1]
    pixels[border] = canvas.PAPER
    return Image.fromarray(pixels)


def attention(
    image: Image.Image, weights: npt.NDArray[np.float32], kept: npt.NDArray[np.bool_], *, title: str, note: str
) -> Image.Image:
    """The image, the mean over heads, and each head's attention above what it mostly looks at.

    weights: (heads, h, w). kept: (heads, h, w) bool, the patches with most of a head's weight.
    """
    picture = shown(image)
    mean = weights.mean(0)
    tops = [picture, canvas.heat(mean, picture.size, low=0.0, high=_top(mean))]
    tops += [canvas.heat(head, picture.size, low=0.0, high=_top(head)) for head in weights]
    masks = [kept.mean(0) >= 0.5, *kept]
    below = [_masked(picture, mask) for mask in masks]
    captions = ["image", "mean of the heads", *(f"head {i}" for i in range(len(weights)))]
    upper = canvas.tiles(tops, captions, columns=len(tops), size=picture.size)
    blank = Image.new("RGB", picture.size, canvas.PAPER)
    lower = canvas.tiles(
        [blank, *below], ["", "most heads", *([""] * len(weights))], columns=len(tops), size=picture.size
    )
    return canvas.bordered(canvas.titled(canvas.below([upper, lower]), title, note))


def _top(values: npt.NDArray[np.float32]) -> float:
    return max(float(np.quantile(values, 0.99)), 1e-9)


def _masked(picture: Image.Image, mask: npt.NDArray[np.bool_]) -> Image.Image:
    wide = np.asarray(Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST)).astype(bool)
    pixels = np.array(picture.convert("RGB"))
    pixels[~wide] = (0.25 * pixels[~wide] + 0.75 * np.array(canvas.EMPTY)).round().astype(np.uint8)
    return Image.fromarray(pixels)


def rows(
    pictures: Sequence[Image.Image], maps: Sequence[Image.Image], names: Sequence[str], *, title: str, note: str
) -> Image.Image:
    """Images in a row, and below each its map."""
    size = (max(p.width for p in pictures), max(p.height for p in pictures))
    upper = canvas.tiles(list(pictures), list(names), columns=len(pictures), size=size)
    lower = canvas.tiles(list(maps), [""] * len(maps), columns=len(maps), size=size)
    return canvas.bordered(canvas.titled(canvas.below([upper, lower]), title, note))


def matched(
    pair: tuple[Image.Image, Image.Image],
    lines: Sequence[tuple[tuple[float, float], tuple[float, float], bool | None]],
    *,
    title: str,
    note: str,
) -> Image.Image:
    """Two images side by side, a line between the patches that match.

    lines: where a match begins and ends, as shares of width and height of either image, and whether it is right: true is
    a blue line, false a vermilion broken one, None (nobody knows) one of the palette's colours.
    """
    left, right = (shown(image) for image in pair)
    wide = canvas.beside([left, right], gap=6 * canvas.GAP)
    pen = ImageDraw.Draw(wide)
    for number, (start, end, right_) in enumerate(lines):
        a = (start[0] * left.width, start[1] * left.height)
        b = (wide.width - right.width + end[0] * right.width, end[1] * right.height)
        colour = _colour(number, right_)
        _line(pen, a, b, colour, broken=right_ is False)
        for x, y in (a, b):
            pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=colour, outline=canvas.PAPER, width=1)
    return canvas.bordered(canvas.titled(canvas.widened(wide, title, note), title, note))


def _colour(number: int, right: bool | None) -> canvas.Colour:
    if right is None:
        return canvas.PALETTE[number % len(canvas.PALETTE)]
    return canvas.BLUE if right else canvas.VERMILION


def _line(
    pen: ImageDraw.ImageDraw, a: tuple[float, float], b: tuple[float, float], colour: canvas.Colour, *, broken: bool
) -> None:
    pieces = 15 if broken else 1
    for piece in range(0, pieces, 2):
        ends = [
            tuple(p + (q - p) * share for p, q in zip(a, b, strict=True))
            for share in (piece / pieces, (piece + 1) / pieces)
        ]
        pen.line([*ends[0], *ends[1]], fill=canvas.PAPER, width=4)
        pen.line([*ends[0], *ends[1]], fill=colour, width=2)
