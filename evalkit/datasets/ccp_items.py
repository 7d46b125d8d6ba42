"""Garments, hair, skin and things of Clothing Co-Parsing (Yang, Luo, Lin, CVPR 2014) cut out as labelled images.

    photos/NNNN.jpg
    annotations/pixel-level/NNNN.mat    `groundtruth`, (H, W) label numbers of the photo's pixels
    label_list.mat                      `label_list`, 59 names, the first is null (background)

One sample per photo and label: all pixels of that label together (both shoes are one sample), where the mask has enough
pixels and its box is large enough. The box becomes the centred square of its longer side; a part outside the photo is
black. Splits are ranges of photo numbers; classes are the labels with enough samples in the train and in the test
range, in the order of label_list. Samples are sorted by photo, then by label number.

Source: github.com/bearpaw/clothing-co-parsing, 1,004 of 2,098 photos have pixel masks. Licence: Apache-2.0. Only
numbers and text are read from the .mat files; MATLAB objects are not built.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from evalkit.datasets import images
from evalkit.datasets.boxes import frequent, squared
from evalkit.datasets.files import Tree, missing
from evalkit.datasets.listing import Listing, Photos
from evalkit.errors import DatasetError
from evalkit.types import Box, Dataset, Sample

ALIASES = {"ccp": ("clothing-co-parsing", "clothing_co_parsing", "CCP")}
LABELS = "label_list.mat"
LAST = 9999  # names have four digits
LAYOUT = "  <root>/photos/NNNN.jpg\n  <root>/annotations/pixel-level/NNNN.mat\n  <root>/label_list.mat"

Range = Annotated[tuple[int, int], Field(description="first and last photo number, both included")]


def _shipped_ranges() -> dict[str, Range]:
    return {"train": (1, 130), "test": (131, 200)}


@dataclass(frozen=True)
class Config:
    """ranges: (first, last) photo number of each split, both included; they must not overlap. The default is the set of
    200 photos that ships with evalkit; the larger one is train (1, 400), test (401, 600).

    min_pixels, min_side: smallest mask, and shortest side of its box, in pixels (ours: a recognisable crop).
    min_train, min_test: samples of a label that must remain (ours: 16 classes of the shipped set).
    """

    ranges: Mapping[str, Range] = field(default_factory=_shipped_ranges)
    min_pixels: Annotated[int, Field(ge=1)] = 400
    min_side: Annotated[int, Field(ge=1)] = 24
    min_train: Annotated[int, Field(ge=1)] = 20
    min_test: Annotated[int, Field(ge=1)] = 10


class Segment(NamedTuple):
    """The pixels of one label in one photo: their number and the box around them."""

    photo: str
    label: int
    pixels: int
    box: Box


def open(root: Path, split: str, config: Config) -> Dataset:
    """The segments of one range of photos. All masks of "train" and "test" are read, since the classes depend on both.

    Raises MissingFiles, which lists every absent photo and mask of the ranges; DatasetError for another split, ranges
    that overlap, masks that are none, or too few samples of every label.
    """
    _check_ranges(config.ranges, split)
    tree = Tree.open(root).rooted([LABELS])
    _require_files(tree, {"train", "test", split}, config.ranges)
    names = _names(tree)
    found, sizes = {}, {}
    for part in sorted({"train", "test", split}):
        found[part], sizes[part] = _segments(tree, photos(config.ranges[part]), len(names), config)
    train, test = ([segment.label for segment in found[part]] for part in ("train", "test"))
    kept = sorted(frequent(train, test, min_train=config.min_train, min_test=config.min_test))
    if not kept:
        raise DatasetError(f"{tree}: no label has {config.min_train} train and {config.min_test} test segments")
    labels = {number: label for label, number in enumerate(kept)}
    samples = tuple(
        Sample(f"{segment.photo}/{names[segment.label]}", segment.photo, labels[segment.label], squared(segment.box))
        for segment in found[split]
        if segment.label in labels
    )
    classes = tuple(names[number] for number in kept)
    pictures = Photos(tree.within("photos"), "{}.jpg", sizes[split])
    return Listing("ccp_items", split, classes, samples, pictures, {"photos": list(config.ranges[split])})


def verify(root: Path) -> list[str]:
    """Masks without photo, an absent or damaged label list, damaged masks, masks of another size than their photo."""
    tree = Tree.open(root).rooted([LABELS])
    masked = [Path(name).stem for name in tree.names((".mat",), under="annotations/pixel-level")]
    wanted = [LABELS, *(f"photos/{photo}.jpg" for photo in masked)]
    absent = [name for name in wanted if not tree.exists(name)]
    if not masked or absent:
        return [str(missing(str(tree), absent or ["annotations/pixel-level/0001.mat"], LAYOUT))]
    return [problem for problem in (_label_problem(tree), *(_mask_problem(tree, photo) for photo in masked)) if problem]


def photos(numbers: Range) -> list[str]:
    """Names of a range of photos: (1, 3) gives 0001, 0002, 0003."""
    return [f"{number:04d}" for number in range(numbers[0], numbers[1] + 1)]


def _label_problem(tree: Tree) -> str:
    try:
        _names(tree)
    except DatasetError as error:
        return str(error)
    return ""


def _mask_problem(tree: Tree, photo: str) -> str:
    try:
        height, width = _mask(tree, photo).shape
        stored = images.size(tree.read(f"photos/{photo}.jpg"), f"{tree}/photos/{photo}.jpg")
    except DatasetError as error:
        return str(error)
    return "" if stored == (width, height) else f"photo {photo} is {stored} pixels, but its mask is {(width, height)}"


def _check_ranges(ranges: Mapping[str, Range], split: str) -> None:
    absent = [part for part in ("train", "test", split) if part not in ranges]
    if absent:
        raise DatasetError(f"ccp_items has no split {absent[0]!r}; its ranges are: {dict(ranges)}")
    end, before = 0, ""
    for part, (first, last) in sorted(ranges.items(), key=lambda item: item[1]):
        if not 1 <= first <= last <= LAST:
            raise DatasetError(f"ccp_items: the range {(first, last)} of {part!r} is none; photos are 1 to {LAST}")
        if first <= end:
            raise DatasetError(f"ccp_items: photo {first} is in the ranges of both {before!r} and {part!r}")
        end, before = last, part


def _mask_file(photo: str) -> str:
    return f"annotations/pixel-level/{photo}.mat"


def _require_files(tree: Tree, parts: set[str], ranges: Mapping[str, Range]) -> None:
    wanted = [LABELS]
    for part in sorted(parts):
        for photo in photos(ranges[part]):
            wanted += [f"photos/{photo}.jpg", _mask_file(photo)]
    there = {*tree.names(under="photos"), *tree.names(under="annotations/pixel-level")}
    absent = [name for name in wanted if name not in there and not tree.exists(name)]
    if absent:
        raise missing(str(tree), absent, LAYOUT)


def _matrix(tree: Tree, name: str, key: str) -> np.ndarray:
    # scipy is slow to import, and only this layout needs it
    from scipy.io import loadmat

    try:
        content = loadmat(io.BytesIO(tree.read(name)), variable_names=[key])
    except DatasetError:
        raise
    except Exception as cause:  # the reader raises nearly anything on a damaged file
        raise DatasetError(f"{tree}/{name} is no readable .mat file: {cause or type(cause).__name__}") from cause
    if not isinstance(content.get(key), np.ndarray):
        raise DatasetError(f"{tree}/{name} has no array {key!r}")
    value: np.ndarray = content[key]
    return value


def _names(tree: Tree) -> tuple[str, ...]:
    cells = _matrix(tree, LABELS, "label_list").ravel()
    if cells.dtype != object or not all(isinstance(cell, np.ndarray) and cell.dtype.kind == "U" for cell in cells):
        raise DatasetError(f"{tree}/{LABELS}: 'label_list' is no list of names")
    names = tuple("".join(cell.ravel().tolist()) for cell in cells)
    if names[:1] != ("null",):  # number 0 is taken for the background everywhere below
        raise DatasetError(f"{tree}/{LABELS}: the first name is {names[:1]}, not 'null'")
    return names


def _mask(tree: Tree, photo: str) -> np.ndarray:
    mask = _matrix(tree, _mask_file(photo), "groundtruth")
    if mask.ndim != 2 or mask.dtype.kind not in "ui":
        raise DatasetError(f"{tree}/{_mask_file(photo)}: 'groundtruth' is {mask.dtype} {mask.shape}, no label map")
    return mask


def _segments(
    tree: Tree, names: Sequence[str], count: int, config: Config
) -> tuple[list[Segment], dict[str, tuple[int, int]]]:
    """The segments of these photos that are large enough, and the (width, height) of each mask."""
    found: list[Segment] = []
    sizes = {}
    for photo in names:
        mask = _mask(tree, photo)
        if mask.size and not 0 <= int(mask.min()) <= int(mask.max()) < count:
            raise DatasetError(f"{tree}/{_mask_file(photo)}: labels beyond the {count} names of {LABELS}")
        sizes[photo] = (mask.shape[1], mask.shape[0])
        found += [segment for segment in _regions(photo, mask) if _large(segment, config)]
    return found, sizes


def _regions(photo: str, mask: np.ndarray) -> Iterator[Segment]:
    """One segment per label above 0, by label number."""
    from scipy.ndimage import find_objects

    pixels = np.bincount(mask.ravel())
    for label, place in enumerate(find_objects(mask), start=1):
        if place is not None:
            rows, columns = place
            box = (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
            yield Segment(photo, label, int(pixels[label]), box)


def _large(segment: Segment, config: Config) -> bool:
    x0, y0, x1, y1 = segment.box
    return segment.pixels >= config.min_pixels and min(x1 - x0, y1 - y0) >= config.min_side
