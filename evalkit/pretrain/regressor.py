"""CAE's regressor and decoder (Chen et al. 2022, arXiv:2202.03026; lxtGH/CAE d725971, models/modeling_cae_helper.py, which
states no licence: nothing of it is in this file)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from evalkit.adapters.blocks import Attention, Block, Geometry, LayerScale, Mlp
from evalkit.adapters.positions import moco_v3
from evalkit.adapters.vit import ViTConfig
from evalkit.pretrain.patches import at


class Across(nn.Module):
    """Multi-head attention of queries to other tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(B, M, D), (B, T, D), (B, T, D) -> (B, M, D)."""
        projected = self.q(queries), self.k(keys), self.v(values)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in projected)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class RegressorBlock(nn.Module):
    """Mask queries look at the visible patches and at themselves, then pass an MLP (modeling_cae_helper.py:158-190).

    Its second residual branch starts from the normed queries, not from those before the norm, as in the code.
    """

    def __init__(self, arch: ViTConfig, layer_scale: float, drop_path: float) -> None:
        super().__init__()
        self.norm_q, self.norm_k, self.norm_v, self.norm = (nn.LayerNorm(arch.dim, eps=arch.eps) for _ in range(4))
        self.attention, self.mlp = Across(arch.dim, arch.heads), Mlp(arch.dim, int(arch.dim * arch.mlp_ratio))
        self.scale1, self.scale2 = LayerScale(arch.dim, layer_scale), LayerScale(arch.dim, layer_scale)
        self.drop_path = StochasticDepth(drop_path, "row") if drop_path else nn.Identity()

    def forward(self, queries: Tensor, visible: Tensor, where: tuple[Tensor, Tensor]) -> Tensor:
        """queries: (B, M, D). visible: (B, K, D) latents. where: positions (B, M, D) and (B, K, D). Returns (B, M, D)."""
        tokens, places = torch.cat([visible, queries], 1), torch.cat([where[1], where[0]], 1)
        looked = self.attention(self.norm_q(queries + where[0]), self.norm_k(tokens + places), self.norm_v(tokens))
        x = self.norm(queries + self.drop_path(self.scale1(looked)))
        return x + self.drop_path(self.scale2(self.mlp(x)))  # type: ignore[no-any-return]


class Predictor(nn.Module):
    """Regressor and decoder: visible latents -> (latents, pixels) of the masked patches. depths: blocks of each."""

    positions: Tensor

    def __init__(self, arch: ViTConfig, depths: tuple[int, int], *, layer_scale: float, drop_path: float) -> None:
        super().__init__()
        self.register_buffer(
            "positions", moco_v3(torch.zeros(1, 1, 1, arch.dim), arch.grid).flatten(1, 2), persistent=False
        )
        self.query = nn.Parameter(torch.empty(1, 1, arch.dim))
        rates = [torch.linspace(0, drop_path, depth).tolist() for depth in depths]
        self.regressor = nn.ModuleList(RegressorBlock(arch, layer_scale, rate) for rate in rates[0])
        self.decoder = nn.ModuleList(_block(arch, layer_scale, rate) for rate in rates[1])
        self.norm, self.norm2 = nn.LayerNorm(arch.dim, eps=arch.eps), nn.LayerNorm(arch.dim, eps=arch.eps)
        self.head = nn.Linear(arch.dim, arch.patch**2 * 3)
        self.grid = arch.grid
        self._start()

    def _start(self) -> None:
        """Xavier and zeros, as the encoder; the query from a normal of deviation 0.02 (modeling_cae.py:54-60, 76-83)."""
        nn.init.trunc_normal_(self.query, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, visible: Tensor, places: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """visible: (B, K, D) latents. places: (B, M) masked and (B, K) visible indices. Returns (B, M, D), (B, M, pixels)."""
        table = self.positions.to(visible.dtype).expand(len(visible), -1, -1)
        where = at(table, places[0]), at(table, places[1])
        x = self.query.to(visible.dtype).expand_as(where[0])
        for regressor in self.regressor:
            x = regressor(x, visible, where)
        latents = self.norm(x)
        x = latents + where[0]
        for block in self.decoder:
            x = block(x, Geometry(self.grid))
        return latents, self.head(self.norm2(x))


def _block(arch: ViTConfig, layer_scale: float, drop_path: float) -> Block:
    attention, mlp = Attention(arch.dim, arch.heads, arch.qkv_bias), Mlp(arch.dim, int(arch.dim * arch.mlp_ratio))
    return Block(attention, mlp, arch.dim, eps=arch.eps, layer_scale=layer_scale, drop_path=drop_path)
