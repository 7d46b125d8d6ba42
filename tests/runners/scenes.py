"""Painted scenes whose objects and pixels are known, and a real job over them: the fake encoder reads every patch's class.

A scene is a map of classes, one digit per 8 x 8 patch, "." for the background; the picture shows each class in the colour
that `fake_patch8` tells apart, the background in a colour of its own. Objects are given as boxes in pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evalkit import adapters
from evalkit.adapters.fake import colours
from evalkit.engine.job import FileCheckpoint, LocalJob
from evalkit.errors import BrokenImage
from evalkit.features.extract import ExtractOptions
from evalkit.progress import RichProgress
from evalkit.types import Manifest, Outlined, Sample, View

SIDE = 8
BACKGROUND = 9
"""The colour of what belongs to no class."""


@dataclass(frozen=True, eq=False)
class Scenes:
    """maps: rows of digits per scene. objects: per scene (label, x0, y0, x1, y1) in pixels. masks_broken: positions."""

    maps: tuple[tuple[str, ...], ...]
    outlines: tuple[tuple[tuple[int, int, int, int, int], ...], ...] = ()
    classes: tuple[str, ...] = ("a", "b", "c")
    background: int = -1
    masks_broken: tuple[int, ...] = ()
    split: str = "test"
    name: str = field(default="scenes")

    @property
    def digest(self):
        return hashlib.sha256(repr((self.maps, self.outlines, self.split)).encode()).hexdigest()

    def __len__(self):
        return len(self.maps)

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)
        return Sample(f"s{index}", f"s{index}", -1)

    def _cells(self, index):
        rows = [[-1 if c == "." else int(c) for c in row] for row in self.maps[index]]
        return np.kron(np.array(rows), np.ones((SIDE, SIDE), int)).astype(np.int32)

    def image(self, group):
        cells = self._cells(int(group[1:]))
        return Image.fromarray(colours(BACKGROUND + 1)[np.where(cells < 0, BACKGROUND, cells)])

    def pixels(self, index):
        if index in self.masks_broken:
            raise BrokenImage(f"scene {index} has no mask")
        cells = self._cells(index)
        return np.where(cells < 0, self.background, cells).astype(np.int32)

    def objects(self, index):
        if index in self.masks_broken:
            raise BrokenImage(f"scene {index} has no mask")
        shape, found = self._cells(index).shape, []
        for number, (label, x0, y0, x1, y1) in enumerate(self.outlines[index]):
            mask = np.zeros(shape, bool)
            mask[y0:y1, x0:x1] = True
            found.append(Outlined(f"{index}/{number}", label, mask))
        return tuple(found)

    def describe(self):
        return {}


@dataclass(frozen=True, eq=False)
class Flat:
    """The same without verbs of its own kind."""

    whole: Scenes
    name: str = "flat"
    split: str = "test"
    classes: tuple[str, ...] = ("a",)
    digest: str = "flat"

    def __len__(self):
        return len(self.whole)

    def __getitem__(self, index):
        return self.whole[index]

    def image(self, group):
        return self.whole.image(group)


def job(config, test, train=None, *, size=32, arch="fake_patch8", skip_broken=False, tmp=Path("nowhere")):
    """A job in this process over scenes of size x size pixels, features in memory, its state in the folder tmp."""
    encoder = adapters.load(Manifest(arch, "fake", arch))
    options = ExtractOptions(workers=0, precision="fp32", skip_broken=skip_broken)
    view = View(size, size, "squash", "bilinear")
    data = {"train": test if train is None else train, "test": test}
    return LocalJob(
        encoder,
        config,
        torch.device("cpu"),
        0,
        data,
        view,
        options,
        RichProgress(quiet=True),
        FileCheckpoint(tmp / "state.pt"),
    )
