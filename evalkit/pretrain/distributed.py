"""One batch over several processes: what all of them must know alike. With one process everything is as it stands.

`BatchNorm` is synchronised batch norm that also runs on CPUs (torch's own asks for a GPU): with it a step of two
processes equals a step of one with the whole batch.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce  # type: ignore[attr-defined]

from evalkit.pretrain.precision import full


def world() -> int:
    """Number of processes that share the batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process, from 0."""
    return dist.get_rank() if world() > 1 else 0


@torch.no_grad()
def gather(rows: Tensor) -> Tensor:
    """(B, ...) of every process, joined in the order of ranks: (world B, ...), without gradients."""
    if world() == 1:
        return rows.detach()
    parts = [torch.empty_like(rows) for _ in range(world())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


@torch.no_grad()
def average(value: Tensor) -> Tensor:
    """The mean of the processes' values, without gradients."""
    if world() == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world()


class BatchNorm(nn.BatchNorm1d):
    """(B, D) -> (B, D), normalised by mean and variance of the whole batch, over all processes. State as
    `nn.BatchNorm1d`. Every process must bring as many rows."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        if not self.training or world() == 1:
            return super().forward(x)
        rows = full(x)
        mean: Tensor = all_reduce(rows.mean(0)) / world()  # type: ignore[no-untyped-call]
        variance: Tensor = all_reduce((rows - mean).square().mean(0)) / world()  # type: ignore[no-untyped-call]
        self._remember(mean.detach(), variance.detach(), len(x) * world())
        out: Tensor = (rows - mean) * torch.rsqrt(variance + self.eps)
        return (out if self.weight is None else out * self.weight + self.bias).to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, n: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * n / max(n - 1, 1), share)
