"""Multi-crop (Caron et al. 2020, arXiv:2006.09882) as DINO's code draws it: two large views and some small ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evalkit.pretrain.augment import View, draw


@dataclass(frozen=True)
class MultiCrop:
    """Sizes in pixels, scales in shares of the image's area; chances of blur and solarisation for the first large view,
    the second one and the small ones. Defaults: facebookresearch/dino 7c446df, main_dino.py:108-119, 419-464."""

    size: int = 224
    scale: tuple[float, float] = (0.4, 1.0)
    small: int = 8
    small_size: int = 96
    small_scale: tuple[float, float] = (0.05, 0.4)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_p: float = 0.8
    grey_p: float = 0.2
    blur_p: tuple[float, float, float] = (1.0, 0.1, 0.5)
    solarise_p: tuple[float, float, float] = (0.0, 0.2, 0.0)

    def kinds(self) -> tuple[View, View, View]:
        """First large view, second large view, small view."""
        plain = View(self.size, self.scale, jitter=self.jitter, jitter_p=self.jitter_p, grey_p=self.grey_p)
        bases = plain, plain, replace(plain, size=self.small_size, scale=self.small_scale)
        first, second, small = (
            replace(base, blur_p=blur, solarise_p=solarise)
            for base, blur, solarise in zip(bases, self.blur_p, self.solarise_p, strict=True)
        )
        return first, second, small


@dataclass(frozen=True)
class Crops:
    """large: two, small: any number of tensors (B, 3, s, s), normalised, of the same images in the same order."""

    large: tuple[Tensor, Tensor]
    small: tuple[Tensor, ...]


def crops(images: Tensor, config: MultiCrop, rng: torch.Generator) -> Crops:
    """images: (B, 3, H, W) uint8 on the generator's device."""
    first, second, small = config.kinds()
    large = draw(images, first, rng).pixels, draw(images, second, rng).pixels
    return Crops(large, tuple(draw(images, small, rng).pixels for _ in range(config.small)))


def each(network: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The network's outputs for views (B, 3, s, s) of one size, by one forward pass over all of them."""
    return network(torch.cat(list(views))).chunk(len(views)) if views else ()
