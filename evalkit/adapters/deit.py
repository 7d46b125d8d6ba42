"""Checkpoints of DeiT, distilled DeiT (Touvron et al. 2020, arXiv:2012.12877) and DeiT III (Touvron et al. 2022,
arXiv:2204.07118); facebookresearch/deit 7e160fe, Apache-2.0. They are trained with labels: the supervised baseline.

The networks (models.py:20-165, models_v2.py:62-83,171-257,272-383): pre-norm, final norm, every eps 1e-6, exact GELU, qkv
with biases. Distilled: `dist_token` between class token and patches, with its own row of positions. DeiT III: LayerScale
(`gamma_1`, `gamma_2`), and a class token without a position. Another size resizes the patches' rows (main.py:288-306).
The parallel networks of models_v2.py were never released.

Files: the released ones ({'model'} with the classifiers `head`, `head_dist`, which are dropped), and the training file of
main.py:436-444 (beside optimizer, lr_scheduler, epoch, model_ema, scaler, args). 'model' is taken, which main.py:402
evaluates, unless the manifest or `--network` says model_ema. Files of DeiT III trained on ImageNet-21k have the same keys.

There is no projection. The class token after the final norm is evaluated, on images resized to side / 0.875 by bicubic
interpolation and cropped (datasets.py:99-105; DeiT III: to the side itself, README_revenge.md:81). Expect 72.2 % for
vit_tiny_patch16 with its own classifier (README_deit.md).
"""

from __future__ import annotations

from dataclasses import replace

from evalkit.adapters.family import Layout, Place, ViTFamily
from evalkit.adapters.loading import Rule, State
from evalkit.adapters.renames import layer_scale_names, renamed
from evalkit.adapters.vit import ViTConfig

VERSION = 1
NEEDS_FILE = True

TINY = ViTConfig(dim=192, depth=12, heads=3, patch=16, positions="bicubic")
SMALL = ViTConfig(dim=384, depth=12, heads=6, patch=16, positions="bicubic")
MEDIUM = ViTConfig(dim=512, depth=12, heads=8, patch=16, positions="bicubic")
BASE = ViTConfig(dim=768, depth=12, heads=12, patch=16, positions="bicubic")
LARGE = ViTConfig(dim=1024, depth=24, heads=16, patch=16, positions="bicubic")
HUGE = ViTConfig(dim=1280, depth=32, heads=16, patch=14, positions="bicubic")


def _distilled(config: ViTConfig) -> ViTConfig:
    """With the distillation token."""
    return replace(config, registers=1, register_positions=True)


def _third(config: ViTConfig) -> ViTConfig:
    """As DeiT III has it; gammas start at 1e-4 (models_v2.py:68)."""
    return replace(config, layer_scale=1e-4, cls_position=False)


ARCHITECTURES: dict[str, ViTConfig] = {
    "vit_tiny_patch16": TINY,
    "vit_small_patch16": SMALL,
    "vit_base_patch16": BASE,
    "vit_base_patch16_384": replace(BASE, size=384),
    "vit_tiny_patch16_distilled": _distilled(TINY),
    "vit_small_patch16_distilled": _distilled(SMALL),
    "vit_base_patch16_distilled": _distilled(BASE),
    "vit_base_patch16_distilled_384": _distilled(replace(BASE, size=384)),
    "vit_small_patch16_deit3": _third(SMALL),
    "vit_small_patch16_deit3_384": _third(replace(SMALL, size=384)),
    "vit_medium_patch16_deit3": _third(MEDIUM),
    "vit_base_patch16_deit3": _third(BASE),
    "vit_base_patch16_deit3_384": _third(replace(BASE, size=384)),
    "vit_large_patch16_deit3": _third(LARGE),
    "vit_large_patch16_deit3_384": _third(replace(LARGE, size=384)),
    "vit_huge_patch14_deit3": _third(HUGE),
}


def _rename(state: State) -> State:
    """The shared transformer's names of the distillation token and of LayerScale."""
    return renamed(layer_scale_names(state), "dist_token", "reg_token")


FAMILY = ViTFamily(
    version=VERSION,
    layout=Layout(
        networks={"model": (Place("model"),), "model_ema": (Place("model_ema"),)},
        rename=_rename,
        drop=(Rule("classifier", "gives class scores, not features", r"head(_dist)?\.(weight|bias)"),),
    ),
    architectures=ARCHITECTURES,
    source="facebookresearch/deit 7e160fe, datasets.py:99-109: ImageNet mean and std",
)
load = FAMILY.load
