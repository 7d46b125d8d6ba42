"""Checkpoints of SelfPatch (Yun et al. 2022, arXiv:2206.07990; alinlab/SelfPatch 81aef14, Apache-2.0).

The backbone (selfpatch_vision_transformer.py:262-345) has no class token, one position per patch (resized by DINO's rule)
and no final norm; eps 1e-6, exact GELU. The class token is made behind it by the SelfPatch head (362-423): two blocks in
which a learned token looks at the patches, then a norm. They are called LayerScale blocks and have no LayerScale. The
projection is DINO's head on that token (`c_head.`); `p_head.` reads patches and is left out. So an encoder offers a class
token, and attention from it, where the file has the head, and for the last block only: the head read no other.

Files: the training file of main_selfpatch.py:294-303 ('student' with `module.`, 'teacher' without; inside `backbone.`,
`ca_head.`, `c_head.`, `p_head.`; beside them optimizer, epoch, args, dino_loss, fp16_scaler), one of its networks alone,
the bare backbone, what segmentation/tools/model_converters/vit2mmseg.py writes of each, and evalkit's own: the teacher
without prototypes. The released file (ViT-S/16) lies on Google Drive and was not seen; the code was run. The teacher is
taken unless the manifest or `--network` says student, and patches without any norm, as eval_video_segmentation.py does
(its std 0.228 is a slip for 0.229). Expect 75.6 % by linear probe on ImageNet for vit_small_patch16 (Table 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.adapters import specs
from evalkit.adapters.class_attention import ClassToken
from evalkit.adapters.encoder import ViTEncoder, norm_flags, query_rows, resolve_block
from evalkit.adapters.family import Layout, Place, ViTFamily
from evalkit.adapters.heads import dino_head
from evalkit.adapters.loading import Rule, State, split
from evalkit.adapters.renames import from_mmseg
from evalkit.adapters.vit import VisionTransformer, ViTConfig, start
from evalkit.errors import NoProjection
from evalkit.types import EncoderSpec, Tokens

VERSION = 1
NEEDS_FILE = True

ARCHITECTURES: dict[str, ViTConfig] = {
    "vit_tiny_patch16": ViTConfig(dim=192, depth=12, heads=3, patch=16, cls=False, final_norm=False),
    "vit_small_patch16": ViTConfig(dim=384, depth=12, heads=6, patch=16, cls=False, final_norm=False),
    "vit_base_patch16": ViTConfig(dim=768, depth=12, heads=12, patch=16, cls=False, final_norm=False),
    "vit_micro_patch8_64": ViTConfig(dim=192, depth=6, heads=3, patch=8, size=64, cls=False, final_norm=False),
}


class SelfPatchHead(nn.Module):
    """ca_head: makes the class token. c_head: DINO's head on it."""

    def __init__(self, state: State, config: ViTConfig) -> None:
        super().__init__()
        self.ca_head = ClassToken(config)
        self.c_head = dino_head(split(state, "c_head.")[0], config.dim)

    def forward(self, cls: Tensor, *, bottleneck: bool = False) -> Tensor:
        """(B, D) class tokens after the head's norm -> see `DINOHead`."""
        return self.c_head(cls, bottleneck=bottleneck)  # type: ignore[no-any-return]


class UntrainedHead(nn.Module):
    """ca_head as pretraining starts it; no projection."""

    def __init__(self, config: ViTConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.ca_head = specs.build(lambda: ClassToken(config))
        start(self.ca_head, generator)

    def forward(self, cls: Tensor, *, bottleneck: bool = False) -> Tensor:
        """Raises NoProjection."""
        raise NoProjection("an untrained twin has no pretraining head")


class SelfPatchEncoder(ViTEncoder):
    """With the head, its class token belongs to the last block's tokens; other blocks have none."""

    head: SelfPatchHead | UntrainedHead | None

    def __init__(
        self, vit: VisionTransformer, spec: EncoderSpec, head: SelfPatchHead | UntrainedHead | None = None
    ) -> None:
        super().__init__(vit, replace(spec, offers=spec.offers | {"cls"}) if head else spec, head)

    def untrained(self, spec: EncoderSpec, generator: torch.Generator) -> SelfPatchEncoder:
        """See `ViTEncoder`; the class token is a part of the network, so its blocks are started anew too."""
        vit = specs.build(lambda: VisionTransformer(self.vit.config)).initialise(generator)
        return SelfPatchEncoder(vit, spec, UntrainedHead(self.vit.config, generator) if self.head else None)

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
