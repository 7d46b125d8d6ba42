"""Checkpoints of SiT (Atito et al. 2021, arXiv:2104.03602; Sara-Ahmed/SiT 7f22e9c and 1767b91, by its README under the GNU
General Public License).

Two generations of weights were released, both on Google Drive and not seen here; both codes were run.
- Since December 2022 (7f22e9c): one class token, DINO's rule for positions, eps 1e-6 (vision_transformer.py:141-243). The
  projection is the contrastive head (CLSHead, 246-275): three linear layers with biases, batch norm after each, ReLU after
  the first and GELU after the second. Training files (main.py:184-190) have 'student' and 'teacher', both with `module.`;
  inside `backbone.`, `head.` and `head_recons.`; beside them optimizer, epoch, args, fp16_scaler.
- 2021 (1767b91): a rotation token, then a contrastive token, each with a row of the position table, which its fine-tuning
  resizes by plain bicubic interpolation (main.py:247-261). Training files (main.py:354-361) have 'model', which fine-tuning
  takes, and 'model_ema'. The contrastive token is the class token here and the rotation token a register: attention does
  not care for the order of tokens. The projection is its linear `contrastive_head`.
The code of June 2022, with `cls_token1` and `cls_token2`, released no weights; such files are refused. Which network is
evaluated is not said: the teacher is taken, as for DINO. The papers fine-tune all weights; they print no frozen number.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from evalkit.adapters.family import Layout, Place, ViTFamily
from evalkit.adapters.heads import PlainHead, batch_norm_head, layer_widths
from evalkit.adapters.loading import Rule, State
from evalkit.adapters.vit import ViTConfig

VERSION = 1
NEEDS_FILE = True

ARCHITECTURES: dict[str, ViTConfig] = {
    "vit_tiny_patch16": ViTConfig(dim=192, depth=12, heads=3, patch=16),
    "vit_small_patch16": ViTConfig(dim=384, depth=12, heads=6, patch=16),
    "vit_base_patch16": ViTConfig(dim=768, depth=12, heads=12, patch=16),
}

TOKENS = {"rot_token": "reg_token", "contrastive_token": "cls_token"}
"""Names of 2021 in the shared transformer's, where the class token comes first."""


def _prepare(state: State) -> State:
    """The contrastive head of 2021 under the prefix of the later one."""
    old, new = "contrastive_head.", "head.linear."
    return {new + key.removeprefix(old) if key.startswith(old) else key: value for key, value in state.items()}


def _head(state: State, config: ViTConfig) -> PlainHead:
    """An empty contrastive head of the file's sizes: 512 in 2021; 4096, 4096 and 256 since. Raises KeyMismatch for
    another head."""
    if "linear.weight" in state:
        dim, out = layer_widths(state, config.dim, ("linear.weight",))
        return PlainHead({"linear": nn.Linear(dim, out)})
    return batch_norm_head(state, config.dim)


def _rename(state: State) -> State:
    """The two tokens of 2021 under the shared names, and their rows of the position table in that order."""
    if "rot_token" not in state:
        return dict(state)
    renamed = {TOKENS.get(key, key): value for key, value in state.items()}
    table = renamed.get("pos_embed")
    if table is not None and table.ndim == 3 and table.shape[1] > 2:
        renamed["pos_embed"] = torch.cat([table[:, 1:2], table[:, :1], table[:, 2:]], 1)
    return renamed


def _adapt(config: ViTConfig, backbone: State) -> ViTConfig:
    if "reg_token" not in backbone:
        return config
    return replace(config, registers=1, register_positions=True, positions="bicubic")


FAMILY = ViTFamily(
    version=VERSION,
    layout=Layout(
        networks={
            "teacher": (Place("teacher"),),
            "student": (Place("student"),),
            "model_ema": (Place("model_ema"),),
        },
        entries=("model",),
        backbone="backbone.",
        head="head.",
        prepare=_prepare,
        rename=_rename,
        drop=(
            Rule(
                "reconstruction head",
                "predicts pixels during pretraining",
                r"head_recons\.(mlp\.[024]|convTrans)\.(weight|bias)|convTrans\.(weight|bias)",
            ),
            Rule("rotation head", "tells four rotations apart during pretraining", r"rot_head\.(weight|bias)"),
            Rule("weights of the losses", "balance three losses in pretraining", r"(rot|contrastive|recons)_w"),
        ),
        signs=("rot_token", "contrastive_token", r"(module\.)?head\.mlp\.7\.running_mean"),
    ),
    architectures=ARCHITECTURES,
    source="Sara-Ahmed/SiT 7f22e9c, datasets/datasets_utils.py:167: ImageNet mean and std",
    head=_head,
    adapt=_adapt,
)
load = FAMILY.load
