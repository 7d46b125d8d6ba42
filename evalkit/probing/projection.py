"""Outputs of the pretraining head for images whose class tokens are stored.

The head reads the class token of the last block after the final norm and nothing else, so its output need not be stored:
DINO's has 65,536 values per image, 16 GB for CIFAR-10 beside 90 MB of class tokens. Such wide outputs lie in a small
subspace, because the last layer of the head is linear and its input has some 256 dimensions; for cosines it is enough to
have coordinates in an orthonormal basis of that subspace, which keep all lengths and angles. That it holds the rows is
checked for every row; where it does not, the rows are returned at their full width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evalkit.features import forward
from evalkit.types import Encoder, Part

WIDE = 2048
"""Outputs of more values than this are turned into coordinates."""

SAMPLE = 512
"""Rows that span the subspace: twice the 256 dimensions of the usual bottleneck."""

SLACK = 1e-4
"""Share of a row's squared length that may be missing from its coordinates: float32 leaves some 1e-6."""

BATCH = 1024


def of_class_tokens(encoder: Encoder, cls: Tensor, part: Part, device: torch.device) -> Tensor:
    """(N, D') float32 on the CPU, of whose rows all inner products are those of the head's outputs.

    cls: (N, D) class tokens of the last block after the final norm, as stored. part: "projection" for the output of the
    head, "bottleneck" for what enters its last layer. D' is the width of the head, or at most 512 where that is above
    2,048. Raises NoProjection where the checkpoint has no such head.
    """
    width = forward.width(encoder, part)
    basis = _basis(encoder, cls, part, device) if width > WIDE and len(cls) > SAMPLE else None
    found = _rows(encoder, cls, part, device, basis)
    return _rows(encoder, cls, part, device, None) if found is None else found  # type: ignore[return-value]


def _basis(encoder: Encoder, cls: Tensor, part: Part, device: torch.device) -> Tensor:
    """(width, SAMPLE) orthonormal columns that span the outputs of evenly spread rows."""
    chosen = torch.linspace(0, len(cls) - 1, SAMPLE).round().long()
    basis: Tensor = torch.linalg.qr(forward.project(encoder, cls[chosen].to(device), part).T).Q
    return basis


def _rows(encoder: Encoder, cls: Tensor, part: Part, device: torch.device, basis: Tensor | None) -> Tensor | None:
    """Outputs, or their coordinates; None where a row does not lie in the span of the basis."""
    found = []
    for batch in torch.split(cls, BATCH):
        rows = forward.project(encoder, batch.to(device), part)
        if basis is not None:
            full = rows.square().sum(1)
            rows = rows @ basis
            if bool(((full - rows.square().sum(1)).abs() > SLACK * full).any()):
                return None
        found.append(rows.cpu())
    return torch.cat(found)
