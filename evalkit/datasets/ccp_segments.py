"""Garments, hair, skin and things of Clothing Co-Parsing (Yang, Luo, Lin, CVPR 2014): a label for every pixel.

The layout is that of `ccp`. One sample per photo of a range of photo numbers. The classes are the labels of
label_list.mat in its order: 59 with the background ("null"), which by default does not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from evalkit.datasets import ccp, dense
from evalkit.datasets.ccp import ALIASES, Range
from evalkit.datasets.files import Tree
from evalkit.datasets.listing import Photos
from evalkit.errors import BrokenImage, DatasetError, MissingFiles, UnknownName
from evalkit.types import Dataset

__all__ = ["ALIASES", "Config", "open", "verify"]


@dataclass(frozen=True)
class Config:
    """ranges: (first, last) photo number of each split, both included; they must not overlap. The default is the set of
    200 photos that ships with evalkit; the larger one is train (1, 400), test (401, 600).

    background: whether the label "null" is a class; False as the part-aware paper treats its part data sets
    (`reduce_zero_label` in JiePKU/understand-ssl-part-aware). labels: names of the labels that count, in the order of
    their numbers; () for all. Pixels of other labels count as nothing.
    """

    ranges: Mapping[str, Range] = field(default_factory=ccp.shipped_ranges)
    background: bool = False
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Masks:
    """Label maps from the .mat files of a tree. meaning: the class of each label number, -1 where it does not count."""

    tree: Tree
    meaning: Mapping[int, int] = field(repr=False)

    def where(self, group: str) -> str:
        """The file of a photo's mask."""
        return f"{self.tree}/{ccp.mask_file(group)}"

    def labels(self, group: str) -> np.ndarray:
        """(H, W) int32: a class each, -1 where nothing counts. Raises BrokenImage; MissingFiles where it has gone."""
        try:
            stored = ccp.mask(self.tree, group)
        except MissingFiles:
            raise
        except DatasetError as cause:
            raise BrokenImage(str(cause)) from cause
        return dense.meant(stored, self._table, self.where(group))

    def digest(self, groups: Sequence[str]) -> tuple[str, str]:
        """As `Tree.digest`, over the masks of these photos; the classes say what their numbers mean."""
        return self.tree.digest(ccp.mask_file(group) for group in groups)

    @cached_property
    def _table(self) -> np.ndarray:
        return dense.table(self.meaning)


def open(root: Path, split: str, config: Config) -> Dataset:
    """The photos of one range, a `Segmented` data set.

    Raises MissingFiles, which lists every absent photo and mask of the range; DatasetError for another split, ranges
    that overlap, or a label list that is none; UnknownName for a label that the list lacks.
    """
    ccp.check_ranges("ccp_segments", config.ranges, [split])
    tree = Tree.open(root).rooted([ccp.LABELS])
    ccp.require_files(tree, [split], config.ranges)
    names = ccp.names(tree)
    kept = _kept(names, config)
    meaning = dict.fromkeys(range(len(names)), -1) | {number: label for label, number in enumerate(kept)}
    return dense.label_maps(
        "ccp_segments",
        split,
        [names[number] for number in kept],
        ccp.photos(config.ranges[split]),
        photos=Photos(tree.within("photos"), "{}.jpg"),
        maps=Masks(tree, meaning),
    )


def verify(root: Path) -> list[str]:
    """Masks without photo, an absent or damaged label list, damaged masks, masks of another size than their photo or
    with numbers that the list lacks."""
    return ccp.problems(root)


def _kept(names: Sequence[str], config: Config) -> list[int]:
    """The label numbers that are classes, ascending."""
    for label in config.labels:
        if label not in names:
            raise UnknownName("label of Clothing Co-Parsing", label, names)
    wanted = set(config.labels or names)
    return [
        number for number, name in enumerate(names) if name in wanted and (number or config.background or config.labels)
    ]
