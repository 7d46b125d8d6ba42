"""Garments, hair, skin and things of Clothing Co-Parsing (Yang, Luo, Lin, CVPR 2014) cut out as labelled images.

The layout is that of `ccp`. One sample per photo and label: all pixels of that label together (both shoes are one
sample), where the mask has enough pixels and its box is large enough. The box becomes the centred square of its longer
side; a part outside the photo is black. Splits are ranges of photo numbers; classes are the labels with enough samples
in the train and in the test range, in the order of label_list. Samples are sorted by photo, then by label number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from evalkit.datasets import ccp
from evalkit.datasets.boxes import frequent, squared
from evalkit.datasets.ccp import ALIASES, Range
from evalkit.datasets.files import Tree
from evalkit.datasets.listing import Listing, Photos
from evalkit.errors import DatasetError
from evalkit.types import Box, Dataset, Sample

__all__ = ["ALIASES", "Config", "open", "verify"]


@dataclass(frozen=True)
class Config:
    """ranges: (first, last) photo number of each split, both included; they must not overlap. The default is the set of
    200 photos that ships with evalkit; the larger one is train (1, 400), test (401, 600).

    min_pixels, min_side: smallest mask, and shortest side of its box, in pixels (ours: a recognisable crop).
    min_train, min_test: samples of a label that must remain (ours: 16 classes of the shipped set). labels: only these, by
    their names in label_list; () for all.
    """

    ranges: Mapping[str, Range] = field(default_factory=ccp.shipped_ranges)
    min_pixels: Annotated[int, Field(ge=1)] = 400
    min_side: Annotated[int, Field(ge=1)] = 24
    min_train: Annotated[int, Field(ge=1)] = 20
    min_test: Annotated[int, Field(ge=1)] = 10
    labels: tuple[str, ...] = ()


class Segment(NamedTuple):
    """The pixels of one label in one photo: their number and the box around them."""

    photo: str
    label: int
    pixels: int
    box: Box


def open(root: Path, split: str, config: Config) -> Dataset:
    """The segments of one range of photos. All masks of "train" and "test" are read, since the classes depend on both.

    Raises MissingFiles, which lists every absent photo and mask of the ranges; DatasetError for another split, ranges
    that overlap, masks that are none, a label that is none, or too few samples of every label.
    """
    ccp.check_ranges("ccp_items", config.ranges, ("train", "test", split))
    parts = sorted({"train", "test", split})
    tree = Tree.open(root).rooted([ccp.LABELS])
    ccp.require_files(tree, parts, config.ranges)
    names = ccp.names(tree)
    if unknown := [label for label in config.labels if label not in names[1:]]:
        raise DatasetError(f"{tree} has no label {unknown[0]!r}; there are: {', '.join(names[1:])}")
    found, sizes = {}, {}
    for part in parts:
        found[part], sizes[part] = _segments(tree, ccp.photos(config.ranges[part]), len(names), config)
    train, test = ([segment.label for segment in found[part]] for part in ("train", "test"))
    kept = sorted(frequent(train, test, min_train=config.min_train, min_test=config.min_test))
    kept = [number for number in kept if not config.labels or names[number] in config.labels]
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
    return ccp.problems(root)


def _segments(
    tree: Tree, names: Sequence[str], count: int, config: Config
) -> tuple[list[Segment], dict[str, tuple[int, int]]]:
    """The segments of these photos that are large enough, and the (width, height) of each mask."""
    found: list[Segment] = []
    sizes = {}
    for photo in names:
        mask = ccp.mask(tree, photo)
        if mask.size and not 0 <= int(mask.min()) <= int(mask.max()) < count:
            raise DatasetError(f"{tree}/{ccp.mask_file(photo)}: labels beyond the {count} names of {ccp.LABELS}")
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
