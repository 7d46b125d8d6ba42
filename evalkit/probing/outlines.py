"""Objects and labelled pixels on a grid of patches: which share of each patch they cover, and where objects are deepest.

The grid divides the image as a squashed view does: pixel x of W belongs to the column floor((x + 1/2) w / W) of w, rows
likewise, so that every pixel of the original mask is counted in exactly one patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from evalkit.errors import ProtocolError
from evalkit.types import Instances, Outlined

Merge = Literal["each", "category", "largest"]
"""Every object; the objects of one class in an image together; the largest object of an image."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Outlines:
    """The O objects of one image on a grid of N = h w patches, row by row.

    size: (width, height) of the image. labels: (O,). cover: (O, N) pixels of the object in each patch. area: (O,) its
    pixels. cells: (N,) pixels of each patch. deepest: (O,) flat index of the patch that holds the object's deepest pixel.
    bits: (O, ...) the masks, packed, where they were asked for.
    """

    size: tuple[int, int]
    labels: Counts
    cover: Counts
    area: Counts
    cells: Counts
    deepest: Counts
    bits: npt.NDArray[np.uint8] | None = None

    def mask(self, number: int) -> npt.NDArray[np.bool_]:
        """(H, W) bool: the pixels of an object."""
        if self.bits is None:
            raise ProtocolError("the masks were not kept")
        width, height = self.size
        return np.unpackbits(self.bits[number], count=width * height).view(bool).reshape(height, width)


@dataclass(frozen=True)
class Outliner:
    """Reads the outlines of a sample; picklable. grid: (h, w). merge: what counts as one object. masks: keep them."""

    grid: tuple[int, int]
    merge: Merge = "each"
    masks: bool = False

    def __call__(self, dataset: Instances, position: int) -> Outlines:
        """The outlines of the sample at a position; objects without a pixel are left out. Raises BrokenImage."""
        return outline(dataset.objects(position), self.grid, merge=self.merge, masks=self.masks)


def outline(
    objects: Sequence[Outlined],
    grid: tuple[int, int],
    *,
    merge: Merge = "each",
    masks: bool = False,
    depth: bool = True,
) -> Outlines:
    """Outlined objects of one image, in their order, on a grid. depth: look for the deepest patches, else they are -1.

    Raises ProtocolError where their masks differ in size.
    """
    labelled = _merged([(one.label, one.mask) for one in objects if one.mask.any()], merge)
    shapes = {mask.shape for _, mask in labelled}
    if len(shapes) > 1:
        raise ProtocolError(f"objects of one image have masks of different sizes: {sorted(shapes)}")
    height, width = next(iter(shapes), grid)
    rows, columns = (membership(length, parts) for length, parts in ((height, grid[0]), (width, grid[1])))
    cover = [(rows @ mask.astype(np.float32) @ columns.T).ravel() for _, mask in labelled]  # exact below 2^24
    deepest = [cell_of(deepest_pixel(mask), (height, width), grid) if depth else -1 for _, mask in labelled]
    return Outlines(
        size=(width, height),
        labels=np.array([label for label, _ in labelled], np.int64),
        cover=np.array(cover, np.float32).reshape(-1, grid[0] * grid[1]).astype(np.int64),
        area=np.array([mask.sum() for _, mask in labelled], np.int64),
        cells=np.outer(rows.sum(1), columns.sum(1)).ravel().astype(np.int64),
        deepest=np.array(deepest, np.int64),
        bits=np.array([np.packbits(mask) for _, mask in labelled], np.uint8) if masks else None,
    )


def _merged(labelled: list[tuple[int, npt.NDArray[np.bool_]]], merge: Merge) -> list[tuple[int, npt.NDArray[np.bool_]]]:
    if merge == "largest":
        # of equally large ones the first
        return [max(labelled, key=lambda pair: int(pair[1].sum()))] if labelled else []
    if merge == "each":
        return labelled
    together: dict[int, npt.NDArray[np.bool_]] = {}
    for label, mask in labelled:
        together[label] = together[label] | mask if label in together else mask
    return sorted(together.items())


def label_counts(pixels: npt.NDArray[np.int32], grid: tuple[int, int], classes: int) -> tuple[Counts, Counts]:
    """(N, C) and (N,): pixels of each class, and of any, labelled or not, in each patch of a grid (h, w), N = h w.

    pixels: (H, W), -1 where there is no label. Raises ProtocolError for labels outside.
    """
    if pixels.size and not -1 <= int(pixels.min()) <= int(pixels.max()) < classes:
        raise ProtocolError(
            f"labels {int(pixels.min())} to {int(pixels.max())} came; -1 and 0 to {classes - 1} are allowed"
        )
    rows, columns = (
        of_pixel(np.arange(length), length, parts) for length, parts in zip(pixels.shape, grid, strict=True)
    )
    cell = rows[:, None] * grid[1] + columns
    count = np.bincount((cell * (classes + 1) + pixels + 1).ravel(), minlength=grid[0] * grid[1] * (classes + 1))
    table = count.reshape(-1, classes + 1)
    return table[:, 1:], table.sum(axis=1)


def majority(cover: Counts, cells: Counts) -> Counts:
    """(N,): which of O, by row of cover (O, N), has more than half of each patch's pixels (N,); -1 where none has.

    Where several do, because objects overlap, the one with most; of equals the first.
    """
    if not len(cover):
        return np.full(len(cells), -1)
    found: Counts = np.where(2 * cover.max(axis=0) > cells, cover.argmax(axis=0), -1)
    return found


def membership(length: int, parts: int) -> npt.NDArray[np.float32]:
    """(parts, length): 1 where a pixel of this many belongs to a part, else 0."""
    found: npt.NDArray[np.bool_] = of_pixel(np.arange(length), length, parts)[None] == np.arange(parts)[:, None]
    return found.astype(np.float32)


def of_pixel(pixel: npt.NDArray[np.int64], length: int, parts: int) -> npt.NDArray[np.int64]:
    """The part, of so many, that a pixel of 0 ... length - 1 belongs to."""
    found: npt.NDArray[np.int64] = (2 * pixel + 1) * parts // (2 * length)
    return found


def cell_of(pixel: tuple[int, int], size: tuple[int, int], grid: tuple[int, int]) -> int:
    """Flat index of the patch that holds a pixel (row, column) of an image (height, width)."""
    row, column = (
        int(of_pixel(np.array(at), length, parts)) for at, length, parts in zip(pixel, size, grid, strict=True)
    )
    return row * grid[1] + column


def deepest_pixel(mask: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """(row, column) of the pixel that is farthest (Euclid) from the nearest pixel outside the mask, where what lies beyond
    the image is outside; of equally deep ones the first, row by row. mask: with at least one pixel."""
    from scipy.ndimage import distance_transform_edt  # slow to import

    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(rows[0] + row), int(columns[0] + column)
