"""Sliding windows over photos of any size: cut out, encoded together, and put back as one label map.

Source: mmsegmentation v0.11, mmseg/models/segmentors/encoder_decoder.py (slide_inference): windows of crop x crop pixels,
        `stride` apart, the last ones pushed back into the photo; logits are averaged where windows overlap, resized to the
        photo's own size, and the largest wins.
Choice: a photo smaller than the crop has one smaller window, as there; here it is padded to whole patches at the right and
        the bottom with the mean colour (zeros after normalising), and what was predicted for the padding is dropped.
How:    windows of one photo, and of several whose windows have one shape, go through the encoder in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from evalkit.probing.enlarging import Enlargement, best, joined, starts, stitching


@dataclass(frozen=True)
class Sliding:
    """crop, stride: of the windows in pixels. patch: the encoder's. between: logits are first enlarged so many times, then
    to the window's size; 1 for straight to it."""

    crop: int
    stride: int
    patch: int
    between: int = 1

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(I, J): rows and columns of windows on a photo of (h, w) pixels."""
        rows, columns = (len(starts(length, self.crop, self.stride)) for length in size)
        return rows, columns

    def window(self, length: int) -> int:
        """Pixels of a window along an axis of this length, padding included."""
        return min(self.crop, -(-length // self.patch) * self.patch)

    def cut(self, photo: Tensor) -> Tensor:
        """(I x J, 3, h, w) windows of a normalised photo (3, H, W), row by row."""
        height, width = photo.shape[1:]
        tall, wide = self.window(height), self.window(width)
        photo = F.pad(photo, (0, max(wide - width, 0), 0, max(tall - height, 0)))
        places = [(y, x) for y in starts(height, self.crop, self.stride) for x in starts(width, self.crop, self.stride)]
        return torch.stack([photo[:, y : y + tall, x : x + wide] for y, x in places])

    def onto(self, size: tuple[int, int], out: tuple[int, int]) -> Enlargement:
        """From the `joined` logits of a photo of (h, w) pixels to its own (H, W)."""
        return Enlargement(*(self._axis(length, wanted) for length, wanted in zip(size, out, strict=True)))

    def _axis(self, length: int, wanted: int) -> Tensor:
        path = through(self.window(length) // self.patch, self.between, self.window(length))
        return stitching(length, wanted, crop=self.crop, stride=self.stride, path=path)


def through(patches: int, between: int, pixels: int) -> tuple[int, ...]:
    """Lengths along an axis from patches to pixels, by way of `between` cells per patch."""
    return (patches, pixels) if between == 1 else (patches, patches * between, pixels)


def label_maps(
    photos: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    sliding: Sliding,
    *,
    logits: Callable[[Tensor], Tensor],
    at_once: int,
) -> list[Tensor]:
    """A label map (H, W) int64 per photo.

    photos: normalised, (3, h, w) each, on the device. sizes: (H, W) of the maps. logits: (N, rows, columns, C) float32 of
    (N, 3, y, x) windows. at_once: windows per batch at most.
    """
    windows = [sliding.cut(photo) for photo in photos]
    maps: dict[int, Tensor] = {}
    for shape in dict.fromkeys(window.shape[1:] for window in windows):
        members = [number for number, window in enumerate(windows) if window.shape[1:] == shape]
        several = torch.cat([windows[number] for number in members])
        found = torch.cat([logits(piece) for piece in torch.split(several, at_once)])
        maps |= dict(zip(members, torch.split(found, [len(windows[number]) for number in members]), strict=True))
    answers = []
    for number, (photo, size) in enumerate(zip(photos, sizes, strict=True)):
        length = (photo.shape[1], photo.shape[2])
        onto = sliding.onto(length, size).to(photo.device)
        answers.append(best(joined(maps[number], sliding.grid(length)), onto))
    return answers
