"""Checkpoints of DINOv2 (Oquab et al. 2023, arXiv:2304.07193) and of its variant with registers (Darcet et al. 2023,
arXiv:2309.16588); facebookresearch/dinov2 b8931f7, Apache-2.0.

Network (dinov2/models/vision_transformer.py:46-180): every eps 1e-6 (:90), exact GELU, LayerScale, one final norm; class
token, registers without a position (:226-234), patches. The giant has SwiGLU, `w12` with the gate first, 4096 wide
(layers/swiglu_ffn.py:29-33, 54-72). The table of 37 x 37 positions stands as it is for square images of its own size; else
it is resized (:180-213) with DINO's offset 0.1 where there are no registers, antialiased to the size where there are
(hub/backbones.py:100-156).
Files:
- the released backbone, bare;
- the evaluation file {'teacher'} (train/train.py:122-131) with `backbone.`, `dino_head.` and, in the larger recipes,
  `ibot_head.`, whose prototypes are for patches;
- the training file {'model', 'optimizer', 'iteration'} (fsdp/__init__.py:86-114) with `student.`, `teacher.` and the
  losses' centres. Of a run on several GPUs each rank has such a file, of flat pieces without names: those are refused, and
  the evaluation file beside them is what to load;
- {'model'} with a bare backbone, as training can start from (train/ssl_meta_arch.py:45-48).
Training splits the blocks into chunks: `blocks.<chunk>.<number in the whole network>.` (vision_transformer.py:153-162). Its
recipes (configs/train) make a ViT-L/16 and two with SwiGLU and patch 14, all at 224 pixels.
The teacher's class token is evaluated: short side 256 bicubic, centre 224, ImageNet mean and std (data/transforms.py:42-92).
Expect 79.0 % k-NN on ImageNet for vit_small_patch14, 79.1 % with registers (README).
"""

from __future__ import annotations

import re
from dataclasses import replace

from evalkit.adapters.family import Layout, Place, ViTFamily
from evalkit.adapters.heads import dino_head
from evalkit.adapters.loading import Rule, State
from evalkit.adapters.vit import ViTConfig

VERSION = 1
NEEDS_FILE = True

SMALL = ViTConfig(dim=384, depth=12, heads=6, patch=14, size=518, layer_scale=1.0, mask_token=True)
BASE = replace(SMALL, dim=768, heads=12)
LARGE = replace(SMALL, dim=1024, depth=24, heads=16)
GIANT = replace(SMALL, dim=1536, depth=40, heads=24, mlp="swiglu", hidden=4096)


def registers(config: ViTConfig) -> ViTConfig:
    """With four registers, and their own rule for positions: antialiased to the size, as timm's."""
    return replace(config, registers=4, positions="timm")


ARCHITECTURES: dict[str, ViTConfig] = {
    "vit_small_patch14": SMALL,
    "vit_base_patch14": BASE,
    "vit_large_patch14": LARGE,
    "vit_giant_patch14": GIANT,
    "vit_small_patch14_reg4": registers(SMALL),
    "vit_base_patch14_reg4": registers(BASE),
    "vit_large_patch14_reg4": registers(LARGE),
    "vit_giant_patch14_reg4": registers(GIANT),
    "vit_large_patch16": replace(LARGE, patch=16, size=224),
    "vit_large_patch14_swiglu_224": replace(LARGE, size=224, mlp="swiglu", hidden=2736),
    "vit_giant_patch14_224": replace(GIANT, size=224),
}

HEADS = r"ibot_head\.(mlp\.\d+\.(weight|bias)|last_layer\.weight_[gv])"
OUTSIDE = (
    Rule(
        "other-network",
        "student and teacher lie in one entry",
        r"(student|teacher)\.(backbone|dino_head|ibot_head)\..+",
    ),
    Rule("loss-centre", "belongs to the loss", r"(dino_loss|ibot_patch_loss)\.center"),
)


def rename(state: State) -> State:
    """Blocks without their chunks, registers under the shared transformer's name; the second key of one name stays."""
    out: State = {}
    for key, value in state.items():
        name = "reg_token" if key == "register_tokens" else re.sub(r"^blocks\.\d+\.(\d+\..+)", r"blocks.\1", key)
        out[key if name in out else name] = value
    return out


FAMILY = ViTFamily(
    version=VERSION,
    layout=Layout(
        networks={
            "teacher": (Place("teacher"), Place("model", "teacher.")),
            "student": (Place("student"), Place("model", "student.")),
        },
        entries=("model",),
        backbone="backbone.",
        head="dino_head.",
        rename=rename,
        drop=(Rule("patch-head", "the projection is the class token's", HEADS),),
        outside=OUTSIDE,
        signs=(r"(.+\.)?(dino_head|ibot_head)\.last_layer\.weight_g", "register_tokens"),
    ),
    architectures=ARCHITECTURES,
    source="facebookresearch/dinov2 b8931f7, data/transforms.py:42-43: ImageNet mean and std",
    head=lambda state, config: dino_head(state, config.dim),
)
load = FAMILY.load
