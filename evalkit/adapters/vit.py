"""The one vision transformer that families and pretraining share (Dosovitskiy et al. 2020, arXiv:2010.11929).

Parameter names are those of timm and DINO (`blocks.0.attn.qkv.weight` ...), so that most files need no renaming. What
differs between families is in `ViTConfig`, never in a second transformer: class token, registers, LayerScale, mask token,
final norm, and the rule by which the position embedding meets another grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from evalkit.adapters.positions import RULES, sine_cosine
from evalkit.errors import FeatureError, NoProjection, Unsupported
from evalkit.types import EncoderSpec, Tokens


@dataclass(frozen=True)
class ViTConfig:
    """An architecture. Sides in pixels; `eps` of every LayerNorm; `positions` names a rule of `positions.RULES`.

    cls_position: whether the first row of the position table belongs to the class token.
    layer_scale: initial gamma of LayerScale, None for none.
    """

    dim: int
    depth: int
    heads: int
    patch: int
    size: int = 224
    mlp_ratio: float = 4.0
    eps: float = 1e-6
    qkv_bias: bool = True
    layer_scale: float | None = None
    cls: bool = True
    cls_position: bool = True
    registers: int = 0
    mask_token: bool = False
    final_norm: bool = True
    drop_path: float = 0.0
    positions: str = "dino"

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) patches at the native size."""
        return self.size // self.patch, self.size // self.patch

    @property
    def prefix(self) -> int:
        """Tokens before the first patch: class token, then registers."""
        return int(self.cls) + self.registers


class PatchEmbed(nn.Module):
    """A convolution whose stride is its kernel: one token per patch."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H/p, W/p, D)."""
        tokens: Tensor = self.proj(images)
        return tokens.movedim(1, -1)


class Attention(nn.Module):
    """Self-attention with one fused projection for q, k and v."""

    def __init__(self, dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, each (B, heads, T, D / heads)."""
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        q, k, v = self.split(x)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]

    def rows(self, x: Tensor, queries: Tensor) -> Tensor:
        """(B, heads, Q, T) softmax rows for the token indices `queries` only: all of them do not fit at video size."""
        q, k, _ = self.split(x)
        scores: Tensor = q[:, :, queries] @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return scores.softmax(-1)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    """A learned gain per channel on a residual branch (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm attention and MLP, each on a residual branch."""

    def __init__(self, config: ViTConfig, drop_path: float) -> None:
        super().__init__()
        dim, init = config.dim, config.layer_scale
        self.norm1 = nn.LayerNorm(dim, eps=config.eps)
        self.attn = Attention(dim, config.heads, config.qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=config.eps)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))
        self.ls1 = nn.Identity() if init is None else LayerScale(dim, init)
        self.ls2 = nn.Identity() if init is None else LayerScale(dim, init)
        self.drop_path = StochasticDepth(drop_path, "row") if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """Images of any size that is a multiple of the patch, square or not, to tokens."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        h, w = config.grid
        if config.cls:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        if config.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, config.registers, config.dim))
        if config.mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, h * w + self._cls_rows, config.dim))
        self.patch_embed = PatchEmbed(config.patch, config.dim)
        rates = torch.linspace(0, config.drop_path, config.depth).tolist()
        self.blocks = nn.ModuleList([Block(config, rate) for rate in rates])
        self.norm = nn.LayerNorm(config.dim, eps=config.eps) if config.final_norm else nn.Identity()

    @property
    def _cls_rows(self) -> int:
        return int(self.config.cls and self.config.cls_position)

    def initialise(self, generator: torch.Generator) -> VisionTransformer:
        """Weights as MAE and MoCo v3 start (Xavier uniform, biases zero, position table from sines and cosines), tokens
        from a normal of deviation 0.02; reads no global state."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith("token"):
                nn.init.normal_(parameter, std=0.02, generator=generator)
            elif parameter.ndim > 1 and name != "pos_embed":
                nn.init.xavier_uniform_(parameter.flatten(1), generator=generator)
        with torch.no_grad():
            self.pos_embed[:, self._cls_rows :] = sine_cosine(self.config.grid, self.config.dim)
        return self

    def positions(self, grid: tuple[int, int], square: bool) -> Tensor:
        """(1, h, w, D) rows of the position table for this grid, by the family's rule.

        At the native size the table is used as it stands. DINO's code asks for a square image there, others do not:
        a rectangular image with as many patches has another grid in either case.
        """
        h, w = self.config.grid
        table = self.pos_embed[:, self._cls_rows :].reshape(1, h, w, -1)
        if grid == (h, w) and square:
            return table
        return RULES[self.config.positions](table, grid)

    def embed(self, images: Tensor, *, mask: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """Tokens that enter the first block: prefix, then patches.

        images: (B, 3, H, W). mask: (B, h * w) bool, True is replaced by the mask token. keep: (B, K) int64 indices of
        the patches that enter; the others never do. Returns (B, prefix + (K or h * w), D).
        Raises FeatureError where the size is no multiple of the patch.
        """
        height, width = images.shape[-2:]
        if height % self.config.patch or width % self.config.patch or not height or not width:
            raise FeatureError(f"image size {height} x {width} is not a multiple of the patch size {self.config.patch}")
        x = self.patch_embed(images)
        if mask is not None:
            x = torch.where(mask.view(*x.shape[:3], 1), self.mask_token.to(x.dtype), x)
        x = (x + self.positions((x.shape[1], x.shape[2]), height == width)).flatten(1, 2)
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
        return torch.cat([*self._prefix(len(x)), x], 1)

    def _prefix(self, batch: int) -> list[Tensor]:
        parts = []
        if self.config.cls:
            shift = self.pos_embed[:, :1] if self._cls_rows else 0
            parts.append((self.cls_token + shift).expand(batch, -1, -1))
        if self.config.registers:
            parts.append(self.reg_token.expand(batch, -1, -1))
        return parts

    def forward(self, images: Tensor, *, mask: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """(B, prefix + patches, D) after the last block and the final norm; `mask` and `keep` as in `embed`."""
        x = self.embed(images, mask=mask, keep=keep)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]

    def intermediate(self, images: Tensor, blocks: Sequence[int], norm: Sequence[bool]) -> list[Tensor]:
        """Outputs (B, T, D) of the blocks asked for, each with or without the final norm; later blocks are not run."""
        x, found = self.embed(images), dict[int, Tensor]()
        for i in range(max(blocks) + 1):
            x = self.blocks[i](x)
            if i in blocks:
                found[i] = x
        return [self.norm(found[b]) if n else found[b] for b, n in zip(blocks, norm, strict=True)]


class ViTEncoder(nn.Module):
    """The `Encoder` contract over a `VisionTransformer`: frozen, in evaluation mode, with the head where there is one."""

    def __init__(self, vit: VisionTransformer, spec: EncoderSpec, head: nn.Module | None = None) -> None:
        super().__init__()
        self.vit, self.spec, self.head = vit, spec, head
        self.eval().requires_grad_(False)

    def encode(
        self, images: Tensor, blocks: Sequence[int] = (-1,), norm: bool | Sequence[bool] = True
    ) -> tuple[Tokens, ...]:
        """See `evalkit.types.Encoder`."""
        numbers = [resolve_block(b, self.vit.config.depth) for b in blocks]
        flags = [norm] * len(numbers) if isinstance(norm, bool) else list(norm)
        h, w = (side // self.vit.config.patch for side in images.shape[-2:])
        return tuple(self._tokens(x, h, w) for x in self.vit.intermediate(images, numbers, flags))

    def _tokens(self, x: Tensor, h: int, w: int) -> Tokens:
        config = self.vit.config
        patches = x[:, config.prefix :].reshape(len(x), h, w, -1)
        return Tokens(cls=x[:, 0] if config.cls else None, patches=patches)

    def project(self, tokens: Tokens, at: Literal["output", "bottleneck"] = "output") -> Tensor:
        """See `evalkit.types.Encoder`: the pretraining head on the class token."""
        if self.head is None:
            raise NoProjection(f"{self.spec.id}: the file holds no pretraining head")
        if tokens.cls is None:
            raise NoProjection(f"{self.spec.id}: the head reads a class token and the network has none")
        return self.head(tokens.cls, bottleneck=at == "bottleneck")  # type: ignore[no-any-return]

    def attention(self, images: Tensor, queries: Sequence[str | int] = ("cls",)) -> Tensor:
        """See `evalkit.types.Encoder`."""
        config = self.vit.config
        if "cls" in queries and not config.cls:
            raise Unsupported(f"{self.spec.id}: the network has no class token to look from")
        rows = [0 if q == "cls" else config.prefix + int(q) for q in queries]
        x = self.vit.embed(images)
        for block in self.vit.blocks[:-1]:
            x = block(x)
        last = self.vit.blocks[-1]
        return last.attn.rows(last.norm1(x), torch.tensor(rows, device=x.device))  # type: ignore[no-any-return,operator,union-attr]


def resolve_block(block: int, depth: int) -> int:
    """A block number counted from 0; negative numbers count from the output. Raises FeatureError outside the depth."""
    number = block + depth if block < 0 else block
    if not 0 <= number < depth:
        raise FeatureError(
            f"block {block} does not exist: the encoder has {depth} blocks (0 to {depth - 1}, or -1 ...)"
        )
    return number
