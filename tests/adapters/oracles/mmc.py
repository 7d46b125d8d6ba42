"""MMC on the blackboard (Wu et al. 2023, arXiv:2308.11448). Official code and weights were not seen.

Assumed: the transformer of DINO, which SiT, the previous method of the same group, has too (Sara-Ahmed/SiT 7f22e9c),
and training files as SiT's main.py saves them, both networks under `module.`. Of the three heads (reconstruction,
patches, class token) neither names nor shapes are published, so that none is a projection.
"""

from __future__ import annotations

import argparse

from torch import Tensor

from tests.adapters.oracles import Facts, File, Truth, dino
from tests.adapters.oracles.dino import beside, under
from tests.adapters.oracles.plain import State, draw, vit_shapes

FAMILY = "mmc"
ARCHS = {
    "vit_small_patch16": Facts(dim=384, depth=12, heads=6, patch=16),
    "vit_base_patch16": Facts(dim=768, depth=12, heads=12, patch=16),
    "vit_micro_patch8_64": Facts(dim=192, depth=6, heads=3, patch=8, size=64),
}
ARCH = "vit_small_patch16"
HIDDEN, OUT = 48, 24


def weights(seed: int, depth: int = 2, arch: str = ARCH) -> State:
    """The backbone."""
    facts = ARCHS[arch]
    return draw(vit_shapes(facts.dim, depth, facts.patch, 1 + (facts.size // facts.patch) ** 2), seed)


def head(seed: int) -> None:
    """None is published."""


def forward(weights: State, images: Tensor, head: State | None = None, arch: str = ARCH) -> Truth:
    """DINO's forward pass."""
    return dino.forward(weights, images, None, arch)


def heads(seed: int) -> State:
    """Stand-ins under SiT's names for the class token and the reconstruction, and one for the patches."""
    dim, shapes = ARCHS[ARCH].dim, dict[str, tuple[int, ...]]()
    for name in ("head.mlp", "head_recons.mlp", "head_patch.mlp"):
        sizes = {f"{name}.0": (HIDDEN, dim), f"{name}.3": (HIDDEN, HIDDEN), f"{name}.6": (OUT, HIDDEN)}
        shapes |= {f"{key}.weight": size for key, size in sizes.items()}
        shapes |= {f"{key}.bias": size[:1] for key, size in sizes.items()}
    return draw(shapes, seed)


def files(seed: int = 0, depth: int = 2) -> list[File]:
    """Assumed layouts: the backbone bare, extracted as for iBOT, and in a training file."""
    student, teacher = (weights(seed + n, depth) for n in (1, 2))
    training = {
        "student": under("module.", under("backbone.", student) | heads(seed + 3)),
        "teacher": under("module.", under("backbone.", teacher) | heads(seed + 4)),
    } | beside(args=argparse.Namespace(model="vit_small", out_dim=256, drop_replace=0.3))
    plain = training | {"teacher": under("backbone.", teacher) | heads(seed + 4)}
    return [
        File("bare", teacher, teacher, network="backbone"),
        File("extracted", {"state_dict": teacher}, teacher, network="backbone"),
        File("training", training, teacher, network="teacher"),
        File("training, student", training, student, ask="student", network="student"),
        File("training, teacher not wrapped", plain, teacher, network="teacher"),
    ]
