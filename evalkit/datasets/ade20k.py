"""Scene parsing on ADE20K (Zhou et al., CVPR 2017): 150 classes, the release ADEChallengeData2016.

    images/{training,validation}/NAME.jpg          20,210 and 2,000 photos
    annotations/{training,validation}/NAME.png     0 other, 1 ... 150 the classes of objectInfo150.txt

0 does not count, as in the benchmark's own evaluation. Names are the first synonyms of lists/ade20k-150.names.
Source: sceneparsing.csail.mit.edu (data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip); images for
non-commercial research, annotations BSD 3-Clause.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from evalkit.datasets import ade_names, beside, dense
from evalkit.datasets.files import Tree
from evalkit.datasets.listing import Photos
from evalkit.errors import DatasetError, MissingFiles, UnknownName
from evalkit.types import Dataset, SplitSize

ALIASES = {"ade20k": ("ADEChallengeData2016", "ade/ADEChallengeData2016", "ADE20K")}
SPLITS = {"train": "training", "val": "validation", "training": "training", "validation": "validation"}
OFFICIAL = {"training": 20_210, "validation": 2_000}
LAYOUT = "  <root>/images/{training,validation}/NAME.jpg\n  <root>/annotations/{training,validation}/NAME.png"


@dataclass(frozen=True)
class Config:
    """classes: the name of a list of some of the 150 classes, "" for all: "ade20k-object59" has the 59 objects with parts
    of the part-aware paper (arXiv:2301.11915). Pixels of other classes count as nothing. Raises UnknownName for another
    list."""

    classes: str = ""

    def __post_init__(self) -> None:
        if self.classes and self.classes not in ade_names.lists():
            raise UnknownName("list of ADE20K classes", self.classes, ade_names.lists())


def published(folder: str, config: Config) -> Mapping[str, SplitSize]:
    """See the module; the classes are those of the list."""
    classes = len(ade_names.named(config.classes) if config.classes else ade_names.scene())
    return {split: SplitSize(classes, OFFICIAL[part]) for split, part in SPLITS.items()}


def open(root: Path, split: str, config: Config) -> Dataset:
    """The photos of "training" or "validation" by name, a `Segmented` data set.

    Raises MissingFiles, which lists every photo without mask; DatasetError for another split, and for images that are no .jpg.
    """
    if split not in SPLITS:
        raise DatasetError(f"ade20k has no split {split!r} with masks; allowed: training, validation")
    tree = Tree.open(root).rooted(["annotations"])
    part = SPLITS[split]
    found, facts = beside.photos(tree, f"images/{part}", (".jpg",))
    names = [Path(path).stem for path in found]
    if not names:
        raise MissingFiles(f"{tree} has no photos in images/{part}.\nExpected:\n{LAYOUT}")
    masks = {name: f"annotations/{part}/{name}.png" for name in names}
    dense.require(tree, masks.values(), LAYOUT)
    whole = ade_names.scene()
    kept = ade_names.named(config.classes) if config.classes else whole
    meaning = {0: -1} | {number: kept.index(name) if name in kept else -1 for number, name in enumerate(whole, start=1)}
    photos = Photos(tree.within(f"images/{part}"), "{}.jpg")
    maps = dense.IndexMasks(tree, masks, meaning)
    return dense.label_maps("ade20k", split, kept, names, photos=photos, maps=maps, facts=facts)


def verify(root: Path) -> list[str]:
    """Photos without mask, another number of photos than published, and every mask that is no index mask, holds a number
    above 150, or has another size than its photo."""
    return dense.problems((partial(open, root, split, Config()) for split in OFFICIAL), official=OFFICIAL)
