"""A method of two linear layers: enough to see what the trainer does, in milliseconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.adapters.vit import ViTConfig
from evalkit.pretrain.method import Method, Now, Output, follow

SIDE = 8


@dataclass(frozen=True)
class Config:
    noise: float = 0.1
    poison: int = -1
    """Step whose loss is not finite."""


class Toy(Method):
    family = "dino"

    def __init__(self, arch: ViTConfig | None = None, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.student, self.teacher = nn.Linear(3 * SIDE * SIDE, 6), nn.Linear(3 * SIDE * SIDE, 6)
        follow(self.teacher, self.student)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def views(self, images: Tensor, rng: torch.Generator) -> Tensor:
        pixels = images.flatten(1) / 255
        return pixels + self.config.noise * torch.randn(pixels.shape, generator=rng)

    def forward(self, views: Tensor, now: Now) -> Output:
        self.seen += len(views)
        said = F.dropout(self.student(views), 0.2)
        with torch.no_grad():
            taught = self.teacher(views)
        loss = (said - taught - 1).square().mean()
        if now.step == self.config.poison:
            loss = loss * float("nan")
        return {"toy": loss}, {"features": taught, "extra": taught.mean()}

    def pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        return ((self.teacher, self.student),)

    def momentum(self, now: Now) -> float:
        return 0.9

    def frozen(self, now: Now) -> Iterable[nn.Parameter]:
        return (self.student.bias,) if now.epoch < 1 else ()

    def encode(self, images: Tensor) -> Tensor:
        return self.teacher(images.flatten(1))

    def export(self) -> dict[str, Tensor]:
        return {"backbone.weight": self.teacher.weight}
