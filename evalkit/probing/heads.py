"""Many linear classifiers on the same features, trained in one stacked pass.

What:   H heads that differ in learning rate (and weight decay) share one input, so their weights stand side by side
        in one (H x C, D) matrix: a step is one product for the logits, a softmax, one product for the gradient, and one
        pass over the weights. The gradient of the mean cross-entropy is known in closed form; no autograd runs.
Source: softmax regression as in DINO's, iBOT's and DINOv2's linear probes: SGD with momentum 0.9 (PyTorch's form:
        m <- 0.9 m + g, w <- w - rate m; the rate is outside of m), weights N(0, 0.01), bias 0. MAE's probe puts a batch
        norm in front and steps by LARS (see `norm` and `lars`).
How:    every head of a stack starts from the same draw, so that they differ by their rate alone. A head that overflows
        keeps its infinities in its own columns: the others are untouched, and `alive` tells them apart.
Expect: the weights of H separate `nn.Linear` with H optimisers, within rounding (bench/linear.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from evalkit.errors import UsageError
from evalkit.probing import lars
from evalkit.probing.norm import BatchNorm

Optimiser = Literal["sgd", "lars"]

INIT_STD = 0.01
"""Standard deviation of the first weights (facebookresearch/dino 7c446df, eval_linear.py)."""


def first_weights(dim: int, classes: int, rng: torch.Generator) -> Tensor:
    """(D, C) float32 drawn from N(0, 0.01) by a CPU generator."""
    return torch.empty(dim, classes).normal_(0, INIT_STD, generator=rng)


class Heads:
    """H linear heads of C classes on D features, all trained by every `step`.

    init: (D, C) float32 or float64, on the device to train on; copied for each head. rates: peak learning rates, one
    per head, as applied (already scaled by the batch). momentum: in [0, 1). weight_decay: of the weights and the
    bias (of the weights alone under "lars"), one for all heads or one per head. norm: what the features pass through
    first, shared by the heads; it learns with them. Raises UsageError for values that cannot be.
    """

    def __init__(
        self,
        init: Tensor,
        rates: Sequence[float],
        *,
        momentum: float = 0.9,
        weight_decay: float | Sequence[float] = 0.0,
        optimiser: Optimiser = "sgd",
        norm: BatchNorm | None = None,
    ) -> None:
        decay = [weight_decay] * len(rates) if isinstance(weight_decay, int | float) else list(weight_decay)
        _check(rates, momentum, decay)
        self.rates = tuple(rates)
        self.dim, self.classes = init.shape
        self.norm = norm
        self._lars = optimiser == "lars"
        self._momentum = momentum
        self._rate = init.new_tensor(self.rates).repeat_interleave(self.classes)
        self._decay = init.new_tensor(decay).repeat_interleave(self.classes) if any(decay) else None
        self._weight = init.T.repeat(len(rates), 1)
        self._bias = init.new_zeros(len(self._weight))
        self._weight_speed = torch.zeros_like(self._weight)
        self._bias_speed = torch.zeros_like(self._bias)

    def __len__(self) -> int:
        return len(self.rates)

    def step(self, features: Tensor, labels: Tensor, factor: float = 1.0) -> None:
        """One step of every head on the mean cross-entropy of a batch.

        features: (B, D), the heads' dtype and device, B >= 1. labels: (B,) int64 in [0, C). factor: of the peak rates.
        Raises what the norm raises.
        """
        rows = features if self.norm is None else self.norm.learn(features)
        slope = self._slope(rows, labels)
        share = 1 / len(rows)
        self._bias_speed.mul_(self._momentum).add_(slope.sum(dim=0), alpha=share)
        if self._lars:
            self._scaled_speed(slope, rows, share)
        else:
            self._plain_speed(slope, rows, share)
        self._weight.addcmul_(self._weight_speed, self._rate[:, None], value=-factor)
        self._bias.addcmul_(self._bias_speed, self._rate, value=-factor)

    def _plain_speed(self, slope: Tensor, rows: Tensor, share: float) -> None:
        self._weight_speed.addmm_(slope.T, rows, beta=self._momentum, alpha=share)
        if self._decay is not None:
            self._weight_speed.addcmul_(self._weight, self._decay[:, None])
            self._bias_speed.addcmul_(self._bias, self._decay)

    def _scaled_speed(self, slope: Tensor, rows: Tensor, share: float) -> None:
        gradient = (slope.T @ rows).mul_(share)
        if self._decay is not None:
            gradient.addcmul_(self._weight, self._decay[:, None])
        heads = len(self)
        update = lars.scaled(gradient.view(heads, -1), self._weight.view(heads, -1))
        self._weight_speed.mul_(self._momentum).add_(update.view_as(self._weight))

    def logits(self, features: Tensor) -> Tensor:
        """(B, H, C) logits of (B, D) features, by the norm's running statistics where there is one; not finite for heads
        that diverged."""
        return self._logits(features if self.norm is None else self.norm(features))

    def alive(self) -> Tensor:
        """(H,) bool: the heads whose weights are all finite."""
        finite = torch.isfinite(self._weight).all(dim=1) & torch.isfinite(self._bias)
        return finite.view(len(self), self.classes).all(dim=1)

    def head(self, index: int) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,) of one head, as copies in the layout of `nn.Linear`."""
        rows = slice(index * self.classes, (index + 1) * self.classes)
        return self._weight[rows].clone(), self._bias[rows].clone()

    def state(self) -> dict[str, Tensor]:
        """Everything that a later `restore` needs to go on identically; copies on the CPU."""
        return {name: tensor.cpu().clone() for name, tensor in self._named().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned. Raises UsageError where shapes differ: those are other heads."""
        for name, tensor in self._named().items():
            if name not in state or state[name].shape != tensor.shape:
                raise UsageError(f"the saved {name} does not fit these heads, which need shape {tuple(tensor.shape)}")
            tensor.copy_(state[name])

    def _named(self) -> dict[str, Tensor]:
        own = {
            "weight": self._weight,
            "bias": self._bias,
            "weight_speed": self._weight_speed,
            "bias_speed": self._bias_speed,
        }
        return own if self.norm is None else own | {"norm_mean": self.norm.mean, "norm_var": self.norm.var}

    def _logits(self, rows: Tensor) -> Tensor:
        return _linear(rows, self._weight, self._bias).view(len(rows), len(self), self.classes)

    def _slope(self, features: Tensor, labels: Tensor) -> Tensor:
        """(B, H x C) softmax minus one-hot: the gradient of each image's loss by its logits."""
        per_head = self._logits(features)
        torch.softmax(per_head, dim=2, out=per_head)  # row by row, so that it may overwrite what it reads
        per_head[torch.arange(len(features), device=labels.device), :, labels] -= 1
        return per_head.view(len(features), len(self._weight))


def _linear(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, N) from (B, D), (N, D) and (N,). On the CPU as a convolution with a kernel of one pixel: torch gives that to
    oneDNN, which on AMD processors multiplies 1.2 times as fast as the MKL that it gives matrix products to."""
    if features.device.type != "cpu" or features.dtype != torch.float32 or not len(features):
        return F.linear(features, weight, bias)
    row, kernel = (m.view(1, len(m), 1, -1).permute(0, 3, 1, 2) for m in (features, weight))
    return F.conv2d(row, kernel.permute(2, 1, 0, 3), bias).permute(0, 2, 3, 1).reshape(len(features), len(weight))


def _check(rates: Sequence[float], momentum: float, decay: Sequence[float]) -> None:
    if not rates or min(rates) <= 0:
        raise UsageError(f"rates are {list(rates)}; at least one is needed, each above 0")
    if not 0 <= momentum < 1:
        raise UsageError(f"momentum is {momentum}; it must lie in [0, 1)")
    if len(decay) != len(rates) or min(decay) < 0:
        raise UsageError(f"weight decay is {list(decay)}; one number from 0, or one per head ({len(rates)})")
