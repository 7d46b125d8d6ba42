"""People of COCO 2017 for pose estimation, each in a box of their own (Lin et al. 2014, "Microsoft COCO").

    annotations/person_keypoints_{train,val}2017.json
    {train,val}2017/*.jpg                          <root> is a folder or a .zip, which may hold a single top folder

One sample per annotated person who is no crowd and has a labelled keypoint and a box and outline with an area; the others
are counted in `describe` and known to the evaluation, which ignores them as COCO's does. The sample's box is the annotated
one, widened to the input's aspect. Samples are sorted by photo, then by annotation id.

Source: cocodataset.org. Which people are taken: ViTAE-Transformer/ViTPose c050ed2,
mmpose/datasets/datasets/top_down/topdown_coco_dataset.py:118-176; there boxes are also cut at the photo's border and one
pixel smaller, here they are as published. sigmas: pycocotools.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from evalkit.datasets import coco_json, people
from evalkit.datasets.figures import FigureListing, region
from evalkit.datasets.files import Tree
from evalkit.datasets.listing import Photos
from evalkit.datasets.people import Person
from evalkit.errors import DatasetError
from evalkit.types import Dataset, Figure, Sample, Skeleton, SplitSize

ALIASES = {"coco": ("COCO", "coco2017", "COCO2017", "mscoco", "MSCOCO")}

# fmt: off
SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
)
# fmt: on
LEFT, RIGHT = (1, 3, 5, 7, 9, 11, 13, 15), (2, 4, 6, 8, 10, 12, 14, 16)

SKELETON = Skeleton(
    names=people.NAMES,
    mirrored=tuple(dict(zip(LEFT + RIGHT, RIGHT + LEFT, strict=True)).get(k, k) for k in range(17)),
    upper=tuple(range(11)),
    sigmas=SIGMAS,
    torso=((12, 5), (11, 6)),
)
"""torso: right hip to left shoulder, else left hip to right shoulder."""


@dataclass(frozen=True)
class Config:
    """aspect: width over height of a sample's box, 3 / 4 for inputs of 192 x 256. padding: 1.25 (Xiao et al. 2018)."""

    aspect: Annotated[float, Field(gt=0)] = 0.75
    padding: Annotated[float, Field(ge=1)] = 1.25


def published(folder: str, config: Config) -> Mapping[str, SplitSize]:
    """Photos that the annotations list, also those without a person."""
    return {split: SplitSize(None, photos) for split, photos in coco_json.PHOTOS.items()}


def open(root: Path, split: str, config: Config) -> Dataset:
    """The people of "train" or "val".

    Raises MissingFiles, which lists every photo that is needed and absent; DatasetError for another split, whatever
    `people.people` refuses, or where nobody is left.
    """
    if split not in coco_json.SPLITS:
        raise DatasetError(f"coco_pose has no split {split!r} with people; allowed: train, val")
    tree, year = Tree.open(root).rooted(["annotations"]), coco_json.SPLITS[split]
    found = people.people(tree, year)
    nobody = [_nobody(item) for item in found.unusable]  # never seen, since their photos are broken
    taken = sorted(
        [*(person for person in found.persons if not _left_out(person)), *nobody], key=lambda one: (one.photo, one.id)
    )
    photos = {person.photo for person in taken}
    coco_json.require_photos(tree, year, photos, layout=people.LAYOUT)
    samples = tuple(
        Sample(str(person.id), person.photo, 0, region(person.box, aspect=config.aspect, padding=config.padding))
        for person in taken
    )
    everybody: dict[str, list[Figure]] = {photo: [] for photo in sorted(photos)}
    for person in found.persons:
        if person.photo in everybody:
            everybody[person.photo].append(_figure(person))
    broken = coco_json.broken(found.unusable, people.json_path(year))
    facts: dict[str, Any] = {"left_out": _counted(found.persons), "photos": len(found.sizes)}
    if found.unusable:
        facts["annotations_left_out"] = coco_json.left_out(found.unusable)
    return FigureListing(
        "coco_pose", split, ("person",), samples, Photos(tree.within(year), sizes=found.sizes, broken=broken), facts,
        SKELETON, tuple(map(_figure, taken)), {photo: tuple(figures) for photo, figures in everybody.items()},
    )  # fmt: skip


def verify(root: Path) -> list[str]:
    """Annotation files that are absent or cannot be used, and every listed photo that is absent."""
    return people.verified(Tree.open(root).rooted(["annotations"]))


def _nobody(item: coco_json.Unusable) -> Person:
    """In the place of a person who cannot be."""
    return Person(item.id, item.photo, (0.0, 0.0, 1.0, 1.0), np.zeros((len(people.NAMES), 3)), 0.0, crowd=False)


def _left_out(person: Person) -> str:
    """Why a person is no sample, "" for one who is."""
    x0, y0, x1, y1 = person.box
    if person.crowd:
        return "crowd"
    if not (person.keypoints[:, 2] > 0).any():
        return "no labelled keypoint"
    return "" if x1 > x0 and y1 > y0 and person.area > 0 else "no area"


def _counted(persons: Iterable[Person]) -> dict[str, int]:
    counts = {"crowd": 0, "no labelled keypoint": 0, "no area": 0}
    for person in persons:
        if why := _left_out(person):
            counts[why] += 1
    return counts


def _figure(person: Person) -> Figure:
    return Figure(person.id, person.keypoints, person.box, person.area, person.crowd)
