"""Blackboard pieces that several oracles share: float64, explicit, one formula each."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

State = dict[str, Tensor]


def draw(shapes: dict[str, tuple[int, ...]], seed: int, scale: float = 0.05) -> State:
    """Random float32 weights; one-dimensional `*weight` and `gamma` entries lie around 1 instead of 0."""
    rng = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        value = torch.randn(shape, generator=rng) * scale
        gain = len(shape) == 1 and (key.endswith(("weight", "gamma", "gamma_1", "gamma_2")))
        state[key] = 1 + 4 * value if gain else value
    return state


def vit_shapes(dim: int, depth: int, patch: int, rows: int, ratio: int = 4) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the plain vision transformer that DINO, MAE, DeiT and MoCo v3 share."""
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, dim), "pos_embed": (1, rows, dim)}
    shapes |= {"patch_embed.proj.weight": (dim, 3, patch, patch), "patch_embed.proj.bias": (dim,)}
    for i in range(depth):
        b = f"blocks.{i}."
        shapes |= {f"{b}norm1.weight": (dim,), f"{b}norm1.bias": (dim,)}
        shapes |= {f"{b}attn.qkv.weight": (3 * dim, dim), f"{b}attn.qkv.bias": (3 * dim,)}
        shapes |= {f"{b}attn.proj.weight": (dim, dim), f"{b}attn.proj.bias": (dim,)}
        shapes |= {f"{b}norm2.weight": (dim,), f"{b}norm2.bias": (dim,)}
        shapes |= {f"{b}mlp.fc1.weight": (ratio * dim, dim), f"{b}mlp.fc1.bias": (ratio * dim,)}
        shapes |= {f"{b}mlp.fc2.weight": (dim, ratio * dim), f"{b}mlp.fc2.bias": (dim,)}
    return shapes | {"norm.weight": (dim,), "norm.bias": (dim,)}


def double(state: State) -> State:
    """The same weights in float64."""
    return {key: value.double() for key, value in state.items()}


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Mean 0, variance 1 over the channels, then gain and shift."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def gelu(x: Tensor) -> Tensor:
    """The exact one, by the error function."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def tiles(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, h, w, D): every patch flattened and multiplied by the kernel."""
    p = weight.shape[-1]
    cut = images.double().unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 1, 4, 5).flatten(3)
    return cut @ weight.flatten(1).T + bias


def attention(qkv: Tensor, heads: int, bias: Iterable[Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """(B, T, 3 D) -> ((B, T, D), (B, heads, T, T)), one head after the other. bias: added to the scores, one per head."""
    q, k, v = qkv.chunk(3, -1)
    dim = q.shape[-1] // heads
    added = list(bias) if bias is not None else [torch.zeros(())] * heads
    out, maps = [], []
    for n in range(heads):
        part = slice(n * dim, (n + 1) * dim)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(dim) + added[n]
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        weights = weights / weights.sum(-1, keepdim=True)
        out.append(weights @ v[..., part])
        maps.append(weights)
    return torch.cat(out, -1), torch.stack(maps, 1)
