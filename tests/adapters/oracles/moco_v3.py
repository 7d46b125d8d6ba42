"""MoCo v3 (Chen et al. 2021, arXiv:2104.02057), after facebookresearch/moco-v3 c349e6e.

vits.py:27-69,115-127 on timm 0.4.9, moco/builder.py:36-56,112-122 (heads), main_moco.py:310-316 (what a training file
holds), main_lincls.py:171-191,319-325, convert_to_deit.py:24-41. ViT-S has 12 heads here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.adapters.oracles import Facts, File, Truth
from tests.adapters.oracles.mae import optimiser, scaler, sine_cosine, transform
from tests.adapters.oracles.plain import State, double, draw, tiles, vit_shapes

FAMILY = "moco_v3"
ARCHS = {
    "vit_small_patch16": Facts(dim=384, depth=12, heads=12, patch=16),
    "vit_base_patch16": Facts(dim=768, depth=12, heads=12, patch=16),
    "vit_micro_patch8_64": Facts(dim=192, depth=6, heads=3, patch=8, size=64),
}
ARCH = "vit_small_patch16"


def positions(h: int, w: int, dim: int) -> Tensor:
    """(h * w, dim): sin, cos of the row, then sin, cos of the column.

    The code calls the row `grid_w`: `meshgrid(grid_w, grid_h)` counts the first slowest, and so do the tokens. On a
    rectangle it would therefore lay its grid across the image; here every token has its own row and column.
    """
    table = sine_cosine(h, w, dim)
    return torch.cat([table[:, dim // 2 :], table[:, : dim // 2]], 1)


def batch_norm(x: Tensor, w: State, key: str) -> Tensor:
    """By the running statistics; gain and shift where the layer has them."""
    x = (x - w[f"{key}.running_mean"]) / (w[f"{key}.running_var"] + 1e-5).sqrt()
    return x * w.get(f"{key}.weight", 1) + w.get(f"{key}.bias", 0)


def running(state: State, key: str, width: int, seed: int) -> None:
    """Adds statistics that are neither 0 nor 1."""
    rng = torch.Generator().manual_seed(seed)
    state[f"{key}.running_mean"] = torch.randn(width, generator=rng) * 0.2
    state[f"{key}.running_var"] = 0.5 + torch.rand(width, generator=rng)
    state[f"{key}.num_batches_tracked"] = torch.tensor(12)


def weights(seed: int, depth: int = 2, arch: str = ARCH) -> State:
    """The encoder: its position table is fixed, and its class row zero."""
    facts = ARCHS[arch]
    side = facts.size // facts.patch
    state = draw(vit_shapes(facts.dim, depth, facts.patch, side * side + 1), seed)
    rows = torch.cat([torch.zeros(1, facts.dim, dtype=torch.float64), positions(side, side, facts.dim)])
    return state | {"pos_embed": rows[None].float()}


def head(seed: int) -> State:
    """The projector, 384 -> 4096 -> 4096 -> 256 in the original: no biases, the last batch norm without gain and shift."""
    return mlp(seed, ARCHS[ARCH].dim, 24, 3)


def mlp(seed: int, dim: int, width: int, layers: int) -> State:
    """Linear, batch norm, ReLU; the last layer is linear and batch norm, 16 wide. The predictor is one of 2 layers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for n in range(layers):
        out = 16 if n == layers - 1 else width
        shapes[f"{3 * n}.weight"] = (out, width if n else dim)
        if n < layers - 1:
            shapes |= {f"{3 * n + 1}.weight": (out,), f"{3 * n + 1}.bias": (out,)}
    state = draw(shapes, seed, 0.1)
    for n in range(layers):
        running(state, f"{3 * n + 1}", 16 if n == layers - 1 else width, seed + n)
    return state


def project(cls: Tensor, head: State) -> Tensor:
    """(B, D) -> (B, D'), not normalised: the loss divides by the length afterwards."""
    x = batch_norm(cls @ head["0.weight"].T, head, "1").clamp(min=0)
    x = batch_norm(x @ head["3.weight"].T, head, "4").clamp(min=0)
    return batch_norm(x @ head["6.weight"].T, head, "7")


def forward(weights: State, images: Tensor, head: State | None = None, arch: str = ARCH) -> Truth:
    """At the native size the file's table, at another the same formula."""
    w = double(weights)
    x = tiles(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"])
    b, rows, columns, dim = x.shape
    native = rows == columns == ARCHS[arch].size // ARCHS[arch].patch
    x = x.flatten(1, 2) + (w["pos_embed"][0, 1:] if native else positions(rows, columns, dim))
    x = torch.cat([(w["cls_token"][0] + w["pos_embed"][0, :1]).expand(b, 1, dim), x], 1)
    blocks, normed, maps = transform(x, w, ARCHS[arch].heads)
    out = project(normed[:, 0], double(head)) if head else None
    return Truth(blocks, normed[:, 0], normed[:, 1:].reshape(b, rows, columns, dim), maps, out)


def prefixed(state: State, prefix: str) -> State:
    """The same tensors, one name deeper."""
    return {prefix + key: value for key, value in state.items()}


def files(seed: int = 0, depth: int = 2) -> list[File]:
    """The training file (both networks; the released ones are such files), with and without the wrapper of several
    GPUs; the file of the linear probe; and what convert_to_deit.py writes."""
    base, momentum, heads = weights(seed, depth), weights(seed + 1, depth), (head(seed + 2), head(seed + 3))
    both = prefixed(base | prefixed(heads[0], "head."), "base_encoder.")
    both |= prefixed(momentum | prefixed(heads[1], "head."), "momentum_encoder.")
    both |= prefixed(mlp(seed + 4, 16, 24, 2), "predictor.")
    beside = {"epoch": 300, "arch": "vit_small", "optimizer": optimiser(seed), "scaler": scaler()}
    released = beside | {"state_dict": prefixed(both, "module.")}
    linear = prefixed(base | draw({"head.weight": (10, 384), "head.bias": (10,)}, seed + 5), "module.")
    probe = {"epoch": 90, "arch": "vit_small", "best_acc1": torch.tensor(73.2), "optimizer": optimiser(seed)}
    return [
        File("vit-s-300ep", released, base, heads[0], network="base"),
        File("vit-s-300ep, momentum encoder", released, momentum, heads[1], ask="momentum", network="momentum"),
        File("one process", beside | {"state_dict": both}, base, heads[0], network="base"),
        File("linear-vit-s-300ep", probe | {"state_dict": linear}, base, network="backbone"),
        File("converted to DeiT", {"model": base}, base, network="backbone"),
        File("bare", dict(base), base, network="backbone"),
    ]
