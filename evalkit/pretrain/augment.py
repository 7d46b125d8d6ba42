"""Random views of a whole batch at once, every image with its own draw, on the device where the batch lies.

Crop, flip, resize and blur are linear in rows and in columns, so that one pair of matrices per image does them all: a
crop equals torchvision's `resized_crop` (bicubic, antialiased) of the same box, at a fraction of its time. Colours change
by one affine map per image. Kinds and strengths are those of SimCLR, BYOL and DINO (Caron et al. 2021, arXiv:2104.14294;
facebookresearch/dino 7c446df, main_dino.py:419-466) with two simplifications: hue turns in YIQ instead of HSV, and values
are cut to [0, 1] once, at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.types import IMAGENET_MEAN, IMAGENET_STD

LUMA = (0.299, 0.587, 0.114)
TO_YIQ = (LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
FROM_YIQ = torch.linalg.inv(torch.tensor(TO_YIQ, dtype=torch.float64)).float()
ATTEMPTS = 10
"""Boxes tried before the whole image is taken (torchvision's RandomResizedCrop)."""


@dataclass(frozen=True)
class View:
    """One kind of view. size: side in pixels. scale: share of the image's area. ratio: width / height of the box.

    jitter: strengths of brightness, contrast, saturation and hue, applied with chance jitter_p; blur_sigma in pixels of
    the view; strong: RandAugment (`strong.randaugment`) in place of jitter, grey, blur and solarisation.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_p: float = 0.8
    grey_p: float = 0.2
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise_p: float = 0.0
    strong: bool = False


@dataclass(frozen=True)
class Crop:
    """pixels: (B, 3, size, size) float32, normalised. boxes: (B, 4) x0, y0, x1, y1 in [0, 1] of the original image.
    flipped: (B,) bool, left and right exchanged."""

    pixels: Tensor
    boxes: Tensor
    flipped: Tensor


def draw(images: Tensor, view: View, rng: torch.Generator) -> Crop:
    """One random view of each image. images: (B, 3, H, W) uint8 on the generator's device."""
    n = len(images)
    boxes, flipped = random_boxes(n, view, rng), _chance(n, view.flip, rng)
    rows, columns = placed(boxes, flipped, images.shape[-2:], view.size)
    if view.blur_p and not view.strong:
        sigma = torch.where(_chance(n, view.blur_p, rng), _uniform(n, *view.blur_sigma, rng), 0.0)
        blur = _blurring(sigma, view.size)
        rows, columns = blur @ rows, blur @ columns
    pixels = rows[:, None] @ (images.float() / 255) @ columns[:, None].mT
    if view.strong:
        from evalkit.pretrain.strong import randaugment

        pixels = randaugment(pixels.clamp_(0, 1), rng)
    else:
        pixels = solarised(jittered(pixels, view, rng).clamp_(0, 1), view.solarise_p, rng)
    return Crop(normalised(pixels), boxes, flipped)


def normalised(pixels: Tensor) -> Tensor:
    """(..., 3, H, W) in [0, 1] -> the same with ImageNet's mean and deviation taken out."""
    mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std


def _uniform(n: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    return torch.empty(n, device=rng.device).uniform_(low, high, generator=rng)


def _chance(n: int, p: float, rng: torch.Generator) -> Tensor:
    return torch.rand(n, device=rng.device, generator=rng) < p


def random_boxes(n: int, view: View, rng: torch.Generator) -> Tensor:
    """(n, 4) boxes in shares of a square image: area and log aspect uniform, the first of ten that fits, else the whole."""
    tries = n * ATTEMPTS
    area = _uniform(tries, *view.scale, rng)
    ratio = _uniform(tries, math.log(view.ratio[0]), math.log(view.ratio[1]), rng).exp()
    width, height = (area * ratio).sqrt().view(n, -1), (area / ratio).sqrt().view(n, -1)
    fits = (width <= 1) & (height <= 1)
    first = fits.int().argmax(1, keepdim=True)
    found = fits.gather(1, first)[:, 0]
    width, height = (torch.where(found, side.gather(1, first)[:, 0], 1.0) for side in (width, height))
    x, y = (1 - width) * _uniform(n, 0, 1, rng), (1 - height) * _uniform(n, 0, 1, rng)
    return torch.stack([x, y, x + width, y + height], 1)


def placed(boxes: Tensor, flipped: Tensor, shape: tuple[int, int] | torch.Size, size: int) -> tuple[Tensor, Tensor]:
    """Matrices (B, size, H) and (B, size, W) that cut the boxes out, resize them and flip: rows @ image @ columns.T."""
    rows = _resizing(boxes[:, 1], boxes[:, 3], shape[0], size)
    columns = _resizing(boxes[:, 0], boxes[:, 2], shape[1], size)
    return rows, torch.where(flipped[:, None, None], columns.flip(1), columns)


def _resizing(low: Tensor, high: Tensor, source: int, size: int) -> Tensor:
    """(B, size, source) weights of antialiased bicubic resizing (a = -0.5) of the interval [low, high] of [0, 1].

    Only pixels whose centre lies in the interval count, as if it had been cut out first.
    """
    low, high = low[:, None] * source, high[:, None] * source
    step = (high - low) / size
    centres = low + (torch.arange(size, device=low.device) + 0.5) * step
    pixels = torch.arange(source, device=low.device) + 0.5
    apart = (pixels - centres[..., None]) / step.clamp(min=1)[..., None]
    inside = (pixels > low - 1e-4) & (pixels < high + 1e-4)
    weights = _cubic(apart) * inside[:, None]
    return weights / weights.sum(-1, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _blurring(sigma: Tensor, size: int) -> Tensor:
    """(B, size, size) Gaussian blur with mirrored borders; the identity where sigma is 0."""
    at = torch.arange(size, device=sigma.device)
    width = sigma.clamp(min=1e-3)[:, None, None]

    def gauss(apart: Tensor) -> Tensor:
        return torch.exp(-0.5 * (apart / width).square())

    # a pixel beyond the border is the one as far inside: -i for i, and 2 (size - 1) - i
    beyond = at[:, None] + at, 2 * (size - 1) - at[:, None] - at
    weights = gauss(at[:, None] - at)
    weights = weights + gauss(beyond[0]) * (at > 0) + gauss(beyond[1]) * (at < size - 1)
    return weights / weights.sum(-1, keepdim=True)


def jittered(pixels: Tensor, view: View, rng: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue in one affine map of the colours per image; grey with its own chance."""
    n, (brightness, contrast, saturation, hue) = len(pixels), view.jitter
    on, grey = _chance(n, view.jitter_p, rng), _chance(n, view.grey_p, rng)

    def strength(by: float) -> Tensor:
        return torch.where(on, _uniform(n, max(0.0, 1 - by), 1 + by, rng), 1.0)

    gain, spread, chroma = strength(brightness), strength(contrast), strength(saturation)
    chroma = torch.where(grey, 0.0, chroma)
    angle = torch.where(on, _uniform(n, -hue, hue, rng), 0.0) * 2 * math.pi
    turn = torch.zeros(n, 3, 3, device=pixels.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = chroma * angle.cos()
    turn[:, 2, 1] = chroma * angle.sin()
    turn[:, 1, 2] = -turn[:, 2, 1]
    place = pixels.device
    matrix = FROM_YIQ.to(place) @ turn @ torch.tensor(TO_YIQ, device=place) * (gain * spread)[:, None, None]
    level = pixels.mean((2, 3)) @ torch.tensor(LUMA, device=place)
    shift = (gain * (1 - spread) * level)[:, None, None]
    return torch.baddbmm(shift, matrix, pixels.flatten(2)).view_as(pixels)


def solarised(pixels: Tensor, chance: float, rng: torch.Generator) -> Tensor:
    """With this chance, values of at least one half are inverted."""
    if not chance:
        return pixels
    on = _chance(len(pixels), chance, rng)[:, None, None, None]
    return torch.where(on & (pixels >= 0.5), 1 - pixels, pixels)
