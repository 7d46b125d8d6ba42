"""SiT (Atito et al. 2021, arXiv:2104.03602), in the two forms whose weights its repository released.

Since December 2022 one class token and a teacher; in 2021 a rotation token and a contrastive token in front of the
patches. `embed` and `run` are the plain pre-norm transformer that MC-SSL, MGC and SelfPatch have as well.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from tests.adapters.oracles import Facts, File, Truth
from tests.adapters.oracles.plain import State, attention, double, draw, gelu, layer_norm, tiles, vit_shapes

FAMILY = "sit"
ARCHS = {
    "vit_tiny_patch16": Facts(dim=192, depth=12, heads=3, patch=16),
    "vit_small_patch16": Facts(dim=384, depth=12, heads=6, patch=16),
    "vit_base_patch16": Facts(dim=768, depth=12, heads=12, patch=16),
}
ARCH = "vit_small_patch16"
EPS = 1e-6
ONE, TWO = ("cls_token",), ("rot_token", "contrastive_token")
"""Tokens before the patches since 2022-12, and in 2021. The last of each stands for the image: the contrastive loss
reads it."""


# ------------------------------------------------------------------ the transformer


def cubic(n: int, m: int, scale: float) -> Tensor:
    """(m, n) matrix of bicubic interpolation (a = -0.75): output i looks at (i + 1/2) / scale - 1/2, edges repeated."""
    rows = torch.zeros(m, n, dtype=torch.float64)
    for i in range(m):
        place = (i + 0.5) / scale - 0.5
        first = math.floor(place)
        for j in range(first - 1, first + 3):
            d, a = abs(place - j), -0.75
            near = (a + 2) * d**3 - (a + 3) * d**2 + 1
            far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            rows[i, min(max(j, 0), n - 1)] += near if d <= 1 else far
    return rows


def resize(table: Tensor, grid: tuple[int, int], extra: float) -> Tensor:
    """(1, n, n, D) -> (1, h, w, D), bicubic, the scale of each side being (side + extra) / n."""
    n = table.shape[1]
    vertical, horizontal = (cubic(n, side, (side + extra) / n) for side in grid)
    return torch.einsum("in,jm,bnmd->bijd", vertical, horizontal, table)


def embed(w: State, images: Tensor, names: tuple[str, ...], extra: float) -> Tensor:
    """(B, tokens, D) that enter the first block; the first rows of the position table belong to the tokens `names`."""
    x = tiles(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"])
    front, table = w["pos_embed"][:, : len(names)], w["pos_embed"][:, len(names) :]
    n = math.isqrt(table.shape[1])
    table = table.reshape(1, n, n, -1)
    grid = (x.shape[1], x.shape[2])
    x = x + (table if grid == (n, n) else resize(table, grid, extra))
    start = [w[name] + front[:, i : i + 1] for i, name in enumerate(names)]
    return torch.cat([*(token.expand(len(x), -1, -1) for token in start), x.flatten(1, 2)], 1)


def linear(w: State, name: str, x: Tensor) -> Tensor:
    """x W' + b."""
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: State, name: str, x: Tensor) -> Tensor:
    """Layer norm of the family."""
    return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], EPS)


def run(w: State, x: Tensor, heads: int) -> tuple[list[Tensor], Tensor]:
    """The tokens after each block, and the last block's attention."""
    outputs, i = [], 0
    while f"blocks.{i}.norm1.weight" in w:
        b = f"blocks.{i}."
        mixed, maps = attention(linear(w, f"{b}attn.qkv", norm(w, f"{b}norm1", x)), heads)
        x = x + linear(w, f"{b}attn.proj", mixed)
        x = x + linear(w, f"{b}mlp.fc2", gelu(linear(w, f"{b}mlp.fc1", norm(w, f"{b}norm2", x))))
        outputs.append(x)
        i += 1
    return outputs, maps


def grid_of(images: Tensor, facts: Facts) -> tuple[int, int]:
    """(h, w) patches."""
    return images.shape[2] // facts.patch, images.shape[3] // facts.patch


# ------------------------------------------------------------------ SiT itself


def project(head: State, x: Tensor) -> Tensor:
    """2021: one linear layer. Later: batch norm after each of three, ReLU after the first, GELU after the second, nothing
    after the last."""
    if "weight" in head:
        return x @ head["weight"].T + head["bias"]
    x = batch_norm(head, 1, linear(head, "mlp.0", x)).clamp(min=0)
    x = gelu(batch_norm(head, 4, linear(head, "mlp.3", x)))
    return batch_norm(head, 7, linear(head, "mlp.6", x))


def batch_norm(head: State, i: int, x: Tensor) -> Tensor:
    """In evaluation: the running mean and variance, eps 1e-5, gain and shift where there are any."""
    x = (x - head[f"mlp.{i}.running_mean"]) / (head[f"mlp.{i}.running_var"] + 1e-5).sqrt()
    return x * head[f"mlp.{i}.weight"] + head[f"mlp.{i}.bias"] if f"mlp.{i}.weight" in head else x


def forward(weights: State, images: Tensor, head: State | None = None, arch: str = ARCH) -> Truth:
    """Positions by the rule of the time: DINO's 0.1 since 2022, plain bicubic to the size in 2021. The attention is given
    with the token that stands for the image first."""
    w, facts = double(weights), ARCHS[arch]
    names, extra = (TWO, 0.0) if "rot_token" in w else (ONE, 0.1)
    outputs, maps = run(w, embed(w, images, names, extra), facts.heads)
    x = norm(w, "norm", outputs[-1])
    k = len(names)
    patches = x[:, k:].unflatten(1, grid_of(images, facts))
    order = [k - 1, *range(k - 1), *range(k, x.shape[1])]
    maps = maps[:, :, order][:, :, :, order]
    return Truth(outputs, x[:, k - 1], patches, maps, None if head is None else project(double(head), x[:, k - 1]))


def weights(seed: int, depth: int = 2, arch: str = ARCH, names: tuple[str, ...] = ONE) -> State:
    """The backbone, with the tokens `names`."""
    facts = ARCHS[arch]
    shapes = vit_shapes(facts.dim, depth, facts.patch, (facts.size // facts.patch) ** 2 + len(names))
    del shapes["cls_token"]
    return draw({name: (1, 1, facts.dim) for name in names} | shapes, seed)


def head(seed: int, width: int = 384) -> State:
    """The contrastive head of December 2022; its official widths are 4096 and 256."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (n, m) in zip((0, 3, 6), ((width, 48), (48, 48), (48, 24)), strict=True):
        shapes |= {f"mlp.{i}.weight": (m, n), f"mlp.{i}.bias": (m,)}
        if i < 6:
            shapes |= {f"mlp.{i + 1}.weight": (m,), f"mlp.{i + 1}.bias": (m,)}
        shapes |= {f"mlp.{i + 1}.running_mean": (m,), f"mlp.{i + 1}.running_var": (m,)}
    state = draw(shapes, seed, 0.1)
    counts = {f"mlp.{i}.num_batches_tracked": torch.tensor(1000) for i in (1, 4, 7)}
    return {key: 1 + value.abs() if key.endswith("var") else value for key, value in state.items()} | counts


def reconstruction(seed: int, width: int = 384, layers: int = 3) -> State:
    """A reconstruction head: `layers` linear ones, then a transposed convolution to pixels."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(layers):
        shapes |= {f"mlp.{2 * i}.weight": (width, width), f"mlp.{2 * i}.bias": (width,)}
    shapes |= {"convTrans.weight": (width, 3, 16, 16), "convTrans.bias": (3,)}
    return draw(shapes, seed)


def under(name: str, state: State) -> State:
    """The same tensors with `name` before each key."""
    return {name + key: value for key, value in state.items()}


def adamw(state: State) -> dict[str, object]:
    """State of AdamW after some steps, of the first two parameters."""
    first = list(state.values())[:2]
    slots = {i: {"step": 7, "exp_avg": v * 0.1, "exp_avg_sq": v.square()} for i, v in enumerate(first)}
    group = {"lr": 5e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.04, "amsgrad": False, "params": [0, 1]}
    return {"state": slots, "param_groups": [group, group | {"weight_decay": 0.0, "params": []}]}


SCALER = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 3}


def files(seed: int = 0, depth: int = 2) -> list[File]:
    """The training file of each time, and the backbone alone."""
    teacher, student = weights(seed, depth), weights(seed + 1, depth)
    heads = head(seed + 2), head(seed + 3)
    return [
        File("bare backbone", dict(teacher), teacher, network="backbone"),
        *_december(teacher, student, heads, seed),
        *_april(seed + 20, depth),
    ]


def _december(teacher: State, student: State, heads: tuple[State, State], seed: int) -> list[File]:
    nets = [
        under("backbone.", net) | under("head.", top) | under("head_recons.", reconstruction(seed + 4))
        for net, top in zip((teacher, student), heads, strict=True)
    ]
    content = {
        "student": under("module.", nets[1]),  # both sit in DistributedDataParallel, for the synchronised batch norm
        "teacher": under("module.", nets[0]),
        "optimizer": adamw(student),
        "epoch": 801,
        "args": argparse.Namespace(model="vit_small", out_dim=256, epochs=801, lmbda=1, drop_perc=0.5, use_fp16=True),
        "fp16_scaler": dict(SCALER),
    }
    single = dict(nets[0])
    return [
        File("training file of 2022-12", content, teacher, heads[0], network="teacher"),
        File("training file of 2022-12, student", content, student, heads[1], ask="student", network="student"),
        File("one network of 2022-12 alone", single, teacher, heads[0], network="backbone"),
    ]


def _april(seed: int, depth: int) -> list[File]:
    nets = [weights(seed + i, depth, names=TWO) for i in (0, 1)]
    tops = [draw({"weight": (512, 384), "bias": (512,)}, seed + i) for i in (2, 3)]
    rest = under("rot_head.", draw({"weight": (4, 384), "bias": (4,)}, seed + 4)) | reconstruction(seed + 5, layers=0)
    rest |= {name: torch.tensor([1.5]) for name in ("rot_w", "contrastive_w", "recons_w")}
    model, average = (net | under("contrastive_head.", top) | rest for net, top in zip(nets, tops, strict=True))
    content = {
        "model": model,
        "optimizer": adamw(nets[0]),
        "lr_scheduler": {"t_initial": 501, "lr_min": 5e-6, "base_values": [1e-3, 1e-3], "noise_range_t": None},
        "epoch": 500,
        "model_ema": average,
        "scaler": dict(SCALER),
        "args": argparse.Namespace(model="SiT_base_patch16_224", training_mode="SSL", representation_size=None),
    }
    return [
        File("training file of 2021", content, nets[0], tops[0], network="backbone"),
        File("training file of 2021, average", content, nets[1], tops[1], ask="model_ema", network="model_ema"),
    ]
