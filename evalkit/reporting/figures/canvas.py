"""What pictures are made of: tiles with captions and frames, heat maps, overlays, outlines; saved whole or not at all.

Colours are those of Okabe and Ito ("Color Universal Design", 2008), which people with any kind of colour vision tell
apart; nothing is said by colour alone: a right neighbour has an unbroken frame and a tick, a wrong one a dashed frame and
a cross. Heat maps use matplotlib's viridis, whose lightness grows with the value. Text is set in the DejaVu Sans
that matplotlib ships, so that a picture is the same on every machine.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

from evalkit.errors import UsageError
from evalkit.files import write_atomically

Colour = tuple[int, int, int]
"""Red, green, blue in 0 ... 255."""

BLUE: Colour = (0, 114, 178)
VERMILION: Colour = (213, 94, 0)
GREEN: Colour = (0, 158, 115)
ORANGE: Colour = (230, 159, 0)
PURPLE: Colour = (204, 121, 167)
SKY: Colour = (86, 180, 233)
YELLOW: Colour = (240, 228, 66)
PALETTE: tuple[Colour, ...] = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW)
"""Distinct for people with any kind of colour vision; in the order to take them."""

INK: Colour = (26, 26, 26)
FADED: Colour = (102, 102, 102)
PAPER: Colour = (255, 255, 255)
EMPTY: Colour = (232, 232, 232)

GAP = 8
"""Pixels between things that stand beside each other."""
TEXT = 12
"""Height of a caption's letters in pixels."""


@dataclass(frozen=True)
class Frame:
    """The border of a tile. dashed: broken line. mark: one character in the tile's corner, "" for none."""

    colour: Colour = INK
    dashed: bool = False
    mark: str = ""
    width: int = 4


RIGHT = Frame(BLUE, mark="✓")
WRONG = Frame(VERMILION, dashed=True, mark="✗")
CHOSEN = Frame(INK)
"""Of the query."""


@functools.lru_cache(maxsize=32)
def font(size: int = TEXT, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans at so many pixels."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def shortened(text: str, width: int, letters: ImageFont.FreeTypeFont) -> str:
    """The text, or where it is wider than `width` pixels its beginning and end around an ellipsis."""
    if letters.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        head = (kept + 1) // 2
        short = text[:head] + "…" + text[len(text) - (kept - head) :]
        if letters.getlength(short) <= width:
            return short
    return "…"


def fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    """The whole image, mode RGB, as large as fits into width x height pixels, in the middle of a grey tile."""
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    tile = Image.new("RGB", (width, height), EMPTY)
    inside = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    tile.paste(inside, ((width - size[0]) // 2, (height - size[1]) // 2))
    return tile


def framed(tile: Image.Image, frame: Frame | None) -> Image.Image:
    """A copy with the frame drawn over its border, and the frame's mark in the corner at the top left."""
    out = tile.copy()
    if frame is None:
        return out
    pen, (w, h), t = ImageDraw.Draw(out), tile.size, frame.width
    pen.rectangle((0, 0, w - 1, h - 1), outline=PAPER if frame.dashed else frame.colour, width=t)
    if frame.dashed:
        for start, end in _dashes(w, t):
            pen.rectangle((start, 0, end, t - 1), fill=frame.colour)
            pen.rectangle((start, h - t, end, h - 1), fill=frame.colour)
        for start, end in _dashes(h, t):
            pen.rectangle((0, start, t - 1, end), fill=frame.colour)
            pen.rectangle((w - t, start, w - 1, end), fill=frame.colour)
    if frame.mark:
        side = TEXT + 6
        pen.rectangle((0, 0, side, side), fill=frame.colour)
        pen.text((side / 2 + 0.5, side / 2 + 0.5), frame.mark, PAPER, font(TEXT + 1, bold=True), anchor="mm")
    return out


def _dashes(length: int, thick: int) -> list[tuple[int, int]]:
    """First and last pixel of the dashes along a side: a whole one at either corner, holes as long as dashes."""
    count = 2 * max(1, round(length / (8 * thick))) + 1
    cuts = [round(length * i / count) for i in range(count + 1)]
    return [(start, end - 1) for start, end in zip(cuts[::2], cuts[1::2], strict=True)]


def captioned(tile: Image.Image, caption: str, *, lines: int | None = None) -> Image.Image:
    """The tile above its caption, one line of text per line, each cut to the tile's width.

    lines: for how many there is room, that tiles of one grid are equally high; as many as there are by default.
    """
    texts = caption.split("\n") if caption else []
    room = len(texts) if lines is None else lines
    out = Image.new("RGB", (tile.width, tile.height + _height(room)), PAPER)
    out.paste(tile, (0, 0))
    pen, letters = ImageDraw.Draw(out), font()
    for i, text in enumerate(texts[:room]):
        y = tile.height + 3 + i * (TEXT + 3)
        short = shortened(text, tile.width, letters)
        pen.text((tile.width / 2, y), short, INK if i == 0 else FADED, letters, anchor="ma")
    return out


def _height(lines: int) -> int:
    return 3 + lines * (TEXT + 3) if lines else 0


def tiles(
    images: Sequence[Image.Image],
    captions: Sequence[str],
    *,
    columns: int,
    frames: Sequence[Frame | None] | None = None,
    size: int | tuple[int, int] = 112,
) -> Image.Image:
    """A grid of equal tiles, row by row, each with its caption below and, where given, a frame.

    size: of a tile without caption, side or (width, height) in pixels; an image keeps its aspect inside. captions: may
    have several lines; "" for none. Raises UsageError without images, and where the sequences differ in length.
    """
    borders: Sequence[Frame | None] = [None] * len(images) if frames is None else frames
    if not images or columns < 1:
        raise UsageError(f"a grid of {len(images)} tiles in {columns} columns: it needs at least one of each")
    if not len(images) == len(captions) == len(borders):
        raise UsageError(f"{len(images)} tiles, {len(captions)} captions, {len(borders)} frames: they belong together")
    width, height = (size, size) if isinstance(size, int) else size
    lines = max(len(c.split("\n")) if c else 0 for c in captions)
    parts = [
        captioned(framed(fitted(image, width, height), frame), caption, lines=lines)
        for image, caption, frame in zip(images, captions, borders, strict=True)
    ]
    rows = [beside(parts[i : i + columns]) for i in range(0, len(parts), columns)]
    return below(rows)


def beside(images: Sequence[Image.Image], *, gap: int = GAP) -> Image.Image:
    """The images from left to right, their upper edges in line, on white."""
    out = Image.new(
        "RGB", (sum(i.width for i in images) + gap * (len(images) - 1), max(i.height for i in images)), PAPER
    )
    x = 0
    for image in images:
        out.paste(image, (x, 0))
        x += image.width + gap
    return out


def below(images: Sequence[Image.Image], *, gap: int = GAP) -> Image.Image:
    """The images from top to bottom, their left edges in line, on white."""
    out = Image.new(
        "RGB", (max(i.width for i in images), sum(i.height for i in images) + gap * (len(images) - 1)), PAPER
    )
    y = 0
    for image in images:
        out.paste(image, (0, y))
        y += image.height + gap
    return out


def titled(image: Image.Image, title: str, note: str = "", *, size: int = 15) -> Image.Image:
    """The image under a bold title and a smaller line of explanation, each cut to the image's width."""
    pairs = [(title, font(size, bold=True), INK), (note, font(), FADED)]
    lines = [(text, letters, colour) for text, letters, colour in pairs if text]
    top = sum(int(letters.size) + 5 for _, letters, _ in lines) + 3
    out = Image.new("RGB", (image.width, top + image.height), PAPER)
    out.paste(image, (0, top))
    pen, y = ImageDraw.Draw(out), 0
    for text, letters, colour in lines:
        pen.text((0, y), shortened(text, image.width, letters), colour, letters)
        y += int(letters.size) + 5
    return out


def widened(image: Image.Image, title: str, note: str = "", *, size: int = 15, most: int = 900) -> Image.Image:
    """The image with white at its right, where `titled` would have to cut its lines; no wider than `most` for that."""
    wanted = max(font(size, bold=True).getlength(title), font().getlength(note))
    width = max(image.width, min(math.ceil(wanted), most))
    out = Image.new("RGB", (width, image.height), PAPER)
    out.paste(image, (0, 0))
    return out


def written(text: str, height: int, colour: Colour = INK) -> Image.Image:
    """One line of text in the middle of so many pixels, as wide as it needs."""
    out = Image.new("RGB", (math.ceil(font().getlength(text)) + 1, height), PAPER)
    ImageDraw.Draw(out).text((0, height / 2), text, colour, font(), anchor="lm")
    return out


def bordered(image: Image.Image, *, margin: int = 2 * GAP) -> Image.Image:
    """The image with a white margin around it."""
    out = Image.new("RGB", (image.width + 2 * margin, image.height + 2 * margin), PAPER)
    out.paste(image, (margin, margin))
    return out


def heat(
    values: np.ndarray, size: tuple[int, int], *, low: float = -1.0, high: float = 1.0, smooth: bool = False
) -> Image.Image:
    """The values as colours of viridis, `low` dark and `high` bright; what lies outside takes the end's colour.

    values: (h, w) float; NaN is drawn grey. size: (width, height) of the picture in pixels, one cell a sharp block unless
    `smooth`. Raises UsageError for other shapes, or where low is not below high.
    """
    if values.ndim != 2 or values.size == 0 or not low < high:
        raise UsageError(f"a heat map of shape {values.shape} between {low} and {high}: it needs (h, w) and low < high")
    place, holes = (np.asarray(values, np.float64) - low) / (high - low), np.isnan(values)
    way = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    wide = np.asarray(Image.fromarray(np.nan_to_num(place).astype(np.float32)).resize(size, way))
    colours = (colormaps["viridis"](np.clip(wide, 0, 1))[..., :3] * 255).round().astype(np.uint8)
    colours[np.asarray(Image.fromarray(holes).resize(size, Image.Resampling.NEAREST))] = EMPTY
    return Image.fromarray(colours)


def scale(width: int, *, low: float = -1.0, high: float = 1.0, label: str = "") -> Image.Image:
    """The legend of a heat map: its colours from `low` to `high`, the two numbers and a label between them."""
    out = Image.new("RGB", (width, 10 + _height(1)), PAPER)
    out.paste(heat(np.linspace(low, high, width)[None], (width, 10), low=low, high=high), (0, 0))
    pen = ImageDraw.Draw(out)
    pen.text((0, 13), f"{low:g}", FADED, font())
    pen.text((width, 13), f"{high:g}", FADED, font(), anchor="ra")
    room = width - 2 * int(font().getlength("−0.00"))
    pen.text((width / 2, 13), shortened(label, room, font()), FADED, font(), anchor="ma")
    return out


def overlay(image: Image.Image, mask: np.ndarray, colour: Colour, *, alpha: float = 0.5) -> Image.Image:
    """A copy, mode RGB, whose masked pixels are mixed with the colour: alpha 0 leaves them, 1 paints over.

    mask: (H, W) bool, of the image's size. Raises UsageError where it is not.
    """
    inside = _checked(image, mask)
    pixels = np.array(image.convert("RGB"))
    pixels[inside] = ((1 - alpha) * pixels[inside] + alpha * np.array(colour)).round().astype(np.uint8)
    return Image.fromarray(pixels)


def contour(image: Image.Image, mask: np.ndarray, colour: Colour, *, width: int = 2) -> Image.Image:
    """A copy, mode RGB, with the mask's border drawn `width` pixels thick inside it, and one pixel of white around.

    mask: (H, W) bool, of the image's size. Raises UsageError where it is not.
    """
    import cv2

    inside = _checked(image, mask).astype(np.uint8)
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
    core = cv2.erode(inside, cross, iterations=width, borderValue=0)
    around = cv2.dilate(inside, cross)
    pixels = np.array(image.convert("RGB"))
    pixels[(around > 0) & (inside == 0)] = PAPER
    pixels[(inside > 0) & (core == 0)] = colour
    return Image.fromarray(pixels)


def _checked(image: Image.Image, mask: np.ndarray) -> np.ndarray:
    if mask.shape != (image.height, image.width):
        raise UsageError(f"a mask of shape {mask.shape} on an image of (H, W) = {(image.height, image.width)}")
    return mask.astype(bool)


def check(path: Path) -> None:
    """Before the work: raises UsageError where `save` would, for the name or for a folder that cannot be made or written."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path}: pictures are written as PNG; give a file name that ends in .png")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(b"")
        part.unlink()
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error}); choose another file with --out") from None


def save(image: Image.Image, path: Path) -> Path:
    """Write a PNG under a temporary name and rename it; a file of that name is replaced. Returns the path.

    Raises UsageError for another ending than .png, and where the folder cannot be made or written.
    """
    check(path)
    try:
        write_atomically(path, lambda part: image.save(part, format="PNG", optimize=True))
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error}); choose another file with --out") from None
    return path
