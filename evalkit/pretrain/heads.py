"""Projection heads, predictors and prototypes of the methods that are written here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from evalkit.adapters.heads import DINOHead, Prototypes
from evalkit.pretrain.distributed import BatchNorm


def mlp(
    widths: Sequence[int],
    *,
    norm: bool,
    last_norm: bool = False,
    bias: bool = True,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Linear layers of the widths (input first) with the activation between.

    norm: batch norm before every activation. last_norm: batch norm without gain and shift after the last layer. bias: of
    the linear layers that no batch norm follows; the others have none where `bias` is false, all have one where true.
    Weights start from a truncated normal of deviation 0.02, biases from zero.
    """
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        layers.append(nn.Linear(a, b, bias=bias))
        if not last:
            layers += [BatchNorm(b), activation()] if norm else [activation()]
        elif last_norm:
            layers.append(BatchNorm(b, affine=False))
    return start(nn.Sequential(*layers))  # type: ignore[return-value]


def start(module: nn.Module) -> nn.Module:
    """Linear layers from a truncated normal of deviation 0.02 with zero biases, as DINO's heads start; global generator."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def prototype_head(dim: int, hidden: int, bottleneck: int, prototypes: int, *, layers: int = 3) -> DINOHead:
    """DINO's head: an MLP with GELU, L2 norm, and prototypes of unit length whose length is not trained."""
    last = Prototypes(prototypes, bottleneck)
    nn.init.trunc_normal_(last.weight_v, std=0.02)
    last.weight_g.requires_grad_(False)
    return DINOHead(mlp([dim, *[hidden] * (layers - 1), bottleneck], norm=False, activation=nn.GELU), last)
