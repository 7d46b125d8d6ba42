"""Mugs on the blackboard (sail-sg/mugs 10ab634, src/vision_transformer.py, src/model.py, main.py).

The forward pass is DINO's (`forward_knn`). `relation_blocks`, one more block of the local-group module, sit in the
backbone and have no part in it. Of three heads the group head is the projection: the same in student and teacher,
on the class token, prototypes on a bottleneck as in DINO.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from tests.adapters.oracles import Facts, File, Truth, dino
from tests.adapters.oracles.dino import beside, under
from tests.adapters.oracles.plain import State, draw, vit_shapes

FAMILY = "mugs"
ARCHS = {
    "vit_small_patch16": Facts(dim=384, depth=12, heads=6, patch=16),
    "vit_base_patch16": Facts(dim=768, depth=12, heads=12, patch=16),
    "vit_large_patch16": Facts(dim=1024, depth=24, heads=16, patch=16),
    "vit_micro_patch8_64": Facts(dim=192, depth=6, heads=3, patch=8, size=64),
}
ARCH = "vit_small_patch16"
HIDDEN, OUT, QUEUE = 48, 24, 16


def weights(seed: int, depth: int = 2, arch: str = ARCH) -> State:
    """The backbone that k-NN evaluates, without `relation_blocks`."""
    facts = ARCHS[arch]
    return draw(vit_shapes(facts.dim, depth, facts.patch, 1 + (facts.size // facts.patch) ** 2), seed)


def head(seed: int) -> State:
    """The group head: DINO's under the name `projector`."""
    return {key.replace("mlp.", "projector."): value for key, value in dino.head(seed, ARCHS[ARCH].dim).items()}


def forward(weights: State, images: Tensor, head: State | None = None, arch: str = ARCH) -> Truth:
    """DINO's forward pass and head."""
    truth = dino.forward(weights, images, None, arch)
    if head is None:
        return truth
    bottleneck, projection = dino.project(head, truth.cls, "projector")
    return Truth(truth.blocks, truth.cls, truth.patches, truth.attention, projection, bottleneck)


def related(state: State, seed: int) -> State:
    """As Mugs saves the backbone: with the block of its local-group module."""
    shapes = vit_shapes(state["cls_token"].shape[-1], 1, 16, 1)
    block = {f"relation_{key}": shape for key, shape in shapes.items() if key.startswith("blocks.")}
    return state | draw(block, seed)


def contrast_head(seed: int, predictor: bool) -> State:
    """Instance and local-group head: linear layers without bias; the student's alone has a predictor."""
    dim = ARCHS[ARCH].dim
    shapes = {"projector.0.weight": (HIDDEN, dim), "projector.2.weight": (HIDDEN, HIDDEN)}
    shapes |= {"projector.4.weight": (OUT, HIDDEN)}
    if predictor:
        shapes |= {"predictor.0.weight": (HIDDEN, OUT), "predictor.2.weight": (OUT, HIDDEN)}
    return draw(shapes, seed)


def _network(prefix: str, backbone: State, group: State, seed: int, predictor: bool) -> State:
    heads = under("instance_head.", contrast_head(seed, predictor))
    heads |= under("local_group_head.", contrast_head(seed + 1, predictor)) | under("group_head.", group)
    return under(prefix, under("backbone.", backbone) | heads)


def files(seed: int = 0, depth: int = 2) -> list[File]:
    """The backbone alone as its extracting scripts write it, and the training file of main.py."""
    student, teacher = (weights(seed + n, depth) for n in (1, 2))
    whole_student, whole_teacher = related(student, seed + 3), related(teacher, seed + 4)
    group_student, group_teacher = head(seed + 5), head(seed + 7)
    training = {
        "student": _network("module.", whole_student, group_student, seed + 10, True),
        "teacher": _network("", whole_teacher, group_teacher, seed + 20, False),
    } | _rest()
    two_losses = {key: value for key, value in training["teacher"].items() if not key.startswith("group_head.")}
    return [
        File("backbone", whole_teacher, teacher, network="backbone"),
        File("backbone in a wrapper", {"state_dict": whole_teacher}, teacher, network="backbone"),
        File("backbone without relation blocks", teacher, teacher, network="backbone"),
        File("training", training, teacher, group_teacher, network="teacher"),
        File("training, student", training, student, group_student, ask="student", network="student"),
        File("training without the group loss", training | {"teacher": two_losses}, teacher, network="teacher"),
    ]


def _rest() -> dict[str, object]:
    dim, none = ARCHS[ARCH].dim, torch.zeros(1, dtype=torch.long)
    memory = {f"block.queue_{name}": torch.zeros(QUEUE, dim) for name in "qkv"} | {"block.queue_ptr": none}
    queue = {"queue": torch.zeros(OUT, QUEUE), "queue_ptr": none}
    args = argparse.Namespace(arch="vit_small", patch_size=16, loss_weights=[1.0, 1.0, 1.0], use_bn_in_head=False)
    return {"student_mem": memory, "teacher_mem": memory} | beside(
        args=args,
        **{
            "instance-sup.": queue,
            "local-group-sup.": queue,
            "group-sup.": {"center": torch.zeros(1, dino.PROTOTYPES)},
        },
    )
