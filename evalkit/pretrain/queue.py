"""The queue of earlier keys that a contrastive loss takes its negatives from (He et al. 2019, arXiv:1911.05722)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.pretrain.distributed import gather


class Queue(nn.Module):
    """The last `size` rows that were pushed, oldest overwritten first; random unit vectors at the beginning.

    rows: (size, D) buffer. Rows of all processes enter, in the order of ranks.
    """

    rows: Tensor
    place: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def keys(self) -> Tensor:
        """(size, D), a copy: what a loss has read must not change before its gradients are taken."""
        return self.rows.clone()

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """rows: (B, D) of this process. A batch may pass the end; of one that is longer than the queue the last stay."""
        new = gather(rows).to(self.rows.dtype)[-len(self.rows) :]
        at = (self.place + torch.arange(len(new), device=new.device)) % len(self.rows)
        self.rows[at] = new
        self.place.copy_((self.place + len(new)) % len(self.rows))
