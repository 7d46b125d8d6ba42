"""Projection heads, predictors and prototypes of the methods that are written here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
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


WIDTH = 2048
"""Hidden width of DINO's head (facebookresearch/dino 7c446df, vision_transformer.py:258)."""


def widened(layers: nn.Module, hidden: int) -> None:
    """Give the layers of a narrow head that read `hidden` values the deviation 0.02 sqrt(2048 / hidden), so that what they
    give is as large as in the authors' head.

    At 0.02 and 512 what an image says is so faint that the biases, which all images share, outgrow it in the first steps,
    and the head gives one answer to all images.
    """
    with torch.no_grad():
        for layer in [m for m in layers.modules() if isinstance(m, nn.Linear)][1:]:
            layer.weight.mul_(math.sqrt(WIDTH / hidden))


def prototype_head(dim: int, hidden: int, bottleneck: int, prototypes: int, *, layers: int = 3) -> DINOHead:
    """DINO's head: an MLP with GELU, L2 norm, and prototypes of unit length whose length is not trained. See `widened`."""
    last = Prototypes(prototypes, bottleneck)
    nn.init.trunc_normal_(last.weight_v, std=0.02)
    last.weight_g.requires_grad_(False)
    projector = mlp([dim, *[hidden] * (layers - 1), bottleneck], norm=False, activation=nn.GELU)
    widened(projector, hidden)
    return DINOHead(projector, last)
