"""Top-k correctness with one rule for ties: among equal scores the lowest class id comes first.

What: `ranked` orders classes by vote or logit, `correct` says whether the true class stands among the first n.
How:  a partial top-k does the work; only rows that hold equal scores, for which `torch.topk` promises no order, are
      sorted stably. Pure functions on tensors of any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evalkit.errors import ProtocolError


def ranked(scores: Tensor, top: int) -> Tensor:
    """The best classes of each row, best first; equal scores in the order of the class ids.

    scores: (R, C) float, higher is better, no NaN. top: at least 1.
    Returns (R, min(top, C)) int64. Raises ProtocolError where top is less than 1 or there is no class.
    """
    classes = scores.shape[1]
    if top < 1 or classes < 1:
        raise ProtocolError(f"the best {top} of {classes} classes were asked for; both must be at least 1")
    values, ids = scores.topk(min(top + 1, classes), dim=1)
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1).nonzero().squeeze(1)
    if tied.numel():
        ids[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, : ids.shape[1]]
    return ids[:, :top]


def correct(ranking: Tensor, labels: Tensor, n: int) -> Tensor:
    """Whether the true class is among the first n.

    ranking: (..., R, W) int64 class ids, best first, as `ranked` gives them. labels: (R,) int64. n: 1 <= n <= W.
    Returns (..., R) bool: true where it is. Raises ProtocolError for another n.
    """
    width = ranking.shape[-1]
    if not 1 <= n <= width:
        raise ProtocolError(f"top-{n} was asked of rankings that hold {width} classes")
    return (ranking[..., :n] == labels.unsqueeze(-1)).any(dim=-1)


def seen_classes(labels: Tensor) -> int:
    """The number of different classes among labels (N,) int64; 0 for none."""
    return int(torch.unique(labels).numel())
