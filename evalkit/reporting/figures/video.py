"""A clip with what was predicted and what is true: as film (.mp4, .gif) or as a strip of frames (.png).

Each object has a colour and its number: filled where it was predicted, outlined where it truly is. Below every frame stand
its name and J; a film has a curve of J under the picture, with a mark at the frame that is seen.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from evalkit.errors import UsageError
from evalkit.metrics import video
from evalkit.reporting.figures import canvas

ENDINGS = (".mp4", ".gif", ".png")
"""What can be written: films, and a strip."""

FILM_WIDTH, TILE_WIDTH = 640, 320
"""Pixels of a film's frame and of a strip's tile; large clips are reduced to it, small ones enlarged at most twice."""

CURVE = 44
"""Height in pixels of the curve of J."""


@dataclass(frozen=True, eq=False)
class Followed:
    """A clip whose labels were followed.

    names: of the frames. images: RGB, all of one size. predicted: (T, H, W) uint8 ids. truth: as many maps (H, W) uint8,
    None where a frame has none. title, note: what stands above.
    """

    names: Sequence[str]
    images: Sequence[Image.Image]
    predicted: npt.NDArray[np.uint8]
    truth: Sequence[npt.NDArray[np.uint8] | None]
    title: str = ""
    note: str = ""

    @property
    def objects(self) -> int:
        """Ids go from 1 to this."""
        first = self.truth[0]
        return 0 if first is None else int(first[first != video.VOID].max(initial=0))

    def j(self) -> list[float]:
        """J of every frame, mean over objects; NaN where a frame has no annotation. Raises ProtocolError as `evaluate`."""
        known = [number for number, labels in enumerate(self.truth) if labels is not None]
        truth = np.stack([labels for labels in self.truth if labels is not None])
        found = video.evaluate(self.predicted[known], truth, objects=self.objects, ends=True).j.mean(axis=0)
        values = np.full(len(self.names), np.nan)
        values[known] = found
        return [float(value) for value in values]


def strip(clip: Followed, *, frames: int = 6, columns: int = 3) -> Image.Image:
    """So many frames, evenly spread from the first to the last, each with its name and J. Raises ProtocolError as `j`."""
    numbers = sorted({round(place) for place in np.linspace(0, len(clip.names) - 1, frames)})
    values = clip.j()
    tiles = [painted(clip, number, TILE_WIDTH) for number in numbers]
    captions = [f"frame {clip.names[number]}\n{_told(values[number], number)}" for number in numbers]
    grid = canvas.tiles(tiles, captions, columns=min(columns, len(numbers)), size=tiles[0].size)
    return canvas.bordered(canvas.titled(canvas.below([grid, legend(clip.objects)]), clip.title, clip.note))


def film(clip: Followed) -> list[Image.Image]:
    """Every frame with its name and J, and the curve of J; all of one size, even in both directions, as films want it.

    Raises ProtocolError as `j`.
    """
    values, found = clip.j(), []
    for number, name in enumerate(clip.names):
        picture = painted(clip, number, FILM_WIDTH)
        text = canvas.written(f"frame {name}   {_told(values[number], number)}", 20)
        parts = [picture, _padded(text, picture.width), curve(values, number, picture.width), legend(clip.objects)]
        page = canvas.bordered(canvas.titled(canvas.below(parts, gap=4), clip.title, clip.note), margin=canvas.GAP)
        found.append(page.crop((0, 0, page.width // 2 * 2, page.height // 2 * 2)))
    return found


def painted(clip: Followed, number: int, width: int) -> Image.Image:
    """A frame at most this wide: predictions filled, truth outlined, each object's number where most of it is."""
    image = clip.images[number].convert("RGB")
    width = min(width, 2 * image.width)
    size = (width, max(1, round(image.height * width / image.width)))
    picture = image.resize(size, Image.Resampling.LANCZOS)
    guess, true = _resized(clip.predicted[number], size), clip.truth[number]
    for k in range(1, clip.objects + 1):
        picture = canvas.overlay(picture, guess == k, _colour(k), alpha=0.45)
    if true is not None:
        outlines = _resized(true, size)
        for k in range(1, clip.objects + 1):
            picture = canvas.contour(picture, outlines == k, _colour(k), width=2 if width > TILE_WIDTH else 1)
    for k in range(1, clip.objects + 1):
        _number(picture, guess == k, k)
    return picture


def curve(values: Sequence[float], number: int, width: int) -> Image.Image:
    """J over the frames between 0 and 1, a mark at frame `number`; frames without a value are a gap."""
    out = Image.new("RGB", (width, CURVE), canvas.PAPER)
    pen, left, low = ImageDraw.Draw(out), 26, CURVE - 4
    for share in (0, 0.5, 1):
        y = low - share * (low - 6)
        pen.line((left, y, width - 1, y), canvas.EMPTY)
        pen.text((left - 4, y), f"{share:g}", canvas.FADED, canvas.font(9), anchor="rm")
    step = (width - 1 - left) / max(1, len(values) - 1)
    points = [(left + step * i, low - v * (low - 6)) for i, v in enumerate(values)]
    for one, other in itertools.pairwise(points):
        if not np.isnan([one[1], other[1]]).any():
            pen.line((*one, *other), canvas.BLUE, width=2)
    x, y = points[number]
    pen.line((x, 2, x, low), canvas.INK)
    if not np.isnan(y):
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), canvas.VERMILION)
    return out


def legend(objects: int) -> Image.Image:
    """What fills and outlines mean, with the colours of the objects."""
    parts = []
    for k in range(1, objects + 1):
        box = Image.new("RGB", (18, 18), _colour(k))
        ImageDraw.Draw(box).text((9, 9), str(k), canvas.PAPER, canvas.font(bold=True), anchor="mm")
        parts.append(box)
    return canvas.beside([*parts, canvas.written("filled: predicted   outlined: true", 18)], gap=4)


def check(path: Path) -> None:
    """Before the work: raises UsageError for another ending than those of ENDINGS, or where nothing can be written."""
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"{path}: give a name that ends in {', '.join(ENDINGS[:-1])} (film) or {ENDINGS[-1]} (strip)")
    _written(path, lambda part: part.write_bytes(b""), keep=False)


def save(pictures: Sequence[Image.Image], path: Path, *, rate: float = 8.0) -> Path:
    """Write a film of at least one picture, all of one size, under a temporary name, and rename it. Returns the path.

    rate: frames per second. .mp4 is MPEG-4 part 2, which players open and some browsers do not; .gif goes round and has
    256 colours. Raises UsageError as `check`, and where the film cannot be written.
    """
    write = _mp4 if path.suffix.lower() == ".mp4" else _gif
    _written(path, lambda part: write(pictures, part, rate))
    return path


def _written(path: Path, write: Callable[[Path], object], *, keep: bool = True) -> None:
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        if keep:
            part.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error}); choose another file with --out") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _gif(pictures: Sequence[Image.Image], path: Path, rate: float) -> None:
    first, *rest = [picture.quantize(256, dither=Image.Dither.NONE) for picture in pictures]
    first.save(path, format="GIF", save_all=True, append_images=rest, duration=round(1000 / rate), loop=0)


def _mp4(pictures: Sequence[Image.Image], path: Path, rate: float) -> None:
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, pictures[0].size)
    if not writer.isOpened():
        raise OSError("OpenCV has no encoder for .mp4 here; a .gif needs none")
    for picture in pictures:
        writer.write(np.asarray(picture)[..., ::-1])
    writer.release()


def _told(value: float, number: int) -> str:
    if number == 0:
        return "given"
    return "no annotation" if np.isnan(value) else f"J {100 * value:.1f}"


def _colour(label: int) -> canvas.Colour:
    return canvas.PALETTE[(label - 1) % len(canvas.PALETTE)]


def _resized(labels: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))


def _number(picture: Image.Image, mask: npt.NDArray[np.bool_], label: int) -> None:
    """The object's number, in place, at the pixel of the mask that is nearest to its middle."""
    places = np.argwhere(mask)
    if not len(places):
        return
    y, x = places[np.square(places - places.mean(axis=0)).sum(axis=1).argmin()]
    pen = ImageDraw.Draw(picture)
    pen.text(
        (x, y),
        str(label),
        canvas.PAPER,
        canvas.font(14, bold=True),
        anchor="mm",
        stroke_width=2,
        stroke_fill=canvas.INK,
    )


def _padded(image: Image.Image, width: int) -> Image.Image:
    out = Image.new("RGB", (width, image.height), canvas.PAPER)
    out.paste(image, (0, 0))
    return out
