"""Urban scenes of Cityscapes (Cordts et al., CVPR 2016) with the 19 classes of its evaluation, fine annotations.

    leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png            2,975 and 500 photos of 2048 x 1024
    gtFine/{train,val}/CITY/NAME_gtFine_labelIds.png             0 ... 33

The published label ids become train ids here; converted files (labelTrainIds) are not needed. The other 15 ids do not
count. The masks of "test" are not public. Source: cityscapes-dataset.com; ids: mcordts/cityscapesScripts,
helpers/labels.py. Licence: research only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from evalkit.datasets import beside, dense
from evalkit.datasets.files import Tree
from evalkit.datasets.listing import Photos
from evalkit.errors import DatasetError, MissingFiles
from evalkit.types import Dataset, SplitSize

ALIASES = {"cityscapes": ("Cityscapes", "CityScapes")}
OFFICIAL = {"train": 2_975, "val": 500}
PHOTO, MASK = "_leftImg8bit.png", "_gtFine_labelIds.png"
LAYOUT = (
    "  <root>/leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png\n"
    "  <root>/gtFine/{train,val}/CITY/NAME_gtFine_labelIds.png"
)
CLASSES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""Names by label id, in the order of the train ids."""
LAST = 33


@dataclass(frozen=True)
class Config:
    """Nothing to choose: the splits and the 19 classes are official."""


def published(folder: str, config: Config) -> Mapping[str, SplitSize]:
    """See the module."""
    return {split: SplitSize(len(CLASSES), photos) for split, photos in OFFICIAL.items()}


def open(root: Path, split: str, config: Config) -> Dataset:
    """The photos of "train" or "val" by city and name, a `Segmented` data set.

    Raises MissingFiles, which lists every photo without mask; DatasetError for another split, and for images of other names.
    """
    if split not in OFFICIAL:
        raise DatasetError(f"cityscapes has no split {split!r} with public masks; allowed: train, val")
    tree = Tree.open(root).rooted(["gtFine"])
    folder = f"leftImg8bit/{split}"
    found, facts = beside.photos(tree, folder, (PHOTO.lower(),))
    names = [path[len(folder) + 1 : -len(PHOTO)] for path in found]
    if not names:
        raise MissingFiles(f"{tree} has no photos in {folder}.\nExpected:\n{LAYOUT}")
    masks = {name: f"gtFine/{split}/{name}{MASK}" for name in names}
    dense.require(tree, masks.values(), LAYOUT)
    meaning = dict.fromkeys(range(LAST + 1), -1) | {id: label for label, id in enumerate(CLASSES)}
    photos = Photos(tree.within(folder), f"{{}}{PHOTO}")
    maps = dense.IndexMasks(tree, masks, meaning)
    return dense.label_maps("cityscapes", split, tuple(CLASSES.values()), names, photos=photos, maps=maps, facts=facts)


def verify(root: Path) -> list[str]:
    """Photos without mask, another number of photos than published, and every mask that is no index mask, holds an id
    above 33, or has another size than its photo."""
    return dense.problems((partial(open, root, split, Config()) for split in OFFICIAL), official=OFFICIAL)
