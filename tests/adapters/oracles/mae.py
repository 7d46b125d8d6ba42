"""MAE (He et al. 2021, arXiv:2111.06377), after facebookresearch/mae efb2a80.

models_mae.py:24-70,150-171 (the encoder without masking), util/pos_embed.py:20-96, util/misc.py:295-312 (what a
training file holds), main_linprobe.py:222 (a probe's head). The decoder has no part in what is evaluated.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from tests.adapters.oracles import Facts, File, Truth
from tests.adapters.oracles.plain import State, attention, double, draw, gelu, layer_norm, tiles, vit_shapes

FAMILY = "mae"
ARCHS = {
    "vit_base_patch16": Facts(dim=768, depth=12, heads=12, patch=16),
    "vit_large_patch16": Facts(dim=1024, depth=24, heads=16, patch=16),
    "vit_huge_patch14": Facts(dim=1280, depth=32, heads=16, patch=14),
    "vit_micro_patch8_64": Facts(dim=192, depth=6, heads=3, patch=8, size=64),
}
ARCH = "vit_base_patch16"
EPS = 1e-6


def sine_cosine(h: int, w: int, dim: int) -> Tensor:
    """(h * w, dim) in float64: sin, cos of the column, then sin, cos of the row; a quarter of the channels each."""
    table = torch.zeros(h, w, dim, dtype=torch.float64)
    for k in range(dim // 4):
        omega = 10000 ** -(k / (dim / 4))
        for row in range(h):
            for column in range(w):
                angles = (
                    math.sin(column * omega),
                    math.cos(column * omega),
                    math.sin(row * omega),
                    math.cos(row * omega),
                )
                for part, value in enumerate(angles):
                    table[row, column, part * dim // 4 + k] = value
    return table.flatten(0, 1)


def cubic(length: int, wanted: int) -> Tensor:
    """(wanted, length): the cubic convolution with a = -0.75 that resizes one side, pixel centres at halves, edges
    repeated, no widening of the kernel when it shrinks."""
    a, matrix = -0.75, torch.zeros(wanted, length, dtype=torch.float64)
    for i in range(wanted):
        at = (i + 0.5) * length / wanted - 0.5
        for tap in range(math.floor(at) - 1, math.floor(at) + 3):
            d = abs(at - tap)
            near = ((a + 2) * d - (a + 3)) * d * d + 1
            far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
            matrix[i, min(max(tap, 0), length - 1)] += near if d <= 1 else far
    return matrix


def resize(table: Tensor, h: int, w: int) -> Tensor:
    """(n * n, D) -> (h * w, D), rows first."""
    side = math.isqrt(len(table))
    square = table.view(side, side, -1)
    return torch.einsum("is,jt,std->ijd", cubic(side, h), cubic(side, w), square).flatten(0, 1)


def transform(x: Tensor, w: State, heads: int, eps: float = EPS) -> tuple[list[Tensor], Tensor, Tensor]:
    """Pre-norm blocks, with LayerScale where gamma_1 is there: (output of each, after the final norm, last attention)."""
    outputs: list[Tensor] = []
    maps = torch.zeros(())
    for i in range(sum(key.endswith("norm1.weight") for key in w)):
        b = f"blocks.{i}."
        one, two = w.get(f"{b}gamma_1", 1), w.get(f"{b}gamma_2", 1)
        y = layer_norm(x, w[f"{b}norm1.weight"], w[f"{b}norm1.bias"], eps)
        y, maps = attention(y @ w[f"{b}attn.qkv.weight"].T + w[f"{b}attn.qkv.bias"], heads)
        x = x + one * (y @ w[f"{b}attn.proj.weight"].T + w[f"{b}attn.proj.bias"])
        y = layer_norm(x, w[f"{b}norm2.weight"], w[f"{b}norm2.bias"], eps)
        y = gelu(y @ w[f"{b}mlp.fc1.weight"].T + w[f"{b}mlp.fc1.bias"])
        x = x + two * (y @ w[f"{b}mlp.fc2.weight"].T + w[f"{b}mlp.fc2.bias"])
        outputs.append(x)
    return outputs, layer_norm(x, w["norm.weight"], w["norm.bias"], eps), maps


def weights(seed: int, depth: int = 2, arch: str = ARCH) -> State:
    """The released encoder: its position table is fixed, and its class row zero."""
    facts = ARCHS[arch]
    side = facts.size // facts.patch
    state = draw(vit_shapes(facts.dim, depth, facts.patch, side * side + 1), seed)
    rows = torch.cat([torch.zeros(1, facts.dim, dtype=torch.float64), sine_cosine(side, side, facts.dim)])
    return state | {"pos_embed": rows[None].float()}


def head(seed: int) -> State | None:
    """None: the decoder predicts pixels, nobody evaluates it."""
    return None


def forward(weights: State, images: Tensor, head: State | None = None, arch: str = ARCH) -> Truth:
    """At another size the table is resized as when fine-tuning, util/pos_embed.py:75-96, the class row kept."""
    w = double(weights)
    x = tiles(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"])
    b, rows, columns, dim = x.shape
    table = w["pos_embed"][0]
    x = x.flatten(1, 2) + resize(table[1:], rows, columns)
    x = torch.cat([(w["cls_token"][0] + table[:1]).expand(b, 1, dim), x], 1)
    if "fc_norm.weight" in w:  # models_vit.py:46-54: the norm of the mean of the patches, which themselves have none
        blocks, _, maps = transform(
            x, w | {"norm.weight": w["fc_norm.weight"], "norm.bias": w["fc_norm.bias"]}, ARCHS[arch].heads
        )
        patches = blocks[-1][:, 1:]
        cls = layer_norm(patches.mean(1), w["fc_norm.weight"], w["fc_norm.bias"], EPS)
        return Truth(blocks, cls, patches.reshape(b, rows, columns, dim), maps)
    blocks, normed, maps = transform(x, w, ARCHS[arch].heads)
    return Truth(blocks, normed[:, 0], normed[:, 1:].reshape(b, rows, columns, dim), maps)


def decoder(seed: int) -> State:
    """What a pretraining file has beside the encoder, 512 wide in the original, narrower here."""
    dim, width = ARCHS[ARCH].dim, 32
    inner = {
        "decoder_" + key: shape
        for key, shape in vit_shapes(width, 1, 16, 197).items()
        if key not in ("cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias")
    }
    shapes = inner | {"mask_token": (1, 1, width), "decoder_embed.weight": (width, dim), "decoder_embed.bias": (width,)}
    return draw(shapes | {"decoder_pred.weight": (768, width), "decoder_pred.bias": (768,)}, seed)


def optimiser(seed: int) -> dict:
    """The state of AdamW for two parameters."""
    rng = torch.Generator().manual_seed(seed)
    moments = [{"step": 7, "exp_avg": torch.randn(4, generator=rng), "exp_avg_sq": torch.rand(4, generator=rng)}] * 2
    group = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.05, "amsgrad": False, "params": [0, 1]}
    return {"state": dict(enumerate(moments)), "param_groups": [group]}


def scaler() -> dict:
    """The state of a GradScaler."""
    return {
        "scale": 65536.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2000,
        "_growth_tracker": 3,
    }


def training(model: State, name: str) -> dict:
    """A file of util/misc.py:295-312; the model is saved without its wrapper."""
    args = argparse.Namespace(model=name, batch_size=64, epochs=800, lr=None, blr=1.5e-4, output_dir="./out", gpu=0)
    return {"model": model, "optimizer": optimiser(1), "epoch": 799, "scaler": scaler(), "args": args}


def files(seed: int = 0, depth: int = 2) -> list[File]:
    """The encoder alone, the whole pretraining network (issue 8), a training file, and the files of the two probes."""
    state = weights(seed, depth)
    whole = state | decoder(seed + 1)
    shapes: dict[str, tuple[int, ...]] = {"head.weight": (10, 768), "head.bias": (10,)}
    tuned = state | draw(shapes, seed + 2)
    norm = {"head.0.running_mean": torch.zeros(768), "head.0.running_var": torch.ones(768)}
    norm["head.0.num_batches_tracked"] = torch.tensor(9)
    probe = state | norm | {f"head.1.{key.split('.')[1]}": value for key, value in draw(shapes, seed + 3).items()}
    return [
        File("mae_pretrain_vit_base", {"model": state}, state, network="backbone"),
        File("mae_pretrain_vit_base_full", {"model": whole}, state, network="backbone"),
        File("pretraining checkpoint", training(whole, "mae_vit_base_patch16"), state, network="backbone"),
        File("linear probe checkpoint", training(probe, "vit_base_patch16"), state, network="backbone"),
        File("fine-tuned on the class token", training(tuned, "vit_base_patch16"), state, network="backbone"),
        File("bare", dict(state), state, network="backbone"),
        File("fine-tuned on the mean of the patches", *pooled(seed + 4, depth), network="backbone"),
    ]


def pooled(seed: int, depth: int) -> tuple[dict, State]:
    """mae_finetuned_vit_base.pth: fine-tuned on the mean of the patches, so `norm` is gone and `fc_norm` is there."""
    state = {key: value for key, value in weights(seed, depth).items() if not key.startswith("norm.")}
    state |= draw({"fc_norm.weight": (768,), "fc_norm.bias": (768,)}, seed + 1)
    return {"model": state | draw({"head.weight": (10, 768), "head.bias": (10,)}, seed + 1)}, state
