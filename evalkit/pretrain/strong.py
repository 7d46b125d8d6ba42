"""Strong augmentation: RandAugment (Cubuk et al. 2019, arXiv:1909.13719) and random erasing (Zhong et al. 2017,
arXiv:1708.04896), for a whole batch at once, every image with its own draw.

As Mugs' student sees them (sail-sg/mugs 10ab634, main.py:326-356): timm's `rand-m9-mstd0.5-inc1` (src/RandAugment.py), two
different operations out of fifteen, each carried out with chance 0.5, at a level from N(9, 0.5) cut to [0, 10]; then, with
chance 0.25, a rectangle of normal noise (src/multicropdataset.py:149-160).

On values of 0 to 255, as PIL works; an image differs from PIL's by at most one level (`tests/pretrain/test_strong.py`).
Every operation is one of four kinds, each of which treats all images together: a table of 256 values per channel, a blend
with grey, a blend with a smoothed image, an affine map of places. Two differences from the released code: images are
augmented after they were cropped and not before, and places are interpolated bilinearly, never bicubically.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from evalkit.types import IMAGENET_MEAN

OPERATIONS = (
    "autocontrast", "equalise", "invert", "posterise", "solarise", "solarise-add", "contrast", "brightness",
    "colour", "sharpness", "rotate", "shear-x", "shear-y", "translate-x", "translate-y",
)  # fmt: skip
NONE = len(OPERATIONS)
MOST = 10.0
"""The level at which an operation is strongest; the numbers in `tables` and `affine` belong to it."""
LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)
FILL = tuple(float(round(255 * value)) for value in IMAGENET_MEAN)
"""The colour of places outside of the image."""
SMOOTH = ((1.0, 1.0, 1.0), (1.0, 5.0, 1.0), (1.0, 1.0, 1.0))
ATTEMPTS = 10
"""Rectangles tried before an image stays whole."""


class Draw(NamedTuple):
    """What happens to each image: (B,) number in `OPERATIONS`, or `NONE`; (B,) level in [0, 10]; (B,) sign, 1 or -1, for
    operations with two directions."""

    operation: Tensor
    level: Tensor
    sign: Tensor


def randaugment(
    pixels: Tensor, rng: torch.Generator, *, count: int = 2, chance: float = 0.5, erased: float = 0.25
) -> Tensor:
    """pixels: (B, 3, H, W) in [0, 1], on the generator's device. Returns the same form.

    count: operations per image. chance: of each to be carried out. erased: chance of a rectangle of unit normal noise, the
    only values that may lie outside of [0, 1].
    """
    values = (pixels * 255).round()
    for one in draws(len(pixels), rng, count, chance):
        values = applied(values, one)
    return erase(values / 255, erased, rng)


def draws(n: int, rng: torch.Generator, count: int, chance: float) -> list[Draw]:
    """`count` draws for n images, without replacement within an image; magnitude 9, deviation 0.5."""
    order = torch.rand(n, NONE, device=rng.device, generator=rng).argsort(1)[:, :count]
    done = torch.rand(n, count, device=rng.device, generator=rng) < chance
    level = torch.empty(n, count, device=rng.device).normal_(9.0, 0.5, generator=rng).clamp_(0, MOST)
    sign = torch.where(torch.rand(n, count, device=rng.device, generator=rng) < 0.5, -1.0, 1.0)
    parts = torch.where(done, order, NONE), level, sign
    return [Draw(*(part[:, i] for part in parts)) for i in range(count)]


def applied(values: Tensor, one: Draw) -> Tensor:
    """values: (B, 3, H, W) whole numbers from 0 to 255. Returns the same after each image's operation."""
    out = values.clone()
    kinds = {toned: (0, 8), faded: (8, 9), sharpened: (9, 10), moved: (10, NONE)}
    for change, (first, beyond) in kinds.items():
        where = _those((one.operation >= first) & (one.operation < beyond))
        part = Draw(*(x[where] for x in one))
        if len(part.level):
            out[where] = change(out[where], part)
    return out


def _those(on: Tensor) -> Tensor | slice:
    """On a CPU the images that an operation changes. On a GPU all of them: to pick some, it would be waited for; what does
    not change is returned as it came."""
    return on.nonzero()[:, 0] if on.device.type == "cpu" else slice(None)


def _is(one: Draw, name: str) -> Tensor:
    return one.operation == OPERATIONS.index(name)


def _column(x: Tensor, dims: int) -> Tensor:
    return x.view(-1, *[1] * (dims - 1))


def _cut(values: Tensor) -> Tensor:
    """As PIL brings a result back to 8 bits. The summand keeps a whole number that came out a little smaller."""
    return (values + 1e-3).floor().clamp(0, 255)


def _factor(one: Draw, name: str) -> Tensor:
    """(B,) how far a blend goes from the other image (0) to this one (1) and beyond; 1 for other operations."""
    return torch.where(_is(one, name), 1 + one.sign * one.level / MOST * 0.9, 1.0)


def toned(values: Tensor, one: Draw) -> Tensor:
    """Operations that are a table of values for each channel."""
    places = values.long().flatten(2)
    return tables(places, one).gather(2, places).view_as(values)


def tables(places: Tensor, one: Draw) -> Tensor:
    """places: (B, 3, N) integers from 0 to 255. Returns (B, 3, 256): the value that each becomes."""
    at = torch.arange(256.0, device=places.device)
    counts = torch.zeros(*places.shape[:2], 256, dtype=torch.long, device=places.device)
    counts.scatter_add_(2, places, torch.ones_like(places))
    share, up = _column(one.level / MOST, 3), at.expand(counts.shape)
    low, high = (counts > 0).int().argmax(2, keepdim=True), 255 - (counts.flip(2) > 0).int().argmax(2, keepdim=True)
    grain = 2 ** (4 + (share * 4).floor())
    grey = ((counts * at).sum(2) / places.shape[2] * at.new_tensor(LUMA)).sum(1)
    middle = (grey + 0.5).floor()[:, None, None]
    found = {
        "autocontrast": torch.where(high > low, _cut((at - low) * (255 / (high - low).clamp(min=1))), up),
        "equalise": _equalised(counts, high, up),
        "invert": 255 - up,
        "posterise": (up / grain).floor() * grain,
        "solarise": torch.where(at >= 256 - (share * 256).floor(), 255 - at, at),
        "solarise-add": torch.where(at < 128, (at + (share * 110).floor()).clamp(max=255), at),
        "contrast": _cut(middle + _column(_factor(one, "contrast"), 3) * (at - middle)),
        "brightness": _cut(_column(_factor(one, "brightness"), 3) * at),
    }
    for name, table in found.items():
        up = torch.where(_column(_is(one, name), 3), table, up)
    return up


def _equalised(counts: Tensor, high: Tensor, up: Tensor) -> Tensor:
    """(B, 3, 256) tables that spread each channel evenly: PIL's, in steps of whole pixels."""
    step = ((counts.sum(2, keepdim=True) - counts.gather(2, high)) / 255).floor()
    before = counts.cumsum(2) - counts
    table = (((step / 2).floor() + before) / step.clamp(min=1)).floor().clamp(max=255)
    return torch.where(step > 0, table, up)


def faded(values: Tensor, one: Draw) -> Tensor:
    """A blend with the grey image."""
    grey = ((values * values.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True) + 0.5).floor()
    return _cut(grey + _column(_factor(one, "colour"), 4) * (values - grey))


def sharpened(values: Tensor, one: Draw) -> Tensor:
    """A blend with the smoothed image, whose border pixels are as they were."""
    smooth = values.clone()
    inner = F.conv2d(values, values.new_tensor(SMOOTH).expand(3, 1, 3, 3), groups=3)
    smooth[..., 1:-1, 1:-1] = (inner / 13 + 0.5).floor()
    return _cut(smooth + _column(_factor(one, "sharpness"), 4) * (values - smooth))


def moved(values: Tensor, one: Draw) -> Tensor:
    """Rotation about the centre, shear along the first row or column, translation."""
    height, width = values.shape[-2:]
    y, x = torch.meshgrid(*(torch.arange(n, device=values.device) + 0.5 for n in (height, width)), indexing="ij")
    a, b, c = affine(one, height, width)[..., None, None].unbind(2)
    there = a * x + b * y + c  # not a matrix product, which a GPU may round
    sides = values.new_tensor([width, height]).view(2, 1, 1)
    inside = ((there >= 0) & (there < sides)).all(1, keepdim=True)
    grid = (2 * there / sides - 1).movedim(1, -1)
    found = F.grid_sample(values, grid, padding_mode="border", align_corners=False).round()
    return torch.where(inside, found, values.new_tensor(FILL).view(3, 1, 1))


def affine(one: Draw, height: int, width: int) -> Tensor:
    """(B, 2, 3) maps (x, y, 1) in pixels of the new image -> the place (x, y) in the old one from which it is taken."""
    by = one.sign * one.level / MOST
    angle = torch.where(_is(one, "rotate"), -math.radians(30) * by, 0.0)
    cos, sin = angle.cos(), angle.sin()
    shear_x, shear_y = (torch.where(_is(one, name), 0.3 * by, 0.0) for name in ("shear-x", "shear-y"))
    right, down = (torch.where(_is(one, name), 0.45 * by, 0.0) for name in ("translate-x", "translate-y"))
    x, y = width / 2, height / 2
    rows = (
        torch.stack([cos, sin + shear_x, x - cos * x - sin * y + right * width], 1),
        torch.stack([shear_y - sin, cos, y + sin * x - cos * y + down * height], 1),
    )
    return torch.stack(rows, 1)


def erase(pixels: Tensor, chance: float, rng: torch.Generator) -> Tensor:
    """With this chance a rectangle of 2 to 33 % of the area and an aspect of 0.3 to 3.3 becomes unit normal noise."""
    n, (height, width) = len(pixels), pixels.shape[-2:]
    noise = torch.empty_like(pixels).normal_(generator=rng)
    chances = torch.rand(5, n, ATTEMPTS, device=rng.device, generator=rng)
    area = (0.02 + (1 / 3 - 0.02) * chances[0]) * height * width
    aspect = ((2 * chances[1] - 1) * math.log(1 / 0.3)).exp()
    tall, wide = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (tall < height) & (wide < width)
    first = fits.int().argmax(1, keepdim=True)
    tall, wide, up, left = (x.gather(1, first)[:, 0] for x in (tall, wide, chances[2], chances[3]))
    top, side = (up * (height - tall + 1)).floor(), (left * (width - wide + 1)).floor()
    on = (chances[4, :, 0] < chance) & fits.any(1)
    rows, columns = torch.arange(height, device=rng.device), torch.arange(width, device=rng.device)
    in_rows = (rows >= top[:, None]) & (rows < (top + tall)[:, None]) & on[:, None]
    in_columns = (columns >= side[:, None]) & (columns < (side + wide)[:, None])
    return torch.where(in_rows[:, None, :, None] & in_columns[:, None, None, :], noise, pixels)
