"""Photographs that the demo page may look at: read, measured against limits, or refused in words."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from evalkit import catalog
from evalkit.datasets import images
from evalkit.errors import BrokenImage, UsageError
from evalkit.files import read_regular

SHOWN = 480
"""Longer side in pixels of a photograph on the page."""

EXAMPLES = {
    "two pizzas": ("000000359219.jpg", (0.3, 0.5)),
    "pizza": ("000000160012.jpg", (0.5, 0.6)),
    "cats": ("000000555705.jpg", (0.35, 0.45)),
    "horses on the beach": ("000000214753.jpg", (0.6, 0.55)),
    "stop sign by day": ("000000460229.jpg", (0.5, 0.28)),
    "stop sign by night": ("000000122745.jpg", (0.5, 0.3)),
    "bus": ("000000568290.jpg", (0.45, 0.6)),
    "buses in the rain": ("000000423617.jpg", (0.55, 0.4)),
}
"""Shipped photographs (COCO val2017, licences in mini/coco/ATTRIBUTION.md) of which several show the same kind of
thing, and the point that asks first, as shares of width and height."""


@dataclass(frozen=True)
class Limits:
    """Of one file. max_mb: its size in 10^6 bytes. max_megapixels: width x height in 10^6, known before it is decoded."""

    max_mb: float = 20
    max_megapixels: float = 50

    def __post_init__(self) -> None:
        if not (0 < self.max_mb < math.inf and 0 < self.max_megapixels < math.inf):
            raise UsageError(f"--max-mb {self.max_mb:g}, --max-megapixels {self.max_megapixels:g}: both are above 0")


@dataclass(frozen=True, eq=False)
class Photo:
    """name: for people. image: RGB, upright, full size. shown: the same as it stands on the page. key: digest of the
    file, so that what was computed is found again. at: the point that asks first, in pixels of `shown`."""

    name: str
    image: Image.Image
    shown: Image.Image
    key: str
    at: tuple[int, int]


def read(path: Path, limits: Limits, name: str = "", at: tuple[float, float] = (0.5, 0.5)) -> Photo:
    """The photograph in a file. name: the file's own by default. at: the point that asks first, as shares of the sides.

    Raises UsageError for a file that is too large, has too many pixels, or is no image that can be decoded.
    """
    called = name or path.name
    try:
        weight = path.stat().st_size
        if weight > limits.max_mb * 1e6:
            raise UsageError(
                f"{called} has {weight / 1e6:.1f} MB; at most {limits.max_mb:g} MB are taken: save it smaller, "
                "or start the demo with a larger --max-mb"
            )
        data = read_regular(path)
    except OSError as error:
        raise UsageError(f"{called} cannot be read ({error.strerror}); choose it again") from None
    try:
        width, height = images.size(data, called)
        if width * height > limits.max_megapixels * 1e6:
            raise UsageError(
                f"{called} has {width} x {height} pixels; at most {limits.max_megapixels:g} million are taken: "
                "save it smaller, or start the demo with a larger --max-megapixels"
            )
        image = images.decode(data, called)
    except BrokenImage as error:
        raise UsageError(f"{error}. Choose a photograph: {', '.join(images.FORMATS)}") from None
    small = shown(image)
    first = int(at[0] * small.width), int(at[1] * small.height)
    return Photo(called, image, small, hashlib.sha256(data).hexdigest(), first)


def shown(image: Image.Image) -> Image.Image:
    """The image with its longer side SHOWN pixels."""
    scale = SHOWN / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def uploaded(path: str, folder: Path, limits: Limits) -> Photo:
    """The photograph that somebody uploaded. folder: where uploads lie.

    Raises UsageError as `read`, and for a path that leads out of the folder, by a link too.
    """
    file = Path(path)
    if not file.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{file.name} was not uploaded to this page; choose a file from your machine")
    return read(file, limits)


def examples(limits: Limits) -> list[Photo]:
    """The shipped photographs, without those that are absent or refused. Raises UsageError where none is left."""
    folder = catalog.shipped_data() / "coco" / "val2017"
    found, reasons = [], []
    for name, (file, at) in EXAMPLES.items():
        try:
            found.append(read(folder / file, limits, name, at))
        except UsageError as error:
            reasons.append(str(error))
    if not found:
        raise UsageError(f"none of the shipped photographs in {folder} can be shown: {reasons[0]}")
    return found
