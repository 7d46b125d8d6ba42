"""What pictures of patch tokens need: images as an encoder saw them, and what it made of each patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evalkit.datasets import images
from evalkit.errors import BrokenImage, Unsupported, UsageError
from evalkit.features import view as views
from evalkit.features.extract import resolve_precision
from evalkit.features.forward import casting, owned
from evalkit.files import read_regular
from evalkit.types import Encoder, Interpolation, Precision

LARGEST = 4096
"""Patches of one image at most: their attention to one another must fit into memory."""


@dataclass(frozen=True, eq=False)
class Seen:
    """An image as the encoder saw it. picture: RGB, of whole patches. patches: (h, w, D) float32 on the CPU, last block
    after the final norm. name: of the file."""

    name: str
    picture: Image.Image
    patches: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.patches.shape[0], self.patches.shape[1]

    @property
    def tokens(self) -> Tensor:
        """(h w, D), row by row."""
        return self.patches.flatten(0, 1)


def opened(path: Path) -> Image.Image:
    """The upright RGB image of a file. Raises UsageError where it cannot be read or decoded."""
    try:
        return images.decode(read_regular(path), str(path))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give an image file") from None
    except BrokenImage as error:
        raise UsageError(str(error)) from None


def fitted(image: Image.Image, size: int, patch: int, interpolation: Interpolation = "bicubic") -> Image.Image:
    """The image with its longer side `size` pixels, both sides rounded to whole patches, at least one.

    Raises UsageError for a size below one patch, or with more than LARGEST patches.
    """
    if size < patch or (size // patch) ** 2 > LARGEST:
        raise UsageError(
            f"--size {size}: the longer side holds 1 to {int(LARGEST**0.5)} patches of {patch} pixels: "
            f"{patch} to {int(LARGEST**0.5) * patch}"
        )
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale / patch)) * patch for side in image.size)
    return image.resize((width, height), views.resampling(interpolation))


@dataclass(frozen=True)
class Eyes:
    """An encoder that looks at single pictures."""

    encoder: Encoder
    device: torch.device
    precision: Precision = "auto"

    def see(self, picture: Image.Image, name: str = "") -> Seen:
        """picture: RGB, of whole patches."""
        with torch.no_grad(), casting(self.device, resolve_precision(self.precision, self.device)):
            patches = self.encoder.encode(self._input(picture))[0].patches[0]
        return Seen(name, picture, owned(patches.float().cpu()))

    def attention(self, picture: Image.Image, patch: int | None = None) -> Tensor:
        """(heads, h, w) float32 on the CPU: how the last block's class token, or a patch by its flat number, attends to the
        patches; a head's row sums to 1 with the tokens that are no patches. Raises Unsupported without attention, or
        without the class token that is asked."""
        offers = self.encoder.spec.offers
        if "attention" not in offers or (patch is None and "cls" not in offers):
            lacking = "attention" if "attention" not in offers else "class token; give a patch with --at"
            raise Unsupported(f"{self.encoder.spec.id} has no {lacking}")
        query: Sequence[str | int] = ("cls",) if patch is None else (patch,)
        with torch.no_grad(), casting(self.device, resolve_precision(self.precision, self.device)):
            rows = self.encoder.attention(self._input(picture), queries=query)[0, :, 0]
        side = self.encoder.spec.patch
        height, width = picture.height // side, picture.width // side
        return rows[:, -height * width :].float().cpu().view(len(rows), height, width)  # patches come last

    def _input(self, picture: Image.Image) -> Tensor:
        fed = self.encoder.spec.preprocessing
        return views.scale(views.to_tensor(picture)[None].to(self.device), fed.mean, fed.std)


def patch_at(picture: tuple[int, int], grid: tuple[int, int], point: tuple[int, int]) -> int:
    """The flat number of the patch under a point. picture: (width, height) in pixels, in which the point counts; grid:
    (rows, columns). Raises UsageError for a point outside."""
    (width, height), (rows, columns), (x, y) = picture, grid, point
    if not (0 <= x < width and 0 <= y < height):
        raise UsageError(f"the point {x},{y} lies outside the image: x is 0 to {width - 1}, y is 0 to {height - 1}")
    return ((2 * y + 1) * rows // (2 * height)) * columns + (2 * x + 1) * columns // (2 * width)


def centres(patches: Sequence[int], grid: tuple[int, int]) -> list[tuple[float, float]]:
    """Where the centres of patches lie, by their flat numbers, as shares of width and height. grid: (rows, columns)."""
    rows, columns = grid
    return [((patch % columns + 0.5) / columns, (patch // columns + 0.5) / rows) for patch in patches]


@dataclass(frozen=True, eq=False)
class Cut:
    """A random part of a picture as an input of its own. picture: RGB. box: x0, y0, x1, y1 in the whole picture's pixels,
    mirrored: left and right are swapped."""

    picture: Image.Image
    box: tuple[int, int, int, int]
    mirrored: bool

    def origin(self, grid: tuple[int, int]) -> np.ndarray:
        """(h w, 2): where the centre of each patch lies in the whole picture, x and y in pixels."""
        (rows, columns), (x0, y0, x1, y1) = grid, self.box
        across = (np.arange(columns) + 0.5) / columns
        across = 1 - across if self.mirrored else across
        x, y = np.meshgrid(x0 + across * (x1 - x0), y0 + (np.arange(rows) + 0.5) / rows * (y1 - y0))
        return np.stack([x.ravel(), y.ravel()], axis=1)


def cut_of(whole: Image.Image, side: int, *, draws: np.random.Generator) -> Cut:
    """A square part, 0.55 to 0.9 of the shorter side, mirrored half the time, enlarged to `side` pixels."""
    length = round(min(whole.size) * draws.uniform(0.55, 0.9))
    left, top = (int(draws.integers(0, extent - length + 1)) for extent in whole.size)
    box = (left, top, left + length, top + length)
    picture = whole.resize((side, side), Image.Resampling.BICUBIC, box=box)
    mirrored = bool(draws.random() < 0.5)
    return Cut(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else picture, box, mirrored)
