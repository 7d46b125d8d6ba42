"""iBOT on the blackboard (bytedance/ibot da316d8, models/vision_transformer.py, models/head.py, main_ibot.py).

DINO's transformer and positions. Fine-tuned files may have LayerScale (`gamma_1`, `gamma_2`) and `fc_norm`, which
norms the mean of the patch tokens in place of the class token while `norm` is absent. The student's `masked_embed`
stands for masked patches in training only.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from tests.adapters.oracles import Facts, File, Truth, dino
from tests.adapters.oracles.dino import EPS, beside, under
from tests.adapters.oracles.plain import State, draw, layer_norm, vit_shapes

FAMILY = "ibot"
ARCHS = {
    "vit_small_patch16": Facts(dim=384, depth=12, heads=6, patch=16),
    "vit_base_patch16": Facts(dim=768, depth=12, heads=12, patch=16),
    "vit_large_patch16": Facts(dim=1024, depth=24, heads=16, patch=16),
    "vit_micro_patch8_64": Facts(dim=192, depth=6, heads=3, patch=8, size=64),
}
ARCH = "vit_small_patch16"
PATCH_PROTOTYPES = 60
SCORES = 10


def weights(seed: int, depth: int = 2, arch: str = ARCH) -> State:
    """The teacher's backbone, which has no `masked_embed`."""
    facts = ARCHS[arch]
    return draw(vit_shapes(facts.dim, depth, facts.patch, 1 + (facts.size // facts.patch) ** 2), seed)


def head(seed: int) -> State:
    """DINO's head; with `shared_head` the patches' prototypes are the same tensors under a second name."""
    state = dino.head(seed, ARCHS[ARCH].dim)
    return state | {f"last_layer2.{part}": state[f"last_layer.{part}"] for part in ("weight_g", "weight_v")}


def separate_head(seed: int) -> State:
    """With prototypes of their own for the patches."""
    return dino.head(seed, ARCHS[ARCH].dim) | dino.prototypes(
        "last_layer2", PATCH_PROTOTYPES, dino.BOTTLENECK, seed + 9
    )


def forward(weights: State, images: Tensor, head: State | None = None, arch: str = ARCH) -> Truth:
    """All tokens of all blocks in float64; `project` reads the class token with the class token's prototypes."""
    w, x = dino.embed(weights, images)
    blocks, maps = dino.run(w, x, ARCHS[arch].heads)
    out = blocks[-1]
    if "norm.weight" in w:
        out = layer_norm(out, w["norm.weight"], w["norm.bias"], EPS)
        cls = out[:, 0]
    else:
        cls = layer_norm(out[:, 1:].mean(1), w["fc_norm.weight"], w["fc_norm.bias"], EPS)
    bottleneck, projection = dino.project(head, cls) if head else (None, None)
    return Truth(blocks, cls, dino.on_grid(out[:, 1:], images, ARCHS[arch].patch), maps, projection, bottleneck)


def masked(state: State, seed: int) -> State:
    """With the mask token that the student has."""
    return state | draw({"masked_embed": (1, state["cls_token"].shape[-1])}, seed)


def pooled(state: State, seed: int) -> State:
    """As fine-tuned with mean pooling and LayerScale: `fc_norm` instead of `norm`, two gammas per block."""
    dim, depth = state["cls_token"].shape[-1], sum(key.endswith("norm1.weight") for key in state)
    shapes = {f"blocks.{i}.gamma_{n}": (dim,) for i in range(depth) for n in (1, 2)}
    extra = draw(shapes | {"fc_norm.weight": (dim,), "fc_norm.bias": (dim,)}, seed)
    return {key: value for key, value in state.items() if not key.startswith("norm.")} | extra


def files(seed: int = 0, depth: int = 2) -> list[File]:
    """Training file with shared and separate heads, what the extracting scripts write, and fine-tuned models."""
    student, teacher = (weights(seed + n, depth) for n in (1, 2))
    seen = masked(student, seed + 3)
    return [
        File("bare", teacher, teacher, network="backbone"),
        *_training(student, teacher, seen, seed),
        *_extracted(student, teacher, seen, seed),
        *_fine_tuned(teacher, seed),
    ]


def _networks(seen: State, teacher: State, student_head: State, teacher_head: State) -> dict[str, State]:
    return {
        "student": under("module.backbone.", seen) | under("module.head.", student_head),
        "teacher": under("backbone.", teacher) | under("head.", teacher_head),
    }


def _rest() -> dict[str, object]:
    args = argparse.Namespace(
        arch="vit_small", patch_size=16, act_in_head="gelu", norm_in_head=None, pred_ratio=[0, 0.3]
    )
    return beside(args=args, ibot_loss={"center": torch.zeros(1, 72), "center2": torch.zeros(1, 1, 72)})


def _training(student: State, teacher: State, seen: State, seed: int) -> list[File]:
    """`shared_head` as in the released runs, and by the script's defaults: separate for the student only."""
    one, two, own = head(seed + 4), head(seed + 6), separate_head(seed + 8)
    shared = _networks(seen, teacher, one, two) | _rest()
    mixed = _networks(seen, teacher, own, two) | _rest()
    both = _networks(seen, teacher, own, separate_head(seed + 30)) | _rest()
    return [
        File("training", shared, teacher, two, network="teacher"),
        File("training, student", shared, student, one, ask="student", network="student"),
        File("training, separate head of the student", mixed, student, own, ask="student", network="student"),
        File("training, separate heads", both, teacher, separate_head(seed + 30), network="teacher"),
    ]


def _extracted(student: State, teacher: State, seen: State, seed: int) -> list[File]:
    """extract_backbone_weights.py; `--with_head` leaves the head's keys as they were beside the cut ones."""
    one, two = head(seed + 4), head(seed + 6)
    return [
        File("extracted teacher", {"state_dict": teacher}, teacher, network="backbone"),
        File("extracted student", {"state_dict": seen}, student, network="backbone"),
        File(
            "extracted teacher with its head",
            {"state_dict": teacher | under("head.", two)},
            teacher,
            two,
            network="backbone",
        ),
        File(
            "extracted student with its head",
            {"state_dict": seen | under("module.head.", one)},
            student,
            one,
            network="backbone",
        ),
    ]


def _fine_tuned(teacher: State, seed: int) -> list[File]:
    """As classification_layer_decay saves them: by the class token (run.sh), and by the mean of the patches."""
    dim = teacher["cls_token"].shape[-1]
    classifier = draw({"head.weight": (SCORES, dim), "head.bias": (SCORES,)}, seed + 40)
    mean = pooled(teacher, seed + 41)
    rest = {
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "epoch": 99,
        "scaler": {"scale": 65536.0, "_growth_tracker": 0},
        "args": argparse.Namespace(model="vit_small", use_mean_pooling=False),
    }
    return [
        File("fine-tuned", {"model": teacher | classifier} | rest, teacher, network="backbone"),
        File("fine-tuned by the mean", {"model": mean | classifier} | rest, mean, network="backbone"),
    ]
