"""Which patches an image loses: random masks, blocks of patches, and GMML's corruption of pixels.

A mask is (B, h * w) bool over the patches in reading order, True where a patch is masked. All images of a batch are drawn
at once on the generator's device, with a fixed number of operations: equal generators give equal masks, and a GPU never
waits for the host.

Sources: random masks MAE (He et al. 2021, arXiv:2111.06377; facebookresearch/mae efb2a80, models_mae.py:123-148); blocks BEiT
(Bao et al. 2021, arXiv:2106.08254, algorithm 1) as iBOT (bytedance/ibot da316d8, loader.py:77-113) and CAE (lxtGH/CAE d725971,
furnace/masking_generator.py) run it; corruption GMML (Atito et al. 2022, arXiv:2205.14986; Sara-Ahmed/GMML 1882712,
datasets/datasets_utils.py:96-166). No code was taken from any of them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TRIES = 10
"""Blocks that are drawn until one fits, before an image's mask is called full (BEiT, iBOT, CAE)."""
BLOCKS = 10
"""Blocks that an image may get. iBOT's masks of a 14 x 14 grid have 3 in the median and more than 10 in 1 of 1,000 images."""
GMML_BLOCKS = 160
"""Blocks drawn for GMML: 3/4 of a 14 x 14 grid take 45 on average; the smaller the block, the more are needed."""


def random_mask(batch: int, patches: int, masked: int, rng: torch.Generator) -> Tensor:
    """(B, P) bool with exactly `masked` True in every row, every subset equally likely. masked: 0 to P."""
    order = torch.rand(batch, patches, device=rng.device, generator=rng).argsort(1)
    return torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :masked], True)


def partition(mask: Tensor, masked: int) -> tuple[Tensor, Tensor]:
    """Indices (B, P - masked) of the visible and (B, masked) of the masked patches, each in ascending order.

    mask: (B, P) bool with exactly `masked` True in every row.
    """
    order = mask.to(torch.uint8).argsort(stable=True, dim=1)
    return order[:, : mask.shape[1] - masked], order[:, mask.shape[1] - masked :]


def ibot_mask(
    batch: int, grid: tuple[int, int], rng: torch.Generator, *, ratio: float, spread: float, chance: float
) -> Tensor:
    """iBOT's mask of a large crop, (B, h * w) bool: with probability `chance` an image loses a share of its patches that is
    uniform in [ratio - spread, ratio + spread], in blocks; else none.

    iBOT trains with ratio 0.3, spread 0.2 and chance 0.5 (its README: --pred_ratio 0 0.3 --pred_ratio_var 0 0.2; the code
    chooses one of the two ratios per crop). The share is an upper limit: the last gap may fit no block.
    """
    share = ratio - spread + 2 * spread * torch.rand(batch, device=rng.device, generator=rng)
    on = torch.rand(batch, device=rng.device, generator=rng) < chance
    return block_mask(grid, torch.where(on, share, 0.0) * math.prod(grid), rng, smallest=(min(grid) // 3) ** 2)


def block_mask(
    grid: tuple[int, int], limit: Tensor, rng: torch.Generator, *, smallest: float, aspect: float = 0.3
) -> Tensor:
    """Rectangles until `limit` patches are masked or none fits any more: (B, h * w) bool, at most `limit` True in a row.

    limit: (B,) patches, fractional, on the generator's device. A rectangle's area is uniform between `smallest` and what is
    left to the limit, its aspect log-uniform in [aspect, 1 / aspect]; it is taken if it is smaller than the grid and adds
    between 1 and the patches that are left. Ten misses in succession end an image's mask.
    """
    mask = torch.zeros(len(limit), *grid, dtype=torch.bool, device=rng.device)
    open_ = torch.ones(len(limit), dtype=torch.bool, device=rng.device)
    for _ in range(BLOCKS):
        left = limit - mask.sum((1, 2))
        blocks, fits = _rectangles(grid, left, rng, smallest=smallest, aspect=aspect)
        new = (blocks & ~mask[:, None]).sum((2, 3))
        fits &= (new > 0) & (new <= left[:, None])
        first = fits.to(torch.uint8).argmax(1)  # the first of the tries that fits
        open_ = open_ & fits.any(1)
        mask = mask | (blocks[torch.arange(len(limit), device=rng.device), first] & open_[:, None, None])
    return mask.flatten(1)


def exact_block_mask(
    batch: int, grid: tuple[int, int], masked: int, rng: torch.Generator, *, smallest: float, aspect: float = 0.3
) -> Tensor:
    """Blocks as in `block_mask` with exactly `masked` patches in every row: (B, h * w) bool.

    BEiT and CAE draw blocks until the number is met. Here the few patches that no block fitted are added one by one, those
    with most masked neighbours first, at random among equals.
    """
    mask = block_mask(
        grid, torch.full((batch,), float(masked), device=rng.device), rng, smallest=smallest, aspect=aspect
    )
    plus = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]], device=rng.device)[None, None]
    neighbours = F.conv2d(mask.view(batch, 1, *grid).float(), plus, padding=1).flatten(1)
    score = neighbours + torch.rand(mask.shape, device=rng.device, generator=rng)
    order = score.masked_fill(mask, math.inf).argsort(1, descending=True)
    return torch.zeros_like(mask).scatter_(1, order[:, :masked], True)


def _rectangles(
    grid: tuple[int, int], left: Tensor, rng: torch.Generator, *, smallest: float, aspect: float
) -> tuple[Tensor, Tensor]:
    """TRIES random rectangles per image as (B, TRIES, h, w) bool, and (B, TRIES) whether each is smaller than the grid."""
    u = torch.rand(4, len(left), TRIES, device=rng.device, generator=rng)
    area = (smallest + u[0] * (left[:, None] - smallest)).clamp(min=0)
    tilt = (math.log(aspect) * (2 * u[1] - 1)).exp()
    sides = (area * tilt).sqrt().round(), (area / tilt).sqrt().round()
    fits = (sides[0] < grid[0]) & (sides[1] < grid[1])
    rows, columns = (_span(n, s.clamp(max=n), place) for n, s, place in zip(grid, sides, u[2:], strict=True))
    return rows[..., None] & columns[..., None, :], fits


def _span(n: int, side: Tensor, place: Tensor) -> Tensor:
    """(..., n) bool: `side` places in succession, from a start that is uniform over those possible; place in [0, 1)."""
    start = (place * (n - side + 1)).floor()
    at = torch.arange(n, device=side.device)
    return (at >= start[..., None]) & (at < (start + side)[..., None])


def gmml_mask(
    grid: tuple[int, int], patch: int, share: Tensor, rng: torch.Generator, *, largest: float = 0.3
) -> Tensor:
    """GMML's small blocks, thrown until `share` of the patches is covered: (B, h * w) bool, at least `share` (B,) True.

    A block begins at any patch but those of the last row and column; its sides are uniform between a patch and `largest`
    of the image, in pixels, and rounded to whole patches; it ends at the border. The last block may pass the share.
    """
    batch, (h, w) = len(share), grid
    u = torch.rand(4, batch, GMML_BLOCKS, device=rng.device, generator=rng)
    rows, columns = (
        _from(n, (place * max(n - 1, 1)).floor(), _side(n, patch, size, largest))
        for n, place, size in ((h, u[0], u[2]), (w, u[1], u[3]))
    )
    covers = (rows[..., None] & columns[..., None, :]).flatten(2)  # (B, blocks, P)
    first = torch.where(
        covers.any(1), covers.to(torch.uint8).argmax(1), GMML_BLOCKS
    )  # the block by which a patch falls
    fallen = torch.zeros(batch, GMML_BLOCKS + 1, device=rng.device).scatter_add_(
        1, first, torch.ones_like(first).float()
    )
    enough = fallen[:, :-1].cumsum(1) >= share[:, None] * h * w
    last = torch.where(enough.any(1), enough.to(torch.uint8).argmax(1), GMML_BLOCKS - 1)
    return first <= torch.where(share > 0, last, -1)[:, None]


def _side(n: int, patch: int, size: Tensor, largest: float) -> Tensor:
    """Patches along a block's side. The drawn length in pixels is whole, from `patch` to below largest * n * patch."""
    longest = max(int(n * patch * largest), patch + 1)
    return ((patch + (size * (longest - patch)).floor()) / patch).round()


def _from(n: int, start: Tensor, side: Tensor) -> Tensor:
    """(..., n) bool: `side` places from `start`, cut at the border."""
    at = torch.arange(n, device=side.device)
    return (at >= start[..., None]) & (at < (start + side)[..., None])


def corrupt(
    pixels: Tensor, patch: int, rng: torch.Generator, *, noise: float = 0.75, foreign: float = 0.3
) -> tuple[Tensor, Tensor]:
    """GMML's corruption of normalised images (B, 3, H, W): (corrupted images, (B, h * w) bool where they are).

    By the toss of a coin an image loses blocks to standard normal noise, a share uniform in [1/2, noise] of it, or to
    the same places of another image of the batch, the share `foreign` (in general uniform in [min(1/2, s), s] for a
    stated share s). Either share is passed by the last block. The other image is never the image itself where the batch
    has two.
    """
    b, grid = len(pixels), (pixels.shape[2] // patch, pixels.shape[3] // patch)
    u = torch.rand(3, b, device=rng.device, generator=rng)
    own = u[0] < 0.5
    most = torch.where(own, noise, foreign)
    least = most.clamp(max=0.5)
    mask = gmml_mask(grid, patch, least + (most - least) * u[1], rng)
    other = (torch.arange(b, device=rng.device) + 1 + (u[2] * max(b - 1, 1)).long()) % b
    filling = torch.randn(pixels.shape, dtype=pixels.dtype, device=rng.device, generator=rng)
    filling = torch.where(own[:, None, None, None], filling, pixels[other])
    return torch.where(on_pixels(mask, grid, patch), filling, pixels), mask


def on_pixels(mask: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """(B, h * w) of patches -> (B, 1, H, W) of their pixels."""
    return mask.view(len(mask), 1, *grid).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
