"""iBOT, image BERT with an online tokenizer (Zhou et al. 2021, arXiv:2111.07832), with lightly's losses and head.

DINO on the class tokens (Eq. 2), and on the patches that the student sees masked: the teacher, which sees the whole view,
says what they are (Eq. 3). One head for both. Code of the authors: bytedance/ibot da316d8, main_ibot.py:374-572, loader.py,
models/head.py; the teacher is what they evaluate.

lightly's IBOTPatchLoss takes masked patches only and centres the teacher by them, as DINOv2 does; its successor
IBOTPlusPlusPatchLoss without the term of visible patches is iBOT's own loss: the centre is the mean of all patches of the
batch (main_ibot.py:569-572), masked or not, so that it does not depend on how images are spread over processes.

Deviations: those of `methods.dino`; blocks of a mask are drawn as `masking` says. Small crops are never masked, and the
chance of a mask is drawn per view and image, as in the authors' code. The mask token's average is shipped as
`backbone.masked_embed`, where their student has it.
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
from evalkit.pretrain.masking import ibot_mask
from evalkit.pretrain.method import Method, Now, Output, follow, transformer
from evalkit.pretrain.multicrop import Crops, MultiCrop, crops, each
from evalkit.pretrain.precision import exact, full
from evalkit.pretrain.prototypes import balanced
from evalkit.pretrain.schedules import cosine

try:
    from lightly.loss import DINOLoss, IBOTPlusPlusPatchLoss
except ImportError as error:  # pragma: no cover - the message is what matters
    raise ExtraMissing("pretraining", "pretrain") from error

WATCHED = 8
"""Images whose patches' assignments are watched: all of them would cost as much as the loss."""


@dataclass(frozen=True)
class Config:
    """Defaults: the authors' ViT-S/16 (README.md:64-78; the rest from main_ibot.py:32-139).

    hidden, bottleneck, prototypes, norm_last, freeze, sinkhorn (of class tokens and of patches), momenta, drop_path: as in
    `methods.dino`. patch_*: temperatures on patches. mask_chance, mask_ratio, mask_spread: of a large crop, see
    `masking.ibot_mask`. weights: of the two losses.
    """

    hidden: int = 2048
    bottleneck: int = 256
    prototypes: int = 8192
    norm_last: bool = False
    freeze: float = 1.0
    student_temp: float = 0.1
    teacher_temp: float = 0.07
    warmup_teacher_temp: float = 0.04
    patch_temp: float = 0.07
    warmup_patch_temp: float = 0.04
    warmup_teacher_temp_epochs: float = 30.0
    centre_momentum: float = 0.9
    sinkhorn: int = 0
    momentum: float = 0.996
    drop_path: float = 0.1
    mask_chance: float = 0.5
    mask_ratio: float = 0.3
    mask_spread: float = 0.2
    weights: tuple[float, float] = (1.0, 1.0)
    crops: MultiCrop = field(default_factory=lambda: MultiCrop(scale=(0.25, 1.0), small=10, small_scale=(0.05, 0.25)))


@dataclass(frozen=True)
class Views:
    """masks: one (B, h * w) bool for each large crop, True where the student's patch is masked."""

    crops: Crops
    masks: tuple[Tensor, Tensor]


class IBOT(Method):
    """Student and teacher of one architecture, each with its head."""

    family = "ibot"

    def __init__(self, arch: ViTConfig, config: Config) -> None:
        super().__init__()
        self.arch, self.config = replace(arch, mask_token=True), config
        self.student, self.student_head = transformer(replace(self.arch, drop_path=config.drop_path)), self._head()
        self.teacher, self.teacher_head = transformer(self.arch), self._head()
        for target, source in self.pairs():
            follow(target, source)
        c = config
        kept = 1.0 if c.sinkhorn else c.centre_momentum
        self.cls_loss = DINOLoss(c.prototypes, teacher_temp=c.teacher_temp, student_temp=c.student_temp,
                                 center_momentum=kept)  # fmt: skip
        self.patch_loss = IBOTPlusPlusPatchLoss(c.prototypes, c.patch_temp, c.student_temp,
                                                center_momentum=kept)  # fmt: skip

    def _head(self) -> nn.Module:
        c = self.config
        return projection_head(self.arch.dim, c.hidden, c.bottleneck, c.prototypes, norm_last=c.norm_last)

    def views(self, images: Tensor, rng: torch.Generator) -> Views:
        """Two large crops, each with its masks, and the small ones."""
        c = self.config
        drawn = crops(images, c.crops, rng)
        grid = (c.crops.size // self.arch.patch, c.crops.size // self.arch.patch)
        first, second = (
            ibot_mask(len(images), grid, rng, ratio=c.mask_ratio, spread=c.mask_spread, chance=c.mask_chance)
            for _ in drawn.large
        )
        return Views(drawn, (first, second))

    def forward(self, views: Views, now: Now) -> Output:
        """The losses `cls` (Eq. 2) and `patch` (Eq. 3)."""
        c = self.config
        temps = [temperature(first, last, c.warmup_teacher_temp_epochs, now)
                 for first, last in ((c.warmup_teacher_temp, c.teacher_temp), (c.warmup_patch_temp, c.patch_temp))]  # fmt: skip
        large, mask = torch.cat(views.crops.large), torch.cat(views.masks)
        with torch.no_grad():
            tokens = self.teacher(large)
            taught = full(self.teacher_head(tokens))
            taught_cls = list(balanced(taught[:, 0], temps[0], c.sinkhorn).chunk(2))
            taught_patches = balanced(taught[:, 1:], temps[1], c.sinkhorn)
            watched = {
                "features": tokens[: len(tokens) // 2, 0],
                "teacher_entropy": entropy(taught_cls[0], self.cls_loss.center, temps[0]),
                "patch_entropy": entropy(taught_patches[:WATCHED], self.patch_loss.center.value, temps[1]),
            }
        said = full(self.student_head(self.student(large, mask=mask)))
        small = each(self._small, views.crops.small)
        with exact(said):
            cls = self.cls_loss(taught_cls, [*said[:, 0].chunk(2), *small], teacher_temp=temps[0])
            patch = self.patch_loss(taught_patches, said[:, 1:], mask, temps[1], visible_loss_weight=0.0)
        return {"cls": c.weights[0] * cls, "patch": c.weights[1] * patch}, watched

    def _small(self, images: Tensor) -> Tensor:
        return full(self.student_head(self.student(images)[:, 0]))

    def encode(self, images: Tensor) -> Tensor:
        """The teacher's class tokens."""
        return self.teacher(images)[:, 0]  # type: ignore[no-any-return]

    def pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        """The teacher follows the student, its head the student's."""
        return (self.teacher, self.student), (self.teacher_head, self.student_head)

    def momentum(self, now: Now) -> float:
        """On half a cosine to 1 (main_ibot.py:317-318)."""
        return cosine(self.config.momentum, 1.0, now.done)

    def frozen(self, now: Now) -> Iterable[nn.Parameter]:
        """The prototypes, for the first epochs (main_ibot.py:438-439)."""
        return trained_prototypes(self.student_head) if now.epoch < self.config.freeze else ()

    def export(self) -> dict[str, Tensor]:
        """The teacher, `backbone.*`, and its head up to the bottleneck, `head.mlp.*`."""
        state = shipped(self.teacher, self.teacher_head)
        token = state.pop("backbone.mask_token")
        return state | {"backbone.masked_embed": token}


METHOD = IBOT
