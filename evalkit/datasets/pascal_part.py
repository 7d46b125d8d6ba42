"""Pascal-Part (Chen et al., CVPR 2014, "Detect What You Can"): objects of PASCAL VOC 2010 and their parts.

    JPEGImages/NAME.jpg                            VOC 2010
    ImageSets/Main/{train,val}.txt                 VOC 2010: 4,998 and 5,105 names
    Annotations_Part/NAME.mat                      `anno`: objects, each with class, mask and named part masks

<root> is the folder of VOC 2010, or holds VOCdevkit/VOC2010; Annotations_Part may lie beside VOCdevkit. Classes are the
193 parts or the 16 objects of `pascal_names`; background, boat, chair, table and sofa do not count (part-aware paper,
arXiv:2301.11915, whose released code has neither the conversion nor the names of the parts). Later objects hide earlier
ones, as the kit's mat2map.m says ("later objects can occlude previous objects"); what of a later object is no part then
does not count. Source: the development kit on cs.jhu.edu/~xdli or roozbehm.info/pascal-parts; terms of VOC.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from evalkit.datasets import dense, mat, pascal_names, voc_names
from evalkit.datasets.files import Tree, missing
from evalkit.datasets.listing import Photos
from evalkit.errors import BrokenImage, DatasetError, MissingFiles
from evalkit.types import Dataset, SplitSize

ALIASES = {"pascal_part": ("VOC2010", "VOCdevkit/VOC2010", "VOCdevkit", "pascal-part", "PascalPart")}
SPLITS = ("train", "val")
LAYOUT = "  <root>/JPEGImages/NAME.jpg\n  <root>/ImageSets/Main/{train,val}.txt\n  <root>/Annotations_Part/NAME.mat"
Labels = Literal["parts", "objects"]
Overlap = Literal["later", "smaller"]


@dataclass(frozen=True)
class Config:
    """labels: "parts" (193) or "objects" (16).

    overlap: which part a pixel has that lies in several parts of one object: "later": the one that the annotation names
    last, as the kit's mat2map.m paints them; "smaller": the one with fewer pixels. They differ in limbs, and in number
    plates of cars and buses: the annotation names those first, so that "later" hides them under the side that they are
    on.
    """

    labels: Labels = "parts"
    overlap: Overlap = "later"


class Region(NamedTuple):
    """An object or a part: its name, and its (H, W) bool pixels."""

    name: str
    mask: np.ndarray


@dataclass(frozen=True)
class Annotations:
    """Label maps from the .mat files of a tree."""

    tree: Tree
    config: Config

    def where(self, group: str) -> str:
        """The file of a photo's annotation."""
        return f"{self.tree}/{group}.mat"

    def digest(self, groups: Sequence[str]) -> tuple[str, str]:
        """Over the annotations of these photos and the options."""
        content, how = self.tree.digest(f"{group}.mat" for group in groups)
        return hashlib.sha256(f"{content} {self.config!r}".encode()).hexdigest(), f"{how}, and the options"

    def objects(self, group: str) -> Iterator[tuple[Region, list[Region]]]:
        """The objects of a photo in their order, each with its parts. Raises BrokenImage for what is no annotation."""
        where = self.where(group)
        try:
            anno = mat.variable(self.tree, f"{group}.mat", "anno")
            for item in (item for row in anno[:1] for item in _records(row, "objects")):
                parts = [_region(row, "part_name", where) for row in _records(item, "parts")]
                yield _region(item, "class", where), parts
        except (MissingFiles, BrokenImage):
            raise
        except DatasetError as cause:
            raise BrokenImage(str(cause)) from cause

    def labels(self, group: str) -> np.ndarray:
        """(H, W) int32: a class each, -1 where nothing counts.

        Raises BrokenImage for a damaged file, masks of different sizes, and names that the kit does not list.
        """
        found: np.ndarray | None = None
        for item, parts in self.objects(group):
            if found is None:
                found = np.full(item.mask.shape, -1, np.int32)
            if any(region.mask.shape != found.shape for region in (item, *parts)):
                raise BrokenImage(f"{self.where(group)}: the masks of {item.name} have different sizes")
            self._paint(found, item, parts, self.where(group))
        if found is None:
            raise BrokenImage(f"{self.where(group)}: holds no objects")
        return found

    def _paint(self, found: np.ndarray, item: Region, parts: list[Region], where: str) -> None:
        known = item.name in pascal_names.OBJECTS
        if not known and item.name not in pascal_names.WITHOUT:
            raise BrokenImage(f"{where}: the object {item.name!r} is none of VOC's")
        if self.config.labels == "objects":
            found[item.mask] = pascal_names.OBJECTS.index(item.name) if known else -1
            return
        found[item.mask] = -1
        if self.config.overlap == "smaller":
            parts = sorted(parts, key=lambda part: -int(part.mask.sum()))
        for part in parts:
            pair = (item.name, pascal_names.kind(part.name))
            if pair not in _NUMBERS:
                raise BrokenImage(f"{where}: {part.name!r} is no part of {item.name} in the development kit")
            found[part.mask] = _NUMBERS[pair]


_NUMBERS = {pair: label for label, pair in enumerate(pascal_names.PAIRS)}


def published(folder: str, config: Config) -> Mapping[str, SplitSize]:
    """See the module."""
    return {
        split: SplitSize(193 if config.labels == "parts" else 16, photos)
        for split, photos in zip(SPLITS, (4_998, 5_105), strict=True)
    }


def open(root: Path, split: str, config: Config) -> Dataset:
    """The photos of "train" or "val" in the order of the list, a `Segmented` data set.

    Raises MissingFiles, which lists all photos and annotations that are absent; DatasetError for another split or a name
    that is listed twice.
    """
    if split not in SPLITS:
        raise DatasetError(f"pascal_part has no split {split!r}; allowed: train, val")
    tree = voc_names.kit(root, "2010", "JPEGImages")
    annotated = tree if tree.exists("Annotations_Part") else Tree.open(root)
    names_file = f"ImageSets/Main/{split}.txt"
    if not tree.exists(names_file):
        raise missing(str(tree), [names_file], LAYOUT)
    names = dense.listed(tree, [names_file])
    dense.require(tree, (f"JPEGImages/{name}.jpg" for name in names), LAYOUT)
    dense.require(annotated, (f"Annotations_Part/{name}.mat" for name in names), LAYOUT)
    parts = tuple(f"{name} {part}" for name, part in pascal_names.PAIRS)
    classes = parts if config.labels == "parts" else pascal_names.OBJECTS
    photos = Photos(tree.within("JPEGImages"), "{}.jpg")
    maps = Annotations(annotated.within("Annotations_Part"), config)
    return dense.label_maps("pascal_part", split, classes, names, photos=photos, maps=maps)


def verify(root: Path) -> list[str]:
    """Absent lists, photos and annotations, and every annotation that is damaged, names what the kit does not list, or
    has another size than its photo."""
    return dense.problems(partial(open, root, split, Config()) for split in SPLITS)


def _records(row: np.void, key: str) -> np.ndarray:
    """(N,) the records of one field, however many there are; none where the field is absent or empty."""
    found = np.asarray(row[key] if key in (row.dtype.names or ()) else [])
    return found.ravel() if found.dtype.names else found[:0].ravel()


def _region(row: np.void, key: str, where: str) -> Region:
    if not {key, "mask"} <= set(row.dtype.names or ()):
        raise BrokenImage(f"{where}: an object or part lacks {key!r} or 'mask'")
    name, mask = str(row[key]), np.asarray(row["mask"])
    if mask.ndim != 2 or mask.dtype.kind not in "uib":
        raise BrokenImage(f"{where}: the mask of {name} is {mask.dtype} {mask.shape}, no (height, width)")
    return Region(name, mask > 0)
