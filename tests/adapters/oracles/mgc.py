"""MGC, multi-grained contrast (Shen et al. 2024, arXiv:2407.02014): a ViT-S/16 of 8 heads with a fixed table of sines
and cosines. Its projectors and predictors read patch tokens and pools of them, never the class token."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from tests.adapters.oracles import Facts, File, Truth, sit
from tests.adapters.oracles.plain import State, double, draw, vit_shapes

FAMILY = "mgc"
ARCHS = {
    "vit_small_patch16": Facts(dim=384, depth=12, heads=8, patch=16),
    "vit_base_patch16": Facts(dim=768, depth=12, heads=12, patch=16),
    "vit_micro_patch8_64": Facts(dim=192, depth=6, heads=3, patch=8, size=64),
}
ARCH = "vit_small_patch16"


def forward(weights: State, images: Tensor, head: State | None = None, arch: str = ARCH) -> Truth:
    """The pre-norm transformer; the stored table is resized by DINO's rule, never computed anew."""
    w, facts = double(weights), ARCHS[arch]
    outputs, maps = sit.run(w, sit.embed(w, images, ("cls_token",), 0.1), facts.heads)
    x = sit.norm(w, "norm", outputs[-1])
    return Truth(outputs, x[:, 0], x[:, 1:].unflatten(1, sit.grid_of(images, facts)), maps)


def table(n: int, dim: int) -> Tensor:
    """(1, 1 + n * n, dim): zeros for the class token; then per patch the sines and cosines of its row, of its column."""
    rows = torch.zeros(n * n, dim)
    omega = 1 / 10000 ** (torch.arange(dim // 4, dtype=torch.float32) / (dim // 4))
    for i in range(n * n):
        row, column = divmod(i, n)
        rows[i] = torch.cat([f(a * omega) for a in (row, column) for f in (torch.sin, torch.cos)])
    return torch.cat([torch.zeros(1, dim), rows])[None]


def weights(seed: int, depth: int = 2, arch: str = ARCH) -> State:
    """The encoder with its fixed table."""
    facts = ARCHS[arch]
    n = facts.size // facts.patch
    state = draw(vit_shapes(facts.dim, depth, facts.patch, n * n + 1), seed)
    return state | {"pos_embed": table(n, facts.dim)}


def head(seed: int) -> None:
    """None of its heads was trained on a class token."""
    return


def files(seed: int = 0, depth: int = 2) -> list[File]:
    """Checkpoint of an epoch, the last file of a run (both networks, no wrapper), one encoder alone, which the
    evaluation configurations read, and what evalkit's own pretraining exports."""
    base, momentum = weights(seed, depth), weights(seed + 1, depth)
    state = sit.under("base_encoder.", base) | sit.under("momentum_encoder.", momentum) | _heads(seed + 2)
    content = {"epoch": 800, "state_dict": state, "optimizer": sit.adamw(base), "scaler": dict(sit.SCALER)}
    return [
        File("encoder alone", dict(base), base, network="backbone"),
        File("epoch", content, base, network="base"),
        File("epoch, momentum encoder", content, momentum, ask="momentum", network="momentum"),
        File("last.pth", dict(state), base, network="base"),
        File("last.pth, momentum encoder", dict(state), momentum, ask="momentum", network="momentum"),
        File("evalkit's own", sit.under("base_encoder.", base) | _own(seed + 30), base, network="base"),
    ]


def _heads(seed: int) -> State:
    """Three projectors with a moving average of each, three predictors; official widths 4096 and 128."""
    grains = ("divide_32", "divide_112")
    deep = ["projector_patch", *(f"projector_{g}" for g in grains), "projector_patch_momentum"]
    deep += [f"projector_divide_momentum_{n}" for n in (32, 112)]
    state: State = {}
    for i, name in enumerate(deep):
        state |= _mlp(seed + i, name, (384, 48, 48, 16))
    for i, name in enumerate(["predictor_patch", *(f"predictor_{g}" for g in grains)]):
        state |= _mlp(seed + 20 + i, name, (16, 48, 16))
    return state


def _own(seed: int) -> State:
    """Projectors alone, of squares of 16 and 8 x 16 pixels."""
    return {
        k: v
        for n in ("patch", "divide_16", "divide_128")
        for k, v in _mlp(seed, f"projector_{n}", (384, 48, 48, 16)).items()
    }


def _mlp(seed: int, name: str, widths: tuple[int, ...]) -> State:
    """Linear layers without bias, batch norm after each, without gain and shift after the last, ReLU between."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (n, m) in enumerate(itertools.pairwise(widths)):
        shapes |= {f"{name}.{3 * i}.weight": (m, n)}
        if i < len(widths) - 2:
            shapes |= {f"{name}.{3 * i + 1}.weight": (m,), f"{name}.{3 * i + 1}.bias": (m,)}
        shapes |= {f"{name}.{3 * i + 1}.running_mean": (m,), f"{name}.{3 * i + 1}.running_var": (m,)}
    counts = {f"{name}.{3 * i + 1}.num_batches_tracked": torch.tensor(9) for i in range(len(widths) - 1)}
    return draw(shapes, seed) | counts
