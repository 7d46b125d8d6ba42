"""Instances of COCO 2017 (Lin et al. 2014, "Microsoft COCO") cut out of their photos as labelled images.

    annotations/instances_{train,val}2017.json
    {train,val}2017/*.jpg                          <root> is a folder or a .zip, which may hold a single top folder

One sample per instance whose box is large enough, never a crowd; classes are the categories with enough instances in
both splits, in the order of the JSON. A box becomes the centred square of its longer side, so that the crop keeps the
object's proportions; a part outside the photo is black. Samples are sorted by photo, then by annotation id.

Source: cocodataset.org. Annotations CC BY 4.0; each photo has its own licence, which the JSON names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from evalkit.datasets.boxes import frequent, squared
from evalkit.datasets.files import Tree, missing
from evalkit.datasets.listing import Listing, Photos
from evalkit.errors import DatasetError
from evalkit.types import Box, Dataset, Sample

ALIASES = {"coco": ("COCO", "coco2017", "COCO2017", "mscoco", "MSCOCO")}
SPLITS = {"train": "train2017", "val": "val2017", "train2017": "train2017", "val2017": "val2017"}
LAYOUT = "  <root>/annotations/instances_{train,val}2017.json\n  <root>/{train,val}2017/*.jpg"
SLACK = 1.0
"""Pixels by which a box may reach over the border: published boxes are rounded outlines."""

_SHOWN = 5
_NEEDS: Mapping[str, Mapping[str, type]] = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}


@dataclass(frozen=True)
class Config:
    """min_side: shortest side of a box in pixels; 24 leaves a recognisable crop (ours, no paper gives a value).

    min_train, min_test: instances of a category that must remain in train2017 and val2017 (ours: enough for k = 20).
    square: widen each box to the centred square of its longer side; False keeps the box, which the view then distorts
    or crops. max_aspect: longest over shortest side of a box, None for any; "approximately square" boxes (part-aware,
    arXiv:2301.11915, object retrieval, which gives no number) are those up to 1.25 here. Boxes are judged as published.
    """

    min_side: Annotated[float, Field(ge=1)] = 24
    min_train: Annotated[int, Field(ge=1)] = 30
    min_test: Annotated[int, Field(ge=1)] = 10
    square: bool = True
    max_aspect: Annotated[float, Field(ge=1)] | None = None


class Instance(NamedTuple):
    """One annotation: its id, the photo's file name, the category's id, and the box in pixels of the photo."""

    id: int
    photo: str
    category: int
    box: Box


class Annotations(NamedTuple):
    """What is used of one JSON file. sizes: (width, height) of each photo; categories: names by id, in their order."""

    categories: Mapping[int, str]
    sizes: Mapping[str, tuple[int, int]]
    instances: Sequence[Instance]


def open(root: Path, split: str, config: Config) -> Dataset:
    """The instances of "train" or "val". Both JSON files are read, since the categories depend on both.

    Raises MissingFiles, which lists every photo that is needed and absent; DatasetError for another split, a file of
    another task, doubled ids, boxes that cannot be, or too few instances of every category.
    """
    if split not in SPLITS:
        raise DatasetError(f"coco_objects has no split {split!r} with instances; allowed: train, val")
    tree = Tree.open(root).rooted(["annotations"])
    _require_files(tree)
    year = {name: instances(tree, name) for name in ("train2017", "val2017")}
    large = {name: _fitting(table.instances, config) for name, table in year.items()}
    train, val = ([item.category for item in large[name]] for name in ("train2017", "val2017"))
    kept = frequent(train, val, min_train=config.min_train, min_test=config.min_test)
    labels = {id: label for label, id in enumerate(id for id in year["train2017"].categories if id in kept)}
    if not labels:
        raise DatasetError(f"{tree}: no category has {config.min_train} train and {config.min_test} val instances")
    table, name = year[SPLITS[split]], SPLITS[split]
    chosen = [instance for instance in large[name] if instance.category in labels]
    _require_photos(tree, name, {instance.photo for instance in chosen})
    photos = Photos(tree.within(name), sizes=table.sizes)
    classes = tuple(table.categories[id] for id in labels)
    return Listing("coco_objects", split, classes, tuple(_samples(chosen, labels, config.square)), photos)


def verify(root: Path) -> list[str]:
    """Absent files, annotation files that cannot be used, and every listed photo that is absent."""
    tree = Tree.open(root).rooted(["annotations"])
    problems = []
    for name in ("train2017", "val2017"):
        try:
            _require_photos(tree, name, instances(tree, name).sizes)
        except DatasetError as error:
            problems.append(str(error))
    return problems


def instances(tree: Tree, name: str) -> Annotations:
    """The checked content of `annotations/instances_<name>.json`, crowds left out, sorted by photo and id.

    Raises MissingFiles, or DatasetError for a file of another task, doubled ids, references to nothing, and boxes that
    cannot be: no four finite numbers, negative, more than a pixel outside the photo.
    """
    path = _json(name)
    where = f"{tree}/{path}"
    document = _document(tree, path)
    categories = {row["id"]: row["name"] for row in _unique(document["categories"], where, "category")}
    images = {row["id"]: row for row in _unique(document["images"], where, "image")}
    sizes = {row["file_name"]: (row["width"], row["height"]) for row in images.values()}
    found: list[Instance] = []
    bad: list[str] = []
    for row in _unique(document["annotations"], where, "annotation"):
        photo, problem = _checked(row, images, categories)
        if problem:
            bad.append(f"annotation {row['id']}: {problem}")
        elif not row.get("iscrowd"):
            x, y, width, height = map(float, row["bbox"])
            found.append(Instance(row["id"], photo, row["category_id"], (x, y, x + width, y + height)))
    if bad:
        more = f" ... and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise DatasetError(f"{where}: {'; '.join(bad[:_SHOWN])}{more}")
    return Annotations(categories, sizes, sorted(found, key=lambda item: (item.photo, item.id)))


def _json(name: str) -> str:
    return f"annotations/instances_{name}.json"


def _document(tree: Tree, path: str) -> dict[str, Any]:
    where = f"{tree}/{path}"
    try:
        document: dict[str, Any] = json.loads(tree.read(path))
    except (ValueError, RecursionError) as cause:
        raise DatasetError(f"{where} is no JSON: {cause}") from cause
    parts = ("images", "annotations", "categories")
    lacking = [key for key in parts if not isinstance(document, dict) or not isinstance(document.get(key), list)]
    if lacking:
        raise DatasetError(f"{where} holds no instances: it lacks {', '.join(lacking)} (captions have no categories)")
    for part, keys in _NEEDS.items():
        for row in document[part]:
            if not isinstance(row, dict) or any(not isinstance(row.get(key), kind) for key, kind in keys.items()):
                wanted = ", ".join(f"{key} ({kind.__name__})" for key, kind in keys.items())
                raise DatasetError(f"{where}: an entry of {part!r} lacks one of {wanted}: {str(row)[:120]}")
    return document


def _unique(rows: Iterable[dict[str, Any]], where: str, kind: str) -> list[dict[str, Any]]:
    seen: dict[Any, dict[str, Any]] = {}
    doubled = []
    for row in rows:
        if row["id"] in seen:
            doubled.append(row["id"])
        seen[row["id"]] = row
    if doubled:
        raise DatasetError(f"{where}: {len(doubled)} {kind} ids occur more than once: {doubled[:_SHOWN]}")
    return list(seen.values())


def _checked(row: dict[str, Any], images: Mapping[Any, Any], categories: Mapping[Any, str]) -> tuple[str, str]:
    """(photo, problem) of an annotation; the problem is "" when there is none."""
    image, box = images.get(row["image_id"]), row["bbox"]
    if image is None:
        return "", f"its image {row['image_id']} is not listed"
    if row["category_id"] not in categories:
        return "", f"its category {row['category_id']} is not listed"
    numbers = len(box) == 4 and all(isinstance(side, int | float) for side in box)
    if not numbers or not all(math.isfinite(side) for side in box):
        return "", f"its box {box} is not four finite numbers"
    x, y, width, height = box
    if width < 0 or height < 0:
        return "", f"its box {box} (x, y, width, height) has a negative side"
    right, bottom = image["width"] + SLACK, image["height"] + SLACK
    if x < -SLACK or y < -SLACK or x + width > right or y + height > bottom:
        return "", f"its box {box} (x, y, width, height) leaves the {image['width']} x {image['height']} photo"
    return str(image["file_name"]), ""


def _fitting(instances: Iterable[Instance], config: Config) -> list[Instance]:
    """Those of the size and the shape asked for."""
    found = []
    for item in instances:
        x0, y0, x1, y1 = item.box
        short, long = sorted((x1 - x0, y1 - y0))
        if short >= config.min_side and (config.max_aspect is None or long <= config.max_aspect * short):
            found.append(item)
    return found


def _samples(instances: Iterable[Instance], labels: Mapping[int, int], square: bool) -> Iterable[Sample]:
    for item in instances:
        yield Sample(str(item.id), item.photo, labels[item.category], squared(item.box) if square else item.box)


def _require_files(tree: Tree) -> None:
    absent = [path for path in map(_json, ("train2017", "val2017")) if not tree.exists(path)]
    if absent:
        raise missing(str(tree), absent, LAYOUT)


def _require_photos(tree: Tree, name: str, photos: Iterable[str]) -> None:
    there = set(tree.names(under=name))
    absent = [path for path in sorted(f"{name}/{photo}" for photo in photos) if path not in there]
    if absent:
        raise missing(str(tree), absent, LAYOUT)
