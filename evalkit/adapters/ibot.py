"""Checkpoints of iBOT (Zhou et al. 2021, arXiv:2111.07832; bytedance/ibot da316d8, Apache-2.0).

Network (models/vision_transformer.py:134-293): DINO's in every number (eps 1e-6, exact GELU, 6, 12 and 16 heads,
positions by `positions.dino`, :183-203). The student has `masked_embed`, which stands for masked patches in training
(:170-172, 267-269). Fine-tuned files may have LayerScale (`gamma_1`, `gamma_2`, :100-115) and `fc_norm` instead of
`norm` (:160-161, 235-237): then the normed mean of the patch tokens takes the class token's place, and the patches
have no norm.
Files:
- the training file (main_ibot.py:348-357: student, teacher, optimizer, epoch, args, ibot_loss, fp16_scaler), the
  student under `module.`, the teacher too with batch norm in the head (:249-256);
- the backbone alone under 'state_dict' (extract_backbone_weights.py); its `--with_head` leaves the head's keys as
  they were, `head.` or `module.head.`, beside bare ones. The released ImageNet-22K backbones are the student's, the
  others the teacher's;
- fine-tuned under 'model' (evaluation/classification_layer_decay/utils.py:405-411), with a classifier called `head`;
- evalkit's safetensors, `backbone.` and `head.` without prototypes (`vit_micro_patch8_64` is its own).
The teacher is evaluated (evaluation/eval_knn.py:292); short side 256 bicubic, centre 224, ImageNet mean and std
(:67-70). Expect 75.2 % k-NN on ImageNet for vit_small_patch16 (README).
Head (models/head.py:65-199): DINO's on the class token. Prototypes of patches (`last_layer2`) are separate, or the
class token's saved twice (`shared_head`); no projection reads them. `--act_in_head relu` leaves no trace in the keys,
only in the file's arguments: such a file is refused. Swin-T weights are released too and are no vision transformers.
"""

from __future__ import annotations

import re
from dataclasses import replace

from evalkit.adapters.encoder import by_its_norm
from evalkit.adapters.family import Layout, Place, ViTFamily
from evalkit.adapters.files import RawCheckpoint
from evalkit.adapters.heads import dino_head
from evalkit.adapters.loading import Rule, State
from evalkit.adapters.vit import ViTConfig
from evalkit.errors import CheckpointError
from evalkit.types import Encoder, Manifest

VERSION = 1
NEEDS_FILE = True

ARCHITECTURES: dict[str, ViTConfig] = {
    "vit_small_patch16": ViTConfig(dim=384, depth=12, heads=6, patch=16),
    "vit_base_patch16": ViTConfig(dim=768, depth=12, heads=12, patch=16),
    "vit_large_patch16": ViTConfig(dim=1024, depth=24, heads=16, patch=16),
    "vit_micro_patch8_64": ViTConfig(dim=192, depth=6, heads=3, patch=8, size=64),
}

DROP = (
    Rule("mask-token", "stands for masked patches in training only", r"(backbone\.)?masked_embed"),
    Rule("patch-prototypes", "the projection is the class token's", r"head\.last_layer2\.weight_[gv]"),
    Rule("classifier", "of fine-tuning on labels", r"head\.(weight|bias)"),
)


def prepare(state: State) -> State:
    """The head that extraction left under `module.` where the others are."""
    return _called(state, (r"module\.(head\..+)", r"\1"))


def rename(state: State) -> State:
    """LayerScale and the norm of the mean under the shared transformer's names. iBOT's fine-tuning has both (:100-115,
    160-161): a norm of the mean alone is MAE's, whose positions are resized in another way."""
    if not any(key.endswith("gamma_1") for key in state):
        return dict(state)
    return _called(
        state, (r"(blocks\.\d+\.)gamma_([12])", r"\1ls\2.gamma"), (r"fc_norm\.(weight|bias)", r"cls_norm.\1")
    )


def _called(state: State, *names: tuple[str, str]) -> State:
    """The state with keys that match wholly under other names; as it was where two keys would meet in one name."""
    renamed = state
    for pattern, name in names:
        renamed = {re.sub(rf"^(?:{pattern})$", name, key): value for key, value in renamed.items()}
    return renamed if len(renamed) == len(state) else state


def adapt(config: ViTConfig, backbone: State) -> ViTConfig:
    """With LayerScale and with the norm of the mean where the file has them."""
    if "blocks.0.ls1.gamma" in backbone:
        config = replace(config, layer_scale=0.1)
    return replace(config, final_norm=False, cls_norm=True) if "cls_norm.weight" in backbone else config


FAMILY = ViTFamily(
    version=VERSION,
    layout=Layout(
        networks={"teacher": (Place("teacher"),), "student": (Place("student"),)},
        entries=("state_dict", "model"),
        backbone="backbone.",
        head="head.",
        prepare=prepare,
        rename=rename,
        drop=DROP,
        signs=("ibot_loss", r"(.+\.)?masked_embed", r"(.+\.)?last_layer2\.weight_g"),
    ),
    architectures=ARCHITECTURES,
    source="bytedance/ibot da316d8, evaluation/eval_knn.py:70: ImageNet mean and std",
    adapt=adapt,
    head=lambda state, config: dino_head(state, config.dim),
    encoder=by_its_norm,
)


def load(manifest: Manifest, raw: RawCheckpoint) -> Encoder:
    """As `ViTFamily.load`. Raises CheckpointError too where the file's arguments name another activation than GELU."""
    activation = getattr(raw.state.get("args"), "act_in_head", "gelu")
    if activation != "gelu":
        raise CheckpointError(
            f"{raw.path} was trained with --act_in_head {activation}; only heads with gelu are read. "
            "iBOT's extract_backbone_weights.py writes the backbone without the head"
        )
    return FAMILY.load(manifest, raw)
