"""Pretraining heads that checkpoints carry, for `Encoder.project`.

DINO's head (Caron et al. 2021, arXiv:2104.14294; facebookresearch/dino 7c446df, vision_transformer.py:257-294): an
MLP of linear layers with GELU between (optionally batch norm), L2 normalisation, and a weight-normed layer of
prototypes without bias. Files of evalkit's own pretraining leave the prototypes out: at 65,536 x 256 values they
weigh more than the encoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.errors import KeyMismatch, NoProjection


class Prototypes(nn.Module):
    """A linear layer whose rows have the length `weight_g` and the direction `weight_v`."""

    def __init__(self, out: int, dim: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out, 1))
        self.weight_v = nn.Parameter(torch.zeros(out, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, prototypes)."""
        return F.linear(x, self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True)))


class DINOHead(nn.Module):
    """mlp: its layers. last_layer: the prototypes, None where the file leaves them out."""

    def __init__(self, mlp: nn.Sequential, last_layer: nn.Module | None) -> None:
        super().__init__()
        self.mlp = mlp
        self.last_layer = last_layer

    def forward(self, cls: Tensor, *, bottleneck: bool = False) -> Tensor:
        """(B, D) class tokens after the final norm -> (B, prototypes) logits, or with `bottleneck` the (B, D') unit
        vectors that enter the prototype layer. Raises NoProjection for the logits where the file has no prototypes."""
        x = F.normalize(self.mlp(cls), dim=-1)
        if bottleneck:
            return x
        if self.last_layer is None:
            raise NoProjection("the file's head ends at its bottleneck: the prototype layer is not shipped")
        return self.last_layer(x)  # type: ignore[no-any-return]


def dino_head(state: Mapping[str, Tensor], dim: int) -> DINOHead:
    """An empty head of the sizes that the keys `mlp.<i>.weight` and `last_layer.weight_v` have. dim: the encoder's
    width.

    Sizes are read from the file since nothing else depends on them. Raises KeyMismatch where it is no such head.
    """
    layers = {int(m[1]): value for key, value in state.items() if (m := re.fullmatch(r"mlp\.(\d{1,2})\.weight", key))}
    prototypes = state.get("last_layer.weight_v")
    matrices = [w for _, w in sorted(layers.items()) if w.ndim == 2] + ([] if prototypes is None else [prototypes])
    widths = [dim, *(w.shape[0] for w in matrices)]  # what each matrix must read; the last width is read by none
    if _places(layers) not in (_plan(layers, 2), _plan(layers, 3)) or any(
        w.ndim != 2 or w.shape[1] != width for w, width in zip(matrices, widths[:-1], strict=True)
    ):
        found = ", ".join(f"{key} {tuple(value.shape)}" for key, value in sorted(state.items())[:8])
        raise KeyMismatch(f"the head is none of DINO's for {dim} dimensions: expected mlp.0, mlp.2 ..., found {found}")
    mlp = nn.Sequential(*(_layer(layers.get(i)) for i in range(max(layers) + 1)))
    return DINOHead(mlp, None if prototypes is None else Prototypes(*prototypes.shape))


def _places(layers: Mapping[int, Tensor]) -> dict[int, int]:
    """{index: 2 for a matrix, 1 for the vector of a batch norm}."""
    return {i: w.ndim for i, w in layers.items()}


def _plan(layers: Mapping[int, Tensor], step: int) -> dict[int, int]:
    """Where an MLP has weights: linear, GELU (step 2) or linear, batch norm, GELU (step 3), and a linear one last."""
    last = max(layers, default=0)
    norms = {i + 1: 1 for i in range(0, last, 3)} if step == 3 else {}
    return {i: 2 for i in range(0, last + 1, step)} | norms


def _layer(weight: Tensor | None) -> nn.Module:
    """A place without weights is the activation; a vector of weights is batch norm."""
    if weight is None:
        return nn.GELU()
    if weight.ndim == 1:
        return nn.BatchNorm1d(len(weight))
    return nn.Linear(weight.shape[1], weight.shape[0])


class PlainHead(nn.Module):
    """Layers one after the other, under the names that the file gives them; there is no bottleneck among them."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, cls: Tensor, *, bottleneck: bool = False) -> Tensor:
        """(B, D) class tokens after the final norm -> (B, D'). Raises NoProjection for a bottleneck."""
        if bottleneck:
            raise NoProjection("the pretraining head ends in its output and has no bottleneck before prototypes")
        for layer in self.children():
            cls = layer(cls)
        return cls


def layer_widths(state: Mapping[str, Tensor], dim: int, matrices: Sequence[str]) -> list[int]:
    """dim, then the outputs of the linear layers whose weights have these names, for a head of the file's own sizes.

    That each reads what the one before gives is for `loading.assign` to find. Raises KeyMismatch where one is missing.
    """
    wrong = [key for key in matrices if key not in state or state[key].ndim != 2]
    if wrong:
        raise KeyMismatch(
            f"the pretraining head has no matrix {', '.join(wrong)}; it has {', '.join(sorted(state)[:8])}"
        )
    return [dim, *(state[key].shape[0] for key in matrices)]


def batch_norm_head(state: Mapping[str, Tensor], dim: int) -> PlainHead:
    """SiT's contrastive head, empty, of the file's sizes (Sara-Ahmed/SiT 7f22e9c, vision_transformer.py:246-275): `mlp` of
    three linear layers, batch norm after each, the last one plain, ReLU, then GELU between. Raises KeyMismatch where a
    layer is missing."""
    dim, first, second, out = layer_widths(state, dim, ("mlp.0.weight", "mlp.3.weight", "mlp.6.weight"))
    layers = [
        *(nn.Linear(dim, first), nn.BatchNorm1d(first), nn.ReLU()),
        *(nn.Linear(first, second), nn.BatchNorm1d(second), nn.GELU()),
        *(nn.Linear(second, out), nn.BatchNorm1d(out, affine=False)),
    ]
    return PlainHead({"mlp": nn.Sequential(*layers)})


def plain_dino_head(state: Mapping[str, Tensor], dim: int) -> DINOHead:
    """`dino_head` with prototypes that are a plain matrix, `last_layer.weight`, of no fixed length: DINOv3's
    (facebookresearch/dinov3 6876159, dinov3/layers/dino_head.py:32). Raises KeyMismatch where it is no such head."""
    head = dino_head({key: value for key, value in state.items() if key.startswith("mlp.")}, dim)
    prototypes = state.get("last_layer.weight")
    if prototypes is not None:
        (width,) = list(head.mlp.parameters())[-1].shape
        if prototypes.ndim != 2 or prototypes.shape[1] != width:
            raise KeyMismatch(
                f"the head's last_layer.weight is {tuple(prototypes.shape)}; its MLP gives {width} values"
            )
        head.last_layer = nn.Linear(width, prototypes.shape[0], bias=False)
    return head
