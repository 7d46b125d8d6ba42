"""Checkpoints of MC-SSL0.0 (Atito et al. 2021, arXiv:2111.15340; Sara-Ahmed/MCSSL 57d8daf, no licence file).

The backbone is DINO's: one class token, positions resized by DINO's rule, eps 1e-6 (vision_transformer.py:117-245); its
tiny model has 6 dimensions (227-231) and is not offered. The head (PROJHead, 248-284) has one MLP for all tokens and two
layers of prototypes: for the class token (`last_layer`, the projection here) and for the patches (`data_layer`).

Files: the training file of main_MCSSL.py:184-191 ('student' with `module.`, which alone sits in DistributedDataParallel,
'teacher' without; inside `backbone.`, `head.`, `head_recons.`; beside them optimizer, epoch, args, calc_loss,
fp16_scaler), one of its networks alone, and the bare backbone. The released files (ViT-S/16, ViT-B/16) lie on Google Drive
and were not seen; the code was run. Which network is evaluated is not said: the teacher is taken, as for DINO, from whose
repository it is built. Expect 82.4 % (ViT-S) and 84.0 % (ViT-B) on ImageNet after fine-tuning all weights (README.md); no
frozen number is printed.
"""

from __future__ import annotations

from evalkit.adapters.family import Layout, Place, ViTFamily
from evalkit.adapters.heads import dino_head
from evalkit.adapters.loading import Rule
from evalkit.adapters.vit import ViTConfig

VERSION = 1
NEEDS_FILE = True

ARCHITECTURES: dict[str, ViTConfig] = {
    "vit_small_patch16": ViTConfig(dim=384, depth=12, heads=6, patch=16),
    "vit_base_patch16": ViTConfig(dim=768, depth=12, heads=12, patch=16),
}

FAMILY = ViTFamily(
    version=VERSION,
    layout=Layout(
        networks={"teacher": (Place("teacher"),), "student": (Place("student"),)},
        backbone="backbone.",
        head="head.",
        drop=(
            Rule("prototypes of the patches", "the projection is the class token's", r"head\.data_layer\.weight_[gv]"),
            Rule(
                "reconstruction head",
                "predicts pixels during pretraining",
                r"head_recons\.(mlp\.[02]|convTrans)\.(weight|bias)",
            ),
        ),
        signs=("calc_loss", r"(module\.)?head\.data_layer\.weight_g"),
    ),
    architectures=ARCHITECTURES,
    source="Sara-Ahmed/MCSSL 57d8daf, datasets_utils.py:202: ImageNet mean and std",
    head=lambda state, config: dino_head(state, config.dim),
)
load = FAMILY.load
