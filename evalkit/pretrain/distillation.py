"""What DINO and iBOT share: lightly's projection head, the teacher's temperature and entropy, the shipped file's names."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.errors import ExtraMissing
from evalkit.pretrain.heads import widened
from evalkit.pretrain.method import Now
from evalkit.pretrain.precision import full
from evalkit.pretrain.schedules import linear

try:
    from lightly.models.modules import DINOProjectionHead
except ImportError as error:  # pragma: no cover - the message is what matters
    raise ExtraMissing("pretraining", "pretrain") from error


def projection_head(dim: int, hidden: int, bottleneck: int, prototypes: int, *, norm_last: bool) -> nn.Module:
    """lightly's DINO head: `layers`, L2 norm, `last_layer` with unit-length prototypes (norm_last), else trained lengths.
    Weights start as `heads.widened` says."""
    with warnings.catch_warnings():  # torch would like its weight_norm by another name
        warnings.simplefilter("ignore", FutureWarning)
        head: nn.Module = DINOProjectionHead(dim, hidden, bottleneck, prototypes, norm_last_layer=norm_last)
    widened(head.layers, hidden)  # type: ignore[arg-type]
    return head


def temperature(first: float, last: float, epochs: float, now: Now) -> float:
    """The teacher's: from `first` to `last` on a line over this many epochs. DINO's code takes the step at the end of each
    epoch (main_dino.py:374-378); here every step takes its share, as short runs ask for."""
    return linear(first, last, now.epoch / epochs) if epochs else last


def trained_prototypes(head: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of the last layer that are trained at all."""
    return (p for p in head.last_layer.parameters() if p.requires_grad)  # type: ignore[union-attr,operator]


@torch.no_grad()
def entropy(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The mean over images of the entropy, in nats, of the teacher's assignment. logits: (B, K); centre: K values.

    0: each image has one prototype; log K: all images have all of them.
    """
    logs = F.log_softmax((full(logits) - centre.flatten()) / temperature, dim=-1)
    return -(logs.exp() * logs).sum(-1).mean()


def shipped(backbone: nn.Module, head: nn.Module) -> dict[str, Tensor]:
    """`backbone.*` and `head.mlp.*`, as DINO's and iBOT's files call them; prototypes are left out."""
    state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    mlp = {key: value for key, value in head.state_dict().items() if key.startswith("layers.")}
    return state | {f"head.mlp.{key.removeprefix('layers.')}": value for key, value in mlp.items()}
