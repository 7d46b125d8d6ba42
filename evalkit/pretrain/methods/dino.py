"""DINO, self-distillation without labels (Caron et al. 2021, arXiv:2104.14294), with lightly's loss and head.

The student sees two large and several small crops, the teacher, its moving average, the large ones; each student output is
taught by the teacher's output for every other large crop (Eq. 3), centred (Eq. 4) and sharpened (a low temperature in
Eq. 1). Code of the authors: facebookresearch/dino 7c446df, main_dino.py:301-416; the teacher is what they evaluate.

Deviations: the encoder's weights start as `VisionTransformer.initialise` says, not from a truncated normal, those of a
narrow head as `heads.widened` says; the teacher's temperature warms up by step, not by epoch; all crops of
one size go through a network at once. Watched are the teacher's class tokens of the first crop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from evalkit.adapters.vit import ViTConfig
from evalkit.errors import ExtraMissing
from evalkit.pretrain.distillation import (
    entropy,
    projection_head,
    shipped,
    temperature,
    trained_prototypes,
)
from evalkit.pretrain.method import Method, Now, Output, follow, transformer
from evalkit.pretrain.multicrop import Crops, MultiCrop, crops, each
from evalkit.pretrain.precision import exact, full
from evalkit.pretrain.prototypes import balanced
from evalkit.pretrain.schedules import cosine

try:
    from lightly.loss import DINOLoss
except ImportError as error:  # pragma: no cover - the message is what matters
    raise ExtraMissing("pretraining", "pretrain") from error


@dataclass(frozen=True)
class Config:
    """Defaults: the authors' longer ViT-S/16 run (README.md:197 `--teacher_temp 0.07 --warmup_teacher_temp_epochs 30
    --norm_last_layer false`; the rest from main_dino.py:41-129 and vision_transformer.py:258).

    hidden, bottleneck, prototypes: widths of the head. norm_last: prototypes keep unit length. freeze: epochs before they
    are trained. sinkhorn: rounds of Sinkhorn-Knopp in the centre's place, DINOv2's 3 or none. Temperatures, momenta: the
    teacher's momentum rises on half a cosine to 1. drop_path: of the student.
    """

    hidden: int = 2048
    bottleneck: int = 256
    prototypes: int = 65536
    norm_last: bool = False
    freeze: float = 1.0
    student_temp: float = 0.1
    teacher_temp: float = 0.07
    warmup_teacher_temp: float = 0.04
    warmup_teacher_temp_epochs: float = 30.0
    centre_momentum: float = 0.9
    sinkhorn: int = 0
    momentum: float = 0.996
    drop_path: float = 0.1
    crops: MultiCrop = field(default_factory=MultiCrop)


class DINO(Method):
    """Student and teacher of one architecture, each with its head."""

    family = "dino"

    def __init__(self, arch: ViTConfig, config: Config) -> None:
        super().__init__()
        self.arch, self.config = arch, config
        self.student, self.student_head = transformer(replace(arch, drop_path=config.drop_path)), self._head()
        self.teacher, self.teacher_head = transformer(arch), self._head()
        for target, source in self.pairs():
            follow(target, source)
        self.loss = DINOLoss(
            config.prototypes,
            teacher_temp=config.teacher_temp,
            student_temp=config.student_temp,
            center_momentum=1.0 if config.sinkhorn else config.centre_momentum,
        )

    def _head(self) -> nn.Module:
        c = self.config
        return projection_head(self.arch.dim, c.hidden, c.bottleneck, c.prototypes, norm_last=c.norm_last)

    def views(self, images: Tensor, rng: torch.Generator) -> Crops:
        """Two large crops and the small ones."""
        return crops(images, self.config.crops, rng)

    def forward(self, views: Crops, now: Now) -> Output:
        """The loss `dino`."""
        c = self.config
        temp = temperature(c.warmup_teacher_temp, c.teacher_temp, c.warmup_teacher_temp_epochs, now)
        with torch.no_grad():
            seen = each(self.encode, views.large)
            taught = balanced(self.teacher_head(torch.cat(seen)), temp, c.sinkhorn).chunk(2)
            watched = {"features": seen[0], "teacher_entropy": entropy(taught[0], self.loss.center, temp)}
        classes = each(self._student_cls, views.large) + each(self._student_cls, views.small)
        said = [full(logits) for logits in self.student_head(torch.cat(classes)).chunk(len(classes))]
        with exact(said[0]):
            loss = self.loss(list(taught), said, teacher_temp=temp)  # Eqs. 1 and 3, then Eq. 4
        return {"dino": loss}, watched

    def _student_cls(self, images: Tensor) -> Tensor:
        return self.student(images)[:, 0]  # type: ignore[no-any-return]

    def encode(self, images: Tensor) -> Tensor:
        """The teacher's class tokens."""
        return self.teacher(images)[:, 0]  # type: ignore[no-any-return]

    def pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        """The teacher follows the student, its head the student's."""
        return (self.teacher, self.student), (self.teacher_head, self.student_head)

    def momentum(self, now: Now) -> float:
        """On half a cosine to 1 (main_dino.py:249-251)."""
        return cosine(self.config.momentum, 1.0, now.done)

    def frozen(self, now: Now) -> Iterable[nn.Parameter]:
        """The prototypes, for the first epochs (utils.py:144-149)."""
        return trained_prototypes(self.student_head) if now.epoch < self.config.freeze else ()

    def export(self) -> dict[str, Tensor]:
        """The teacher, `backbone.*`, and its head up to the bottleneck, `head.mlp.*`."""
        return shipped(self.teacher, self.teacher_head)


METHOD = DINO
