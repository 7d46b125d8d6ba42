"""Checkpoints of BEiT (Bao et al. 2021, arXiv:2106.08254) and BEiT v2 (Peng et al. 2022, arXiv:2208.06366).

Code: microsoft/unilm 768a3c8 (MIT), folders beit and beit2. The network is beit/modeling_finetune.py:248-357: LayerNorm
eps 1e-6, exact GELU, biases for queries and values but none for keys (:124), LayerScale, no added positions but a learned
bias per relative position inside every attention. It runs at other sizes with the tables resized as the segmentation
loader does it (semantic_segmentation/mmcv_custom/checkpoint.py:373-438); timm resizes them linearly, with other numbers.

Files: pretrained ('model': one table shared by the blocks, `norm`, mask_token, lm_head; v2 also cls_pt_layers, the second
head of its class token, beit2/modeling_pretrain.py:266-294); fine-tuned ('model', or 'module' from DeepSpeed: a table in
each block, a classifier, and `fc_norm` where it reads the mean of the patches, `norm` where it reads the class token);
training files (beit/utils.py:413-435: optimizer, epoch, scaler, args, and with --model_ema an average, taken when asked
for). `vit_base_patch16_abs` is beit_base_patch16_224_pt1k_800ep.pth: added positions, no relative ones, no LayerScale
(beit/README.md:190). The code named there for other sizes (beit2/modeling_pretrain.py:222-253) resizes by DINO's rule, but
leaves the table as it is for any image of 196 patches; we do that for 14 x 14 only. Not read: files of UPerNet.

Which token: BEiT's linear probe reads the class token beside the mean of the patches, of every block, before any norm
(beit/run_linear_eval.py:195-201); fine-tuning reads `fc_norm` of the mean of the patches (modeling_finetune.py:333-352).
v1 trains its class token by no loss of its own. Here `fc_norm` is the final norm of every token, as v2's code returns them
(beit2/modeling_finetune.py:393-401): their mean is not the classifier's input, which is the norm of the mean. Expect
80.1 % linear on ImageNet for the base network of v2 (its abstract). lm_head sorts patches into visual words: no projection.

Mean and std are 0.5 for what was trained on ImageNet-22k, ImageNet's for the `_abs` file (beit/README.md:119) and all of v2
(beit2/PRETRAINING.md). v2 shows itself by cls_pt_layers; a fine-tuned v2 file needs a manifest that states them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from evalkit.adapters.family import Layout, Place, ViTFamily, imagenet
from evalkit.adapters.files import RawCheckpoint
from evalkit.adapters.loading import Rule, State
from evalkit.adapters.renames import fuse_qv_bias, layer_scale_names, renamed
from evalkit.adapters.vit import ViTConfig
from evalkit.types import Encoder, Manifest, Preprocessing

VERSION = 1
NEEDS_FILE = True
SOURCE = "microsoft/unilm 768a3c8, beit/datasets.py:127-169: bicubic, mean and std 0.5 unless trained on ImageNet-1k"
_IMAGENET_1K = "microsoft/unilm 768a3c8, beit2/PRETRAINING.md and beit/README.md:119: ImageNet mean and std"

_BASE = ViTConfig(dim=768, depth=12, heads=12, patch=16, layer_scale=0.1, positions="", relative="shared")
_LARGE = replace(_BASE, dim=1024, depth=24, heads=16, layer_scale=1e-5)

ARCHITECTURES: dict[str, ViTConfig] = {
    "vit_base_patch16": _BASE,
    "vit_base_patch16_384": replace(_BASE, size=384),
    "vit_large_patch16": _LARGE,
    "vit_large_patch16_384": replace(_LARGE, size=384),
    "vit_large_patch16_512": replace(_LARGE, size=512),
    "vit_base_patch16_abs": replace(_BASE, layer_scale=None, positions="dino", relative=""),
}

_DROPPED = (
    Rule("mask token", "stands for masked patches in pretraining", "mask_token"),
    Rule("visual words", "the pretraining head sorts patches into visual words", r"(cls_pt_)?lm_head\.(weight|bias)"),
    Rule("class token head", "BEiT v2's second pretraining head", r"cls_pt_(layers\.\d+|norm)\..+"),
    Rule("classifier", "of fine-tuning", r"head\.(weight|bias)"),
    Rule("position index", "follows from the grid", r"(rel_pos_bias|blocks\.\d+\.attn)\.relative_position_index"),
)

_TABLE = "relative_position_bias_table"


def _rename(state: State) -> State:
    """The shared transformer's names; `fc_norm` is the final norm where there is no other. Without the biases of queries and
    values that BEiT's attention has, the file is another family's, which means another thing by its `fc_norm`."""
    if not any(key.startswith("norm.") for key in state) and any(key.endswith(".q_bias") for key in state):
        state = renamed(state, r"fc_norm\.(.+)", r"norm.\1")
    state = renamed(state, rf"(blocks\.\d+\.attn)\.{_TABLE}", rf"\1.rel_pos_bias.{_TABLE}")
    return layer_scale_names(fuse_qv_bias(state))


def _adapt(config: ViTConfig, backbone: State) -> ViTConfig:
    """Tables in the blocks where a block has one: then each must, and none is shared."""
    own = any(key.startswith("blocks.") and key.endswith(_TABLE) for key in backbone)
    return replace(config, relative="blocks") if own and config.relative else config


def _preprocessing(config: ViTConfig) -> Preprocessing:
    """Mean and std 0.5; ImageNet's for the architecture that was released for ImageNet-1k only."""
    if not config.relative:
        return imagenet(config, _IMAGENET_1K)
    return Preprocessing(config.size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), SOURCE)


FAMILY = ViTFamily(
    version=VERSION,
    layout=Layout(
        networks={"backbone": (Place("model"), Place("module")), "model_ema": (Place("model_ema"),)},
        rename=_rename,
        drop=_DROPPED,
    ),
    architectures=ARCHITECTURES,
    source=SOURCE,
    adapt=_adapt,
    preprocessing=_preprocessing,
)


def load(manifest: Manifest, raw: RawCheckpoint) -> Encoder:
    """As `ViTFamily.load`; the pretraining files of BEiT v2, known by their second head, take ImageNet's mean and std."""
    entries = [raw.state, *(entry for entry in raw.state.values() if isinstance(entry, Mapping))]
    v2 = any(str(key).startswith("cls_pt_layers.") for entry in entries for key in entry)
    family = replace(FAMILY, preprocessing=lambda config: imagenet(config, _IMAGENET_1K)) if v2 else FAMILY
    return family.load(manifest, raw)
