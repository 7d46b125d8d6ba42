"""The one vision transformer that families and pretraining share (Dosovitskiy et al. 2020, arXiv:2010.11929).

Parameter names are those of timm and DINO (`blocks.0.attn.qkv.weight` ...), so that most files need no renaming. What
differs between families is in `ViTConfig`, never in a second transformer: tokens before the patches, how positions enter,
LayerScale, the MLP, the final norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from evalkit.adapters.blocks import Attention, Block, Geometry, Mlp, RelativeBias, Rotary, SwiGLU
from evalkit.adapters.positions import RULES, sine_cosine
from evalkit.errors import FeatureError, Unsupported


@dataclass(frozen=True)
class ViTConfig:
    """An architecture. Sides in pixels; `eps` of every LayerNorm.

    size: native side of a square image. native: (h, w) patches where the native image is no square.
    positions: the rule of `positions.RULES` by which the added table meets another grid, "" for no table.
    cls_position, register_positions: whether the table's first rows belong to the class token, then to the registers.
    registers: further tokens between class token and patches (DeiT's distillation token is one).
    relative: learned relative position bias, shared by the blocks or one in each. rotary: base of the periods by which
    queries and keys are turned, None for none. layer_scale: initial gamma of LayerScale, None for none.
    hidden: width of the MLP where it is not `mlp_ratio` times dim. cls_norm: class token and registers have a final norm
    of their own.
    """

    dim: int
    depth: int
    heads: int
    patch: int
    size: int = 224
    native: tuple[int, int] | None = None
    mlp_ratio: float = 4.0
    mlp: Literal["gelu", "swiglu"] = "gelu"
    hidden: int | None = None
    eps: float = 1e-6
    qkv_bias: bool = True
    layer_scale: float | None = None
    cls: bool = True
    registers: int = 0
    positions: str = "dino"
    cls_position: bool = True
    register_positions: bool = False
    relative: Literal["", "shared", "blocks"] = ""
    relative_rule: str = "beit"
    rotary: float | None = None
    mask_token: bool = False
    final_norm: bool = True
    cls_norm: bool = False
    drop_path: float = 0.0

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) patches at the native size."""
        return self.native or (self.size // self.patch, self.size // self.patch)

    def at(self, grid: tuple[int, int]) -> ViTConfig:
        """The same network with another native grid (h, w); the side of its square crops is that of the shorter one."""
        h, w = grid
        return replace(self, size=min(grid) * self.patch, native=None if h == w else grid)

    @property
    def prefix(self) -> int:
        """Tokens before the first patch: class token, then registers."""
        return int(self.cls) + self.registers

    @property
    def prefix_rows(self) -> int:
        """Rows of the position table before the first patch's."""
        if not self.positions:
            return 0
        return int(self.cls and self.cls_position) + self.registers * self.register_positions


class PatchEmbed(nn.Module):
    """A convolution whose stride is its kernel: one token per patch."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H/p, W/p, D)."""
        tokens: Tensor = self.proj(images)
        return tokens.movedim(1, -1)


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
        if config.positions:
            self.pos_embed = nn.Parameter(torch.zeros(1, h * w + config.prefix_rows, config.dim))
        self.patch_embed = PatchEmbed(config.patch, config.dim)
        self.rel_pos_bias = _relative(config) if config.relative == "shared" else None
        self.rope_embed = Rotary(config.dim // config.heads, config.rotary) if config.rotary else None
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList([_block(config, rate) for rate in rates])
        self.norm = nn.LayerNorm(config.dim, eps=config.eps) if config.final_norm else nn.Identity()
        if config.cls_norm:
            self.cls_norm = nn.LayerNorm(config.dim, eps=config.eps)

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
        if self.config.positions:
            with torch.no_grad():
                self.pos_embed[:, self.config.prefix_rows :] = sine_cosine(self.config.grid, self.config.dim)
        return self

    def positions(self, grid: tuple[int, int], square: bool) -> Tensor:
        """(1, h, w, D) rows of the position table for this grid, by the family's rule.

        At the native size the table is used as it stands. DINO's code asks for a square image there, others do not:
        a rectangular image with as many patches has another grid in either case, unless the native one is a rectangle.
        """
        h, w = self.config.grid
        table = self.pos_embed[:, self.config.prefix_rows :].reshape(1, h, w, -1)
        if grid == (h, w) and (square or h != w):
            return table
        return RULES[self.config.positions](table, grid)

    def embed(
        self, images: Tensor, *, mask: Tensor | None = None, keep: Tensor | None = None
    ) -> tuple[Tensor, Geometry]:
        """Tokens that enter the first block (prefix, then patches), and what the blocks know of the image.

        images: (B, 3, H, W). mask: (B, h * w) bool, True is replaced by the mask token. keep: (B, K) int64 indices of
        the patches that enter; the others never do. Tokens: (B, prefix + (K or h * w), D).
        Raises FeatureError where the size is no multiple of the patch, Unsupported where patches are left out of a
        network that knows positions inside its attention.
        """
        height, width = images.shape[-2:]
        if height % self.config.patch or width % self.config.patch or not height or not width:
            raise FeatureError(f"image size {height} x {width} is not a multiple of the patch size {self.config.patch}")
        x = self.patch_embed(images)
        if mask is not None:
            x = torch.where(mask.view(*x.shape[:3], 1), self.mask_token.to(x.dtype), x)
        grid = (x.shape[1], x.shape[2])
        if self.config.positions:
            x = x + self.positions(grid, height == width)
        x = x.flatten(1, 2)
        if keep is not None:
            if self.config.relative or self.rope_embed:
                raise Unsupported("a forward over some patches only needs positions that are added to the tokens")
            x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
        return torch.cat([*self._prefix(len(x)), x], 1), self._geometry(grid)

    def _geometry(self, grid: tuple[int, int]) -> Geometry:
        bias = self.rel_pos_bias(grid) if self.rel_pos_bias else None
        return Geometry(grid, bias, self.rope_embed(grid) if self.rope_embed else None)

    def _prefix(self, batch: int) -> Iterator[Tensor]:
        """Class token and registers, each with its own rows of the position table where it has some."""
        config, row = self.config, 0
        if config.cls:
            row = int(bool(config.positions) and config.cls_position)
            yield (self.cls_token + self.pos_embed[:, :1] if row else self.cls_token).expand(batch, -1, -1)
        if config.registers:
            rows = slice(row, config.prefix_rows)
            own = self.reg_token + self.pos_embed[:, rows] if config.register_positions else self.reg_token
            yield own.expand(batch, -1, -1)

    def final(self, x: Tensor) -> Tensor:
        """(B, T, D) after the last block -> the same after the final norm, where there is one."""
        if not self.config.cls_norm:
            return self.norm(x)  # type: ignore[no-any-return]
        prefix, patches = x.tensor_split([self.config.prefix], 1)
        return torch.cat([self.cls_norm(prefix), self.norm(patches)], 1)

    def forward(self, images: Tensor, *, mask: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """(B, prefix + patches, D) after the last block and the final norm; `mask` and `keep` as in `embed`."""
        x, geometry = self.embed(images, mask=mask, keep=keep)
        for block in self.blocks:
            x = block(x, geometry)
        return self.final(x)

    def intermediate(self, images: Tensor, blocks: Sequence[int], norm: Sequence[bool]) -> list[Tensor]:
        """Outputs (B, T, D) of the blocks asked for, each with or without the final norm; later blocks are not run."""
        (x, geometry), found = self.embed(images), dict[int, Tensor]()
        for i in range(max(blocks) + 1):
            x = self.blocks[i](x, geometry)
            if i in blocks:
                found[i] = x if i == max(blocks) else x.clone()  # the next block writes into x
        return [self.final(found[b]) if n else found[b] for b, n in zip(blocks, norm, strict=True)]

    def attention(self, images: Tensor, queries: Sequence[int]) -> Tensor:
        """(B, heads, Q, T) rows of the last block's softmax, for the tokens `queries`."""
        x, geometry = self.embed(images)
        for block in self.blocks[:-1]:
            x = block(x, geometry)
        last = self.blocks[-1]
        return last.attn.rows(last.norm1(x), torch.tensor(queries, device=x.device), geometry)  # type: ignore[no-any-return,operator,union-attr]


def _relative(config: ViTConfig) -> RelativeBias:
    return RelativeBias(config.grid, config.heads, config.relative_rule)


def _block(config: ViTConfig, drop_path: float) -> Block:
    own = _relative(config) if config.relative == "blocks" else None
    hidden = config.hidden or int(config.dim * config.mlp_ratio)
    return Block(
        Attention(config.dim, config.heads, config.qkv_bias, own),
        (SwiGLU if config.mlp == "swiglu" else Mlp)(config.dim, hidden),
        config.dim,
        eps=config.eps,
        layer_scale=config.layer_scale,
        drop_path=drop_path,
    )
