"""A queue of features of other images, and who is nearest in it: local groups, as Mugs makes them (Zhou et al. 2022,
arXiv:2203.14415; sail-sg/mugs 10ab634, src/model.py:270-400)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.pretrain.distributed import gather


class Means(nn.Module):
    """The last `size` mean patch tokens that were pushed; normal noise at the beginning."""

    rows: Tensor
    place: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.randn(size, dim))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def nearest(self, means: Tensor, k: int) -> Tensor:
        """means: (B, D). Returns (B, k, D), copies: the rows of highest cosine similarity, highest first. Among rows that
        are as similar any may come first or be left out; who attends to them all sees no order."""
        near = F.normalize(means, dim=1) @ F.normalize(self.rows, dim=1).to(means.dtype).T
        return self.rows[near.topk(k, dim=1).indices].to(means.dtype)

    @torch.no_grad()
    def push(self, means: Tensor, wanted: Tensor) -> None:
        """means: (B, D) of this process; wanted: (B,) bool, those to be kept. Those of all processes enter in the order of
        ranks; nothing waits for the device."""
        rows, wanted = gather(means).to(self.rows.dtype), gather(wanted.byte())
        order = wanted.argsort(descending=True, stable=True)
        for part in torch.split(order, len(self.rows)):
            at = (self.place + torch.arange(len(part), device=part.device)) % len(self.rows)
            keep = wanted[part].bool()
            self.rows[at] = torch.where(keep[:, None], rows[part], self.rows[at])
            self.place.copy_((self.place + keep.sum()) % len(self.rows))
