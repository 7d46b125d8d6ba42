"""Semantic segmentation on PASCAL VOC 2012 (Everingham et al.), with the further masks of Hariharan et al. (ICCV 2011).

    JPEGImages/NAME.jpg
    SegmentationClass/NAME.png                     palette index: 0 background, 1 ... 20 objects, 255 void
    SegmentationClassAug/NAME.png                  the further masks ("SBD") as index images
    ImageSets/Segmentation/{train,val,trainval}.txt, and trainaug.txt or aug.txt

<root> is the folder VOC2012 or one that holds VOCdevkit/VOC2012. Splits: train (1,464), val (1,449), trainval, and
trainaug (10,582): the names of trainaug.txt, or those of train.txt and aug.txt as mmsegmentation reads them
(configs/_base_/datasets/pascal_voc12_aug.py). A photo's mask is the one of SegmentationClass where it has one.
Source: host.robots.ox.ac.uk/pascal/VOC/voc2012; photos under Flickr's terms of use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from evalkit.datasets import dense, voc_names
from evalkit.datasets.files import Tree, missing
from evalkit.datasets.listing import Photos
from evalkit.errors import DatasetError
from evalkit.types import Dataset, SplitSize

ALIASES = {"voc2012": ("VOC2012", "VOCdevkit/VOC2012", "VOCdevkit", "voc", "VOC")}
SPLITS = ("train", "val", "trainval", "trainaug")
SETS = "ImageSets/Segmentation"
LAYOUT = (
    "  <root>/JPEGImages/NAME.jpg\n  <root>/SegmentationClass/NAME.png\n"
    "  <root>/ImageSets/Segmentation/{train,val,trainval}.txt\n"
    "  for trainaug: <root>/SegmentationClassAug/NAME.png and ImageSets/Segmentation/trainaug.txt (or aug.txt)"
)


@dataclass(frozen=True)
class Config:
    """background: whether 0 is a class; True as in the benchmark, whose mean is over 21 classes. False: it does not count
    and 20 classes remain."""

    background: bool = True


def published(folder: str, config: Config) -> Mapping[str, SplitSize]:
    """See the module."""
    return {
        split: SplitSize(20 + config.background, photos)
        for split, photos in {"train": 1_464, "val": 1_449, "trainval": 2_913, "trainaug": 10_582}.items()
    }


def open(root: Path, split: str, config: Config) -> Dataset:
    """The photos of a split in the order of its list, a `Segmented` data set.

    Raises MissingFiles, which lists all photos and masks that are absent; DatasetError for another split or a name that
    is listed twice.
    """
    if split not in SPLITS:
        raise DatasetError(f"voc_segmentation has no split {split!r} with masks; allowed: {', '.join(SPLITS)}")
    tree = voc_names.kit(root, "2012", "SegmentationClass")
    names = _names(tree, split)
    own = set(tree.names((".png",), under="SegmentationClass"))
    masks = {name: _mask(name, own, split) for name in names}
    dense.require(tree, (*(f"JPEGImages/{name}.jpg" for name in names), *masks.values()), LAYOUT)
    labels = voc_names.CLASSES
    classes = ("background", *labels) if config.background else labels
    meaning = dense.numbered(len(classes), first=int(not config.background))
    photos = Photos(tree.within("JPEGImages"), "{}.jpg")
    maps = dense.IndexMasks(tree, masks, {0: -1} | meaning)
    return dense.label_maps("voc_segmentation", split, classes, names, photos=photos, maps=maps)


def verify(root: Path) -> list[str]:
    """Of train and val, and of trainaug where its list is there: absent files, and every mask that is no index mask,
    holds a number that is no class, or has another size than its photo."""
    tree = voc_names.kit(root, "2012", "SegmentationClass")
    further = [name for name in ("trainaug", "aug") if tree.exists(f"{SETS}/{name}.txt")]
    splits = ("train", "val", *(["trainaug"] if further else []))
    return dense.problems(partial(open, root, split, Config()) for split in splits)


def _names(tree: Tree, split: str) -> list[str]:
    lists = [split]
    if split == "trainaug" and not tree.exists(f"{SETS}/trainaug.txt"):
        lists = ["train", "aug"]
    absent = [f"{SETS}/{name}.txt" for name in lists if not tree.exists(f"{SETS}/{name}.txt")]
    if absent:
        raise missing(str(tree), absent, LAYOUT)
    return dense.listed(tree, [f"{SETS}/{name}.txt" for name in lists])


def _mask(name: str, own: set[str], split: str) -> str:
    path = f"SegmentationClass/{name}.png"
    return f"SegmentationClassAug/{name}.png" if split == "trainaug" and path not in own else path
