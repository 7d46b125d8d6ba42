"""DINO, self-distillation without labels (Caron et al. 2021, arXiv:2104.14294), with lightly's loss and head.

The student sees every crop, the teacher, its moving average, the two large ones; each student output is taught by the
teacher's output for every other large crop.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from evalkit.adapters.vit import VisionTransformer, ViTConfig
from evalkit.errors import ExtraMissing
from evalkit.pretrain.augment import Views, augment

try:
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
except ImportError as error:  # pragma: no cover - the message is what matters
    raise ExtraMissing("pretraining", "pretrain") from error


@dataclass(frozen=True)
class Config:
    """Defaults are DINO's (main_dino.py at 7c446df) but for what a micro encoder and a short run ask for: a small head,
    fewer prototypes, a faster teacher, crops below the native size (half the cost) and no small ones."""

    hidden: int = 512
    bottleneck: int = 128
    prototypes: int = 1024
    local_crops: int = 0
    global_size: int = 48
    local_size: int = 24
    global_scale: tuple[float, float] = (0.2, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.2)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_p: float = 0.8
    grey: float = 0.2
    solarise: float = 0.1
    teacher_temp: float = 0.04
    student_temp: float = 0.1
    momentum: float = 0.99


class DINO(nn.Module):
    """Student and teacher of one architecture, each with its head."""

    def __init__(self, arch: ViTConfig, config: Config, seed: int) -> None:
        super().__init__()
        self.config = config
        rng = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.student, self.student_head = VisionTransformer(arch).initialise(rng), self._head(arch.dim)
            self.teacher, self.teacher_head = VisionTransformer(arch), self._head(arch.dim)
        self.loss = DINOLoss(config.prototypes, teacher_temp=config.teacher_temp, student_temp=config.student_temp,
                             warmup_teacher_temp=config.teacher_temp, warmup_teacher_temp_epochs=1)  # fmt: skip
        for target, source in self._pairs():
            target.load_state_dict(source.state_dict())
            target.requires_grad_(False)

    def _head(self, dim: int) -> nn.Module:
        c = self.config
        return DINOProjectionHead(dim, c.hidden, c.bottleneck, c.prototypes)  # type: ignore[no-any-return]

    def _pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        return (self.teacher, self.student), (self.teacher_head, self.student_head)

    def views(self, images: Tensor, normalise: nn.Module, rng: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
        """Two large crops and the small ones of each image, normalised."""
        c = self.config
        colours = Views(c.global_size, c.global_scale, c.jitter, c.jitter_p, c.grey)
        large = [colours, replace(colours, solarise_p=c.solarise)]
        small = [replace(colours, size=c.local_size, scale=c.local_scale)] * c.local_crops

        def make(specs: list[Views]) -> list[Tensor]:
            return [normalise(augment(images, views, rng)) for views in specs]

        return make(large), make(small)

    def forward(self, large: list[Tensor], small: list[Tensor]) -> Tensor:
        """The loss of one batch."""
        with torch.no_grad():
            taught = self.teacher_head(self.teacher(torch.cat(large))[:, 0]).chunk(2)
        tokens = [self.student(torch.cat(large))[:, 0]]
        if small:
            tokens.append(self.student(torch.cat(small))[:, 0])
        said = self.student_head(torch.cat(tokens)).chunk(len(large) + len(small))
        return self.loss(list(taught), list(said))  # type: ignore[no-any-return]

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the teacher: momentum rises on a half cosine from its start to 1. progress: share of the run, [0, 1]."""
        momentum = 1 - (1 - self.config.momentum) * (math.cos(math.pi * progress) + 1) / 2
        for target, source in self._pairs():
            for t, s in zip(target.parameters(), source.parameters(), strict=True):
                t.lerp_(s, 1 - momentum)

    def export(self) -> dict[str, Tensor]:
        """The teacher as it is shipped: `backbone.*` and the head without its prototypes, names as DINO's files have them."""
        head = {
            k.replace("layers.", "mlp."): v for k, v in self.teacher_head.state_dict().items() if "last_layer" not in k
        }
        state = {f"backbone.{k}": v for k, v in self.teacher.state_dict().items()}
        return state | {f"head.{k}": v for k, v in head.items()}
