"""How each family's own code fits its learned position embedding to another grid.

Every rule takes the patch part of the table, (1, h0, w0, D), and the grid wanted, and returns (1, h, w, D). The rules give
different numbers for the same table: resizing with the wrong one costs tenths of a point without any error message.
"""

from __future__ import annotations

from collections.abc import Callable

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


def sine_cosine(grid: tuple[int, int], dim: int) -> Tensor:
    """(1, h * w, dim) table: sines, then cosines, of the column for the first half of the channels, of the row for the
    second, at wavelengths from 2 pi to 20,000 pi (facebookresearch/mae efb2a80, util/pos_embed.py). dim: a multiple of 4.
    """
    omega = 10000 ** -(torch.arange(dim // 4) / (dim // 4))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in (columns, rows)]
    return torch.cat([wave(a) for a in angles for wave in (torch.sin, torch.cos)], 1)[None]


RULES: dict[str, Rule] = {"dino": dino, "timm": timm}
"""Rules for the table that is added to the tokens."""

RELATIVE: dict[str, Rule] = {}
"""Rules for relative position tables: (1, 2 h0 - 1, 2 w0 - 1, heads) and the sides (2 h - 1, 2 w - 1) wanted."""
