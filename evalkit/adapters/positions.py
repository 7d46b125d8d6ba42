"""How each family's own code fits its learned position embedding to another grid.

Every rule takes the patch part of the table, (1, h0, w0, D), and the grid wanted, and returns (1, h, w, D). The rules give
different numbers for the same table: resizing with the wrong one costs tenths of a point without any error message.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Rule = Callable[[Tensor, tuple[int, int]], Tensor]


def _interpolate(table: Tensor, *, antialias: bool = False, **how: object) -> Tensor:
    rows = table.permute(0, 3, 1, 2)
    rows = rows if rows.dtype == torch.float64 else rows.float()
    out = F.interpolate(rows, mode="bicubic", align_corners=False, antialias=antialias, **how)  # type: ignore[arg-type]
    return out.permute(0, 2, 3, 1).to(table.dtype)


def dino(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bicubic by scale factors (h + 0.1) / h0, (w + 0.1) / w0: facebookresearch/dino 7c446df, vision_transformer.py:174-195.

    The 0.1 was added against a rounding error; it shifts every sampling point, so it is part of the model.
    """
    h0, w0 = table.shape[1:3]
    return _interpolate(table, scale_factor=((grid[0] + 0.1) / h0, (grid[1] + 0.1) / w0))


def timm(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Antialiased bicubic to the size: timm 1.0.31, layers/pos_embed.py `resample_abs_pos_embed`."""
    return _interpolate(table, antialias=True, size=grid)


def bicubic(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bicubic to the size: facebookresearch/mae efb2a80, util/pos_embed.py:75-96; deit 7e160fe, main.py:288-306.

    facebookresearch/msn 4388dc1, src/deit.py:307-334, scales by h / h0 and w / w0: the same numbers, except that a
    rounded-down product loses a row there (29 patches out of 14), which is no part of the model.
    """
    return _interpolate(table, size=grid)


def moco_v3(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sines and cosines made anew for the grid, of the row for the first half of the channels, of the column for the
    second: facebookresearch/moco-v3 c349e6e, vits.py:53-69. The table gives its width and type only.

    On a rectangle that code would lay its grid across the image; here every patch has its own row and column.
    """
    quarter = table.shape[-1] // 4
    omega = 10000 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    axes = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [axis[..., None] * omega for axis in axes]
    return torch.cat([wave(a) for a in angles for wave in (torch.sin, torch.cos)], -1)[None].to(table)


def sine_cosine(grid: tuple[int, int], dim: int) -> Tensor:
    """(1, h * w, dim) table: sines, then cosines, of the column for the first half of the channels, of the row for the
    second, at wavelengths from 2 pi to 20,000 pi (facebookresearch/mae efb2a80, util/pos_embed.py). dim: a multiple of 4.
    """
    omega = 10000 ** -(torch.arange(dim // 4) / (dim // 4))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in (columns, rows)]
    return torch.cat([wave(a) for a in angles for wave in (torch.sin, torch.cos)], 1)[None]


RULES: dict[str, Rule] = {"dino": dino, "timm": timm, "bicubic": bicubic, "moco_v3": moco_v3}
"""Rules for the table that is added to the tokens."""

RELATIVE: dict[str, Rule] = {}
"""Rules for relative position tables: (1, 2 h0 - 1, 2 w0 - 1, heads) and the sides (2 h - 1, 2 w - 1) wanted."""


def beit(table: Tensor, sides: tuple[int, int]) -> Tensor:
    """A cubic spline through the table, read at whole distances: microsoft/unilm 768a3c8, beit/semantic_segmentation/
    mmcv_custom/checkpoint.py:376-441, where scipy's `interp2d` did it (removed in scipy 1.14; equal to 4e-15).

    The table's own distances are taken as 1, 1 + q, 1 + q + q^2 ..., so that the far ones spread most. That code knows
    squares only; here each axis follows it by itself, and an axis that keeps its length stays as it is.
    """
    out = table.to("cpu", torch.float64)
    if table.shape[1] != sides[0]:
        out = torch.einsum("ts,bswn->btwn", torch.from_numpy(_spline(table.shape[1], sides[0])), out)
    if table.shape[2] != sides[1]:
        out = torch.einsum("ts,bhsn->bhtn", torch.from_numpy(_spline(table.shape[2], sides[1])), out)
    return out.to(table)


@lru_cache(maxsize=64)
def _spline(source: int, target: int) -> np.ndarray:
    """(target, source) float64: what each value of the table weighs in each value wanted. Not-a-knot at both ends;
    outside of the table its last value counts, as in FITPACK."""
    from scipy.interpolate import make_interp_spline  # slow to import, and only tables of this kind need it

    half = _progression(source // 2, target // 2)
    places = np.array([-x for x in reversed(half)] + [0.0, *half])
    wanted = np.arange(-(target // 2), target // 2 + 1).clip(places[0], places[-1])
    return np.asarray(make_interp_spline(places, np.eye(source), k=3)(wanted))


def _progression(steps: int, reach: int) -> list[float]:
    """1, 1 + q, 1 + q + q^2 ... (`steps` of them), q bisected between 1.01 and 1.5 until the last comes close to `reach`.

    For a grid no larger than the table's q stays near 1.01, and the outermost values lie beyond the image.
    """
    low, high, q = 1.01, 1.5, 1.01
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (1 - q**steps) / (1 - q) > reach else (q, high)
    return [(1 - q**n) / (1 - q) for n in range(1, steps + 1)]


RELATIVE["beit"] = beit
