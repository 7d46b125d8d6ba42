"""Objects on a grid of patches, against loops over pixels."""

from __future__ import annotations

import numpy as np
import pytest

from evalkit.errors import ProtocolError
from evalkit.probing import outlines
from evalkit.types import Outlined


def blob(seed, shape=(23, 31)):
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    y, x, r = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(2, 9)
    return (rows - y) ** 2 + (columns - x) ** 2 < r * r


def cell_by_hand(row, column, shape, grid):
    return int((row + 0.5) * grid[0] / shape[0]) * grid[1] + int((column + 0.5) * grid[1] / shape[1])


@pytest.mark.parametrize("grid", [(4, 5), (23, 31), (30, 40), (1, 1)])
def test_every_pixel_is_counted_in_its_patch(grid):
    masks = [blob(seed) for seed in range(3)]
    found = outlines.outline([Outlined(str(i), i, mask) for i, mask in enumerate(masks)], grid)
    cover = np.zeros((3, grid[0] * grid[1]), int)
    cells = np.zeros(grid[0] * grid[1], int)
    for row in range(23):
        for column in range(31):
            cell = cell_by_hand(row, column, (23, 31), grid)
            cells[cell] += 1
            cover[:, cell] += [mask[row, column] for mask in masks]
    assert np.array_equal(found.cover, cover) and np.array_equal(found.cells, cells)
    assert found.area.tolist() == [mask.sum() for mask in masks]


@pytest.mark.parametrize("seed", range(4))
def test_the_deepest_pixel_is_farthest_from_all_that_is_outside(seed):
    mask = blob(seed, (12, 15))
    outside = [(r, c) for r in range(-1, 13) for c in range(-1, 16) if not (0 <= r < 12 and 0 <= c < 15 and mask[r, c])]
    depth = {
        (r, c): min((r - y) ** 2 + (c - x) ** 2 for y, x in outside) for r, c in zip(*np.nonzero(mask), strict=True)
    }
    best = max(depth.values())
    assert outlines.deepest_pixel(mask) == next(pixel for pixel in sorted(depth) if depth[pixel] == best)


def test_objects_of_a_category_are_one_and_the_largest_stands_alone():
    a, b, c = (np.zeros((8, 8), bool) for _ in range(3))
    a[:2, :4], b[4:, :4], c[:, 6:] = True, True, True
    objects = [Outlined("0", 2, a), Outlined("1", 1, c), Outlined("2", 2, b)]
    together = outlines.outline(objects, (2, 2), merge="category", masks=True)
    assert together.labels.tolist() == [1, 2] and together.area.tolist() == [16, 24]
    assert np.array_equal(together.mask(1), a | b)
    assert outlines.outline(objects, (2, 2), merge="largest").labels.tolist() == [
        1
    ]  # as large as the third, and before


def test_objects_without_pixels_and_images_without_objects():
    empty = Outlined("0", 0, np.zeros((8, 8), bool))
    found = outlines.outline([empty], (2, 2))
    assert found.labels.shape == (0,) and found.cover.shape == (0, 4) and found.cells.shape == (4,)
    assert outlines.outline([], (2, 2), merge="largest").area.tolist() == []


def test_masks_of_different_sizes_are_refused():
    with pytest.raises(ProtocolError, match="different sizes"):
        outlines.outline([Outlined("0", 0, np.ones((8, 8), bool)), Outlined("1", 0, np.ones((8, 9), bool))], (2, 2))


def test_masks_are_there_only_when_asked_for():
    found = outlines.outline([Outlined("0", 0, np.ones((8, 8), bool))], (2, 2))
    with pytest.raises(ProtocolError, match="not kept"):
        found.mask(0)


def test_labels_are_counted_per_patch():
    pixels = np.random.default_rng(0).integers(-1, 4, (13, 9)).astype(np.int32)
    counts, cells = outlines.label_counts(pixels, (3, 2), 4)
    expected, whole = np.zeros((6, 4), int), np.zeros(6, int)
    for row in range(13):
        for column in range(9):
            cell = cell_by_hand(row, column, (13, 9), (3, 2))
            whole[cell] += 1
            if pixels[row, column] >= 0:
                expected[cell, pixels[row, column]] += 1
    assert np.array_equal(counts, expected) and np.array_equal(cells, whole)


@pytest.mark.parametrize("label", [-2, 4])
def test_labels_outside_are_refused(label):
    with pytest.raises(ProtocolError, match="allowed"):
        outlines.label_counts(np.full((4, 4), label, np.int32), (2, 2), 4)


def test_a_patch_belongs_to_what_has_more_than_half_of_it():
    cover = np.array([[4, 5, 0, 6], [4, 2, 0, 8], [0, 2, 0, 8]])
    assert outlines.majority(cover, np.array([8, 9, 9, 9])).tolist() == [-1, 0, -1, 1]
    assert outlines.majority(np.zeros((0, 4), int), np.ones(4, int)).tolist() == [-1] * 4
