"""Checkpoints of Mugs (Zhou et al. 2022, arXiv:2203.14415; sail-sg/mugs 10ab634, Apache-2.0).

Network (src/vision_transformer.py:235-492): DINO's in every number (eps 1e-6, exact GELU, 6, 12 and 16 heads,
positions by `positions.dino`, :340-365). `forward` returns a pair; k-NN uses `forward_knn` (:404-409), which is DINO's
forward. `relation_blocks.0` (:304-321) aggregates neighbours from a queue for the local-group loss;
it has no part in an image's own features and is left out.
evalkit's own pretraining adds vit_micro_patch8_64 and writes the teacher bare, without the prototypes of the group head.
Files: the backbone alone, bare (eval/eval_finetuning/extract_backbone_weights_for_finetuning.py) or under
'state_dict' (eval/eval_object_detection/extract_backbone_weights.py); the training file (main.py:544-563: student,
teacher, student_mem, teacher_mem, optimizer, epoch, args, one entry per loss, fp16_scaler), the student under
`module.`.
The teacher is evaluated (eval/eval_knn/eval_knn.py:216); short side 256 bicubic, centre 224, ImageNet mean and std
(:40-43). Expect 75.6 % k-NN on ImageNet for vit_small_patch16 at 800 epochs (README, Table 1), at temperature 0.05.

The projection is the group head (src/model.py:194-268). It is the only one of three that is the same in student and
teacher, and it is DINO's head (MLP, L2, prototypes), so that output and bottleneck mean what they mean for DINO and
iBOT. The instance head is half of a pair whose predictor the teacher lacks (:515-535), and the local-group head reads
the relation block's output, which needs the queue of other images.
"""

from __future__ import annotations

import re

from evalkit.adapters.family import Layout, Place, ViTFamily
from evalkit.adapters.heads import dino_head
from evalkit.adapters.loading import Rule, State
from evalkit.adapters.vit import ViTConfig

VERSION = 1
NEEDS_FILE = True

ARCHITECTURES: dict[str, ViTConfig] = {
    "vit_small_patch16": ViTConfig(dim=384, depth=12, heads=6, patch=16),
    "vit_base_patch16": ViTConfig(dim=768, depth=12, heads=12, patch=16),
    "vit_large_patch16": ViTConfig(dim=1024, depth=24, heads=16, patch=16),
    "vit_micro_patch8_64": ViTConfig(dim=192, depth=6, heads=3, patch=8, size=64),
}

BLOCK = r"(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)"
DROP = (
    Rule(
        "relation-blocks",
        "of the local-group loss, no part of forward_knn",
        rf"(backbone\.)?relation_blocks\.\d\.{BLOCK}",
    ),
    Rule(
        "instance-head",
        "the group head is the projection",
        r"instance_head\.(projector|predictor)\.\d\.\w+",
    ),
    Rule(
        "local-group-head",
        "reads the relation blocks' output, which needs the queue of other images",
        r"local_group_head\.(projector|predictor)\.\d\.\w+",
    ),
)


def prepare(state: State) -> State:
    """The group head's layers under the name that DINO's head gives them."""
    renamed = {re.sub(r"^group_head\.projector\.", "group_head.mlp.", key): value for key, value in state.items()}
    return renamed if len(renamed) == len(state) else state  # two keys of one name: left to be refused


FAMILY = ViTFamily(
    version=VERSION,
    layout=Layout(
        networks={"teacher": (Place("teacher"),), "student": (Place("student"),)},
        entries=("state_dict",),
        backbone="backbone.",
        head="group_head.",
        prepare=prepare,
        drop=DROP,
        signs=(r"(.+\.)?relation_blocks\..+", r"(.+\.)?group_head\..+"),
    ),
    architectures=ARCHITECTURES,
    source="sail-sg/mugs 10ab634, eval/eval_knn/eval_knn.py:43: ImageNet mean and std",
    head=lambda state, config: dino_head(state, config.dim),
)
load = FAMILY.load
