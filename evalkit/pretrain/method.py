"""What a pretraining method is: views of a batch, losses on them, a teacher that follows, and the file that comes out.

A method is one file of `methods/`: a frozen `Config` (every default with its source), a subclass of `Method`, and
`METHOD`, the subclass, by which it is found. Everything random is drawn in `views`, from the generator of the step, but
for stochastic depth: `forward` on the same views and weights gives the same losses on one device or on many.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from evalkit.adapters.vit import VisionTransformer, ViTConfig

Output = tuple[dict[str, Tensor], dict[str, Tensor]]
"""(losses by name, scalars whose sum is minimised; what is watched by name).

Watched: `features` (B, D), detached, one row per image, on which collapse would show, always; `teacher_entropy`, a
scalar in nats, where a teacher assigns prototypes; any other scalar, for the log."""


@dataclass(frozen=True)
class Now:
    """Where a run stands. step: from 0, of `steps`. epoch: passes over the data that lie behind, fractional, of `epochs`."""

    step: int
    steps: int
    epoch: float
    epochs: float

    @property
    def done(self) -> float:
        """Share of the run that lies behind, in [0, 1)."""
        return self.step / self.steps


class Method(nn.Module, ABC):
    """One method's networks. Subclasses are made by `METHOD(arch, config)`, under a seeded global generator.

    family: of `evalkit.adapters`, whose module loads what `export` gives. What must survive an interruption (teachers,
    queues, centres) is a parameter or a buffer; what is not trained has `requires_grad` false.
    """

    family: ClassVar[str]
    arch: ViTConfig
    config: Any

    @abstractmethod
    def views(self, images: Tensor, rng: torch.Generator) -> Any:
        """images: (B, 3, H, W) uint8 on the generator's device. Returns what `forward` takes: normalised views, masks,
        boxes ..., in tuples, lists and dicts of tensors or in frozen dataclasses of those."""

    @abstractmethod
    def forward(self, views: Any, now: Now) -> Output:
        """The losses of one batch; queues and centres move here."""

    def pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        """(target, source) modules of one structure: after each step every target moves towards its source."""
        return ()

    def momentum(self, now: Now) -> float:
        """Share of itself that a target keeps in this step, in [0, 1]."""
        return 0.0

    @torch.no_grad()
    def after_step(self, now: Now) -> None:
        """After the optimiser's step: targets move (`pairs`, by `momentum`). Buffers of a target are its own."""
        keep = self.momentum(now)
        for target, source in self.pairs():
            ours: list[Tensor] = list(target.parameters())
            theirs = [p.detach() for p in source.parameters()]
            torch._foreach_lerp_(ours, theirs, 1 - keep)

    def frozen(self, now: Now) -> Iterable[nn.Parameter]:
        """Parameters that this step must not change although they are trained later: their gradients are dropped."""
        return ()

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> (B, D) features of the network that is exported."""

    @abstractmethod
    def export(self) -> dict[str, Tensor]:
        """The encoder as it is shipped, with its projection heads and without prototypes, under the names that the
        family's adapter reads."""


def transformer(arch: ViTConfig) -> VisionTransformer:
    """With fresh weights, by the global generator."""
    return VisionTransformer(arch).initialise(torch.Generator().manual_seed(int(torch.randint(2**31, ()))))


def follow(target: nn.Module, source: nn.Module) -> nn.Module:
    """The target with the source's weights, and never trained by gradient."""
    target.load_state_dict(source.state_dict())
    return target.requires_grad_(False)
