"""Checkpoints of CAE (Chen et al. 2022, arXiv:2202.03026; lxtGH/CAE d725971, which states no licence: facts only).

The encoder is models/modeling_cae_helper.py:195-312 without a mask: LayerNorm eps 1e-6, exact GELU, LayerScale (0.1 base,
1e-5 large), biases for queries and values but none for keys (:44), a frozen sine-cosine table that the file holds (zeros
for the class token; rows in the first half of the channels, columns in the second), no relative positions. Twelve heads
for small and base, sixteen for large (models/modeling_cae.py:143-182). At other sizes the stored table is resized, bicubic
(linear_util/pos_embed.py; downstream_tasks/semantic_segmentation/mmcv_custom/checkpoint.py:488-509), not built anew.

Files: 'model' with `encoder.`; the released ones hold nothing else (issue 8 of the repository), evalkit's own no 'model'
either. Training files (furnace/utils.py:421-448) add pretext_neck, mask_token and, where the decoder has another width,
encoder_to_decoder; they leave out the `teacher.` that DeepSpeed's ('module') keep. The teacher is the encoder of the step
before (base_momentum 0, tools/run_pretraining.py:158); papers evaluate the encoder. Not read: fine-tuned files, which add
relative positions.

Which token: the linear probe reads the class token after the final norm, through a batch norm without gain (--use_cls,
scripts/cae_base_800e.sh:62; models/modeling_finetune.py:486-488; tools/run_linear.py:340): expect 70.3 % for base after
1,600 epochs. The attentive probe reads all tokens after that norm (77.2 %), fine-tuning the mean of the patches. The class
token's output enters no loss: regressor and decoder see patches only (models/modeling_cae.py:110, 121).
"""

from __future__ import annotations

from dataclasses import replace

from evalkit.adapters.family import Layout, Place, ViTFamily
from evalkit.adapters.loading import Rule, State
from evalkit.adapters.renames import fuse_qv_bias, layer_scale_names
from evalkit.adapters.vit import ViTConfig

VERSION = 1
NEEDS_FILE = True
SOURCE = "lxtGH/CAE d725971, tools/run_linear.py:167-171: bicubic 256, centre crop 224, ImageNet mean and std"

_BASE = ViTConfig(dim=768, depth=12, heads=12, patch=16, layer_scale=0.1, positions="bicubic")

ARCHITECTURES: dict[str, ViTConfig] = {
    "vit_small_patch16": replace(_BASE, dim=384),
    "vit_base_patch16": _BASE,
    "vit_large_patch16": replace(_BASE, dim=1024, depth=24, heads=16, layer_scale=1e-5),
    "vit_micro_patch8_64": replace(_BASE, dim=192, depth=6, heads=3, patch=8, size=64),
}

_OUTSIDE = (
    Rule("other network", "encoder and teacher lie in one file", r"(encoder|teacher)\..+"),
    Rule("predictor", "regressor and decoder predict masked patches", r"pretext_neck\..+"),
    Rule("projection to the decoder", "the decoder's width differs", r"encoder_to_decoder(_norm)?\.(weight|bias)"),
    Rule("mask token", "the regressor's queries", "mask_token"),
)


def _rename(state: State) -> State:
    return layer_scale_names(fuse_qv_bias(state))


def _places(prefix: str) -> tuple[Place, ...]:
    return Place("model", prefix), Place("module", prefix), Place("", prefix)


FAMILY = ViTFamily(
    version=VERSION,
    layout=Layout(
        networks={"encoder": _places("encoder."), "teacher": _places("teacher.")},
        entries=("model", "module"),
        rename=_rename,
        outside=_OUTSIDE,
        signs=(r"pretext_neck\.(norm2|head)\.weight",),
    ),
    architectures=ARCHITECTURES,
    source=SOURCE,
)
load = FAMILY.load
