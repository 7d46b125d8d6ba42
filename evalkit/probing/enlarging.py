"""Bilinear enlargement as two matrix products, and what is computed through it: the loss of every pixel, the best class.

What:   enlarging (h, w) maps bilinearly, in one step or in several, averaging overlapping windows and resizing the average
        are linear along each axis by itself: together one matrix from the left and one from the right, rows @ map @
        columns.T. A 1x1 convolution commutes with them, because the weights of every output pixel sum to 1. So a linear
        head is applied on the grid of patches, C maps are enlarged and not the D channels of the tokens, and a detour over
        an intermediate size costs nothing. All is equal to the plain steps in exact arithmetic.
How:    the full-size logits exist for a band of rows at a time. The slope of the loss is taken in the same pass, so that
        nothing of full size is kept for the backward pass.
Source: torch.nn.functional.interpolate (bilinear, align_corners False), whose weights the matrices hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evalkit.errors import ProtocolError

BAND = {"cpu": 1 << 19, "cuda": 1 << 26}
"""Full-size logits that exist at once: 2 MB stay in a processor's cache, a GPU wants large pieces."""


@dataclass(frozen=True, eq=False)
class Enlargement:
    """rows: (H, h). columns: (W, w). Both float32, on one device; a map m (h, w) becomes rows @ m @ columns.T."""

    rows: Tensor
    columns: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return len(self.rows), len(self.columns)

    def to(self, device: torch.device) -> Enlargement:
        """The same on another device."""
        return Enlargement(self.rows.to(device), self.columns.to(device))


@lru_cache(maxsize=32)
def steps(*lengths: int) -> Tensor:
    """(last, first) float64: linear interpolation along one axis from a length to the next, and on to the last.

    Not to be written to: equal arguments give the same tensor. Raises ProtocolError for lengths below 1.
    """
    if min(lengths) < 1:
        raise ProtocolError(f"lengths are {lengths}; each is at least 1 pixel")
    found = torch.eye(lengths[0], dtype=torch.float64)
    for length in lengths[1:]:
        found = F.interpolate(found.T[None], size=length, mode="linear", align_corners=False)[0].T
    return found


def enlargement(small: tuple[int, int], *sizes: tuple[int, int]) -> Enlargement:
    """From (h, w) maps over the sizes in turn to the last one."""
    down, across = (steps(*lengths).float() for lengths in zip(small, *sizes, strict=True))
    return Enlargement(down, across)


@lru_cache(maxsize=1024)
def starts(length: int, crop: int, stride: int) -> tuple[int, ...]:
    """First pixel of each window along an axis; the last window ends where the axis does.

    One window where the axis is no longer than the crop. As mmsegmentation v0.11 (encoder_decoder.py, slide_inference).
    """
    count = max(length - crop + stride - 1, 0) // stride + 1
    return tuple(max(min(number * stride + crop, length) - crop, 0) for number in range(count))


@lru_cache(maxsize=32)
def stitching(length: int, out: int, *, crop: int, stride: int, path: tuple[int, ...]) -> Tensor:
    """(out, I x h) float32: windows along one axis, enlarged, averaged where they overlap, then resized.

    path: from a window's h map rows over other lengths to its pixels, which may end beyond the axis: those do not count.
    length: pixels of the axis under the windows; out: those of the result. Not to be written to.
    """
    places = starts(length, crop, stride)
    window = steps(*path)[: min(crop, length)]
    sums = window.new_zeros(length, len(places), window.shape[1])
    count = window.new_zeros(length)
    for number, start in enumerate(places):
        sums[start : start + len(window), number] = window
        count[start : start + len(window)] += 1
    return (steps(length, out) @ (sums.flatten(1) / count[:, None])).float()


def joined(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """(I x h, C, J x w) of window maps (I x J, h, w, C), windows row by row; grid: (I, J)."""
    _, height, width, classes = maps.shape
    laid = maps.reshape(*grid, height, width, classes).permute(0, 2, 4, 1, 3)
    return laid.reshape(grid[0] * height, classes, grid[1] * width)


def best(maps: Tensor, onto: Enlargement) -> Tensor:
    """(H, W) int64: the class with the largest enlarged map at every pixel; on equal ones the lowest.

    maps: (h, C, w) float32, on the device of `onto`.
    """
    wide = maps @ onto.columns.T
    found = torch.empty(onto.size, dtype=torch.int64, device=maps.device)
    for band, taken, weights in _bands(onto, wide.shape[1]):
        logits = weights @ wide[taken].flatten(1)
        found[band] = logits.view(len(weights), wide.shape[1], -1).max(1).indices
    return found


def cross_entropy(maps: Tensor, truth: Tensor, onto: Enlargement) -> Tensor:
    """The mean over all pixels of -log softmax(enlarged maps) at the true class; ignored pixels add 0 and count.

    maps: (B, h, w, C) float32 logits, differentiable. truth: (B, H, W) whole numbers, a class each or below 0 where
    nothing counts. The division by all pixels is mmsegmentation's (v0.11, losses/cross_entropy_loss.py). Raises
    ProtocolError where sizes or the largest label do not fit.
    """
    if truth.shape != (len(maps), *onto.size):
        raise ProtocolError(f"labels of shape {tuple(truth.shape)} for logits of shape {(len(maps), *onto.size)}")
    if truth.numel() and int(truth.max()) >= maps.shape[-1]:
        raise ProtocolError(f"a label is {int(truth.max())}; {maps.shape[-1]} classes are 0 to {maps.shape[-1] - 1}")
    found: Tensor = _CrossEntropy.apply(maps, truth, onto)  # type: ignore[no-untyped-call]
    return found


class _CrossEntropy(torch.autograd.Function):
    """The loss and, in the same pass, its slope at the maps."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, truth: Tensor, onto: Enlargement) -> Tensor:
        total = maps.new_zeros((), dtype=torch.float64)
        slopes = torch.empty_like(maps)
        for one, labels, slope in zip(maps, truth, slopes, strict=True):
            loss, found = _of_image(one.transpose(1, 2), labels, onto)
            total += loss
            slope.copy_(found.transpose(1, 2))
        ctx.save_for_backward(slopes.div_(truth.numel()))
        return (total / truth.numel()).to(maps.dtype)

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * above[0], None, None


def _of_image(maps: Tensor, truth: Tensor, onto: Enlargement) -> tuple[Tensor, Tensor]:
    """The sum over pixels of the loss, and its slope at the maps (h, C, w)."""
    wide = maps.contiguous() @ onto.columns.T
    slopes = torch.zeros_like(wide)
    total = maps.new_zeros((), dtype=torch.float64)
    for band, taken, weights in _bands(onto, wide.shape[1]):
        labels = truth[band]
        counted = labels >= 0
        if not bool(counted.any()):
            continue
        logits = (weights @ wide[taken].flatten(1)).view(len(weights), wide.shape[1], -1)
        logits -= logits.amax(1, keepdim=True)
        at = labels.clamp_min(0).long()[:, None]
        right = logits.gather(1, at)
        sums = logits.exp_().sum(1, keepdim=True)
        keep = counted[:, None]
        total += ((sums.log() - right) * keep).sum(dtype=torch.float64)
        logits *= keep / sums
        logits.scatter_add_(1, at, -keep.to(logits.dtype))
        # rows of a band are few and neighbours: their slopes go back to the map rows that they were mixed from
        slopes[taken] += (weights.T @ logits.flatten(1)).view(weights.shape[1], *slopes.shape[1:])
    return total, slopes @ onto.columns


def _bands(onto: Enlargement, classes: int) -> Iterator[tuple[slice, Tensor | slice, Tensor]]:
    """(rows of the result, map rows that they are mixed from, their weights), from top to bottom."""
    height, width = onto.size
    few = max(1, BAND.get(onto.rows.device.type, BAND["cuda"]) // (classes * width))
    if few >= height:
        yield slice(0, height), slice(None), onto.rows
        return
    where = onto.rows.cpu() != 0
    for start in range(0, height, few):
        band = slice(start, min(start + few, height))
        yield band, *_taken(where[band].any(0).nonzero().flatten().tolist(), onto.rows[band])


def _taken(numbers: Sequence[int], weights: Tensor) -> tuple[Tensor | slice, Tensor]:
    if numbers[-1] - numbers[0] + 1 == len(numbers):
        run = slice(numbers[0], numbers[-1] + 1)  # a view, where the rows are neighbours
        return run, weights[:, run]
    index = torch.tensor(numbers, device=weights.device)
    return index, weights[:, index]
