"""Checkpoints of SelfPatch (Yun et al. 2022, arXiv:2206.07990; alinlab/SelfPatch 81aef14, Apache-2.0).

The backbone (selfpatch_vision_transformer.py:262-345) has no class token, one position per patch (resized by DINO's rule)
and no final norm; eps 1e-6, exact GELU. The class token is made behind it by the SelfPatch head (362-423): two blocks in
which a learned token looks at the patches, then a norm. They are called LayerScale blocks and have no LayerScale. The
projection is DINO's head on that token (`c_head.`); `p_head.` reads patches and is left out. So an encoder offers a class
token, and attention from it, where the file has the head, and for the last block only: the head read no other.

Files: the training file of main_selfpatch.py:294-303 ('student' with `module.`, 'teacher' without; inside `backbone.`,
`ca_head.`, `c_head.`, `p_head.`; beside them optimizer, epoch, args, dino_loss, fp16_scaler), one of its networks alone,
the bare backbone, and what segmentation/tools/model_converters/vit2mmseg.py writes of each. The released file (ViT-S/16)
lies on Google Drive and was not seen; the code was run. The teacher is taken unless the manifest or `--network` says
student, and patches without any norm, as eval_video_segmentation.py does (its std 0.228 is a slip for 0.229).
Expect 75.6 % by linear probe on ImageNet for vit_small_patch16 (Table 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.adapters.blocks import Mlp
from evalkit.adapters.encoder import ViTEncoder, norm_flags, query_rows, resolve_block
from evalkit.adapters.family import Layout, Place, ViTFamily
from evalkit.adapters.heads import dino_head
from evalkit.adapters.loading import Rule, State, split
from evalkit.adapters.renames import from_mmseg
from evalkit.adapters.vit import VisionTransformer, ViTConfig
from evalkit.types import EncoderSpec, Tokens

VERSION = 1
NEEDS_FILE = True

ARCHITECTURES: dict[str, ViTConfig] = {
    "vit_tiny_patch16": ViTConfig(dim=192, depth=12, heads=3, patch=16, cls=False, final_norm=False),
    "vit_small_patch16": ViTConfig(dim=384, depth=12, heads=6, patch=16, cls=False, final_norm=False),
    "vit_base_patch16": ViTConfig(dim=768, depth=12, heads=12, patch=16, cls=False, final_norm=False),
}


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


class SelfPatchHead(nn.Module):
    """ca_head: makes the class token. c_head: DINO's head on it."""

    def __init__(self, state: State, config: ViTConfig) -> None:
        super().__init__()
        self.ca_head = ClassToken(config)
        self.c_head = dino_head(split(state, "c_head.")[0], config.dim)

    def forward(self, cls: Tensor, *, bottleneck: bool = False) -> Tensor:
        """(B, D) class tokens after the head's norm -> see `DINOHead`."""
        return self.c_head(cls, bottleneck=bottleneck)  # type: ignore[no-any-return]


class SelfPatchEncoder(ViTEncoder):
    """With the head, its class token belongs to the last block's tokens; other blocks have none."""

    head: SelfPatchHead | None

    def __init__(self, vit: VisionTransformer, spec: EncoderSpec, head: SelfPatchHead | None = None) -> None:
        super().__init__(vit, replace(spec, offers=spec.offers | {"cls"}) if head else spec, head)

    def encode(
        self, images: Tensor, blocks: Sequence[int] = (-1,), norm: bool | Sequence[bool] = True
    ) -> tuple[Tokens, ...]:
        """See `evalkit.types.Encoder`. norm: of the class token; patches have none."""
        found = super().encode(images, blocks, norm)
        if self.head is None:
            return found
        depth, out = self.vit.config.depth, []
        for tokens, block, flag in zip(found, blocks, norm_flags(norm, len(blocks)), strict=True):
            if resolve_block(block, depth) == depth - 1:
                tokens = replace(tokens, cls=self.head.ca_head(tokens.patches.flatten(1, 2), norm=flag))
            out.append(tokens)
        return tuple(out)

    def attention(self, images: Tensor, queries: Sequence[str | int] = ("cls",)) -> Tensor:
        """See `evalkit.types.Encoder`. The class token's row is from the head's last block; patches never look at it."""
        if self.head is None:
            return super().attention(images, queries)
        h, w = (side // self.vit.config.patch for side in images.shape[-2:])
        rows = query_rows(queries, h * w, 1)
        patches = [row - 1 for row in rows if row]
        seen = iter(F.pad(self.vit.attention(images, patches), (1, 0)).unbind(2)) if patches else iter(())
        cls = self.head.ca_head.rows(self.vit(images))[:, :, 0] if 0 in rows else None
        return torch.stack([next(seen) if row else cls for row in rows], 2)  # type: ignore[misc]


def _prepare(state: State) -> State:
    """Both parts of the head under one prefix."""
    return {f"head.{key}" if key.startswith(("ca_head.", "c_head.")) else key: value for key, value in state.items()}


FAMILY = ViTFamily(
    version=VERSION,
    layout=Layout(
        networks={"teacher": (Place("teacher"),), "student": (Place("student"),)},
        backbone="backbone.",
        head="head.",
        prepare=_prepare,
        rename=from_mmseg,
        drop=(
            Rule(
                "head of the patches",
                "the projection is the class token's",
                r"p_head\.(mlp\.\d\.(weight|bias|running_mean|running_var|num_batches_tracked)|last_layer\.weight_[gv])",
            ),
        ),
        signs=(r"(module\.)?ca_head\.cls_token",),
    ),
    architectures=ARCHITECTURES,
    source="alinlab/SelfPatch 81aef14, main_selfpatch.py:499: ImageNet mean and std",
    head=SelfPatchHead,
    encoder=SelfPatchEncoder,
)
load = FAMILY.load
