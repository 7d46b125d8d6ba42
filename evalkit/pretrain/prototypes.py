"""Assignment to prototypes that a teacher makes and a student learns (Caron et al. 2021, arXiv:2104.14294, Eqs. 1-4), for the
methods whose losses are our own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.pretrain.distributed import average, gather
from evalkit.pretrain.precision import full


@torch.no_grad()
def balanced(logits: Tensor, temperature: float, rounds: int) -> Tensor:
    """(..., K) teacher's logits -> (..., K) logits x of which softmax(x / temperature) gives all prototypes as much of the
    batch, over all processes: rounds of Sinkhorn-Knopp (SwAV, arXiv:2006.09882, section 3.1). DINOv2 has 3 of them in the
    place of the centre (arXiv:2304.07193, section 4). With 0 rounds logits stay as they are."""
    logs = full(logits) / temperature
    for _ in range(rounds):
        rows = logs.flatten(0, -2)
        logs = logs - gather(rows.logsumexp(0, keepdim=True)).logsumexp(0)
        logs = logs.log_softmax(-1)
    return logs * temperature if rounds else full(logits)


class Centre(nn.Module):
    """The moving average of a teacher's logits, which is taken off them, or all images would come to one prototype.

    value: (K,) buffer, zeros at the beginning. momentum: share of itself that it keeps. sinkhorn: rounds of `balanced` in
    its place; value then stays zero.
    """

    value: Tensor

    def __init__(self, prototypes: int, momentum: float, sinkhorn: int = 0) -> None:
        super().__init__()
        self.momentum, self.sinkhorn = 1.0 if sinkhorn else momentum, sinkhorn
        self.register_buffer("value", torch.zeros(prototypes))

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """(..., K) teacher's logits -> (..., K) shares, centred and sharpened: Eq. 1 with Eq. 4's c."""
        return F.softmax((balanced(logits, temperature, self.sinkhorn) - self.value) / temperature, dim=-1)

    @torch.no_grad()
    def move(self, logits: Sequence[Tensor]) -> None:
        """Eq. 4: towards the mean of all rows of the tensors (..., K), over all processes."""
        rows = [full(x.detach()).flatten(0, -2) for x in logits]
        mean = torch.stack([x.sum(0) for x in rows]).sum(0) / sum(len(x) for x in rows)
        self.value.lerp_(average(mean).to(self.value.dtype), 1 - self.momentum)


def cross_entropy(logits: Tensor, shares: Tensor, temperature: float) -> Tensor:
    """Eq. 2: H(teacher, student), the mean over all rows. logits: (..., K), the student's; shares: (..., K). A scalar."""
    log = F.log_softmax(full(logits) / temperature, dim=-1)
    return -(shares * log).sum(-1).mean()


def distilled(said: Sequence[Tensor], taught: Sequence[Tensor], temperature: float) -> Tensor:
    """Eq. 3 as a mean: every view of the student is taught by every view of the teacher but the same one.

    said: the student's logits (B, K) for all views. taught: the teacher's shares (B, K) for the first of them.
    """
    logs = [F.log_softmax(full(logits) / temperature, dim=-1) for logits in said]
    terms = [-(q * log).sum(-1).mean() for i, q in enumerate(taught) for j, log in enumerate(logs) if i != j]
    return torch.stack(terms).mean()


def entropy(shares: Tensor) -> Tensor:
    """(..., K) shares -> the mean over rows of their entropy, in nats, in [0, log K]."""
    return -torch.xlogy(shares, shares).sum(-1).mean()
