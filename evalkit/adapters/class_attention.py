"""Class attention (Touvron et al. 2021, arXiv:2103.17239): a token that looks at patches, and never they at it.

SelfPatch's head is made of it (alinlab/SelfPatch 81aef14, selfpatch_vision_transformer.py:77-139, 362-423); its blocks are
called LayerScale blocks there and have no LayerScale. Parameter names are those of its files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evalkit.adapters.blocks import Mlp
from evalkit.adapters.vit import ViTConfig


class ClassAttention(nn.Module):
    """The first token looks at all tokens, itself among them."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.proj = nn.Linear(dim, dim)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def rows(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, heads, 1, T), each row summing to 1."""
        q, k = self._heads(self.q(x[:, :1])), self._heads(self.k(x))
        scores: Tensor = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return scores.softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, 1, D)."""
        out = self.rows(x) @ self._heads(self.v(x))
        return self.proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class ClassBlock(nn.Module):
    """Pre-norm class attention and MLP, each on a residual branch of the class token alone."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=config.eps)
        self.attn = ClassAttention(config.dim, config.heads)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.eps)
        self.mlp = Mlp(config.dim, int(config.dim * config.mlp_ratio))

    def seen(self, cls: Tensor, patches: Tensor) -> Tensor:
        """(B, 1, D), (B, N, D) -> (B, 1 + N, D) that enter the attention."""
        return self.norm1(torch.cat([cls, patches], 1))  # type: ignore[no-any-return]

    def forward(self, cls: Tensor, patches: Tensor) -> Tensor:
        """(B, 1, D), (B, N, D) -> (B, 1, D)."""
        cls = cls + self.attn(self.seen(cls, patches))
        return cls + self.mlp(self.norm2(cls))  # type: ignore[no-any-return]


class ClassToken(nn.Module):
    """The part of the SelfPatch head that makes a class token of patches."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.cls_blocks = nn.ModuleList([ClassBlock(config), ClassBlock(config)])
        self.norm = nn.LayerNorm(config.dim, eps=config.eps)

    def forward(self, patches: Tensor, *, norm: bool = True) -> Tensor:
        """(B, N, D) -> (B, D), before or after the head's norm."""
        cls = self.cls_token.expand(len(patches), -1, -1)
        for block in self.cls_blocks:
            cls = block(cls, patches)
        return (self.norm(cls) if norm else cls)[:, 0]

    def rows(self, patches: Tensor) -> Tensor:
        """(B, N, D) -> (B, heads, 1, 1 + N): what the token looks at in the last block."""
        first, last = self.cls_blocks
        seen = last.seen(first(self.cls_token.expand(len(patches), -1, -1), patches), patches)  # type: ignore[operator]
        return last.attn.rows(seen)  # type: ignore[no-any-return,operator,union-attr]
