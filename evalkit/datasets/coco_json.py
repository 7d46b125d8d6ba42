"""What the JSON files of COCO have in common: documents, ids, boxes and photos, checked before anything is made of them.

Source: cocodataset.org, "Data format".
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from evalkit.datasets.files import Tree, missing
from evalkit.errors import DatasetError
from evalkit.types import Box

Needs = Mapping[str, Mapping[str, type]]
"""Keys that each entry must have, and their types, by part of the document."""

Row = Mapping[str, Any]
"""An entry of a part."""

Placed = tuple[Row, Row]
"""An annotation and the entry of its photo."""

SPLITS = {"train": "train2017", "val": "val2017", "train2017": "train2017", "val2017": "val2017"}

PHOTOS = {"train": 118_287, "val": 5_000}
"""Listed in the annotation files of 2017, of instances and of keypoints alike."""

SLACK = 1.0
"""Pixels by which a box may reach over the border: published boxes are rounded outlines."""

SHOWN = 5
"""Problems that a message lists."""

UNUSABLE = "that cannot be used, so that their photos are broken"
"""The reason of annotations that `Unusable` holds, as the facts of a data set have it."""


def document(tree: Tree, path: str, *, needs: Needs, holds: str) -> dict[str, Any]:
    """The parsed file. holds: what it should hold, for the message ("instances").

    Raises MissingFiles; DatasetError for a file that is no JSON, lacks a part, or has entries without the keys needed.
    """
    where = tree.where(path)
    try:
        found: dict[str, Any] = json.loads(tree.read(path))
    except (ValueError, RecursionError) as cause:
        raise DatasetError(f"{where} is no JSON: {cause}") from cause
    lacking = [part for part in needs if not isinstance(found, dict) or not isinstance(found.get(part), list)]
    if lacking:
        raise DatasetError(f"{where} holds no {holds}: it lacks {', '.join(lacking)} (captions have no categories)")
    for part, keys in needs.items():
        for row in found[part]:
            if not isinstance(row, dict) or any(not isinstance(row.get(key), kind) for key, kind in keys.items()):
                wanted = ", ".join(f"{key} ({kind.__name__})" for key, kind in keys.items())
                raise DatasetError(f"{where}: an entry of {part!r} lacks one of {wanted}: {str(row)[:120]}")
    return found


def unique(rows: Iterable[dict[str, Any]], where: str, kind: str) -> list[dict[str, Any]]:
    """The same rows. Raises DatasetError, naming them, where ids occur more than once."""
    seen: dict[Any, dict[str, Any]] = {}
    doubled = []
    for row in rows:
        if row["id"] in seen:
            doubled.append(row["id"])
        seen[row["id"]] = row
    if doubled:
        raise DatasetError(f"{where}: {len(doubled)} {kind} ids occur more than once: {doubled[:SHOWN]}")
    return list(seen.values())


def category_names(document: Mapping[str, Any], where: str) -> dict[int, str]:
    """The names of the categories by id, in their order. Raises DatasetError for an id or a name that occurs twice: splits
    agree on classes by name."""
    found = {row["id"]: row["name"] for row in unique(document["categories"], where, "category")}
    doubled = sorted(name for name, times in Counter(found.values()).items() if times > 1)
    if doubled:
        raise DatasetError(f"{where}: {len(doubled)} names of categories occur more than once: {doubled[:SHOWN]}")
    return found


def referenced(rows: Iterable[Row], images: Mapping[Any, Row], categories: Iterable[Any], where: str) -> list[Placed]:
    """Annotations with the entries of their photos. Raises DatasetError where some name an image or a category that is not
    listed."""
    lost, found = [], []
    for row in rows:
        if problem := _reference_problem(row, images, categories):
            lost.append(f"annotation {row['id']}: {problem}")
        else:
            found.append((row, images[row["image_id"]]))
    refuse(where, lost)
    return found


def usable(rows: Iterable[Placed], problem: Callable[[Row, Row], str]) -> tuple[list[Placed], list[Unusable]]:
    """The annotations that can be, and the others. problem: what is wrong with one, "" where nothing is."""
    kept, others = [], []
    for row, photo in rows:
        if why := problem(row, photo):
            others.append(Unusable(row["id"], photo["file_name"], row["category_id"], why))
        else:
            kept.append((row, photo))
    return kept, others


def _reference_problem(row: Row, images: Mapping[Any, Row], categories: Iterable[Any]) -> str:
    if row["image_id"] not in images:
        return f"its image {row['image_id']} is not listed"
    if row["category_id"] not in categories:
        return f"its category {row['category_id']} is not listed"
    return ""


def box_problem(row: Row, image: Row) -> str:
    """What is wrong with an annotation's box, "" where nothing is: no four finite numbers, a negative side, more than a pixel
    outside the photo. image: the entry of its photo."""
    box = row["bbox"]
    if len(box) != 4 or not finite(box):
        return f"its box {box} is not four finite numbers"
    x, y, width, height = box
    if width < 0 or height < 0:
        return f"its box {box} (x, y, width, height) has a negative side"
    right, bottom = image["width"] + SLACK, image["height"] + SLACK
    if x < -SLACK or y < -SLACK or x + width > right or y + height > bottom:
        return f"its box {box} (x, y, width, height) leaves the {image['width']} x {image['height']} photo"
    return ""


def finite(values: Iterable[Any]) -> bool:
    """Whether all are finite numbers."""
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def corners(box: Sequence[float]) -> Box:
    """(x0, y0, x1, y1) of the published (x, y, width, height)."""
    x, y, width, height = map(float, box)
    return (x, y, x + width, y + height)


def refuse(where: str, problems: Sequence[str]) -> None:
    """Raises DatasetError with the first problems and the count of the others, where there are any."""
    if problems:
        raise DatasetError(f"{where}: {_first(problems)}")


def _first(problems: Sequence[str]) -> str:
    more = f" ... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return f"{'; '.join(problems[:SHOWN])}{more}"


class Unusable(NamedTuple):
    """An annotation whose box, outline or keypoints cannot be: its id, the photo's file name, the category's id, and what is wrong.

    The photo is broken then, not the file: what else it holds can be measured where broken images may be left out.
    """

    id: int
    photo: str
    category: int
    why: str

    def __str__(self) -> str:
        return f"annotation {self.id}: {self.why}"


def broken(found: Iterable[Unusable], path: str) -> dict[str, str]:
    """What is wrong by photo, for `Photos.broken`. path: of the annotation file."""
    of: dict[str, list[str]] = {}
    for item in found:
        of.setdefault(item.photo, []).append(str(item))
    return {photo: f"in {path}, {_first(problems)}" for photo, problems in of.items()}


def left_out(found: Sequence[Unusable]) -> dict[str, list[int]]:
    """Their ids by reason, for the facts of a data set; empty where there are none."""
    return {UNUSABLE: [item.id for item in found]} if found else {}


def require_photos(tree: Tree, year: str, photos: Iterable[str], *, layout: str) -> None:
    """Raises MissingFiles, which lists every one of these photos that the folder `year` ("val2017") lacks."""
    there = set(tree.names(under=year))
    absent = [path for path in sorted(f"{year}/{photo}" for photo in photos) if path not in there]
    if absent:
        raise missing(str(tree), absent, layout)
