"""People of COCO 2017 with their keypoints: the checked content of `annotations/person_keypoints_{train,val}2017.json`.

No data set of its own: crops around keypoints (`coco_keypoints`) and poses are made of it. Crowds and people without a
labelled keypoint are kept; whoever reads them decides.

Source: cocodataset.org, "Data format", keypoint detection. Coordinates are 0-based pixels of the photo, integers in the
published files; visibility is 0 (not labelled, then x = y = 0), 1 (labelled, hidden) or 2 (labelled and visible).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.datasets import coco_json
from evalkit.datasets.files import Tree, missing
from evalkit.errors import DatasetError
from evalkit.types import Box

LAYOUT = "  <root>/annotations/person_keypoints_{train,val}2017.json\n  <root>/{train,val}2017/*.jpg"

# fmt: off
NAMES = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)
# fmt: on
"""The 17 keypoints, in the order of the file. Published numbers such as part-aware's 1, 11, 16 count them from 1."""

_NEEDS: coco_json.Needs = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list, "keypoints": list},
    "categories": {"id": int, "name": str, "keypoints": list},
}


@dataclass(frozen=True, eq=False, slots=True)
class Person:
    """One annotated person.

    id: of the annotation, unique in the split. photo: its file name. box: as published, in pixels. keypoints: (17, 3)
    float64, rows as `NAMES`: x, y in pixels, finite, inside the photo or not, and visibility 0, 1 or 2. area: of the
    outline in square pixels, at least 0. crowd: a group outlined together.
    """

    id: int
    photo: str
    box: Box
    keypoints: npt.NDArray[np.float64]
    area: float
    crowd: bool


@dataclass(frozen=True, eq=False)
class People:
    """One split. persons: sorted by photo, then by id. sizes: (width, height) in pixels, and numbers: the image ids, of
    every listed photo by file name, those without people too. unusable: people who cannot be, not among the persons; their
    photos are broken."""

    persons: tuple[Person, ...]
    sizes: Mapping[str, tuple[int, int]]
    numbers: Mapping[str, int]
    unusable: Sequence[coco_json.Unusable] = ()


def people(tree: Tree, year: str) -> People:
    """The checked people of "train2017" or "val2017".

    Raises MissingFiles, or DatasetError for a file of another task, doubled ids and references to nothing. Unusable are
    people with a box that cannot be (see `coco_json.box_problem`), or keypoints that are not 17 finite triples with
    visibility 0, 1 or 2.
    """
    path = json_path(year)
    if not tree.exists(path):
        raise missing(str(tree), [path], LAYOUT)
    where = tree.where(path)
    found = coco_json.document(tree, path, needs=_NEEDS, holds="keypoints of people")
    categories = {row["id"]: row for row in coco_json.unique(found["categories"], where, "category")}
    _check_categories(categories, where)
    images = {row["id"]: row for row in coco_json.unique(found["images"], where, "image")}
    names = [row["file_name"] for row in images.values()]
    if len(set(names)) < len(names):
        raise DatasetError(f"{where}: {len(names) - len(set(names))} photos are listed under two image ids")
    rows = coco_json.unique(found["annotations"], where, "annotation")
    placed = coco_json.referenced(rows, images, categories, where)
    kept, unusable = coco_json.usable(
        placed, lambda row, photo: coco_json.box_problem(row, photo) or _keypoint_problem(row)
    )
    persons = [_person(row, photo["file_name"]) for row, photo in kept]
    persons.sort(key=lambda person: (person.photo, person.id))
    sizes = {row["file_name"]: (row["width"], row["height"]) for row in images.values()}
    return People(tuple(persons), sizes, {row["file_name"]: row["id"] for row in images.values()}, unusable)


def verified(tree: Tree) -> list[str]:
    """What is wrong with the two files and the photos that they list: a line each."""
    problems = []
    for year in ("train2017", "val2017"):
        try:
            found = people(tree, year)
            coco_json.refuse(tree.where(json_path(year)), list(map(str, found.unusable)))
            coco_json.require_photos(tree, year, found.sizes, layout=LAYOUT)
        except DatasetError as error:
            problems.append(str(error))
    return problems


def json_path(year: str) -> str:
    """The annotation file of "train2017" or "val2017", in the tree."""
    return f"annotations/person_keypoints_{year}.json"


def _check_categories(categories: Mapping[int, Any], where: str) -> None:
    for row in categories.values():
        if tuple(row["keypoints"]) != NAMES:
            raise DatasetError(
                f"{where}: the keypoints of category {row['name']!r} are not the 17 of a person: {row['keypoints']}"
            )
    if len(categories) != 1:
        raise DatasetError(f"{where}: it has {len(categories)} categories; keypoints of people have one, person")


def _keypoint_problem(row: Mapping[str, Any]) -> str:
    values = row["keypoints"]
    if len(values) != 3 * len(NAMES):
        return f"it has {len(values)} keypoint numbers; {3 * len(NAMES)} are needed, (x, y, visibility) of 17 keypoints"
    if not coco_json.finite(values):
        return f"its keypoints {str(values)[:60]}... are not finite numbers"
    wrong = [value for value in values[2::3] if value not in (0, 1, 2)]
    if wrong:
        return f"a keypoint has the visibility {wrong[0]}; allowed: 0, 1, 2"
    area = row.get("area", 0)
    if not coco_json.finite([area]) or area < 0:
        return f"its area {area!r} is no number from 0"
    return ""


def _person(row: Mapping[str, Any], photo: str) -> Person:
    keypoints = np.array(row["keypoints"], dtype=np.float64).reshape(len(NAMES), 3)
    keypoints.flags.writeable = False
    box = coco_json.corners(row["bbox"])
    return Person(row["id"], photo, box, keypoints, float(row.get("area", 0)), bool(row.get("iscrowd")))
