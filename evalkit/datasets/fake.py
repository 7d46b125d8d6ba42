"""Pictures whose right answer is known, made from (seed, split, index) without any file: for tests of everything else.

A picture of class c is filled with the colour `colours(classes)[c]`, varied from sample to sample and from pixel to
pixel, but never by as much as a quarter of the distance to the next colour. A fake encoder reads the class back exactly
(the adapter `fake` does):

    nearest = ((image_mean[:, None] - colours(classes)[None]) ** 2).sum(-1).argmin(-1)

where image_mean (B, 3) is the mean colour of each image in [0, 255], which cropping and resizing keep within that
quarter. With `noise` 0 it scores 1.0; with `noise` 1 the picture shows a class drawn at random whatever the label says,
and no encoder scores more than chance, 1 / classes, but by luck.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field

from evalkit.datasets.listing import Listing
from evalkit.errors import BrokenImage, DatasetError
from evalkit.types import Box, Dataset, Sample

SPLITS = ("train", "val", "test")
STEPS = (0, 128, 255)
LEVELS = len(STEPS)
REACH = 12
"""How far a sample's colour, and again each of its pixels, may stray: both together less than a quarter of a step."""


@dataclass(frozen=True)
class Config:
    """classes, per_class: how many, and samples of each in every split. size: side of a sample in pixels.

    noise: share in [0, 1] of the samples, drawn one by one, whose picture shows a class drawn at random.
    groups_of: samples that share a picture, as tiles from left to right, each with its box; 1: whole pictures, no box.
    """

    classes: Annotated[int, Field(ge=1, le=27)] = 4
    per_class: Annotated[int, Field(ge=1)] = 8
    size: Annotated[int, Field(ge=1)] = 32
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    groups_of: Annotated[int, Field(ge=1)] = 1
    seed: int = 0


def colours(classes: int) -> np.ndarray:
    """(classes, 3) uint8 RGB: the colour of each class, at most 27.

    Channels are 0, 128 or 255; class c has number (7 c) mod 27 of the combinations in lexicographic order, so that
    neighbours differ in more than one channel. Raises ValueError for more classes than colours.
    """
    if not 0 < classes <= LEVELS**3:
        raise ValueError(f"{classes} classes: there are colours for 1 to {LEVELS**3}")
    numbers = np.arange(classes) * 7 % LEVELS**3
    digits = np.stack([numbers // LEVELS**2, numbers // LEVELS % LEVELS, numbers % LEVELS], axis=1)
    return np.array(STEPS, np.uint8)[digits]


def open(root: Path, split: str, config: Config) -> Dataset:
    """`classes` x `per_class` samples, labels in turn (0, 1, 2, 0, ...); `root` is not looked at.

    Raises DatasetError for a split other than "train", "val" and "test", which have different pictures.
    """
    if split not in SPLITS:
        raise DatasetError(f"fake has no split {split!r}; allowed: {', '.join(SPLITS)}")
    count = config.classes * config.per_class
    samples = tuple(_sample(index, config) for index in range(count))
    classes = tuple(f"colour-{label}" for label in range(config.classes))
    return Listing("fake", split, classes, samples, Drawn(split, config))


def verify(root: Path) -> list[str]:
    """Nothing can be missing: an empty list."""
    return []


@dataclass(frozen=True)
class Drawn:
    """Pictures of one split, drawn when asked for."""

    split: str
    config: Config

    @property
    def root(self) -> str:
        """They lie nowhere."""
        return "drawn"

    def image(self, group: str) -> Image.Image:
        """The (size, size x tiles) RGB image of a group. Raises BrokenImage for a group that there is not."""
        first = int(group) * self.config.groups_of if group.isdecimal() else -1
        count = self.config.classes * self.config.per_class
        if not 0 <= first < count:
            raise BrokenImage(f"fake: there is no picture {group!r}")
        indices = range(first, min(first + self.config.groups_of, count))
        return Image.fromarray(np.concatenate([self._tile(index) for index in indices], axis=1))

    def digest(self, groups: Sequence[str]) -> tuple[str, str]:
        """Over split and options, which decide every pixel."""
        return hashlib.sha256(repr((self.split, astuple(self.config))).encode()).hexdigest(), "split and options"

    def shown(self, index: int) -> int:
        """The class whose colour a sample shows: its label, or one drawn at random."""
        draw = np.frombuffer(self._bytes("class", index, 16), "<u8")
        if draw[0] / 2**64 < self.config.noise:
            return int(draw[1] % self.config.classes)
        return index % self.config.classes

    def _tile(self, index: int) -> np.ndarray:
        side = self.config.size
        raw = np.frombuffer(self._bytes("pixels", index, 3 + side * side * 3), np.uint8).astype(np.int16)
        varied = raw % (2 * REACH + 1) - REACH
        colour = colours(self.config.classes)[self.shown(index)].astype(np.int16)
        tile: np.ndarray = colour + varied[:3] + varied[3:].reshape(side, side, 3)
        return tile.clip(0, 255).astype(np.uint8)

    def _bytes(self, what: str, index: int, count: int) -> bytes:
        # A hash and not a generator: no release of a library may change these pictures.
        return hashlib.shake_128(f"{self.config.seed}/{self.split}/{index}/{what}".encode()).digest(count)


def _sample(index: int, config: Config) -> Sample:
    group, tile = divmod(index, config.groups_of)
    box: Box = (tile * config.size, 0, (tile + 1) * config.size, config.size)
    return Sample(f"{index:06d}", str(group), index % config.classes, box if config.groups_of > 1 else None)
