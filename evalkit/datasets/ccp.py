"""The files of Clothing Co-Parsing (Yang, Luo, Lin, CVPR 2014): what the readers of that layout share.

    photos/NNNN.jpg
    annotations/pixel-level/NNNN.mat    `groundtruth`, (H, W) label numbers of the photo's pixels
    label_list.mat                      `label_list`, 59 names, the first is null (background)

Source: github.com/bearpaw/clothing-co-parsing, 1,004 of 2,098 photos have pixel masks. Licence: Apache-2.0. Only
numbers and text are read from the .mat files; MATLAB objects are not built.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from evalkit.datasets import images
from evalkit.datasets.files import Tree, missing
from evalkit.errors import DatasetError

ALIASES = {"ccp": ("clothing-co-parsing", "clothing_co_parsing", "CCP")}
LABELS = "label_list.mat"
LAST = 9999  # names have four digits
LAYOUT = "  <root>/photos/NNNN.jpg\n  <root>/annotations/pixel-level/NNNN.mat\n  <root>/label_list.mat"

Range = Annotated[tuple[int, int], Field(description="first and last photo number, both included")]


def shipped_ranges() -> dict[str, Range]:
    """The 200 photos that ship with evalkit."""
    return {"train": (1, 130), "test": (131, 200)}


def photos(numbers: Range) -> list[str]:
    """Names of a range of photos: (1, 3) gives 0001, 0002, 0003."""
    return [f"{number:04d}" for number in range(numbers[0], numbers[1] + 1)]


def problems(root: Path) -> list[str]:
    """Masks without photo, an absent or damaged label list, damaged masks, masks of another size than their photo."""
    tree = Tree.open(root).rooted([LABELS])
    masked = [Path(name).stem for name in tree.names((".mat",), under="annotations/pixel-level")]
    wanted = [LABELS, *(f"photos/{photo}.jpg" for photo in masked)]
    absent = [name for name in wanted if not tree.exists(name)]
    if not masked or absent:
        return [str(missing(str(tree), absent or ["annotations/pixel-level/0001.mat"], LAYOUT))]
    return [problem for problem in (_label_problem(tree), *(_mask_problem(tree, photo) for photo in masked)) if problem]


def _label_problem(tree: Tree) -> str:
    try:
        names(tree)
    except DatasetError as error:
        return str(error)
    return ""


def _mask_problem(tree: Tree, photo: str) -> str:
    try:
        height, width = mask(tree, photo).shape
        stored = images.size(tree.read(f"photos/{photo}.jpg"), f"{tree}/photos/{photo}.jpg")
    except DatasetError as error:
        return str(error)
    return "" if stored == (width, height) else f"photo {photo} is {stored} pixels, but its mask is {(width, height)}"


def check_ranges(name: str, ranges: Mapping[str, Range], splits: Iterable[str]) -> None:
    """Raise DatasetError, as the dataset `name`, for a split without range, ranges that are none, or that overlap."""
    absent = [part for part in splits if part not in ranges]
    if absent:
        raise DatasetError(f"{name} has no split {absent[0]!r}; its ranges are: {dict(ranges)}")
    end, before = 0, ""
    for part, (first, last) in sorted(ranges.items(), key=lambda item: item[1]):
        if not 1 <= first <= last <= LAST:
            raise DatasetError(f"{name}: the range {(first, last)} of {part!r} is none; photos are 1 to {LAST}")
        if first <= end:
            raise DatasetError(f"{name}: photo {first} is in the ranges of both {before!r} and {part!r}")
        end, before = last, part


def mask_file(photo: str) -> str:
    """The mask of a photo, relative to the tree."""
    return f"annotations/pixel-level/{photo}.mat"


def require_files(tree: Tree, parts: Iterable[str], ranges: Mapping[str, Range]) -> None:
    """Raise MissingFiles, which lists every absent photo and mask of these splits."""
    wanted = [LABELS]
    for part in sorted(set(parts)):
        for photo in photos(ranges[part]):
            wanted += [f"photos/{photo}.jpg", mask_file(photo)]
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
        raise DatasetError(f"{tree.where(name)} is no readable .mat file: {cause or type(cause).__name__}") from cause
    if not isinstance(content.get(key), np.ndarray):
        raise DatasetError(f"{tree.where(name)} has no array {key!r}")
    value: np.ndarray = content[key]
    return value


def names(tree: Tree) -> tuple[str, ...]:
    """The names of the label numbers, "null" first. Raises DatasetError for a list that is none."""
    cells = _matrix(tree, LABELS, "label_list").ravel()
    if cells.dtype != object or not all(isinstance(cell, np.ndarray) and cell.dtype.kind == "U" for cell in cells):
        raise DatasetError(f"{tree}/{LABELS}: 'label_list' is no list of names")
    found = tuple("".join(cell.ravel().tolist()) for cell in cells)
    if found[:1] != ("null",):  # number 0 is taken for the background everywhere below
        raise DatasetError(f"{tree}/{LABELS}: the first name is {found[:1]}, not 'null'")
    return found


def mask(tree: Tree, photo: str) -> np.ndarray:
    """(H, W) label numbers of a photo, as stored. Raises DatasetError for what is no label map."""
    found = _matrix(tree, mask_file(photo), "groundtruth")
    if found.ndim != 2 or found.dtype.kind not in "ui":
        raise DatasetError(f"{tree}/{mask_file(photo)}: 'groundtruth' is {found.dtype} {found.shape}, no label map")
    return found
