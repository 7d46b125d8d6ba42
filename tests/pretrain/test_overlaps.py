"""Overlaps of the tokens of two views: against rasterised crops, against the pixels that `draw` returns, their sums, and
what they say about places."""

from __future__ import annotations

import pytest
import torch

from evalkit.pretrain.augment import Crop, View, draw
from evalkit.pretrain.overlaps import drawn, overlaps

RASTER = 120


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def crop(*boxes, flipped=None):
    flips = torch.zeros(len(boxes), dtype=torch.bool) if flipped is None else torch.tensor(flipped)
    return Crop(torch.empty(len(boxes), 3, 0, 0), torch.tensor(boxes, dtype=torch.float64), flips)


def whole(found):
    """(B, n * n, n * n) areas of all tokens with all."""
    b, n, _ = found.rows.shape
    every = torch.arange(n * n).expand(b, -1)
    return found.areas(every, every)


def token_at(x, y, box, flipped, n):
    """The token of a view that shows a point of the image, None where it shows none."""
    u, v = (x - box[0]) / (box[2] - box[0]), (y - box[1]) / (box[3] - box[1])
    if not (0 < u < 1 and 0 < v < 1):
        return None
    return int(v * n) * n + int((1 - u if flipped else u) * n)


def rasterised(a, flip_a, b, flip_b, n):
    """(n * n, n * n): the share of the image's pixels that each pair of tokens shows."""
    area = torch.zeros(n * n, n * n, dtype=torch.float64)
    for row in range(RASTER):
        for column in range(RASTER):
            x, y = (column + 0.5) / RASTER, (row + 0.5) / RASTER
            i, j = token_at(x, y, a, flip_a, n), token_at(x, y, b, flip_b, n)
            if i is not None and j is not None:
                area[i, j] += 1 / RASTER**2
    return area


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
def test_areas_are_those_of_rasterised_crops(flips):
    """Cells of both crops begin at pixels of the raster, so that counting is exact."""
    a, b = [12 / 120, 0.0, 72 / 120, 90 / 120], [30 / 120, 24 / 120, 114 / 120, 66 / 120]
    found = whole(overlaps(crop(a, flipped=[flips[0]]), crop(b, flipped=[flips[1]]), 3))[0]
    expected = rasterised(a, flips[0], b, flips[1], 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert expected.max() > 0


def test_flips_are_those_of_the_pixels():
    """In an image whose colours are its coordinates, each token's mean colour is the centre that its cell has here."""
    side, n, size = 64, 4, 32
    ramp = (torch.arange(side) * 4).to(torch.uint8)
    image = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side), ramp.expand(side, side)])
    view = View(size, (0.3, 0.6), jitter_p=0.0, grey_p=0.0)
    seen = draw(image.expand(12, -1, -1, -1), view, rng(3))
    assert 0 < seen.flipped.sum() < 12
    mean, std = torch.tensor([0.485, 0.456]), torch.tensor([0.229, 0.224])
    colours = (seen.pixels[:, :2] * std[:, None, None] + mean[:, None, None]) * 255 / 4 / side
    places = torch.nn.functional.avg_pool2d(colours, size // n).flatten(2)  # (12, x and y, tokens)
    fine = 64
    grid = crop(*[[0.0, 0.0, 1.0, 1.0]] * 12)
    pixel = overlaps(Crop(seen.pixels, seen.boxes.double(), seen.flipped), grid, fine)  # cells of both: fine x fine
    centres = (torch.arange(fine, dtype=torch.float64) + 0.5) / fine
    for axis, lengths in ((0, pixel.columns), (1, pixel.rows)):
        per_cell = (lengths @ centres) / lengths.sum(2)
        per_token = per_cell.unflatten(1, (n, fine // n)).mean(2)
        expected = per_token[:, None].expand(-1, n, -1) if axis == 0 else per_token[:, :, None].expand(-1, -1, n)
        torch.testing.assert_close(places[:, axis].double(), expected.flatten(1), rtol=0, atol=0.02)


def test_sums():
    boxes = torch.rand(40, 2, 2, 2, generator=rng(1), dtype=torch.float64).sort(2).values
    a, b = (Crop(torch.empty(0), box.flatten(1), torch.rand(40, generator=rng(2)) < 0.5) for box in boxes.unbind(1))
    found = overlaps(a, b, 5)
    dense = whole(found)
    torch.testing.assert_close(found.covered(), dense.sum(2))
    low, high = torch.maximum(a.boxes[:, :2], b.boxes[:, :2]), torch.minimum(a.boxes[:, 2:], b.boxes[:, 2:])
    torch.testing.assert_close(dense.sum((1, 2)), (high - low).clamp(min=0).prod(1))
    torch.testing.assert_close(whole(overlaps(b, a, 5)), dense.mT)
    inside = whole(overlaps(a, crop(*[[0.0, 0.0, 1.0, 1.0]] * 40), 5)).sum(2)
    size = (a.boxes[:, 2:] - a.boxes[:, :2]).prod(1, keepdim=True)
    torch.testing.assert_close(inside, (size / 25).expand(-1, 25))


def centres(box, flipped, n):
    """(n * n, 2) x and y of the middles of the tokens, in the image."""
    w, h = (box[2] - box[0]) / n, (box[3] - box[1]) / n
    cells = [(n - 1 - i % n if flipped else i % n, i // n) for i in range(n * n)]
    return torch.tensor([[box[0] + (i + 0.5) * w, box[1] + (j + 0.5) * h] for i, j in cells], dtype=torch.float64)


@pytest.mark.parametrize("flips", [(False, False), (True, False), (True, True)])
def test_correspondences_localise_a_token(flips):
    """Where tokens have one size, the shares of the other view's tokens are bilinear weights: a token lies where its
    corresponding tokens lie on average, and its offset from the first of them is a sum of shares."""
    n, step = 6, 0.1
    a, b = [0.2, 0.3, 0.8, 0.9], [0.27, 0.13, 0.87, 0.73]
    dense = whole(overlaps(crop(a, flipped=[flips[0]]), crop(b, flipped=[flips[1]]), n))[0]
    inside = dense.sum(1) > step * step - 1e-12
    assert inside.sum() == 5 * 4
    shares = dense / dense.sum(1, keepdim=True)
    where = centres(b, flips[1], n)
    torch.testing.assert_close((shares @ where)[inside], centres(a, flips[0], n)[inside])
    for i in inside.nonzero()[:, 0]:
        four = (dense[i] > 1e-12).nonzero()[:, 0]
        assert len(four) == 4
        left, top = where[four].min(0).values
        right = shares[i][four][where[four][:, 0] > left + step / 2].sum()
        below = shares[i][four][where[four][:, 1] > top + step / 2].sum()
        offset = centres(a, flips[0], n)[i] - torch.stack([left, top])
        torch.testing.assert_close(torch.stack([right, below]) * step, offset)


def test_views_apart_share_nothing():
    found = overlaps(crop([0.0, 0.0, 0.3, 1.0]), crop([0.5, 0.0, 1.0, 1.0]), 4)
    assert whole(found).abs().max() == 0
    pairs = drawn(found, 6, rng())
    assert pairs.area.abs().max() == 0
    assert pairs.first[0].unique().numel() == 6


def test_pairs_overlap_and_are_drawn_by_area():
    n, times = 4, 4000
    a, b = crop(*[[0.0, 0.0, 0.8, 1.0]] * times), crop(*[[0.3, 0.1, 1.0, 0.7]] * times)
    found = overlaps(a, b, n)
    pairs = drawn(found, 1, rng(4))
    assert (pairs.area > 0).all()
    dense = whole(found)[0].flatten()
    seen = torch.bincount((pairs.first * n * n + pairs.second).flatten(), minlength=n**4) / times
    torch.testing.assert_close(seen.double(), dense / dense.sum(), rtol=0, atol=5 * (0.25 / times) ** 0.5)
    many = drawn(found, 9, rng(5))
    assert all(row.unique().numel() == 9 for row in many.first[:50])
    covered = int((found.covered()[0] > 0).sum())
    assert ((many.area.diagonal(dim1=1, dim2=2) > 0).sum(1) == min(9, covered)).all()
    turned = many.swapped()
    torch.testing.assert_close(turned.area, overlaps(b, a, n).areas(turned.first, turned.second))


def test_the_seed_decides():
    found = overlaps(crop([0.0, 0.0, 0.8, 1.0]), crop([0.3, 0.1, 1.0, 0.7]), 8)
    same, again, other = (drawn(found, 10, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(same.first, again.first)
    assert torch.equal(same.second, again.second)
    assert not torch.equal(same.first, other.first)
