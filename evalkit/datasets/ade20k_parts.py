"""Objects and their parts in the full release of ADE20K (Zhou et al., IJCV 2019), version 2021_17_01.

    images/ADE/{training,validation}/.../NAME.jpg
    images/ADE/{training,validation}/.../NAME.json            objects and parts, by name and number
    images/ADE/{training,validation}/.../NAME_seg.png         the object of each pixel: number = R // 10 * 256 + G
    images/ADE/{training,validation}/.../NAME_parts_1.png     its part, the same way; absent where a photo has no parts

<root> is the folder ADE20K_2021_17_01 or one that holds it. The classes come from a list that is generated once from the
release and does not travel with evalkit, since making it needs all 27,574 annotations (`ade20k_lists` has the rule):

    evalkit data classes ade20k_parts --data-root DIR

A pixel counts where object and part are a pair of the list ("parts") or the object is in it ("objects"). Source:
groups.csail.mit.edu/vision/datasets/ADE20K (on request); images for non-commercial research, annotations BSD 3-Clause.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np

from evalkit.datasets import ade20k_lists, beside, dense, images
from evalkit.datasets.ade20k_lists import SPLITS, PartList
from evalkit.datasets.files import Tree
from evalkit.datasets.listing import Photos
from evalkit.errors import BrokenImage, DatasetError, MissingFiles
from evalkit.types import Dataset, SplitSize

ALIASES = {"ade20k_2021": ("ADE20K_2021_17_01", "ADE20K", "ade20k_full")}
LAYOUT = ade20k_lists.LAYOUT
OFFICIAL = {"training": 25_574, "validation": 2_000}


@dataclass(frozen=True)
class Config:
    """labels: the pairs of object and part of the list, or its objects.

    classes: the list: a name in evalkit's `lists` folder, or the path of a file that `evalkit data classes` wrote.
    """

    labels: Literal["parts", "objects"] = "parts"
    classes: str = ade20k_lists.DEFAULT


@dataclass(frozen=True)
class Masks:
    """Label maps from the release's images. files: path of each photo's masks in the tree, without "_seg.png"."""

    tree: Tree
    files: Mapping[str, str] = field(repr=False)
    parts: frozenset[str] = field(repr=False)
    """Photos that have a `_parts_1.png`."""
    table: PartList = field(repr=False)
    labels_of: Literal["parts", "objects"]

    def where(self, group: str) -> str:
        """The object mask of a photo."""
        return f"{self.tree}/{self.files[group]}_seg.png"

    def digest(self, groups: Sequence[str]) -> tuple[str, str]:
        """Over the masks of these photos and the list of classes."""
        names = [f"{self.files[group]}_seg.png" for group in groups]
        if self.labels_of == "parts":
            names += [f"{self.files[group]}_parts_1.png" for group in groups if group in self.parts]
        content, how = self.tree.digest(names)
        chosen = f"{content} {self.labels_of} {self.table.parts}"
        return hashlib.sha256(chosen.encode()).hexdigest(), f"{how}, and the list of classes"

    def labels(self, group: str) -> np.ndarray:
        """(H, W) int32: a class each, -1 where nothing counts. Raises BrokenImage."""
        objects = self._numbers(f"{self.files[group]}_seg.png")
        if self.labels_of == "objects":
            found: np.ndarray = self._objects[objects]
            return found
        found = np.full(objects.shape, -1, np.int32)
        if group in self.parts:
            parts = self._numbers(f"{self.files[group]}_parts_1.png")
            if parts.shape != found.shape:
                raise BrokenImage(f"{self.where(group)}: its mask of parts has another size, {parts.shape[::-1]}")
            rows, columns = np.nonzero(parts)  # few pixels have a part
            found[rows, columns] = self._pair(objects[rows, columns], parts[rows, columns])
        return found

    def _numbers(self, name: str) -> np.ndarray:
        """(H, W) uint16: the number of each pixel's object or part, 0 where there is none."""
        where = self.tree.where(name)
        try:
            stored = images.stored(self.tree.read(name), where)
        except (MissingFiles, BrokenImage):
            raise
        except DatasetError as cause:
            raise BrokenImage(str(cause)) from cause
        if stored.mode != "RGB":
            raise BrokenImage(f"{where}: has mode {stored.mode}, but this release codes numbers in red and green")
        red, green = (np.asarray(stored.getchannel(band)) for band in range(2))
        found: np.ndarray = _HIGH[red] + green
        return found

    def _pair(self, objects: np.ndarray, parts: np.ndarray) -> np.ndarray:
        keys = objects.astype(np.int64) << 16 | parts
        place = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        return np.where(self._keys[place] == keys, self._values[place], -1)

    @cached_property
    def _sorted(self) -> list[tuple[int, int]]:
        pairs = enumerate(self.table.parts)
        return sorted((part.object_number << 16 | part.part_number, label) for label, part in pairs)

    @cached_property
    def _keys(self) -> np.ndarray:
        return np.array([key for key, _ in self._sorted], np.int64)

    @cached_property
    def _values(self) -> np.ndarray:
        return np.array([label for _, label in self._sorted], np.int32)

    @cached_property
    def _objects(self) -> np.ndarray:
        found = np.full(1 << 16, -1, np.int32)
        for label, (_, number) in enumerate(self.table.objects):
            found[number] = label
        return found


_BESIDE = (".png", ".json", ".txt")
"""Endings of what the release has beside its photos."""

_HIGH = (np.arange(256) // 10 * 256).astype(np.uint16)


def published(folder: str, config: Config) -> Mapping[str, SplitSize]:
    """Photos of the release; parts and objects as the part-aware paper (arXiv:2301.11915, appendix A.2) counts them."""
    return {split: SplitSize(209 if config.labels == "parts" else 59, photos) for split, photos in OFFICIAL.items()}


def open(root: Path, split: str, config: Config) -> Dataset:
    """The photos of "training" or "validation" by path, a `Segmented` data set.

    Raises MissingFiles where the list of classes has not been generated, and for every photo without mask; DatasetError
    for another split, or a list that is none.
    """
    if split not in SPLITS:
        raise DatasetError(f"ade20k_parts has no split {split!r}; allowed: {', '.join(SPLITS)}")
    tree = _tree(root)
    table = ade20k_lists.read(config.classes)
    folder = ade20k_lists.folder(split)
    names = [path[len(folder) + 1 : -4] for path in _photos(tree, folder)]
    if not names:
        raise MissingFiles(f"{tree} has no photos in {folder}.\nExpected:\n{LAYOUT}")
    files = {name: f"{folder}/{name}" for name in names}
    dense.require(tree, (f"{path}_seg.png" for path in files.values()), LAYOUT)
    present = set(tree.names(under=folder))
    parts = frozenset(name for name, path in files.items() if f"{path}_parts_1.png" in present)
    classes = [part.title for part in table.parts] if config.labels == "parts" else [name for name, _ in table.objects]
    photos = Photos(tree.within(folder), "{}.jpg")
    maps = Masks(tree, files, parts, table, config.labels)
    return dense.label_maps("ade20k_parts", split, classes, names, photos=photos, maps=maps)


def verify(root: Path) -> list[str]:
    """Photos without mask, another number of photos than published, and every mask that is damaged or has another size
    than its photo. The list of classes need not be there."""
    tree = _tree(root)
    problems = []
    for split, published in OFFICIAL.items():
        folder = ade20k_lists.folder(split)
        try:
            names = [path[:-4] for path in _photos(tree, folder)]
        except DatasetError as error:
            problems.append(str(error))
            continue
        if len(names) != published:
            problems.append(f"the split {split!r} has {len(names):,} photos; {published:,} are published")
        problems += dense.problems([partial(_unlabelled, tree, split, names)]) if names else []
    return problems


def write_classes(root: Path, out: Path | None, *, objects: str = "", least: int = 1) -> str:
    """Make the list of classes from the whole release (`ade20k_lists.generate`) and write it.

    out: None for where `Config` looks for it. objects: a list of object names, "" for the paper's 59, "all" for every
    object. Returns what to tell: counts beside the paper's. Raises as `generate`, and DatasetError where the file cannot
    be written.
    """
    chosen = "" if objects == "all" else objects or ade20k_lists.OBJECTS
    made = ade20k_lists.generate(_tree(root), objects=chosen, least=least)
    file = out or ade20k_lists.path(ade20k_lists.DEFAULT)
    try:
        part = file.with_name(f"{file.name}.part")
        part.write_text(made.text(), "utf-8")
        part.replace(file)
    except OSError as cause:
        raise DatasetError(f"{file} cannot be written: {cause.strerror}; give another place with --out") from cause
    return f"{file}: {len(made.parts)} parts of {len(made.objects)} objects (the part-aware paper: 209 of 59)"


def _tree(root: Path) -> Tree:
    return Tree.open(root).rooted(["images/ADE"])


def _photos(tree: Tree, folder: str) -> list[str]:
    """The photos of a folder, sorted; masks and notes lie beside them. Raises DatasetError for images of other endings."""
    return beside.photos(tree, folder, (".jpg",), wanted=lambda name: not name.lower().endswith(_BESIDE))[0]


def _unlabelled(tree: Tree, split: str, paths: Sequence[str]) -> Dataset:
    """The photos of a split with the classes of an empty list, to check their masks."""
    dense.require(tree, [f"{path}_seg.png" for path in paths], LAYOUT)
    table = PartList(parts=(ade20k_lists.Part("", 0, "", 0, 0, 0),), rule={})
    there = {path for path in paths if tree.exists(f"{path}_parts_1.png")}
    maps = Masks(tree, {path: path for path in paths}, frozenset(there), table, "parts")
    return dense.label_maps("ade20k_parts", split, ["none"], paths, photos=Photos(tree, "{}.jpg"), maps=maps)
