"""Look into Person (Gong et al., CVPR 2017): single people with 19 garments and body parts.

    TrainVal_images/{train,val}_images/NAME.jpg                                   30,462 and 10,000 photos
    TrainVal_images/{train,val}_id.txt                                            the names of a split
    TrainVal_parsing_annotations/{train,val}_segmentations/NAME.png               0 background, 1 ... 19

The folders may lie one deeper, as the zips unpack them, and the photos directly under <root>. The background does not
count, as in the part-aware paper (`reduce_zero_label`, JiePKU/understand-ssl-part-aware segmentation/mmseg/datasets/
lip.py, where the names and their order are from). Left and right are the person's own: a mirrored photo needs them
exchanged. Source: sysu-hcp.net/lip; research only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from evalkit.datasets import dense
from evalkit.datasets.files import Tree, missing
from evalkit.datasets.listing import Photos
from evalkit.errors import DatasetError
from evalkit.types import Dataset, SplitSize

ALIASES = {"lip": ("LIP", "LIP/LIP")}
SPLITS = ("train", "val")
LAYOUT = (
    "  <root>/TrainVal_images/{train,val}_images/NAME.jpg\n  <root>/TrainVal_images/{train,val}_id.txt\n"
    "  <root>/TrainVal_parsing_annotations/{train,val}_segmentations/NAME.png"
)
CLASSES = (
    "Hat",
    "Hair",
    "Glove",
    "Sunglasses",
    "UpperClothes",
    "Dress",
    "Coat",
    "Socks",
    "Pants",
    "Jumpsuits",
    "Scarf",
    "Skirt",
    "Face",
    "Left-arm",
    "Right-arm",
    "Left-leg",
    "Right-leg",
    "Left-shoe",
    "Right-shoe",
)
_PHOTOS = ("TrainVal_images/TrainVal_images", "TrainVal_images", "")
_MASKS = ("TrainVal_parsing_annotations/TrainVal_parsing_annotations", "TrainVal_parsing_annotations")


@dataclass(frozen=True)
class Config:
    """Nothing to choose: the splits and the 19 classes are official."""


def published(folder: str, config: Config) -> Mapping[str, SplitSize]:
    """See the module; arXiv:2301.11915, appendix A.2, has the same."""
    return {"train": SplitSize(len(CLASSES), 30_462), "val": SplitSize(len(CLASSES), 10_000)}


def open(root: Path, split: str, config: Config) -> Dataset:
    """The photos of "train" or "val" in the order of the list, a `Segmented` data set.

    Raises MissingFiles, which lists all photos and masks that are absent; DatasetError for another split or a name that
    is listed twice.
    """
    if split not in SPLITS:
        raise DatasetError(f"lip has no split {split!r} with masks; allowed: train, val")
    tree = Tree.open(root).rooted(["TrainVal_parsing_annotations"])
    pictures = _first(tree, _PHOTOS, f"{split}_images")
    masked = _first(tree, _MASKS, f"{split}_segmentations")
    names = dense.listed(tree, [_first(tree, _PHOTOS, f"{split}_id.txt")])
    masks = {name: f"{masked}/{name}.png" for name in names}
    dense.require(tree, (*(f"{pictures}/{name}.jpg" for name in names), *masks.values()), LAYOUT)
    meaning = {0: -1} | dense.numbered(len(CLASSES), first=1)
    maps = dense.IndexMasks(tree, masks, meaning)
    return dense.label_maps("lip", split, CLASSES, names, photos=Photos(tree.within(pictures), "{}.jpg"), maps=maps)


def verify(root: Path) -> list[str]:
    """Absent lists, photos and masks, and every mask that is no index mask, holds a number above 19, or has another size
    than its photo."""
    return dense.problems(partial(open, root, split, Config()) for split in SPLITS)


def _first(tree: Tree, folders: Iterable[str], name: str) -> str:
    """The first of these folders that holds `name`, with it. Raises MissingFiles."""
    paths = [f"{folder}/{name}".lstrip("/") for folder in folders]
    for path in paths:
        if tree.exists(path):
            return path
    raise missing(str(tree), paths[-1:], LAYOUT)
