"""Oxford Flowers-102 (Nilsback, Zisserman, ICVGIP 2008): 102 flowers that are common in the United Kingdom.

    jpg/image_NNNNN.jpg
    imagelabels.mat     `labels`, the class of each image, from 1
    setid.mat           `trnid`, `valid`, `tstid`: image numbers of the three splits

The official splits: train 1,020 and val 1,020 images (10 of each class), test 6,149; "trainval" is train, then val. Some
papers train on the larger set and test on the smaller one; the file says what is which, and that is taken. The files
name no classes: they are called by their number.
Source: robots.ox.ac.uk/~vgg/data/flowers/102, which states no licence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from evalkit.datasets import mat
from evalkit.datasets.files import Tree, missing
from evalkit.datasets.listing import Listing, Photos
from evalkit.errors import DatasetError
from evalkit.types import Dataset, Sample, SplitSize

ALIASES = {
    "flowers": (
        "flowers-102",
        "flowers102",
        "Flowers102",
        "102flowers",
        "oxford_flowers102",
        "oxford-102-flowers",
        "Flowers",
    )
}
SPLITS = {"train": ("trnid",), "val": ("valid",), "trainval": ("trnid", "valid"), "test": ("tstid",)}
LABELS, SETS = "imagelabels.mat", "setid.mat"
LAYOUT = f"  <root>/jpg/image_NNNNN.jpg\n  <root>/{LABELS}\n  <root>/{SETS}"


@dataclass(frozen=True)
class Config:
    """Nothing to choose: the splits and the 102 classes are official."""


def published(folder: str, config: Config) -> Mapping[str, SplitSize]:
    """See the module."""
    return {"train": SplitSize(102, 1_020), "val": SplitSize(102, 1_020), "trainval": SplitSize(102, 2_040),
            "test": SplitSize(102, 6_149)}  # fmt: skip


def open(root: Path, split: str, config: Config) -> Dataset:
    """The images of "train", "val", "trainval" or "test", in the order of setid.mat.

    Raises MissingFiles, which lists every absent image of the split; DatasetError for another split, damaged .mat files,
    image numbers without a label, and images in two splits.
    """
    if split not in SPLITS:
        raise DatasetError(f"flowers has no split {split!r}; allowed: {', '.join(SPLITS)}")
    tree = _tree(root)
    labels = mat.numbers(mat.variable(tree, LABELS, "labels"), f"{tree}/{LABELS}")
    sets = _sets(tree, len(labels))
    chosen = [number for key in SPLITS[split] for number in sets[key]]
    _require_images(tree, chosen)
    samples = tuple(Sample(_name(number), _name(number), labels[number - 1] - 1) for number in chosen)
    classes = tuple(str(number) for number in range(1, max(labels, default=0) + 1))
    return Listing("flowers", split, classes, samples, Photos(tree.within("jpg"), "{}.jpg"))


def verify(root: Path) -> list[str]:
    """Absent or damaged .mat files, and every image of a split that is absent."""
    problems = []
    for split in ("trainval", "test"):
        try:
            open(root, split, Config())
        except DatasetError as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))


def _tree(root: Path) -> Tree:
    tree = Tree.open(root).rooted([LABELS, SETS])
    absent = [name for name in (LABELS, SETS) if not tree.exists(name)]
    if absent:
        raise missing(str(tree), absent, LAYOUT)
    return tree


def _sets(tree: Tree, images: int) -> dict[str, list[int]]:
    where = f"{tree}/{SETS}"
    sets = {
        key: mat.numbers(mat.variable(tree, SETS, key), f"{where}, {key}", last=images)
        for key in ("trnid", "valid", "tstid")
    }
    everything = [number for numbers in sets.values() for number in numbers]
    if len(set(everything)) < len(everything):
        raise DatasetError(f"{where}: an image is named twice; each belongs to one of {', '.join(sets)}")
    return sets


def _name(number: int) -> str:
    return f"image_{number:05d}"


def _require_images(tree: Tree, numbers: Iterable[int]) -> None:
    there = set(tree.names(under="jpg"))
    absent = [path for path in (f"jpg/{_name(number)}.jpg" for number in numbers) if path not in there]
    if absent:
        raise missing(str(tree), absent, LAYOUT)
