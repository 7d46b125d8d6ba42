"""What the demo page shows: heat maps, masks, frames around patches. NumPy and Pillow only, since people wait for it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from evalkit.reporting.demo.answers import Floats, Heads, Near, Pair, Similar
from evalkit.reporting.demo.looker import Bank
from evalkit.reporting.demo.photos import Photo
from evalkit.reporting.figures import canvas, maps
from evalkit.reporting.figures.prompt import Prompted
from evalkit.reporting.looking import centres

AROUND = 3
"""Patches that a tile of the gallery shows to each side of the one that was found."""
TILE = 196
"""Side in pixels of a tile of the gallery."""

Box = tuple[float, float, float, float]


def box(place: tuple[int, int], grid: tuple[int, int], size: tuple[int, int]) -> Box:
    """x0, y0, x1, y1 of a patch by row and column. grid: rows and columns. size: (width, height) of the picture."""
    (row, column), (rows, columns), (width, height) = place, grid, size
    return column * width / columns, row * height / rows, (column + 1) * width / columns, (row + 1) * height / rows


def framed(image: Image.Image, where: Box) -> Image.Image:
    """A copy with a frame around a part of it, outside it, so that the part stays visible."""
    out, (x0, y0, x1, y1) = image.convert("RGB"), (round(side) for side in where)
    pen = ImageDraw.Draw(out)
    pen.rectangle((x0 - 5, y0 - 5, x1 + 4, y1 + 4), outline=canvas.PAPER, width=5)
    pen.rectangle((x0 - 4, y0 - 4, x1 + 3, y1 + 3), outline=canvas.VERMILION, width=3)
    return out


def pointed(photo: Photo, found: Similar) -> Image.Image:
    """The photograph with the patch that asks framed."""
    return framed(photo.shown, box(found.prompt, found.cosines.shape, photo.shown.size))


def heat(photo: Photo, found: Similar) -> Image.Image:
    """How similar each patch is, from the lowest cosine of the photograph to 1, above the scale."""
    return _heat(found.cosines, found.prompt, photo.shown.size)


def _heat(cosines: Floats, place: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """Colours are computed per patch and then enlarged: a thousand instead of a quarter of a million."""
    low = min(math.floor(10 * float(cosines.min())) / 10, 0.9)
    small = canvas.heat(cosines, cosines.shape[::-1], low=low, high=1.0)
    wide = framed(small.resize(size, Image.Resampling.NEAREST), box(place, cosines.shape, size))
    return canvas.below([wide, canvas.scale(size[0], low=low, high=1.0, label="cosine")], gap=3)


def mask(photo: Photo, found: Similar, threshold: float) -> npt.NDArray[np.bool_]:
    """(H, W) of the photograph as shown: pixels whose patch is more similar than the threshold."""
    return Prompted(photo.shown, (0, 0), found.cosines, threshold, found.prompt).mask


def over(photo: Photo, inside: npt.NDArray[np.bool_]) -> Image.Image:
    """The photograph with a mask over it: what lies outside fades, the border is a line."""
    faded = Image.blend(photo.shown, Image.new("RGB", photo.shown.size, canvas.EMPTY), 0.75)
    mixed = Image.composite(photo.shown, faded, Image.fromarray(inside))
    return canvas.contour(mixed, inside, canvas.BLUE)


def tile(bank: Bank, near: Near) -> tuple[Image.Image, str]:
    """A patch that was found, framed, with what lies around it, and its caption."""
    seen, photo = bank.seen[near.photo], bank.photos[near.photo]
    picture, side = seen.picture, seen.picture.width / seen.grid[1]
    x0, y0, x1, y1 = box((near.row, near.column), seen.grid, picture.size)
    reach = min((2 * AROUND + 1) * side, *picture.size)
    left = min(max((x0 + x1 - reach) / 2, 0), picture.width - reach)
    top = min(max((y0 + y1 - reach) / 2, 0), picture.height - reach)
    cut = picture.resize((TILE, TILE), Image.Resampling.BICUBIC, box=(left, top, left + reach, top + reach))
    scale = TILE / reach
    where = ((x0 - left) * scale, (y0 - top) * scale, (x1 - left) * scale, (y1 - top) * scale)
    return framed(cut, where), f"{near.similarity:.2f} · {photo.name}"


def attention(photo: Photo, found: Heads) -> list[tuple[Image.Image, str]]:
    """A heat map per head with its mean before them, and a line around the patches that hold most of the weight."""
    mean = found.weights.mean(0)
    shown = [(mean, found.kept.mean(0) >= 0.5, "mean")]
    shown += [(w, k, f"head {i}") for i, (w, k) in enumerate(zip(found.weights, found.kept, strict=True))]
    return [(_looked(weights, kept, photo.shown.size), name) for weights, kept, name in shown]


def _looked(weights: Floats, kept: npt.NDArray[np.bool_], size: tuple[int, int]) -> Image.Image:
    top = max(float(np.quantile(weights, 0.99)), 1e-9)
    small = canvas.heat(weights, weights.shape[::-1], low=0.0, high=top)
    wide = np.asarray(Image.fromarray(kept).resize(size, Image.Resampling.NEAREST)).astype(bool)
    return canvas.contour(small.resize(size, Image.Resampling.NEAREST), wide, canvas.VERMILION, width=1)


def lines(found: Pair) -> Image.Image:
    """Both photographs side by side, a line between patches that choose each other."""
    first, second = found.seen
    ends = zip(
        centres(found.matches.first.tolist(), first.grid),
        centres(found.matches.second.tolist(), second.grid),
        strict=True,
    )
    return maps.matched((first.picture, second.picture), [(a, b, None) for a, b in ends], title="", note="")


def partner(found: Pair, photo: Photo, other: Photo) -> Image.Image:
    """The other photograph with the patch framed that the asking one finds, and its heat map."""
    size = other.shown.size
    left = framed(other.shown, box(found.best, found.cosines.shape, size))
    return canvas.beside([left, _heat(found.cosines, found.best, size)])
