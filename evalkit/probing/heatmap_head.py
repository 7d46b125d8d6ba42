"""One linear layer from patch tokens to heatmaps of keypoints, and the steps that train it.

What:   every patch token gives one number per keypoint; these small maps are enlarged bilinearly to the heatmap's size. A
        linear layer and a bilinear enlargement may change places, so this is also the layer on enlarged tokens. Trained by
        AdamW on the squared error to Gaussian targets, keypoints that are not labelled left out.
Source: the layer is that of the part-aware study (arXiv:2301.11915, Table 10), which prints nothing else of it. Loss and
        optimiser are ViTPose's, ViTAE-Transformer/ViTPose c050ed2, ViTPose_base_simple_coco_256x192.py: AdamW 5e-4, betas
        0.9 and 0.999, decay 0.1 but none of biases, gradients cut at norm 1, 500 steps of linear warm-up from a
        thousandth, a tenth after epochs 170 and 200 of 210; weights N(0, 0.001), biases 0; the mean over all cells of
        weight x (map - target)^2.
How:    enlarging is a product with one matrix from either side, S -> R S C', and a target is a column times a row. So the
        slope of the loss at the small maps, R' (R S C' - target) C, is (R'R) S (C'C) - (R' column) (row C): no heatmap is
        ever made, at 4 x 4 cells per patch a sixteenth of the work, and equal in exact arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.errors import UsageError
from evalkit.metrics.pose import Targets

WEIGHT_STD = 0.001
BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8
CLIP_EPS = 1e-6
"""torch.nn.utils.clip_grad_norm_'s, which mmcv calls."""
WARMUP_FROM = 0.001


class HeatmapHead(nn.Module):
    """The layer: tokens of width `dim` to `keypoints` maps of `cells` (h, w); made on the CPU by the generator alone."""

    def __init__(self, dim: int, keypoints: int, cells: tuple[int, int], *, rng: torch.Generator) -> None:
        super().__init__()
        self.cells = cells
        self.weight = nn.Parameter(torch.randn(keypoints, dim, generator=rng) * WEIGHT_STD)
        self.bias = nn.Parameter(torch.zeros(keypoints))

    def small(self, tokens: Tensor) -> Tensor:
        """(B, K, rows, columns) of (B, rows, columns, D) tokens."""
        return F.linear(tokens.to(self.weight.dtype), self.weight, self.bias).permute(0, 3, 1, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, K, h, w) heatmaps of (B, rows, columns, D) tokens."""
        return F.interpolate(self.small(tokens), size=self.cells, mode="bilinear", align_corners=False)

    def slopes(self, tokens: Tensor, wanted: Targets) -> tuple[Tensor, Tensor]:
        """The gradients of `loss` for weight (K, D) and bias (K,); wanted: of the same size as the heatmaps."""
        with torch.no_grad():
            small = self.small(tokens)
            down, across = (_enlarging(n, of, small) for n, of in zip(small.shape[2:], self.cells, strict=True))
            mine = (down.T @ down) @ small @ (across.T @ across)
            its = (wanted.down @ down)[..., :, None] * (wanted.across @ across)[..., None, :]
            count = small.shape[0] * small.shape[1] * self.cells[0] * self.cells[1]
            slope = (2 / count) * wanted.weight[:, :, None, None] * (mine - its)
            weight = slope.transpose(0, 1).flatten(1) @ tokens.to(slope.dtype).flatten(0, 2)
            return weight, slope.sum((0, 2, 3))


def _enlarging(small: int, large: int, like: Tensor) -> Tensor:
    """(large, small): the matrix of linear enlargement along one axis."""
    unit = torch.eye(small, dtype=like.dtype, device=like.device)
    return F.interpolate(unit[None], size=large, mode="linear", align_corners=False)[0].T


def loss(heatmaps: Tensor, wanted: Targets) -> Tensor:
    """The mean over B, K, h and w of weight x (heatmap - target)^2, plainly: what `slopes` differentiates."""
    return (wanted.weight[:, :, None, None] * (heatmaps - wanted.maps()) ** 2).mean()


class Learner:
    """A head, already where it is to be trained, and its AdamW (torch.optim's takes the same steps, but its state is no
    plain table of tensors). weight_decay: of the weight alone. clip: largest norm of the gradient, 0 for any."""

    def __init__(self, head: HeatmapHead, *, weight_decay: float, clip: float) -> None:
        self.head, self.clip = head, clip
        self._decay = {"weight": weight_decay, "bias": 0.0}
        self._steps = 0
        self._moments = {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in head.named_parameters()}

    def step(self, tokens: Tensor, wanted: Targets, rate: float) -> None:
        """One step at this rate. tokens: (B, rows, columns, D)."""
        slopes = dict(zip(("weight", "bias"), self.head.slopes(tokens, wanted), strict=True))
        if self.clip:
            norm = torch.stack([slope.norm() for slope in slopes.values()]).norm()
            scale = (self.clip / (norm + CLIP_EPS)).clamp(max=1.0)
            slopes = {name: slope * scale for name, slope in slopes.items()}
        self._steps += 1
        fresh = [1 - beta**self._steps for beta in BETAS]
        with torch.no_grad():
            for name, parameter in self.head.named_parameters():
                mean, square = self._moments[name]
                mean.lerp_(slopes[name], 1 - BETAS[0])
                square.mul_(BETAS[1]).addcmul_(slopes[name], slopes[name], value=1 - BETAS[1])
                parameter.mul_(1 - rate * self._decay[name])
                parameter.addcdiv_(mean, (square / fresh[1]).sqrt_().add_(ADAM_EPS), value=-rate / fresh[0])

    def heatmaps(self, tokens: Tensor) -> Tensor:
        """As the head's, without gradients."""
        with torch.no_grad():
            found: Tensor = self.head(tokens)
        return found

    def state(self) -> dict[str, Any]:
        """Everything that a later `restore` needs to go on identically; copies."""
        head = {name: p.detach().cpu().clone() for name, p in self.head.state_dict().items()}
        moments = {name: [m.cpu().clone() for m in both] for name, both in self._moments.items()}
        return {"head": head, "moments": moments, "steps": self._steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned. Raises UsageError where it belongs to another head."""
        try:
            self.head.load_state_dict(state["head"])
            for name, both in self._moments.items():
                for mine, theirs in zip(both, state["moments"][name], strict=True):
                    mine.copy_(theirs)
            self._steps = int(state["steps"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise UsageError(f"the saved state does not fit this heatmap layer: {error}") from None


def factor(step: int, epoch: int, *, warmup: int, drops: Sequence[int]) -> float:
    """What the rate is multiplied by: a tenth for each of `drops` (epochs) that is reached, and in the first `warmup`
    steps a share that grows evenly from a thousandth. step: of all, from 0."""
    dropped: float = 0.1 ** sum(epoch >= drop for drop in drops)
    if step >= warmup:
        return dropped
    return dropped * (1 - (1 - step / warmup) * (1 - WARMUP_FROM))
