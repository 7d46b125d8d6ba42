"""What a loss computes in under mixed precision: float32, or float64 where its inputs are that (in tests)."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """x in float32; a float64 tensor as it is."""
    return x if x.dtype == torch.float64 else x.float()


def exact(x: Tensor) -> AbstractContextManager[None]:
    """Inside, autocast on x's device is off: it would take the matrix products of a loss in half precision again."""
    return torch.autocast(x.device.type, enabled=False)
