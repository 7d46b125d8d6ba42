"""Checkpoints of DINOv3 (Siméoni et al. 2025, arXiv:2508.10104); facebookresearch/dinov3 6876159, under the DINOv3 License,
which limits redistribution and use. Its ConvNeXts are no vision transformers.

Network (dinov3/models/vision_transformer.py, hub/backbones.py:199-492): every eps 1e-5 ("layernormbf16", :29), exact GELU,
LayerScale, four storage tokens between class token and patches, one final norm. No table of positions: queries and keys of
the patches are turned (layers/rope_position_encoding.py:57-106, layers/attention.py:14-26) by the `periods` that the file
holds, which training rounds to bfloat16; we compute with them in full precision, as the hub does (timm 1.0.31 makes exact
periods anew: tokens differ by up to 1 %). The bias of the keys is masked by `bias_mask` (attention.py:29-40); the 7B has no
qkv bias. The `_plus` ones and the 7B have SwiGLU as `w1` (the gate), `w2` and `w3` (layers/ffn_layers.py:69-77).
`local_cls_norm`, in 7B and in the satellite weights, is for training's local crops only (:237-243).
Files:
- the released backbone, bare;
- the evaluation file {'teacher'} (train/train.py:256-264): the moving average, with `backbone.`, `dino_head.`, `ibot_head.`;
- the training state {'model', 'optimizer', 'iteration'}, a folder by torch.distributed.checkpoint (checkpointer.py:116-121),
  as one file after torch's own converter: `model_ema.` is what is evaluated, called teacher here as there. In distillation
  `teacher.` is the big network. The recipe configs/train/vitl_im1k_lin834.yaml makes `vit_large_patch16_im1k`: eps 1e-6, no
  storage tokens, no mask.
Evaluated: class token; short side 256 bicubic, centre 224 (data/transforms.py:35-36, 128-145); ImageNet's mean and std, for
the weights trained on satellite images their own (README:268-289). Expect 82.0 % k-NN on ImageNet for a ViT-L by that
recipe (README:655).
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from evalkit.adapters.family import Layout, Place, ViTFamily
from evalkit.adapters.files import RawCheckpoint
from evalkit.adapters.heads import plain_dino_head
from evalkit.adapters.loading import Rule, State
from evalkit.adapters.vit import ViTConfig
from evalkit.types import Encoder, Manifest, Preprocessing

VERSION = 1
NEEDS_FILE = True

SMALL = ViTConfig(
    dim=384,
    depth=12,
    heads=6,
    patch=16,
    eps=1e-5,
    layer_scale=1e-5,
    registers=4,
    positions="",
    rotary=100.0,
    mask_token=True,
)
LARGE = replace(SMALL, dim=1024, depth=24, heads=16)
SEVEN = replace(SMALL, dim=4096, depth=40, heads=32, mlp="swiglu", hidden=8192, qkv_bias=False)

ARCHITECTURES: dict[str, ViTConfig] = {
    "vit_small_patch16": SMALL,
    "vit_small_patch16_plus": replace(SMALL, mlp="swiglu", hidden=1536),
    "vit_base_patch16": replace(SMALL, dim=768, heads=12),
    "vit_large_patch16": LARGE,
    "vit_large_patch16_plus": replace(LARGE, mlp="swiglu", hidden=4096),
    "vit_huge_patch16_plus": replace(SMALL, dim=1280, depth=32, heads=20, mlp="swiglu", hidden=5120),
    "vit_7b_patch16": SEVEN,
    "vit_large_patch16_sat493m": LARGE,
    "vit_7b_patch16_sat493m": SEVEN,
    "vit_large_patch16_im1k": replace(LARGE, eps=1e-6, registers=0),
}
SATELLITE = Preprocessing(
    224,
    (0.430, 0.411, 0.296),
    (0.213, 0.156, 0.143),
    "facebookresearch/dinov3 6876159, README:282-283: SAT-493M's mean and std",
)

NETWORKS = r"(student|teacher|model_ema|gram_teacher)\.(backbone|dino_head|ibot_head)\..+"
DROP = (
    Rule(
        "local-class-norm",
        "normalises the class token of training's local crops",
        r"(backbone\.)?local_cls_norm\.(weight|bias)",
    ),
    Rule(
        "patch-head", "the projection is the class token's", r"ibot_head\.(mlp\.\d+\.(weight|bias)|last_layer\.weight)"
    ),
)
OUTSIDE = (
    Rule("other-network", "the networks lie in one entry", NETWORKS),
    Rule("loss-centre", "belongs to the loss", r"(dino_loss|ibot_patch_loss)\.center"),
)


def rename(state: State) -> State:
    """Storage tokens are registers, biases are masked, `w1` and `w2` become `w12`; what lacks its partner stays."""
    out = dict(state)
    if "storage_tokens" in out:
        out["reg_token"] = out.pop("storage_tokens")
    for key in state:
        if match := re.fullmatch(r"(blocks\.\d+\.mlp\.)w1\.(weight|bias)", key):
            _join(out, key, f"{match[1]}w2.{match[2]}", f"{match[1]}w12.{match[2]}")
        elif re.fullmatch(r"blocks\.\d+\.attn\.qkv\.bias", key):
            _mask(out, key, wanted="storage_tokens" in state)
    return out


def _join(state: State, gate: str, values: str, joined: str) -> None:
    """Two matrices of one shape below each other, under one name."""
    if values in state and state[gate].shape == state[values].shape and state[gate].ndim:
        state[joined] = torch.cat([state.pop(gate), state.pop(values)])


def _mask(state: State, bias: str, *, wanted: bool) -> None:
    """The bias times its mask. Without the mask that official files with storage tokens have, it is none of ours."""
    mask = state.get(f"{bias}_mask")
    if mask is not None and mask.shape == state[bias].shape:
        state[bias] = state[bias].float() * state.pop(f"{bias}_mask").float()
    elif mask is None and wanted:
        state[f"{bias} without its bias_mask"] = state.pop(bias)


def adapt(config: ViTConfig, backbone: State) -> ViTConfig:
    """With a final norm of its own for class and storage tokens, where training untied it
    (`untie_cls_and_patch_norms`, vision_transformer.py:159-165)."""
    return replace(config, cls_norm="cls_norm.weight" in backbone)


FAMILY = ViTFamily(
    version=VERSION,
    layout=Layout(
        networks={
            "teacher": (Place("teacher"), Place("model", "model_ema."), Place("model", "teacher.")),
            "student": (Place("model", "student."),),
        },
        backbone="backbone.",
        head="dino_head.",
        rename=rename,
        drop=DROP,
        outside=OUTSIDE,
        signs=(r"(.+\.)?rope_embed\.periods",),
    ),
    architectures=ARCHITECTURES,
    source="facebookresearch/dinov3 6876159, README:263-264: ImageNet mean and std",
    adapt=adapt,
    head=lambda state, config: plain_dino_head(state, config.dim),
)


def load(manifest: Manifest, raw: RawCheckpoint) -> Encoder:
    """As `ViTFamily.load`, with the satellite weights' own mean and std where the manifest states none."""
    if manifest.arch.endswith("_sat493m") and manifest.preprocessing == Preprocessing():
        manifest = replace(manifest, preprocessing=SATELLITE)
    return FAMILY.load(manifest, raw)
