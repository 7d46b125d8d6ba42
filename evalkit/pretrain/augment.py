"""Random views of a whole batch at once, every image with its own draw, on the device where the batch lies.

The parameters are DINO's (Caron et al. 2021, arXiv:2104.14294, appendix; facebookresearch/dino 7c446df, main_dino.py:419-466)
but for two things: no blur, since most training images here are enlarged already, and solarisation on the second view only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass(frozen=True)
class Views:
    """size: side of the crop in pixels. scale: its share of the area. jitter: brightness, contrast, saturation, hue."""

    size: int
    scale: tuple[float, float]
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_p: float = 0.8
    grey_p: float = 0.2
    solarise_p: float = 0.0


def augment(images: Tensor, views: Views, rng: torch.Generator) -> Tensor:
    """images: (B, 3, H, W) uint8. Returns (B, 3, size, size) float32 in [0, 1], one random view of each."""
    pixels = crop(images.float().div_(255), views, rng)
    pixels = _solarise(jitter(pixels, views, rng), views.solarise_p, rng)
    return pixels.clamp_(0, 1)


def _uniform(n: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    return torch.empty(n, device=rng.device).uniform_(low, high, generator=rng)


def crop(pixels: Tensor, views: Views, rng: torch.Generator) -> Tensor:
    """Random area and aspect in [3/4, 4/3], random place, random flip; bilinear. (B, 3, H, W) -> (B, 3, size, size)."""
    n = len(pixels)
    area, aspect = _uniform(n, *views.scale, rng), _uniform(n, math.log(3 / 4), math.log(4 / 3), rng).exp()
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    x, y = (1 - width) * _uniform(n, -1, 1, rng), (1 - height) * _uniform(n, -1, 1, rng)
    flip = torch.where(_uniform(n, 0, 1, rng) < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(x)
    theta = torch.stack([torch.stack([width * flip, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = F.affine_grid(theta, [n, 3, views.size, views.size], align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)


def jitter(pixels: Tensor, views: Views, rng: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue in one affine map of the colours per image; grey with its own chance."""
    n, (brightness, contrast, saturation, hue) = len(pixels), views.jitter
    on = _uniform(n, 0, 1, rng) < views.jitter_p
    grey = _uniform(n, 0, 1, rng) < views.grey_p
    gain = torch.where(on, _uniform(n, 1 - brightness, 1 + brightness, rng), 1.0)
    spread = torch.where(on, _uniform(n, 1 - contrast, 1 + contrast, rng), 1.0)
    chroma = torch.where(grey, 0.0, torch.where(on, _uniform(n, 1 - saturation, 1 + saturation, rng), 1.0))
    angle = torch.where(on, _uniform(n, -hue, hue, rng), 0.0) * 2 * math.pi
    yiq = torch.tensor(TO_YIQ, device=pixels.device)
    turn = torch.zeros(n, 3, 3, device=pixels.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = chroma * angle.cos()
    turn[:, 2, 1] = chroma * angle.sin()
    turn[:, 1, 2] = -turn[:, 2, 1]
    matrix = torch.linalg.inv(yiq) @ turn @ yiq * (gain * spread)[:, None, None]
    luma = torch.tensor(LUMA, device=pixels.device)
    level = torch.einsum("bchw,c->b", pixels, luma) / pixels[0, 0].numel()
    shift = (gain * (1 - spread) * level)[:, None, None]
    return torch.baddbmm(shift, matrix, pixels.flatten(2)).view_as(pixels)


def _solarise(pixels: Tensor, chance: float, rng: torch.Generator) -> Tensor:
    if not chance:
        return pixels
    on = (_uniform(len(pixels), 0, 1, rng) < chance)[:, None, None, None]
    return torch.where(on & (pixels >= 0.5), 1 - pixels, pixels)
