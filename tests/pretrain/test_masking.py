"""Masks against their definitions and against a slow restatement, image by image, of the published procedures."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch

from evalkit.pretrain import masking

GRID = (8, 8)
PLACES = 64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def slow_blocks(limit, smallest, grid, draw):
    """BEiT's procedure for one image: ten tries for each rectangle, none that adds more than what is left."""
    mask = [[False] * grid[1] for _ in range(grid[0])]
    while (left := limit - sum(map(sum, mask))) > 0:
        for _ in range(10):
            area, tilt = draw.uniform(smallest, left), math.exp(draw.uniform(math.log(0.3), -math.log(0.3)))
            h, w = round(math.sqrt(area * tilt)), round(math.sqrt(area / tilt))
            if h >= grid[0] or w >= grid[1]:
                continue
            top, first = draw.randint(0, grid[0] - h), draw.randint(0, grid[1] - w)
            cells = [(y, x) for y in range(top, top + h) for x in range(first, first + w) if not mask[y][x]]
            if 0 < len(cells) <= left:
                for y, x in cells:
                    mask[y][x] = True
                break
        else:
            break
    return mask


def slow_gmml(share, grid, patch, draw):
    """GMML's procedure for one image, in pixels: small blocks until the share is covered."""
    mask = [[False] * grid[1] for _ in range(grid[0])]
    h_all, w_all = grid[0] * patch, grid[1] * patch
    while sum(map(sum, mask)) < share * grid[0] * grid[1]:
        top, left = (draw.randrange(0, n - patch) // patch for n in (h_all, w_all))
        h, w = (round(draw.randrange(patch, int(n * 0.3)) / patch) for n in (h_all, w_all))
        for y in range(top, min(top + h, grid[0])):
            for x in range(left, min(left + w, grid[1])):
                mask[y][x] = True
    return mask


def statistics(masks):
    """(share, its deviation, borders between masked and not per mask, how often each place is masked)."""
    m = torch.as_tensor(masks).view(-1, *GRID).float()
    borders = m.diff(dim=1).abs().sum((1, 2)).mean() + m.diff(dim=2).abs().sum((1, 2)).mean()
    return torch.stack([m.mean(), m.mean((1, 2)).std(), borders / 50]), m.mean(0)


def test_random_masks_have_exactly_as_many():
    for masked in (0, 1, 48, 64):
        assert (masking.random_mask(50, PLACES, masked, rng()).sum(1) == masked).all()


def test_every_patch_is_as_likely():
    often = masking.random_mask(4000, 16, 4, rng()).float().mean(0)
    assert (often - 0.25).abs().max() < 0.04  # 4,000 draws: a deviation of 0.007


def test_partition_finds_both_sides_in_order():
    mask = masking.random_mask(20, PLACES, 48, rng())
    visible, masked = masking.partition(mask, 48)
    for row, seen, hidden in zip(mask.tolist(), visible.tolist(), masked.tolist(), strict=True):
        assert seen == [i for i, m in enumerate(row) if not m]
        assert hidden == [i for i, m in enumerate(row) if m]


@pytest.mark.parametrize("make", [
    lambda g: masking.random_mask(6, PLACES, 48, g),
    lambda g: masking.ibot_mask(6, GRID, g, ratio=0.3, spread=0.2, chance=0.5),
    lambda g: masking.exact_block_mask(6, GRID, 32, g, smallest=4),
    lambda g: masking.corrupt(torch.ones(6, 3, 64, 64), 8, g)[0],
])  # fmt: skip
def test_the_generator_decides_everything(make):
    torch.manual_seed(1)
    one = make(rng(4))
    torch.manual_seed(2)
    assert torch.equal(one, make(rng(4)))
    assert not torch.equal(one, make(rng(5)))


def test_blocks_are_those_of_the_slow_procedure():
    n, draw = 1500, random.Random(0)
    limits = [draw.uniform(0.1, 0.5) * PLACES for _ in range(n)]
    slow, often = statistics([slow_blocks(limit, 4, GRID, draw) for limit in limits])
    fast, found = statistics(masking.block_mask(GRID, torch.tensor(limits), rng(), smallest=4))
    assert (slow - fast).abs().max() < 0.02
    assert (often - found).abs().max() < 0.07  # two means of 1,500 draws: a deviation of 0.018


def test_blocks_never_pass_the_limit():
    limit = torch.linspace(0, 63, 200)
    count = masking.block_mask(GRID, limit, rng(), smallest=4).sum(1)
    assert (count <= limit).all()
    assert (count[limit < 1] == 0).all()
    assert (limit - count).mean() < 2


def test_ibot_masks_some_images_and_others_not():
    count = masking.ibot_mask(3000, GRID, rng(), ratio=0.3, spread=0.2, chance=0.5).sum(1)
    assert ((count > 0).float().mean() - 0.5).abs() < 0.04
    assert count.max() <= 32
    assert count[count > 0].float().mean() == pytest.approx(0.3 * PLACES, abs=1.5)
    assert not masking.ibot_mask(9, GRID, rng(), ratio=0.3, spread=0.2, chance=0.0).any()


@pytest.mark.parametrize(("masked", "smallest"), [(1, 4), (32, 4), (32, 16), (63, 4)])
def test_exact_blocks_have_exactly_as_many(masked, smallest):
    assert (masking.exact_block_mask(300, GRID, masked, rng(), smallest=smallest).sum(1) == masked).all()


def test_exact_blocks_are_blocks():
    """Half a grid at random has 56 borders; blocks have less than half of that."""
    (_, _, blocks), _ = statistics(masking.exact_block_mask(500, GRID, 32, rng(), smallest=4))
    (_, _, scattered), _ = statistics(masking.random_mask(500, PLACES, 32, rng()))
    assert blocks < 0.5 * scattered


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_gmml_blocks_are_those_of_the_slow_procedure(share):
    n, draw = 1000, random.Random(1)
    slow, often = statistics([slow_gmml(share, GRID, 8, draw) for _ in range(n)])
    fast, found = statistics(masking.gmml_mask(GRID, 8, torch.full((n,), share), rng()))
    assert (slow - fast).abs().max() < 0.02
    assert (often - found).abs().max() < 0.085  # two means of 1,000 draws: a deviation of 0.022


def test_gmml_reaches_its_share_and_hardly_passes_it():
    share = torch.linspace(0, 0.75, 301)
    found = masking.gmml_mask((14, 14), 16, share, rng()).float().mean(1)
    assert found[0] == 0
    assert (found >= share).all()
    assert (found - share).max() <= 16 / 196


def test_corruption_takes_noise_or_another_image():
    images = torch.arange(40.0).view(40, 1, 1, 1).expand(40, 3, 64, 64)
    out, mask = masking.corrupt(images, 8, rng(3))
    where = masking.on_pixels(mask, GRID, 8).expand_as(out)
    assert torch.equal(out[~where], images[~where])
    kinds = set()
    for i, (image, at) in enumerate(zip(out, where, strict=True)):
        filled, share = image[at], mask[i].float().mean()
        if len(filled.unique()) == 1:  # another image's value, at the same places
            assert filled[0] != i
            assert filled[0] in range(40)
            assert 0.3 <= share <= 0.37
            kinds.add("foreign")
        else:
            assert abs(filled.mean()) < 0.1
            assert abs(filled.std() - 1) < 0.1
            assert 0.5 <= share <= 0.82
            kinds.add("noise")
    assert kinds == {"foreign", "noise"}


def test_no_image_is_corrupted_by_itself():
    """Of two images each is the other's only choice; noise is never the same twice."""
    images = torch.tensor([2.0, 5.0]).view(2, 1, 1, 1).expand(2, 3, 64, 64)
    foreign = 0
    for seed in range(12):
        out, mask = masking.corrupt(images, 8, rng(seed))
        for i in range(2):
            filled = out[i, 0][masking.on_pixels(mask, GRID, 8)[i, 0]].unique()
            if len(filled) == 1:
                assert filled.item() == images[1 - i, 0, 0, 0]
                foreign += 1
    assert foreign > 3


def test_pixels_of_patches():
    mask = torch.tensor([[True, False, False, False, False, True]])
    pixels = masking.on_pixels(mask, (2, 3), 2)[0, 0].int().tolist()
    assert pixels == [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1]]


def test_sides_of_gmml_blocks():
    """Whole patches, of every size up to the largest, each from lengths in pixels that round to it."""
    sides = masking._side(14, 16, torch.linspace(0, 1, 5000)[:-1], 0.3)
    lengths = [round(n / 16) for n in range(16, 67)]
    for side in set(lengths):
        assert (sides == side).float().mean().item() == pytest.approx(lengths.count(side) / len(lengths), abs=0.01)
    assert all(a <= b for a, b in pairwise(sides.tolist()))
