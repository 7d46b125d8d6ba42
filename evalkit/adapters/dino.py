"""Checkpoints of DINO (Caron et al. 2021, arXiv:2104.14294; facebookresearch/dino 7c446df, Apache-2.0) and of our own
pretraining.

Network (vision_transformer.py:134-254): pre-norm, class token, learned table of 1 + h w rows, LayerNorm eps 1e-6 (the
constructors' choice), exact GELU, one bias for q, k and v, no LayerScale, final norm; 3, 6 and 12 heads for widths
192, 384 and 768. The table is used as it stands only for a square image of the native size; else `positions.dino`
(:174-195).
Files: the released backbone (bare keys, hubconf.py:17-74); the training file (main_dino.py:278-288: student, teacher,
optimizer, epoch, args, dino_loss, fp16_scaler), where the student lies under `module.` and the teacher only with batch
norm in the head (:188-198); evalkit's safetensors with `backbone.` and optionally `head.` without prototypes.
The teacher is evaluated (eval_knn.py, `--checkpoint_key`); short side 256 bicubic, centre 224, ImageNet mean and std.
Head: `heads.dino_head`. Expect 74.5 % k-NN on ImageNet for vit_small_patch16 (hubconf.py:20).
The ResNet-50 and XCiT weights that are released beside are no vision transformers; vit_tiny has code and no weights.
"""

from __future__ import annotations

from evalkit.adapters.family import Layout, Place, ViTFamily
from evalkit.adapters.heads import dino_head
from evalkit.adapters.vit import ViTConfig

VERSION = 1
NEEDS_FILE = True

ARCHITECTURES: dict[str, ViTConfig] = {
    "vit_tiny_patch16": ViTConfig(dim=192, depth=12, heads=3, patch=16),
    "vit_small_patch16": ViTConfig(dim=384, depth=12, heads=6, patch=16),
    "vit_small_patch8": ViTConfig(dim=384, depth=12, heads=6, patch=8),
    "vit_base_patch16": ViTConfig(dim=768, depth=12, heads=12, patch=16),
    "vit_base_patch8": ViTConfig(dim=768, depth=12, heads=12, patch=8),
    "vit_micro_patch8_64": ViTConfig(dim=192, depth=6, heads=3, patch=8, size=64),
}

FAMILY = ViTFamily(
    version=VERSION,
    layout=Layout(
        networks={"teacher": (Place("teacher"),), "student": (Place("student"),)},
        backbone="backbone.",
        head="head.",
        signs=("dino_loss",),
    ),
    architectures=ARCHITECTURES,
    source="facebookresearch/dino 7c446df, eval_knn.py: ImageNet mean and std",
    head=lambda state, config: dino_head(state, config.dim),
)
load = FAMILY.load
