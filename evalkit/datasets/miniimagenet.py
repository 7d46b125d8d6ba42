"""miniImageNet in the split of Ravi and Larochelle (ICLR 2017): 64 + 16 + 20 classes of ImageNet, 600 images each.

    images/<wnid><number>.jpg
    {train,val,test}.csv        header "filename,label", then lines "n0153282900000005.jpg,n01532829"

The splits share no class: each has labels of its own, from 0 by wnid. Images stand in the order of the list.
Source: github.com/twitter/meta-learning-lstm, data/miniImagenet; the images are ImageNet's, under its terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evalkit.datasets.files import Tree, missing
from evalkit.datasets.listing import Listing, Photos
from evalkit.errors import DatasetError
from evalkit.types import Dataset, Sample, SplitSize

ALIASES = {"miniimagenet": ("mini-imagenet", "mini_imagenet", "miniImageNet", "miniImagenet")}
SPLITS = ("train", "val", "test")
LAYOUT = "  <root>/images/n0153282900000005.jpg ...\n  <root>/{train,val,test}.csv"
HEADER = "filename,label"


@dataclass(frozen=True)
class Config:
    """Nothing to choose: the splits are those of the lists."""


def published(folder: str, config: Config) -> Mapping[str, SplitSize]:
    """See the module."""
    return {split: SplitSize(classes, 600 * classes) for split, classes in zip(SPLITS, (64, 16, 20), strict=True)}


def open(root: Path, split: str, config: Config) -> Dataset:
    """The images of "train", "val" or "test".

    Raises MissingFiles, which lists every absent image; DatasetError for another split or a list that is none.
    """
    if split not in SPLITS:
        raise DatasetError(f"miniimagenet has no split {split!r}; allowed: {', '.join(SPLITS)}")
    tree = Tree.open(root).rooted([f"{split}.csv"])
    rows = _rows(tree, split)
    there = set(tree.names(under="images"))
    absent = [path for path in (f"images/{name}" for name, _ in rows) if path not in there]
    if absent:
        raise missing(str(tree), absent, LAYOUT)
    classes = tuple(sorted({label for _, label in rows}))
    number = {label: place for place, label in enumerate(classes)}
    samples = tuple(Sample(name, name, number[label]) for name, label in rows)
    return Listing("miniimagenet", split, classes, samples, Photos(tree.within("images")))


def verify(root: Path) -> list[str]:
    """Absent or wrong lists, and every listed image that is absent."""
    problems = []
    for split in SPLITS:
        try:
            open(root, split, Config())
        except DatasetError as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))


def _rows(tree: Tree, split: str) -> list[tuple[str, str]]:
    name = f"{split}.csv"
    if not tree.exists(name):
        raise missing(str(tree), [name], LAYOUT)
    header, *lines = tree.read(name).decode("utf-8", "replace").split() or [""]
    if header != HEADER:
        raise DatasetError(f"{tree.where(name)}: the first line is {header!r}, not {HEADER!r}")
    rows = []
    for number, line in enumerate(lines, start=2):
        file, comma, label = line.partition(",")
        if not (file and comma and label) or "," in label:
            raise DatasetError(f"{tree.where(name)}, line {number}: {line!r} is no file and label")
        rows.append((file, label))
    if len({file for file, _ in rows}) < len(rows):
        raise DatasetError(f"{tree.where(name)}: an image is listed twice")
    return rows
