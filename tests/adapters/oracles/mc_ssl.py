"""MC-SSL0.0 (Atito et al. 2021, arXiv:2111.15340): SiT's transformer with one class token; its head has one MLP for all
tokens and two layers of prototypes, one for the class token and one for the patches."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from tests.adapters.oracles import Facts, File, Truth, sit
from tests.adapters.oracles.plain import State, double, draw, gelu

FAMILY = "mc_ssl"
ARCHS = {
    "vit_small_patch16": Facts(dim=384, depth=12, heads=6, patch=16),
    "vit_base_patch16": Facts(dim=768, depth=12, heads=12, patch=16),
}
ARCH = "vit_small_patch16"


def forward(weights: State, images: Tensor, head: State | None = None, arch: str = ARCH) -> Truth:
    """The projection is the class token's: its logits, and the unit vector before them."""
    truth = sit.forward(weights, images, None, arch)
    if head is None:
        return truth
    top = double(head)
    x = gelu(sit.linear(top, "mlp.2", gelu(sit.linear(top, "mlp.0", truth.cls))))
    x = sit.linear(top, "mlp.4", x)
    x = x / x.square().sum(-1, keepdim=True).sqrt()
    rows = top["last_layer.weight_v"]
    rows = top["last_layer.weight_g"] * rows / rows.square().sum(1, keepdim=True).sqrt()
    return Truth(truth.blocks, truth.cls, truth.patches, truth.attention, x @ rows.T, x)


def weights(seed: int, depth: int = 2, arch: str = ARCH) -> State:
    """The backbone."""
    return sit.weights(seed, depth, arch)


def head(seed: int, width: int = 384) -> State:
    """The projection head; its official widths are 2048, 256 and 8192."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (n, m) in zip((0, 2, 4), ((width, 48), (48, 48), (48, 24)), strict=True):
        shapes |= {f"mlp.{i}.weight": (m, n), f"mlp.{i}.bias": (m,)}
    for name in ("last_layer", "data_layer"):
        shapes |= {f"{name}.weight_g": (40, 1), f"{name}.weight_v": (40, 24)}
    state = draw(shapes, seed, 0.2)
    return {key: 1 + value if key.endswith("_g") else value for key, value in state.items()}


def files(seed: int = 0, depth: int = 2) -> list[File]:
    """The training file, the teacher's entry alone, and the backbone alone."""
    (teacher, student), heads = (weights(seed, depth), weights(seed + 1, depth)), (head(seed + 2), head(seed + 3))
    nets = [
        sit.under("backbone.", net)
        | sit.under("head.", top)
        | sit.under("head_recons.", sit.reconstruction(seed + 4, layers=2))
        for net, top in zip((teacher, student), heads, strict=True)
    ]
    content = {
        "student": sit.under("module.", nets[1]),  # only the student sits in DistributedDataParallel
        "teacher": nets[0],
        "optimizer": sit.adamw(student),
        "epoch": 801,
        "args": argparse.Namespace(model="vit_small", img_size=224, patch_size=16, out_dim=8192, epochs=800),
        "calc_loss": {"center": torch.zeros(1, 8192), "center_data": torch.zeros(1, 1, 8192)},
        "fp16_scaler": dict(sit.SCALER),
    }
    return [
        File("bare backbone", dict(teacher), teacher, network="backbone"),
        File("training file", content, teacher, heads[0], network="teacher"),
        File("training file, student", content, student, heads[1], ask="student", network="student"),
        File("the teacher's entry alone", dict(nets[0]), teacher, heads[0], network="backbone"),
    ]
