"""CAE on the blackboard: its encoder is a plain vision transformer with a fixed sine-cosine table, LayerScale, and biases
for queries and values only. Without a mask every patch enters, which is how it is evaluated."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from tests.adapters.oracles import Facts, File, Truth
from tests.adapters.oracles.plain import State, attention, double, draw, gelu, layer_norm, tiles

FAMILY = "cae"
ARCHS = {
    "vit_small_patch16": Facts(dim=384, depth=12, heads=12, patch=16),
    "vit_base_patch16": Facts(dim=768, depth=12, heads=12, patch=16),
    "vit_large_patch16": Facts(dim=1024, depth=24, heads=16, patch=16),
    "vit_micro_patch8_64": Facts(dim=192, depth=6, heads=3, patch=8, size=64),
}
ARCH = "vit_small_patch16"
EPS = 1e-6


def weights(seed: int, depth: int = 2, arch: str = ARCH) -> State:
    """The encoder without its prefix; the position table is the official one."""
    d = ARCHS[arch].dim
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, d)}
    shapes |= {"patch_embed.proj.weight": (d, 3, 16, 16), "patch_embed.proj.bias": (d,)}
    for i in range(depth):
        shapes |= _block_shapes(f"blocks.{i}.", d)
    state = draw(shapes | {"norm.weight": (d,), "norm.bias": (d,)}, seed)
    return state | {"pos_embed": sine_cosine(14, d)}


def head(seed: int) -> State | None:
    """No paper reads a projection: what follows the encoder predicts masked patches."""
    return None


def sine_cosine(side: int, d: int) -> Tensor:
    """(1, 1 + side * side, D): zeros for the class token; then sin and cos of the row, sin and cos of the column."""
    table = torch.zeros(1, 1 + side * side, d)
    omega = 1 / 10000 ** (torch.arange(d // 4) / (d // 4))
    for row in range(side):
        for column in range(side):
            a, b = row * omega, column * omega
            table[0, 1 + row * side + column] = torch.cat([a.sin(), a.cos(), b.sin(), b.cos()])
    return table


def _block_shapes(b: str, d: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{b}gamma_1": (d,), f"{b}gamma_2": (d,)}
    shapes |= {f"{b}norm1.weight": (d,), f"{b}norm1.bias": (d,), f"{b}norm2.weight": (d,), f"{b}norm2.bias": (d,)}
    shapes |= {f"{b}attn.q_bias": (d,), f"{b}attn.v_bias": (d,), f"{b}attn.qkv.weight": (3 * d, d)}
    shapes |= {f"{b}attn.proj.weight": (d, d), f"{b}attn.proj.bias": (d,)}
    shapes |= {f"{b}mlp.fc1.weight": (4 * d, d), f"{b}mlp.fc1.bias": (4 * d,)}
    return shapes | {f"{b}mlp.fc2.weight": (d, 4 * d), f"{b}mlp.fc2.bias": (d,)}


def _regressor_shapes(b: str, d: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{b}gamma_1_cross": (d,), f"{b}gamma_2_cross": (d,)}
    for norm in ("norm1_q", "norm1_k", "norm1_v", "norm2_cross"):
        shapes |= {f"{b}{norm}.weight": (d,), f"{b}{norm}.bias": (d,)}
    shapes |= {f"{b}cross_attn.{x}_bias": (d,) for x in "qv"} | {f"{b}cross_attn.{x}.weight": (d, d) for x in "qkv"}
    shapes |= {f"{b}cross_attn.proj.weight": (d, d), f"{b}cross_attn.proj.bias": (d,)}
    shapes |= {f"{b}mlp_cross.fc1.weight": (4 * d, d), f"{b}mlp_cross.fc1.bias": (4 * d,)}
    return shapes | {f"{b}mlp_cross.fc2.weight": (d, 4 * d), f"{b}mlp_cross.fc2.bias": (d,)}


def forward(weights: State, images: Tensor, head: State | None = None, arch: str = ARCH) -> Truth:
    """Blocks, final norm and attention, with every patch visible."""
    heads, w = ARCHS[arch].heads, double(weights)
    patches = tiles(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"])
    batch, rows, columns, d = patches.shape
    x = torch.cat([w["cls_token"].expand(batch, -1, -1), patches.reshape(batch, rows * columns, d)], 1)
    x = x + _positions(w["pos_embed"], rows, columns)
    blocks, maps = [], torch.zeros(())
    for i in range(sum(key.endswith("attn.proj.bias") for key in w)):
        b = f"blocks.{i}."
        y = layer_norm(x, w[f"{b}norm1.weight"], w[f"{b}norm1.bias"], EPS)
        q, v = w[f"{b}attn.q_bias"], w[f"{b}attn.v_bias"]
        y, maps = attention(y @ w[f"{b}attn.qkv.weight"].T + torch.cat([q, torch.zeros_like(q), v]), heads)
        x = x + w[f"{b}gamma_1"] * (y @ w[f"{b}attn.proj.weight"].T + w[f"{b}attn.proj.bias"])
        y = layer_norm(x, w[f"{b}norm2.weight"], w[f"{b}norm2.bias"], EPS)
        y = gelu(y @ w[f"{b}mlp.fc1.weight"].T + w[f"{b}mlp.fc1.bias"])
        x = x + w[f"{b}gamma_2"] * (y @ w[f"{b}mlp.fc2.weight"].T + w[f"{b}mlp.fc2.bias"])
        blocks.append(x)
    y = layer_norm(x, w["norm.weight"], w["norm.bias"], EPS)
    return Truth(blocks, y[:, 0], y[:, 1:].reshape(batch, rows, columns, d), maps)


def _positions(table: Tensor, rows: int, columns: int) -> Tensor:
    """(1, 1 + rows * columns, D). Another grid: the stored table resized to it, bicubic, not rebuilt from sines."""
    if (rows, columns) == (14, 14):
        return table
    grid = table[:, 1:].reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], 1)


def prefixed(state: State, prefix: str) -> State:
    """The same tensors under one more name."""
    return {prefix + key: value for key, value in state.items()}


def predictor(seed: int, width: int = 48, *, projected: bool = True) -> State:
    """What is trained beside the encoder. projected: the decoder is narrower than the encoder."""
    d = ARCHS[ARCH].dim
    shapes = _regressor_shapes("pretext_neck.regressor_blocks.0.", width)
    shapes |= _block_shapes("pretext_neck.decoder_blocks.0.", width)
    shapes |= {f"pretext_neck.{norm}.{x}": (width,) for norm in ("norm", "norm2") for x in ("weight", "bias")}
    shapes |= {"pretext_neck.head.weight": (32, width), "pretext_neck.head.bias": (32,), "mask_token": (1, 1, width)}
    if projected:
        shapes |= {"encoder_to_decoder.weight": (width, d), "encoder_to_decoder.bias": (width,)}
        shapes |= {"encoder_to_decoder_norm.weight": (width,), "encoder_to_decoder_norm.bias": (width,)}
    return draw(shapes, seed)


def files(seed: int = 0, depth: int = 2) -> list[File]:
    """The released encoder, training files with and without the teacher, and the encoder alone."""
    encoder, teacher = weights(seed, depth), weights(seed + 1, depth)
    kept = prefixed(encoder, "encoder.") | predictor(seed + 2)
    whole = prefixed(encoder, "encoder.") | prefixed(teacher, "teacher.") | predictor(seed + 3, projected=False)
    moments = {"step": 7, "exp_avg": torch.full((3, 4), 0.1), "exp_avg_sq": torch.full((3, 4), 0.01)}
    training = {
        "optimizer": {"state": {0: moments}, "param_groups": [{"lr": 1.5e-3, "params": [0]}]},
        "epoch": 1599,
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3},
        "args": argparse.Namespace(model="cae_small_patch16_224_8k_vocab", regressor_depth=4, decoder_depth=4),
    }
    deepspeed = {
        "optimizer": None,
        "lr_scheduler": None,
        "csr_tensor_module_names": set(),
        "skipped_steps": 5,
        "global_steps": 1000,
        "dp_world_size": 32,
        "mp_world_size": 1,
        "epoch": 1599,
    }
    released = {"model": prefixed(encoder, "encoder.")}
    both = {"module": whole} | deepspeed
    return [
        File("released", released, encoder, network="encoder"),
        File("training", {"model": kept} | training, encoder, network="encoder"),
        File("deepspeed", both, encoder, network="encoder"),
        File("deepspeed, teacher", both, teacher, network="teacher", ask="teacher"),
        File("encoder alone", {"model": dict(encoder)}, encoder, network="backbone"),
        File("bare", dict(encoder), encoder, network="backbone"),
    ]
