"""Instances of COCO 2017 (Lin et al. 2014, "Microsoft COCO") cut out of their photos as labelled images.

    annotations/instances_{train,val}2017.json
    {train,val}2017/*.jpg                          <root> is a folder or a .zip, which may hold a single top folder

One sample per instance whose box is large enough, never a crowd; classes are the categories with enough instances in
both splits, in the order of the JSON. A box becomes the centred square of its longer side, so that the crop keeps the
object's proportions; a part outside the photo is black. Samples are sorted by photo, then by annotation id. The photo of a
box that cannot be is broken.

Source: cocodataset.org. Annotations CC BY 4.0; each photo has its own licence, which the JSON names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from evalkit.datasets import coco_json
from evalkit.datasets.boxes import frequent, squared
from evalkit.datasets.files import Tree, missing
from evalkit.datasets.listing import Listing, Photos
from evalkit.errors import DatasetError
from evalkit.types import Box, Dataset, Sample, SplitSize

ALIASES = {"coco": ("COCO", "coco2017", "COCO2017", "mscoco", "MSCOCO")}
LAYOUT = "  <root>/annotations/instances_{train,val}2017.json\n  <root>/{train,val}2017/*.jpg"

_NEEDS: coco_json.Needs = {
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
    """One annotation: its id, the photo's file name, the category's name (its id may be another in the other file), and the
    box in pixels of the photo."""

    id: int
    photo: str
    category: str
    box: Box


class Annotations(NamedTuple):
    """What is used of one JSON file. sizes: (width, height) of each photo; categories: names by id, in their order; unusable:
    annotations whose boxes cannot be."""

    categories: Mapping[int, str]
    sizes: Mapping[str, tuple[int, int]]
    instances: Sequence[Instance]
    unusable: Sequence[coco_json.Unusable]


def published(folder: str, config: Config) -> Mapping[str, SplitSize]:
    """Photos that the annotations list; which categories remain depends on the options."""
    return {split: SplitSize(None, photos) for split, photos in coco_json.PHOTOS.items()}


def open(root: Path, split: str, config: Config) -> Dataset:
    """The instances of "train" or "val". Both JSON files are read, since the categories depend on both.

    Raises MissingFiles, which lists every photo that is needed and absent; DatasetError for another split, a file of
    another task, doubled ids, references to nothing, or too few instances of every category.
    """
    if split not in coco_json.SPLITS:
        raise DatasetError(f"coco_objects has no split {split!r} with instances; allowed: train, val")
    tree = Tree.open(root).rooted(["annotations"])
    _require_files(tree)
    year = {name: instances(tree, name) for name in ("train2017", "val2017")}
    large = {name: _fitting(table.instances, config) for name, table in year.items()}
    train, val = ([item.category for item in large[name]] for name in ("train2017", "val2017"))
    kept = frequent(train, val, min_train=config.min_train, min_test=config.min_test)
    names = [name for name in year["train2017"].categories.values() if name in kept]
    labels = {name: label for label, name in enumerate(names)}
    if not labels:
        raise DatasetError(f"{tree}: no category has {config.min_train} train and {config.min_test} val instances")
    table, name = year[coco_json.SPLITS[split]], coco_json.SPLITS[split]
    chosen = [instance for instance in large[name] if instance.category in labels]
    found = [*_samples(chosen, labels, config.square), *_broken_samples(table, labels)]
    samples = tuple(sorted(found, key=lambda sample: (sample.group, int(sample.id))))
    coco_json.require_photos(tree, name, {sample.group for sample in samples}, layout=LAYOUT)
    broken = coco_json.broken(table.unusable, _json(name))
    facts: dict[str, Any] = {"photos": len(table.sizes)}
    if table.unusable:
        facts["annotations_left_out"] = coco_json.left_out(table.unusable)
    photos = Photos(tree.within(name), sizes=table.sizes, broken=broken)
    return Listing("coco_objects", split, tuple(labels), samples, photos, facts)


def verify(root: Path) -> list[str]:
    """Absent files, annotation files that cannot be used, and every listed photo that is absent."""
    tree = Tree.open(root).rooted(["annotations"])
    problems = []
    for name in ("train2017", "val2017"):
        try:
            found = instances(tree, name)
            coco_json.refuse(tree.where(_json(name)), list(map(str, found.unusable)))
            coco_json.require_photos(tree, name, found.sizes, layout=LAYOUT)
        except DatasetError as error:
            problems.append(str(error))
    return problems


def instances(tree: Tree, name: str) -> Annotations:
    """The checked content of `annotations/instances_<name>.json`, crowds left out, sorted by photo and id.

    Raises MissingFiles, or DatasetError for a file of another task, doubled ids and references to nothing.
    """
    path = _json(name)
    where = tree.where(path)
    document = coco_json.document(tree, path, needs=_NEEDS, holds="instances")
    categories = coco_json.category_names(document, where)
    images = {row["id"]: row for row in coco_json.unique(document["images"], where, "image")}
    sizes = {row["file_name"]: (row["width"], row["height"]) for row in images.values()}
    rows = coco_json.unique(document["annotations"], where, "annotation")
    placed = coco_json.referenced(rows, images, categories, where)
    kept, unusable = coco_json.usable([pair for pair in placed if not pair[0].get("iscrowd")], coco_json.box_problem)
    found = [
        Instance(row["id"], photo["file_name"], categories[row["category_id"]], coco_json.corners(row["bbox"]))
        for row, photo in kept
    ]
    return Annotations(categories, sizes, sorted(found, key=lambda item: (item.photo, item.id)), unusable)


def _json(name: str) -> str:
    return f"annotations/instances_{name}.json"


def _fitting(instances: Iterable[Instance], config: Config) -> list[Instance]:
    """Those of the size and the shape asked for."""
    found = []
    for item in instances:
        x0, y0, x1, y1 = item.box
        short, long = sorted((x1 - x0, y1 - y0))
        if short >= config.min_side and (config.max_aspect is None or long <= config.max_aspect * short):
            found.append(item)
    return found


def _samples(instances: Iterable[Instance], labels: Mapping[str, int], square: bool) -> Iterable[Sample]:
    for item in instances:
        yield Sample(str(item.id), item.photo, labels[item.category], squared(item.box) if square else item.box)


def _broken_samples(table: Annotations, labels: Mapping[str, int]) -> Iterable[Sample]:
    """Of annotations whose boxes cannot be: whoever reads their photos is told, or leaves them out."""
    for item in table.unusable:
        if (category := table.categories[item.category]) in labels:
            yield Sample(str(item.id), item.photo, labels[category])


def _require_files(tree: Tree) -> None:
    absent = [path for path in map(_json, ("train2017", "val2017")) if not tree.exists(path)]
    if absent:
        raise missing(str(tree), absent, LAYOUT)
