"""All outlined objects of COCO 2017 photos (Lin et al. 2014, "Microsoft COCO"), and from them a category per pixel.

    annotations/instances_{train,val}2017.json
    {train,val}2017/*.jpg                          <root> is a folder or a .zip, which may hold a single top folder

One sample per photo with at least one object, sorted by file name; crowds are no objects. Both kinds: `objects` gives
each outline as a mask (`Instances`), `pixels` a category for every pixel (`Segmented`). Outlines become masks by
pycocotools, as the official evaluation makes them; a polygon thinner than a pixel gives a mask without pixels. Annotations
that outline nothing (no polygon, or none of three corners) are left out and counted, as detectron2 does; the photo of an
outline or a box that cannot be (it leaves the photo, a code that cannot be decoded) is broken. Classes are all categories
of the JSON file in its order (80 thing classes).

Source: cocodataset.org. Annotations CC BY 4.0; each photo has its own licence, which the JSON names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evalkit.datasets import coco_json, coco_outlines, dense
from evalkit.datasets.coco_outlines import Outline, filled
from evalkit.datasets.files import Tree, missing
from evalkit.datasets.listing import Photos
from evalkit.errors import DatasetError
from evalkit.types import Outlined, SplitSize

ALIASES = {"coco": ("COCO", "coco2017", "COCO2017", "mscoco", "MSCOCO")}
LAYOUT = "  <root>/annotations/instances_{train,val}2017.json\n  <root>/{train,val}2017/*.jpg"

Overlap = Literal["void", "later"]

_NEEDS: coco_json.Needs = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}


@dataclass(frozen=True)
class Config:
    """How `pixels` is made of outlines; the objects themselves are the same under every option.

    background: False: pixels of no object count as nothing, as the dense protocols of the part-aware paper ignore the
    background; True: they are class 0, "background", and the categories follow (torchvision's reference training).
    overlap: "void": where objects of different categories overlap, nothing counts (torchvision
    references/segmentation/coco_utils.py, which also voids overlaps within a category; those are kept here, since their
    category is certain); "later": the object with the larger annotation id wins (nightrome/cocostuffapi
    cocostuffhelper.py). Pixels of a crowd where no object lies count as nothing under every option: a crowd's outline
    is coarse.
    """

    background: bool = False
    overlap: Overlap = "void"


@dataclass(frozen=True)
class Outlines:
    """The annotations of every photo, by id. sizes: (width, height) of each photo."""

    path: str
    sizes: Mapping[str, tuple[int, int]] = field(repr=False)
    of: Mapping[str, tuple[Outline, ...]] = field(repr=False)
    config: Config
    left_out: Mapping[str, list[int]] = field(default_factory=dict, repr=False)
    """Ids of annotations that outline nothing, or not all of what they say, by reason."""
    unusable: Sequence[coco_json.Unusable] = field(default=(), repr=False)
    """Annotations that are not in `of`, since their outlines or boxes cannot be."""

    def where(self, group: str) -> str:
        """The annotation file and the photo."""
        return f"{self.path}, {group}"

    def digest(self, groups: Sequence[str]) -> tuple[str, str]:
        """Over the outlines of these photos and the options of `Config`."""
        total = hashlib.sha256(f"{self.config!r}\n".encode())
        for group in sorted(groups):
            total.update(f"{group}\0{self.sizes[group]}\n".encode("utf-8", "surrogateescape"))
            for item in self.of[group]:
                total.update(f"{item.id}\0{item.label}\0{item.crowd}\0{[len(p) for p in item.polygons]}\n".encode())
                total.update(b"".join(item.polygons) + item.counts)
        return total.hexdigest(), "every outline"

    def masks(self, group: str) -> Iterator[tuple[Outline, np.ndarray]]:
        """Each annotation of a photo, crowds included, with its (W, H) bool mask, columns first."""
        for item in self.of[group]:
            yield item, filled(item, self.sizes[group])

    def labels(self, group: str) -> np.ndarray:
        """(H, W) int32: a class each, -1 where nothing counts."""
        nothing = 0 if self.config.background else -1
        found = np.full(self.sizes[group], nothing, np.int32)
        void, crowds = np.zeros(found.shape, bool), np.zeros(found.shape, bool)
        for item, mask in self.masks(group):
            if item.crowd:
                crowds |= mask
                continue
            columns = np.flatnonzero(mask.any(1))
            part = slice(columns[0], columns[-1] + 1) if len(columns) else slice(0)
            inside, below = mask[part], found[part]
            if self.config.overlap == "void":
                void[part] |= inside & (below != nothing) & (below != item.label)
            below[inside] = item.label
        found[void | (crowds & (found == nothing))] = -1
        return np.ascontiguousarray(found.T)


@dataclass(frozen=True, eq=False)
class Objects(dense.LabelMaps):
    """A data set of both kinds, `Instances` and `Segmented`."""

    maps: Outlines = field(repr=False, kw_only=True)

    def objects(self, index: int) -> tuple[Outlined, ...]:
        """The objects of a photo by annotation id, without crowds; masks (H, W) bool of the upright photo.

        Raises BrokenImage where the photo has another size than its annotation says.
        """
        group = self.samples[index].group
        self.check_size(group, self.maps.sizes[group])
        return tuple(
            Outlined(str(item.id), item.label, np.ascontiguousarray(mask.T))
            for item, mask in self.maps.masks(group)
            if not item.crowd
        )


def published(folder: str, config: Config) -> Mapping[str, SplitSize]:
    """Photos that the annotations list, also those without an object."""
    return {split: SplitSize(80 + config.background, photos) for split, photos in coco_json.PHOTOS.items()}


def open(root: Path, split: str, config: Config) -> Objects:
    """The photos of "train" or "val" that have an object.

    Raises MissingFiles, which lists every photo that is needed and absent; DatasetError for another split, a file of
    another task, doubled ids and references to nothing.
    """
    if split not in coco_json.SPLITS:
        raise DatasetError(f"coco_instances has no split {split!r} with instances; allowed: train, val")
    year = coco_json.SPLITS[split]
    tree = Tree.open(root).rooted(["annotations"])
    path = f"annotations/instances_{year}.json"
    if not tree.exists(path):
        raise missing(str(tree), [path], LAYOUT)
    classes, outlines = _read(tree, path, config)
    broken = coco_json.broken(outlines.unusable, path)
    groups = [group for group, items in outlines.of.items() if group in broken or not all(item.crowd for item in items)]
    coco_json.require_photos(tree, year, groups, layout=LAYOUT)
    photos = Photos(tree.within(year), broken=broken)
    made = dense.label_maps("coco_instances", split, classes, groups, photos=photos, maps=outlines)
    facts: dict[str, Any] = {"objects": sum(not item.crowd for group in groups for item in outlines.of[group])}
    facts["photos"] = len(outlines.sizes)
    if left_out := {**outlines.left_out, **coco_json.left_out(outlines.unusable)}:
        facts["annotations_left_out"] = left_out
    return Objects("coco_instances", split, made.classes, made.samples, made.pictures, facts, maps=outlines)


def verify(root: Path) -> list[str]:
    """Absent files, annotation files and outlines that cannot be used, and every absent photo that has an object.

    Photos are not decoded: whether each has the size that its annotation says shows when it is read.
    """
    problems = []
    for split in ("train", "val"):
        try:
            data = open(root, split, Config())
            coco_json.refuse(data.maps.path, list(map(str, data.maps.unusable)))
        except DatasetError as error:
            problems.append(str(error))
    return problems


def _read(tree: Tree, path: str, config: Config) -> tuple[list[str], Outlines]:
    """The names of the classes, and the annotations of each photo that has any, photos and ids ascending."""
    where = tree.where(path)
    document = coco_json.document(tree, path, needs=_NEEDS, holds="instances")
    categories = coco_json.category_names(document, where)
    images = {row["id"]: row for row in coco_json.unique(document["images"], where, "image")}
    labels = {id: label for label, id in enumerate(categories, start=int(config.background))}
    rows = coco_json.unique(document["annotations"], where, "annotation")
    left_out: dict[str, list[int]] = {}
    outlined = []
    for each in rows:
        row, odd = coco_outlines.cleared(each)
        if odd:
            left_out.setdefault(odd, []).append(row["id"])
        if odd not in (coco_outlines.NOTHING, coco_outlines.SHORT):
            outlined.append(row)
    placed = coco_json.referenced(outlined, images, labels, where)
    kept, unusable = coco_json.usable(
        placed, lambda row, photo: coco_json.box_problem(row, photo) or coco_outlines.problem(row, photo)
    )
    found = [(photo["file_name"], coco_outlines.outline(row, labels[row["category_id"]], photo)) for row, photo in kept]
    found.sort(key=lambda item: (item[0], item[1].id))
    of = {photo: tuple(item for _, item in items) for photo, items in groupby(found, key=lambda item: item[0])}
    of = {photo: of.get(photo, ()) for photo in sorted({*of, *(item.photo for item in unusable)})}
    sizes = {row["file_name"]: (row["width"], row["height"]) for row in images.values()}
    names = [*(["background"] if config.background else []), *categories.values()]
    return names, Outlines(where, sizes, of, config, left_out, unusable)
