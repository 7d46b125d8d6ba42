"""The pieces of a vision transformer's block: attention, MLP, LayerScale, and what attention may know of positions.

Parameter names are those of timm and DINO. Two families say where a token is inside the attention instead of adding a
table to the tokens: BEiT by a learned bias per relative position (Bao et al. 2021, arXiv:2106.08254), DINOv3 by turning
queries and keys (Siméoni et al. 2025, arXiv:2508.10104).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from evalkit.adapters.positions import RELATIVE

Turn = tuple[Tensor, Tensor]
"""Cosine and sine, (h * w, D / heads) each, of the angles by which the patches' queries and keys are turned."""


@dataclass(frozen=True)
class Geometry:
    """What the blocks know of the image. grid: (h, w) patches. bias: (1, heads, T, T), added to every block's scores.
    turn: see `Rotary`."""

    grid: tuple[int, int]
    bias: Tensor | None = None
    turn: Turn | None = None


class RelativeBias(nn.Module):
    """One learned number per head and relative position of two patches, and three for pairs with the class token.

    relative_position_bias_table: ((2 h - 1)(2 w - 1) + 3, heads); the last rows: class to patch, patch to class, class to
    itself. Another grid resizes the table by a rule of `positions.RELATIVE`.
    """

    def __init__(self, grid: tuple[int, int], heads: int, rule: str) -> None:
        super().__init__()
        self.grid, self.rule = grid, rule
        self.sides = (2 * grid[0] - 1, 2 * grid[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(math.prod(self.sides) + 3, heads))
        self._last: tuple[object, Tensor] | None = None

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """(1, heads, 1 + h * w, 1 + h * w); kept for the next call while table and grid stay."""
        table = self.relative_position_bias_table
        key = (grid, table.dtype, table.device, table._version)
        last = self._last  # read once: another thread may replace it by that of another grid
        if table.requires_grad or last is None or last[0] != key:
            last = (key, self._table(grid)[_relative_index(grid).to(table.device)].permute(2, 0, 1)[None])
            self._last = last
        return last[1]

    def _table(self, grid: tuple[int, int]) -> Tensor:
        table = self.relative_position_bias_table
        if grid == self.grid:
            return table
        sides = (2 * grid[0] - 1, 2 * grid[1] - 1)
        patches = RELATIVE[self.rule](table[:-3].view(1, *self.sides, -1), sides)
        return torch.cat([patches.flatten(1, 2)[0], table[-3:]])


def _relative_index(grid: tuple[int, int]) -> Tensor:
    """(1 + h * w, 1 + h * w) rows of the table for a query (first axis) and a key."""
    h, w = grid
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    rows = (2 * h - 1) * (2 * w - 1)
    index = torch.full((1 + h * w, 1 + h * w), rows + 2)
    index[0, 1:], index[1:, 0] = rows, rows + 1
    index[1:, 1:] = (y[:, None] - y + h - 1) * (2 * w - 1) + (x[:, None] - x + w - 1)
    return index


class Rotary(nn.Module):
    """Turns queries and keys by angles that grow with the patch's row and column (DINOv3's axial form).

    Centres of the patches lie in [-1, 1] along both sides of the image; every channel pair has its period. `periods`:
    (D / heads / 4,), stored in the files.
    """

    periods: Tensor

    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        steps = torch.arange(head_dim // 4) * 2 / (head_dim // 2)
        self.register_buffer("periods", base**steps)

    def forward(self, grid: tuple[int, int]) -> Turn:
        """(cos, sin), each (h * w, D / heads)."""
        periods = self.periods
        axes = [(torch.arange(0.5, n, dtype=periods.dtype, device=periods.device) / n) * 2 - 1 for n in grid]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)
        angles = (2 * math.pi * places[:, :, None] / periods).flatten(1).tile(2)
        return angles.cos(), angles.sin()


def _turned(x: Tensor, turn: Turn) -> Tensor:
    """x: (B, heads, T, d) with the patches last. The tokens before them keep their direction."""
    cos, sin = turn
    prefix, patches = x.tensor_split([x.shape[-2] - len(cos)], -2)
    a, b = patches.chunk(2, -1)
    return torch.cat([prefix, (patches * cos + torch.cat([-b, a], -1) * sin).to(x.dtype)], -2)


class Attention(nn.Module):
    """Self-attention with one fused projection for q, k and v. bias: this block's own relative bias, if it has one."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool, bias: RelativeBias | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_bias = bias

    def split(self, x: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, each (B, heads, T, D / heads)."""
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if geometry.turn is not None:
            q, k = _turned(q, geometry.turn), _turned(k, geometry.turn)
        return q, k, v

    def added(self, geometry: Geometry) -> Tensor | None:
        """What is added to the scores: this block's bias, else the one that all blocks share."""
        return geometry.bias if self.rel_pos_bias is None else self.rel_pos_bias(geometry.grid)

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        q, k, v = self.split(x, geometry)
        bias = self.added(geometry)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
        return self.proj(out.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]

    def rows(self, x: Tensor, queries: Tensor, geometry: Geometry) -> Tensor:
        """(B, heads, Q, T) softmax rows for the token indices `queries` only: all of them do not fit at video size."""
        q, k, _ = self.split(x, geometry)
        scores: Tensor = q[:, :, queries] @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        bias = self.added(geometry)
        return (scores if bias is None else scores + bias[:, :, queries]).softmax(-1)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        hidden = self.fc1(x)
        hidden = F.gelu(hidden) if hidden.requires_grad else torch.ops.aten.gelu_(hidden)
        return self.fc2(hidden)  # type: ignore[no-any-return]


class SwiGLU(nn.Module):
    """A linear layer gated by the SiLU of another (Shazeer 2020, arXiv:2002.05202); `w12` holds gate, then values."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        gate, values = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * values)  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    """A learned gain per channel on a residual branch (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm attention and MLP, each on a residual branch with LayerScale where `layer_scale` is given."""

    def __init__(
        self, attention: Attention, mlp: nn.Module, dim: int, *, eps: float, layer_scale: float | None, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.attn, self.mlp = attention, mlp
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = StochasticDepth(drop_path, "row") if drop_path else nn.Identity()

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """(B, T, D) -> (B, T, D); without gradients x itself is changed and returned."""
        x = _plus(x, self.drop_path(self.ls1(self.attn(self.norm1(x), geometry))))
        return _plus(x, self.drop_path(self.ls2(self.mlp(self.norm2(x)))))


def _plus(x: Tensor, branch: Tensor) -> Tensor:
    """x + branch; without gradients into x's own memory, since fresh memory costs more than the sum."""
    return x + branch if x.requires_grad or branch.requires_grad else x.add_(branch)
