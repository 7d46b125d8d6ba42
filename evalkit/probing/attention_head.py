"""The attentive probe: one learnable query reads all tokens of a frozen encoder, then batch norm, then a linear layer.

What:   query, keys and values each through a LayerNorm of their own; one cross-attention (biases on q and v, none on k,
        an output projection, no residual, no MLP); batch norm without affine; linear. Trained by SGD with momentum on the
        cross-entropy.
Source: CAE (arXiv:2202.03026; lxtGH/CAE d725971: models/modeling_finetune.py, tools/run_attentive.py); the same head in
        JiePKU/understand-ssl-part-aware ffea818, patch_lincls.py. Described there, written anew here.
        LayerNorm eps 1e-6; batch norm eps 1e-5, momentum 0.1; matrices truncated normal 0.02, biases 0; linear N(0, 0.01).
How:    there is one query for all images, so the products are taken in the other order. Instead of projecting every token
        to a key, the query is pulled back through the key matrix once, (heads, D); instead of projecting every token to a
        value, the tokens are averaged by attention first and projected after. Equal in exact arithmetic, and of the work
        of the two projections a share of 1 / tokens is left.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.errors import ProtocolError, UsageError
from evalkit.probing.schedules import cosine

NORM_EPS = 1e-6
MATRIX_STD, LINEAR_STD = 0.02, 0.01


class Linear(nn.Module):
    """x -> x W^T + b with W (out, in) drawn from N(0, std) (truncated at 2) by the generator, b zero or absent.
    `nn.Linear` would draw from the global generator."""

    def __init__(self, width: int, out: int, *, std: float, rng: torch.Generator, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(out, width), std=std, generator=rng))
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None

    def forward(self, rows: Tensor) -> Tensor:
        """(..., out) of (..., width)."""
        return F.linear(rows, self.weight, self.bias)


class AttentiveHead(nn.Module):
    """The head for tokens of width `dim`; made on the CPU, from the generator alone.

    heads: of the attention; they must divide dim. query_std: of the first query; 0.02 in the part-aware paper's code, 0
    (a zero query) in CAE's. Raises UsageError where heads do not divide dim.
    """

    def __init__(self, dim: int, heads: int, classes: int, *, rng: torch.Generator, query_std: float = 0.02) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise UsageError(f"{heads} attention heads do not divide tokens of {dim} numbers")
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(dim))
        if query_std > 0:
            nn.init.trunc_normal_(self.query, std=query_std, generator=rng)
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(dim, eps=NORM_EPS) for _ in range(3))
        self.q, self.k, self.v = (Linear(dim, dim, std=MATRIX_STD, rng=rng, bias=False) for _ in range(3))
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.proj = Linear(dim, dim, std=MATRIX_STD, rng=rng)
        self.norm = nn.BatchNorm1d(dim, affine=False)
        self.linear = Linear(dim, classes, std=LINEAR_STD, rng=rng)

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, D) what the query reads from (B, N, D) tokens, before batch norm."""
        batch, _, dim = tokens.shape
        width = dim // self.heads
        query = (self.q(self.norm_q(self.query)) + self.q_bias).view(self.heads, width) * width**-0.5
        asked = torch.einsum("hw,hwd->hd", query, self.k.weight.view(self.heads, width, dim))
        weights = (self.norm_k(tokens) @ asked.T).softmax(dim=1)
        read = weights.transpose(1, 2) @ self.norm_v(tokens)
        values = torch.einsum("bhd,hwd->bhw", read, self.v.weight.view(self.heads, width, dim))
        pooled: Tensor = self.proj(values.reshape(batch, dim) + self.v_bias)
        return pooled

    def forward(self, tokens: Tensor, norm_batch: int = 0) -> Tensor:
        """(B, C) logits of (B, N, D) tokens; batch norm as the mode (train, eval) says.

        norm_batch: in train mode, statistics are taken over pieces of about so many images, at least 2, as over GPUs that
        are not synchronised, and as there the first piece moves the running ones; 0 takes the whole batch.
        """
        pooled = self.pool(tokens)
        pieces = max(1, len(pooled) // norm_batch) if norm_batch and self.training else 1
        first, *rest = pooled.tensor_split(pieces)
        others = [F.batch_norm(piece, None, None, training=True, eps=self.norm.eps) for piece in rest]
        logits: Tensor = self.linear(torch.cat([self.norm(first), *others]))
        return logits

    def classify(self, pooled: Tensor, batches: Iterable[Tensor] | None = None) -> Tensor:
        """(n, C) logits of what `pool` gave for n test images.

        batches: None normalises by the running statistics of training; else each batch of row numbers (int64), together
        every row once, is normalised by its own mean and variance, whatever the mode.
        """
        if batches is None:
            normed = F.batch_norm(pooled, self.norm.running_mean, self.norm.running_var, eps=self.norm.eps)
        else:
            normed = torch.empty_like(pooled)
            for rows in batches:
                part = pooled[rows]
                variance = part.var(dim=0, correction=0)
                normed[rows] = (part - part.mean(dim=0)) / (variance + self.norm.eps).sqrt()
        logits: Tensor = self.linear(normed)
        return logits


class Learner:
    """A head and its optimiser: SGD with momentum in [0, 1) on all parameters of the head, which is already where it is
    to be trained (torch.optim's SGD takes the same steps, but its state is no plain table of tensors)."""

    def __init__(self, head: AttentiveHead, *, momentum: float, weight_decay: float, norm_batch: int = 0) -> None:
        self.head, self.norm_batch = head, norm_batch
        self._momentum, self._decay = momentum, weight_decay
        self._speed = {name: torch.zeros_like(parameter) for name, parameter in head.named_parameters()}

    def step(self, tokens: Tensor, labels: Tensor, rate: float) -> None:
        """One step on the mean cross-entropy of a batch, in PyTorch's form of momentum: m <- 0.9 m + g, w <- w - rate m.

        tokens: (B, N, D), the head's dtype and device. labels: (B,) int64, B >= 2.
        """
        self.head.train()
        parameters = dict(self.head.named_parameters())
        with torch.enable_grad():
            loss = F.cross_entropy(self.head(tokens, self.norm_batch), labels)
            slopes = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            for (name, parameter), slope in zip(parameters.items(), slopes, strict=True):
                speed = self._speed[name].mul_(self._momentum).add_(slope)
                if self._decay:
                    speed.add_(parameter, alpha=self._decay)
                parameter.sub_(speed, alpha=rate)

    def pool(self, tokens: Tensor) -> Tensor:
        """As `AttentiveHead.pool`, without gradients."""
        with torch.no_grad():
            return self.head.pool(tokens)

    def predict(self, pooled: Tensor, batches: Iterable[Tensor] | None = None) -> Tensor:
        """As `AttentiveHead.classify`, without gradients. Raises ProtocolError where the head diverged."""
        with torch.no_grad():
            logits = self.head.classify(pooled, batches)
        if not bool(torch.isfinite(logits).all()):
            raise ProtocolError("the attentive head diverged: its logits are not finite; the rate is too high")
        return logits

    def state(self) -> dict[str, Any]:
        """Everything that a later `restore` needs to go on identically; copies."""
        both = {"head": self.head.state_dict(), "speed": self._speed}
        return {kind: {name: t.detach().cpu().clone() for name, t in of.items()} for kind, of in both.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned. Raises UsageError where it belongs to another head."""
        try:
            self.head.load_state_dict(state["head"])
            for name, speed in self._speed.items():
                speed.copy_(state["speed"][name])
        except (KeyError, RuntimeError) as error:
            raise UsageError(f"the saved state does not fit this attentive head: {error}") from None


def factor(step: int, *, steps: int, warmup: int) -> float:
    """What the peak rate is multiplied by at a step, from 0 of all `steps`.

    The first `warmup` steps rise evenly from 0 to 1, both reached; then a half cosine falls towards 0
    (lxtGH/CAE d725971, furnace/utils.py; its floor of 1e-6 is left out).
    """
    if step < warmup:
        return step / max(1, warmup - 1)
    return cosine((step - warmup) / (steps - warmup))


def strided_batches(count: int, size: int, ranks: int) -> list[Tensor]:
    """Row numbers of the test batches of a distributed sampler that does not shuffle: rank r has rows r, r + ranks, ...,
    cut into batches of `size`. ranks 1 is the plain order. Rows that such a sampler repeats to fill up are not repeated."""
    ranked = [torch.arange(first, count, ranks) for first in range(min(ranks, count))]
    return [rows for mine in ranked for rows in torch.split(mine, size)]
