"""Photos and their label maps as segmentation trains and tests on them: scale jitter, crops, flips, changed colours.

Source: JiePKU/understand-ssl-part-aware ffea818, segmentation/configs_local/_base_/datasets/*.py, whose steps are those of
        mmsegmentation v0.11, mmseg/datasets/pipelines/transforms.py, on images as OpenCV resizes them: Resize with
        ratio_range, RandomCrop with cat_max_ratio, RandomFlip, PhotoMetricDistortion, Pad (zeros after normalising, that
        is the mean colour; padded pixels do not count).
Choice: what a photo becomes follows from (seed, turn, position) alone, so that workers and interruptions change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evalkit.errors import BrokenImage
from evalkit.types import Dataset, Segmented

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int16]
Values = TypeVar("Values", Pixels, Labels)
Scale = tuple[int, int]
"""Pixels that the sides of a resized photo may have at most, the long one and the short one in any order."""

DRAWS = 10
"""How often a crop that one class fills is drawn anew; the last one stands."""
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32.0, (0.5, 1.5), (0.5, 1.5), 18


class Crop(NamedTuple):
    """pixels: (3, S, S) uint8. labels: (S, S) int16, -1 where nothing counts. size: rows and columns of the photo in it;
    the rest is padding at the right and the bottom."""

    pixels: Tensor
    labels: Tensor
    size: tuple[int, int]


class Photo(NamedTuple):
    """pixels: (3, h, w) uint8, resized. labels: (H, W) int16 at the photo's own size, -1 where nothing counts."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Jitter:
    """How a photo changes in training; defaults as released.

    scale: see `Scale`; the photo is resized to fit it times a number drawn from `ratio`. largest: share of the labelled
    pixels of a crop that one class should stay below. flip: probability. colours: whether brightness, contrast,
    saturation and hue change, each with probability 0.5.
    """

    scale: Scale = (2048, 512)
    ratio: tuple[float, float] = (0.5, 2.0)
    largest: float = 0.75
    flip: float = 0.5
    colours: bool = True


@dataclass(frozen=True)
class Shaken:
    """Reads crops for training; picklable. crop: side in pixels. classes: how many."""

    crop: int
    classes: int
    jitter: Jitter
    seed: int

    def __call__(self, dataset: Dataset, position: int, turn: int, *_: int) -> Crop:
        """The photo as it is in this turn. Raises BrokenImage as `labelled`."""
        photo, labels = labelled(dataset, position, self.classes)
        rng = np.random.default_rng([self.seed, turn, position])
        ratio = rng.uniform(*self.jitter.ratio)
        size = fitted(labels.shape, self.jitter.scale, ratio)
        photo, labels = resized(photo, size), resized(labels, size, cv2.INTER_NEAREST)
        place = self._place(labels, rng)
        photo, labels = photo[place], labels[place]
        if rng.random() < self.jitter.flip:
            photo, labels = photo[:, ::-1], labels[:, ::-1]
        photo = np.ascontiguousarray(photo)
        return padded(distorted(photo, rng) if self.jitter.colours else photo, labels, self.crop)

    def _place(self, labels: Labels, rng: np.random.Generator) -> tuple[slice, slice]:
        room = [max(side - self.crop, 0) + 1 for side in labels.shape]
        for _ in range(DRAWS + 1):
            top, left = (int(rng.integers(count)) for count in room)
            place = slice(top, top + self.crop), slice(left, left + self.crop)
            inside = labels[place]
            counts = np.bincount(inside[inside >= 0], minlength=1)
            mixed = np.count_nonzero(counts) > 1 and counts.max() < self.jitter.largest * counts.sum()
            if mixed or self.jitter.largest >= 1:
                break
        return place


@dataclass(frozen=True)
class Whole:
    """Reads photos for the test; picklable. scale: see `Scale`."""

    scale: Scale
    classes: int

    def __call__(self, dataset: Dataset, position: int) -> Photo:
        """The resized photo and its labels as they are. Raises BrokenImage as `labelled`."""
        photo, labels = labelled(dataset, position, self.classes)
        small = resized(photo, fitted(labels.shape, self.scale))
        return Photo(_chw(small), torch.from_numpy(np.ascontiguousarray(labels)))


@dataclass(frozen=True)
class Truth:
    """Reads label maps alone; picklable. size: (h, w) that they are resized to, nearest; None for their own."""

    classes: int
    size: tuple[int, int] | None = None

    def __call__(self, dataset: Dataset, position: int) -> Tensor:
        """(h, w) int16. Raises BrokenImage for labels above the classes."""
        labels = known(cast(Segmented, dataset).pixels(position), self.classes, dataset[position].id)
        return torch.from_numpy(np.ascontiguousarray(labels if self.size is None else nearest(labels, self.size)))


def labelled(dataset: Dataset, position: int, classes: int) -> tuple[Pixels, Labels]:
    """(H, W, 3) photo and (H, W) labels of a sample. Raises BrokenImage where the two differ in size or a label is no
    class."""
    sample = dataset[position]
    photo = np.asarray(dataset.image(sample.group))
    labels = known(cast(Segmented, dataset).pixels(position), classes, sample.id)
    if labels.shape != photo.shape[:2]:
        raise BrokenImage(
            f"{sample.id}: its mask is {labels.shape[1]} x {labels.shape[0]} pixels, its photo "
            f"{photo.shape[1]} x {photo.shape[0]}; they must be alike"
        )
    return photo, labels


def known(labels: np.ndarray, classes: int, name: str) -> Labels:
    """(H, W) int16 labels, -1 for what does not count. Raises BrokenImage for three axes and for labels from `classes`
    on."""
    if labels.ndim != 2:
        raise BrokenImage(f"{name}: its mask has shape {labels.shape}; a label map is (H, W), a class number per pixel")
    if labels.size and int(labels.max()) >= classes:
        raise BrokenImage(
            f"{name}: its mask holds the label {int(labels.max())}; {classes} classes are 0 to {classes - 1}"
        )
    found: Labels = labels.astype(np.int16)
    return found if not found.size or int(found.min()) >= -1 else np.maximum(found, -1)


def fitted(size: tuple[int, ...], scale: Scale, ratio: float = 1.0) -> tuple[int, int]:
    """(h, w) of a photo of this (H, W) made as large as fits into ratio x scale, its aspect kept."""
    long, short = int(max(scale) * ratio), int(min(scale) * ratio)
    factor = min(long / max(size), short / min(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def resized(values: Values, size: tuple[int, int], how: int = cv2.INTER_LINEAR) -> Values:
    """(h, w, ...) by OpenCV, which does not smooth when it shrinks: as mmcv resizes photos, and with INTER_NEAREST labels
    (of which it takes the upper left of the candidates)."""
    if values.shape[:2] == size:
        return values
    cv2.setNumThreads(0)  # a forked worker has none of its parent's threads
    return cast(Values, cv2.resize(values, size[::-1], interpolation=how))


def nearest(labels: Labels, size: tuple[int, int]) -> Labels:
    """(h, w): the label under the centre of every new pixel."""
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, labels.shape, strict=True))
    return cast(Labels, labels[rows[:, None], columns])


def padded(photo: Pixels, labels: Labels, side: int) -> Crop:
    """A crop of side x side pixels from a photo (h, w, 3) and labels (h, w) that are no larger."""
    height, width = labels.shape
    pixels = np.zeros((3, side, side), np.uint8)
    pixels[:, :height, :width] = photo.transpose(2, 0, 1)
    truth = np.full((side, side), -1, np.int16)
    truth[:height, :width] = labels
    return Crop(torch.from_numpy(pixels), torch.from_numpy(truth), (height, width))


def distorted(photo: Pixels, rng: np.random.Generator) -> Pixels:
    """(h, w, 3) uint8 RGB with other brightness, contrast (before the other two or after), saturation and hue."""
    if rng.random() < 0.5:
        photo = _scaled(photo, 1.0, rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    late = rng.random() < 0.5
    if not late:
        photo = _contrasted(photo, rng)
    if rng.random() < 0.5:
        photo = _in_hsv(photo, 1, lambda plane: _scaled(plane, rng.uniform(*SATURATION), 0.0))
    if rng.random() < 0.5:
        turn = int(rng.integers(-HUE, HUE))  # of OpenCV's 180 steps round the circle
        photo = _in_hsv(photo, 0, lambda plane: ((plane.astype(np.int16) + turn) % 180).astype(np.uint8))
    return _contrasted(photo, rng) if late else photo


def _contrasted(photo: Pixels, rng: np.random.Generator) -> Pixels:
    return _scaled(photo, rng.uniform(*CONTRAST), 0.0) if rng.random() < 0.5 else photo


def _scaled(values: Pixels, factor: float, shift: float) -> Pixels:
    return (values.astype(np.float32) * np.float32(factor) + np.float32(shift)).clip(0, 255).astype(np.uint8)


def _in_hsv(photo: Pixels, plane: int, change: Callable[[Pixels], Pixels]) -> Pixels:
    hsv = cast(Pixels, cv2.cvtColor(photo, cv2.COLOR_RGB2HSV))
    hsv[..., plane] = change(hsv[..., plane])
    return cast(Pixels, cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def _chw(photo: Pixels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(photo.transpose(2, 0, 1)))
