"""How a video's frame and first mask become the input of label propagation, and its label maps the original size again.

Source: "dino": facebookresearch/dino 7c446df, eval_video_segmentation.py:197-245 (short side as asked, long side down to a
multiple of 64, frames by OpenCV's bilinear without antialiasing, masks by Pillow's nearest). "dinov3": facebookresearch/
dinov3 6876159, notebooks/segmentation_tracking.ipynb, cells 15 and 17 (both sides up to a multiple of the patch, frames by
Pillow's bicubic, masks by torch's nearest-exact).
Choice: the released "dino" swaps height and width of the mask of a square video (line 227 against 204); here the mask
        always has the frame's grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evalkit.errors import ProtocolError, UsageError
from evalkit.features.view import to_tensor
from evalkit.types import Clips

if TYPE_CHECKING:
    from PIL.Image import Image

Style = Literal["dino", "dinov3"]
Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class Geometry:
    """style: see the module. short: pixels of the short side. multiple: of which the long side is one, in style "dino".
    patch: the encoder's. Raises UsageError for numbers below 1."""

    patch: int
    style: Style = "dino"
    short: int = 480
    multiple: int = 64

    def __post_init__(self) -> None:
        for name in ("patch", "short", "multiple"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; pixels, at least 1")

    def asked(self, size: Size) -> Size:
        """The size that a frame of this size should have, before the patch is looked at."""
        long = self._long(self.short, size)
        if self.style == "dino":
            long = int(long // self.multiple * self.multiple)
        return (math.ceil(long), self.short) if size[0] > size[1] else (self.short, math.ceil(long))

    def fitted(self, size: Size) -> Size:
        """The size of the input: what is asked, down (dino) or up (dinov3) to a multiple of the patch.

        Raises ProtocolError where that leaves no patch.
        """
        if self.style == "dinov3":
            short = math.ceil(self.short / self.patch) * self.patch
            long = math.ceil(self._long(short, size) / self.patch) * self.patch
            return (long, short) if size[0] > size[1] else (short, long)
        height, width = (side // self.patch * self.patch for side in self.asked(size))
        if not height or not width:
            raise ProtocolError(
                f"a frame of {size[0]} x {size[1]} becomes {self.asked(size)}, less than one patch of {self.patch} pixels "
                f"(short side {self.short}, long side down to a multiple of {self.multiple})"
            )
        return height, width

    @staticmethod
    def _long(short: int, size: Size) -> float:
        return short * max(size) / min(size)

    def resized(self, image: Image) -> Tensor:
        """(3, h, w) uint8 of an RGB frame at the size of the input."""
        height, width = self.fitted((image.height, image.width))
        if self.style == "dinov3":
            from PIL.Image import Resampling

            return to_tensor(image.resize((width, height), Resampling.BICUBIC))
        import cv2

        small = cv2.resize(np.asarray(image), (width, height))
        return torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1)))

    def mask(self, labels: np.ndarray) -> Tensor:
        """(h, w) int64 ids of the patches, from a first mask (H, W) uint8 at the original size; 255 becomes 0."""
        size = (labels.shape[0], labels.shape[1])
        height, width = (side // self.patch for side in self.fitted(size))
        known = np.where(labels == 255, np.uint8(0), labels)
        if self.style == "dinov3":
            wide = torch.from_numpy(known)[None, None].float()
            return F.interpolate(wide, (height, width), mode="nearest-exact")[0, 0].long()
        return torch.from_numpy(nearest(known, (height, width)).astype(np.int64))


def nearest(labels: np.ndarray, size: Size) -> np.ndarray:
    """(H, W) uint8 by Pillow's nearest neighbour. labels: uint8 of another size (h, w)."""
    from PIL import Image as images

    return np.array(images.fromarray(labels).resize(size[::-1], images.Resampling.NEAREST))


@dataclass(frozen=True, eq=False)
class Frame:
    """pixels: (3, h, w) uint8 at the input's size. truth: (H, W) uint8 ids at the original size, None for none.
    size: H and W."""

    pixels: Tensor
    truth: np.ndarray | None
    size: Size


@dataclass(frozen=True)
class Reader:
    """Reads a frame of a clip in a decoding worker."""

    geometry: Geometry

    def __call__(self, clips: Clips, clip: int, number: int) -> Frame:
        image = clips.frame(clip, number)
        return Frame(self.geometry.resized(image), clips.truth(clip, number), (image.height, image.width))
