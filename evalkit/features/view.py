"""How an image becomes a square input: the geometry of `View`, with the arithmetic of torchvision's PIL transforms.

Resize (short side, antialiased by PIL) and centre crop give the same bytes as torchvision's `Resize` + `CenterCrop` on
PIL images, which the published evaluation scripts use (facebookresearch/dino 7c446df, eval_knn.py: 256 bicubic, 224).
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image as pillow
from PIL.Image import Resampling
from torch import Tensor

from evalkit.errors import FeatureError, UsageError
from evalkit.types import Border, Box, EncoderSpec, Interpolation, View, ViewRef

if TYPE_CHECKING:
    from PIL.Image import Image

RESAMPLING = {"bicubic": Resampling.BICUBIC, "bilinear": Resampling.BILINEAR}

ELONGATED = 16
"""A resized long side above this many times the view's size is not made whole: only the part that the crop keeps."""

SUPPORT = 2
"""Source pixels that Pillow's bicubic filter reaches on each side, times the shrinking factor."""


def resolve(ref: ViewRef, spec: EncoderSpec) -> tuple[View, dict[str, Any]]:
    """The view of a recipe for one encoder, and the facts to put on record.

    Size "encoder" is the manifest's own size, at most `at_most`. The size goes down to a multiple of the patch; the
    short side before the centre crop is floor(size / crop), so 224 at 0.875 is 256. Facts: `size`, `asked` (pixels,
    before rounding), `resize`, and `rounded` (a sentence, only where the size changed). Raises UsageError where crop
    is outside (0, 1] or the size is smaller than one patch.
    """
    asked = spec.preprocessing.size if ref.size == "encoder" else ref.size
    asked = asked if ref.at_most is None else min(asked, ref.at_most)
    if not 0 < ref.crop <= 1:
        raise UsageError(f"the view's crop is {ref.crop}; it is a share of the short side: above 0, at most 1")
    size = asked // spec.patch * spec.patch
    if size < spec.patch:
        raise UsageError(f"the view's size is {asked} pixels, less than one patch of {spec.id} ({spec.patch} pixels)")
    resize = math.floor(size / ref.crop + 1e-9)  # the margin keeps 0.1 + 0.2 effects from losing a pixel
    mean, std = spec.preprocessing.mean, spec.preprocessing.std
    view = View(size, resize, ref.fit, ref.interpolation, mean, std, ref.border)
    facts: dict[str, Any] = {"size": size, "asked": asked, "resize": resize if ref.fit == "crop" else size}
    if size != asked:
        facts["rounded"] = f"{asked} is no multiple of the patch ({spec.patch}): {size}"
    return view, facts


def apply(image: Image, box: Box | None, view: View) -> Tensor:
    """One input: (3, S, S) uint8, S = view.size, values 0 to 255, channels RGB.

    The box is cut out first (see `cut`). Fit "crop": short side to `view.resize`, then the centre S x S; fit "squash":
    both sides to S. Equal to torchvision's PIL transforms to the bit, except for images more than 16 times longer than
    the view after resizing, of which only the kept part is resized (within one grey level). Raises FeatureError for an
    image that is not RGB or a box without area.
    """
    if image.mode != "RGB":
        raise FeatureError(f"an image came in mode {image.mode}; datasets give RGB")
    region = image if box is None else cut(image, box, view.border)
    square = _squash(region, view) if view.fit == "squash" else _crop(region, view)
    return to_tensor(square)


def thumbnail(image: Image, box: Box | None, side: int) -> Tensor:
    """An input of its own shape: (3, h, w) uint8 whose longer side is at most `side` pixels; smaller images stay.

    The box is cut out first. Pillow's `thumbnail` with Lanczos, as the landmark scripts use it (facebookresearch/dino
    7c446df, eval_image_retrieval.py:68, where the filter has its old name ANTIALIAS). Raises FeatureError as `apply`.
    """
    if image.mode != "RGB":
        raise FeatureError(f"an image came in mode {image.mode}; datasets give RGB")
    region = image.copy() if box is None else cut(image, box)
    region.thumbnail((side, side), Resampling.LANCZOS)
    return to_tensor(region)


def training(ref: ViewRef, spec: EncoderSpec) -> View:
    """The view of stored training images: `resolve`'s, with the recipe's `train_crop` where it has one. Raises as it
    does."""
    share = ref.crop if ref.train_crop is None else ref.train_crop
    return resolve(dataclasses.replace(ref, crop=share), spec)[0]


def cut(image: Image, box: Box, border: Border = "black") -> Image:
    """The region of a box, in whole pixels: corners round to the nearest (halves to even), at least one pixel each way.

    What lies outside the image is black, or with border "edge" the nearest pixel of the image. Raises FeatureError where
    the box has no area or is not finite.
    """
    x0, y0, x1, y1 = box
    if not (all(map(math.isfinite, box)) and x1 > x0 and y1 > y0):
        raise FeatureError(f"the box {box} has no area; it is (x0, y0, x1, y1) with x0 < x1 and y0 < y1")
    left, top = round(x0), round(y0)
    right, bottom = max(round(x1), left + 1), max(round(y1), top + 1)
    if border == "black" or (left >= 0 and top >= 0 and right <= image.width and bottom <= image.height):
        return image.crop((left, top, right, bottom))
    rows, columns = np.arange(top, bottom), np.arange(left, right)
    pixels = np.asarray(image)[rows.clip(0, image.height - 1)][:, columns.clip(0, image.width - 1)]
    return pillow.fromarray(pixels)


def to_tensor(image: Image) -> Tensor:
    """(3, H, W) uint8 of an RGB image, contiguous and writable."""
    # numpy's copy: torch would wake its thread pool for each image, which costs 17 ms where the cores are busy
    return torch.from_numpy(np.array(np.asarray(image).transpose(2, 0, 1), order="C"))


def resampling(interpolation: Interpolation) -> Resampling:
    """Pillow's name of the filter; both are antialiased when they shrink."""
    return RESAMPLING[interpolation]


def normalise(batch: Tensor, view: View) -> Tensor:
    """(B, 3, S, S) float32 on the batch's device: (x / 255 - mean) / std, of uint8 pixels."""
    return scale(batch, view.mean, view.std)


def scale(batch: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Tensor:
    """(B, 3, H, W) float32 from uint8 pixels and the channels' mean and std of pixels in [0, 1]."""
    shift = torch.tensor(mean, device=batch.device).view(3, 1, 1)
    width = torch.tensor(std, device=batch.device).view(3, 1, 1)
    return batch.to(torch.float32).div_(255).sub_(shift).div_(width)


def _squash(image: Image, view: View) -> Image:
    return image.resize((view.size, view.size), resampling(view.interpolation))


def _crop(image: Image, view: View) -> Image:
    width, height = _resized(image.size, view.resize)
    left, top = round((width - view.size) / 2), round((height - view.size) / 2)
    if max(width, height) > ELONGATED * view.size:
        return _resize_part(image, (width, height), (left, top), view)
    if (width, height) != image.size:
        image = image.resize((width, height), resampling(view.interpolation))
    return image.crop((left, top, left + view.size, top + view.size))


def _resized(size: tuple[int, int], short: int) -> tuple[int, int]:
    """Width and height after the short side became `short`; the long side is cut down to whole pixels."""
    width, height = size
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def _resize_part(image: Image, full: tuple[int, int], corner: tuple[int, int], view: View) -> Image:
    """The S x S part at `corner` of the image resized to `full`, without making the rest of it.

    The source pixels that the part needs are cut out first, with a margin for the filter, because Pillow holds the
    corners of `box` in float32: far from the origin that would shift the taps.
    """
    x0, x1, left, right = _needed(image.width, full[0], corner[0], view.size)
    y0, y1, top, bottom = _needed(image.height, full[1], corner[1], view.size)
    source = image.crop((x0, y0, x1, y1))
    return source.resize((view.size, view.size), resampling(view.interpolation), box=(left, top, right, bottom))


def _needed(source: int, full: int, start: int, size: int) -> tuple[int, int, float, float]:
    """Along one axis: first and last source pixel (exclusive) for outputs start to start + size of `full`, and where
    these outputs begin and end, counted from that first pixel."""
    step = source / full
    margin = math.ceil(SUPPORT * max(step, 1)) + 1
    low, high = start * step, (start + size) * step
    first, last = max(0, math.floor(low) - margin), min(source, math.ceil(high) + margin)
    return first, last, max(0.0, low - first), min(float(last - first), high - first)
