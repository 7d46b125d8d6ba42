"""The linear head of segmentation, its auxiliary companion, and the steps that train them.

What:   the tokens of some blocks side by side, (B, h, w, K x D), and one linear layer to C classes: a 1x1 convolution. Its
        logits are enlarged bilinearly to the labels' size for the cross-entropy of every pixel (`probing.enlarging`).
Source: JiePKU/understand-ssl-part-aware ffea818, segmentation/configs_local/dino/upernet/*_lp_freeze12.py: FCNHead without
        convolutions or dropout on blocks 3, 5, 7, 11; weights N(0, 0.01), biases 0; AdamW, betas 0.9 and 0.999, decay 0.05
        of weights and biases (its CAE configs spare the biases), rate rising linearly from a millionth over 1500 steps and
        falling linearly to 0. The auxiliary head of base config upernet_cae.py: 3x3 convolution to 256, batch norm, ReLU,
        dropout 0.1 of channels, 1x1 convolution, on the third block. Backbone frozen, the two heads share no parameter,
        no gradient is clipped: the auxiliary head cannot change the linear one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.errors import ProtocolError, UsageError
from evalkit.probing.enlarging import Enlargement, cross_entropy
from evalkit.state import Form, Optimiser

WEIGHT_STD = 0.01
BETAS = (0.9, 0.999)
WARMUP_FROM = 1e-6
WRITTEN_FOR = 12
"""Depth of the networks that block numbers in recipes are of."""

AUXILIARY_WIDTH, AUXILIARY_DROPOUT = 256, 0.1


def mapped(blocks: Sequence[int], depth: int) -> tuple[int, ...]:
    """Block numbers of a network of 12 blocks as those of one with `depth`: ceil(depth (b + 1) / 12) - 1, each once.

    Raises UsageError for a number outside 0 ... 11.
    """
    if not blocks or not all(0 <= block < WRITTEN_FOR for block in blocks):
        raise UsageError(f"blocks are {list(blocks)}; at least one, each in 0 ... {WRITTEN_FOR - 1}")
    return tuple(sorted({math.ceil(depth * (block + 1) / WRITTEN_FOR) - 1 for block in blocks}))


def factor(step: int, *, steps: int, warmup: int) -> float:
    """What the rate is multiplied by at a step, from 0: falls linearly to 0 at the end; the first `warmup` steps take a
    share of that, which grows linearly from a millionth."""
    fallen = 1 - step / steps
    return fallen if step >= warmup else fallen * (1 - (1 - step / warmup) * (1 - WARMUP_FROM))


class LinearHead(nn.Module):
    """One linear layer from tokens of width `dim` to `classes`; made on the CPU by the generator alone."""

    def __init__(self, dim: int, classes: int, *, rng: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, dim, generator=rng) * WEIGHT_STD)
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, h, w, C) float32 of (B, h, w, dim) tokens of any float type."""
        return F.linear(tokens.float(), self.weight, self.bias)


class AuxiliaryHead(nn.Module):
    """The second head of the released code, only there while training."""

    def __init__(self, dim: int, classes: int, *, rng: torch.Generator) -> None:
        super().__init__()
        spread = math.sqrt(2 / (9 * AUXILIARY_WIDTH))
        self.kernel = nn.Parameter(torch.randn(AUXILIARY_WIDTH, dim, 3, 3, generator=rng) * spread)
        self.norm = nn.BatchNorm2d(AUXILIARY_WIDTH)
        self.classify = LinearHead(AUXILIARY_WIDTH, classes, rng=rng)

    def forward(self, tokens: Tensor, kept: Tensor) -> Tensor:
        """(B, h, w, C) float32 of (B, h, w, dim) tokens. kept: (B, 256) bool, channels that are not dropped."""
        maps = F.conv2d(tokens.float().permute(0, 3, 1, 2), self.kernel, padding=1)
        maps = F.relu(self.norm(maps)) * (kept[:, :, None, None] / (1 - AUXILIARY_DROPOUT))
        found: Tensor = self.classify(maps.permute(0, 2, 3, 1))
        return found


class Learner:
    """The heads, already where they are to be trained, and their AdamW.

    auxiliary: the second head, None for none; third: which channels of the tokens it sees; share: weight of its loss.
    """

    def __init__(
        self,
        head: LinearHead,
        *,
        weight_decay: float,
        auxiliary: AuxiliaryHead | None = None,
        third: slice = slice(None),
        share: float = 0.0,
    ) -> None:
        self.head, self.auxiliary, self.third, self.share = head, auxiliary, third, share
        parameters = [*head.parameters(), *(auxiliary.parameters() if auxiliary is not None else ())]
        self._optimiser = torch.optim.AdamW(parameters, lr=1.0, betas=BETAS, weight_decay=weight_decay)

    def step(self, tokens: Tensor, truth: Tensor, onto: Enlargement, *, rate: float, rng: torch.Generator) -> Tensor:
        """One step at this rate; the linear head's loss, a scalar on the device.

        tokens: (B, h, w, K x D). truth: (B, H, W), below 0 where nothing counts. onto: from (h, w) to (H, W).
        """
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad(set_to_none=True)
        loss = cross_entropy(self.head(tokens), truth, onto)
        total = loss
        if self.auxiliary is not None:
            kept = torch.rand(len(tokens), AUXILIARY_WIDTH, generator=rng) >= AUXILIARY_DROPOUT
            second = self.auxiliary(tokens[..., self.third], kept.to(tokens.device))
            total = loss + self.share * cross_entropy(second, truth, onto)
        total.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """Everything that a later `restore` needs to go on identically; copies on the CPU."""
        second = None if self.auxiliary is None else dict(self.auxiliary.state_dict())
        whole = {"head": dict(self.head.state_dict()), "auxiliary": second, "adamw": self._optimiser.state_dict()}
        return _copied(whole)  # type: ignore[no-any-return]

    def form(self) -> Form:
        """Of what `state` returns, before any step or after some."""
        return self.state() | {"adamw": Optimiser(self._optimiser)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned. Raises UsageError where it belongs to another head."""
        try:
            self.head.load_state_dict(state["head"])
            if self.auxiliary is not None:
                self.auxiliary.load_state_dict(state["auxiliary"])
            self._optimiser.load_state_dict(state["adamw"])
        except (KeyError, RuntimeError, ValueError, AttributeError, TypeError) as error:
            raise UsageError(f"the saved state does not fit this segmentation head: {error}") from None

    def check(self) -> None:
        """Raise ProtocolError where the linear head has diverged."""
        if not all(bool(torch.isfinite(p).all()) for p in self.head.parameters()):
            raise ProtocolError("the segmentation head diverged: its weights are not finite; lower the rate")


def restored(tensors: dict[str, Tensor]) -> LinearHead:
    """A head from the tensors "weight" (C, dim) and "bias" (C,) that were kept of it."""
    classes, dim = tensors["weight"].shape
    head = LinearHead(dim, classes, rng=torch.Generator())
    head.load_state_dict({name: tensors[name] for name in ("weight", "bias")})
    return head


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, (list, tuple)) else value
