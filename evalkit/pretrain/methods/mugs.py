"""Mugs: instances, local groups and groups at once (Zhou et al. 2022, arXiv:2203.14415), written from the paper's three
supervisions and the facts of sail-sg/mugs 10ab634.

Instance discrimination (`contrast`): InfoNCE on the class token. Local-group discrimination: the mean patch token and its
nearest neighbours among other images' means (`neighbours.Means`) go through relation blocks to one feature, which InfoNCE
teaches too. Group discrimination (`cluster`): cross-entropy of prototypes, the teacher centred and sharpened. The teacher,
a moving average of the student, sees two weakly augmented large crops; the student sees two large crops of its own and
small ones, part of them strongly augmented (`strong`).

Where this differs from the released code:
- The token that looks for neighbours is the mean of the patch tokens after the final norm, the same that the queue holds.
  The code stores these means and looks with the mean of all tokens before the norm (vision_transformer.py:387; model.py:451).
- Means fill their queue row by row. In the code, the place to write moves twice as far until the queue's end is first
  reached (model.py:317-318), so that every other batch of rows stays the noise of the beginning.
- Of each batch the stated share is augmented strongly, instead of each image by chance.
- The patch embedding learns at the common rate; the code has it at a fifth (main.py:121).
- Two relation blocks as in the paper; the code, and so the released files, have one (model.py:484).
The losses go by the paper's names: its equation numbers could not be checked and are not given.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.adapters.blocks import Attention, Block, Geometry, Mlp
from evalkit.adapters.heads import DINOHead
from evalkit.adapters.vit import ViTConfig
from evalkit.pretrain.augment import View, draw
from evalkit.pretrain.heads import mlp, prototype_head, start
from evalkit.pretrain.method import Method, Now, Output, follow, transformer
from evalkit.pretrain.multicrop import MultiCrop
from evalkit.pretrain.neighbours import Means
from evalkit.pretrain.precision import exact, full
from evalkit.pretrain.prototypes import Centre, entropy
from evalkit.pretrain.queue import Queue
from evalkit.pretrain.schedules import cosine, linear


@dataclass(frozen=True)
class Config:
    """Defaults: ViT-S/16 of 800 epochs (pretraining.sh:96-139; the widths of the heads: model.py:514-580).

    crops: of teacher and student. strong: share of a batch whose student crops are augmented strongly. hidden, predictor:
    widths inside projectors and predictors; bottleneck: of their outputs. queue: rows of each of the four queues.
    neighbours: means that join an image's own. temperature: of both InfoNCE losses. The group loss: prototypes,
    student_temp, the teacher's from warmup_teacher_temp to teacher_temp in warmup_teacher_temp_epochs, centre_momentum, or
    rounds of sinkhorn in the centre's place; norm_last: of fixed length; freeze: epochs in which they stay as they are.
    weights: of instance, local-group and group loss, divided by their sum (main.py:656-698). momentum: of the teacher, on
    half a cosine to 1. drop_path: of the student.
    """

    crops: MultiCrop = field(default_factory=lambda: MultiCrop(scale=(0.25, 1.0), small=10, small_scale=(0.05, 0.25)))
    strong: float = 0.5
    hidden: int = 2048
    predictor: int = 4096
    bottleneck: int = 256
    queue: int = 65536
    neighbours: int = 8
    relation_blocks: int = 2
    temperature: float = 0.2
    prototypes: int = 65536
    student_temp: float = 0.1
    warmup_teacher_temp: float = 0.04
    teacher_temp: float = 0.07
    warmup_teacher_temp_epochs: float = 30.0
    centre_momentum: float = 0.9
    sinkhorn: int = 0
    norm_last: bool = False
    freeze: float = 1.0
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    momentum: float = 0.996
    drop_path: float = 0.1


@dataclass(frozen=True)
class Views:
    """teacher, large: two each, small: any number of tensors (B, 3, s, s), normalised. weak: (B,) bool, the images whose
    large student crops are weakly augmented."""

    teacher: tuple[Tensor, Tensor]
    large: tuple[Tensor, Tensor]
    small: tuple[Tensor, ...]
    weak: Tensor


def halves(terms: Tensor) -> Tensor:
    """terms: (2, 2 + n), the loss of each student crop taught by each teacher crop. Returns the mean over large crops,
    without a crop taught by its namesake, and the mean over small crops, half and half (loss.py:76-110, 165-187)."""
    large = (terms[0, 1] + terms[1, 0]) / 2
    return (large + terms[:, 2:].mean()) / 2 if terms.shape[1] > 2 else large


def contrast(student: Tensor, teacher: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """(2, C) means over images of -log exp(s t / T) / (exp(s t / T) + sum over keys of exp(s k / T)).

    student: (C, B, D); teacher: (2, B, D); keys: (K, D); all of unit length.
    """
    s, t, k = full(student), full(teacher), full(keys)
    with exact(s):
        negatives = (s @ k.T / temperature).logsumexp(2)
        positives = (s * t[:, None]).sum(3) / temperature
        return (torch.logaddexp(positives, negatives) - positives).mean(2)


def cluster(student: Tensor, assigned: Tensor, temperature: float) -> Tensor:
    """(2, C) means over images of -sum over prototypes of q log softmax(s / T), for q that sum to 1.

    student: (C, B, K) logits; assigned: (2, B, K), the teacher's q.
    """
    s, q = full(student) / temperature, full(assigned)
    with exact(s):
        return s.logsumexp(2).mean(1) - q.flatten(1) @ s.flatten(1).T / s.shape[1]


class Network(nn.Module):
    """What student and teacher have in common: the encoder, the relation blocks, a projector for each granularity."""

    def __init__(self, arch: ViTConfig, config: Config) -> None:
        super().__init__()
        c, dim = config, arch.dim
        self.backbone = transformer(arch)
        self.relation_blocks = nn.ModuleList(_block(arch) for _ in range(c.relation_blocks))
        widths = [dim, c.hidden, c.hidden, c.bottleneck]
        self.instance_head, self.local_group_head = (
            mlp(widths, norm=False, bias=False, activation=nn.GELU) for _ in range(2)
        )
        self.group_head: DINOHead = prototype_head(dim, c.hidden, c.bottleneck, c.prototypes)
        self.group_head.last_layer.weight_g.requires_grad_(not c.norm_last)  # type: ignore[union-attr,operator]

    def forward(self, images: Tensor, means: Means, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D) class tokens, mean patch tokens and local-group features. means: those that have neighbours."""
        tokens = self.backbone(images)
        own = tokens[:, self.backbone.config.prefix :].mean(1)
        group = torch.cat([own[:, None], means.nearest(own.detach(), k)], 1)
        for block in self.relation_blocks:
            group = block(group, Geometry((1, k + 1)))
        return tokens[:, 0], own.detach(), self.backbone.norm(group[:, 0])

    def project(self, cls: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors (N, bottleneck) of the instance and of the local group, and (N, prototypes) logits."""
        instance = F.normalize(self.instance_head(cls), dim=1)
        return instance, F.normalize(self.local_group_head(group), dim=1), self.group_head(cls)


def _block(arch: ViTConfig) -> nn.Module:
    mlp_ = Mlp(arch.dim, int(arch.dim * arch.mlp_ratio))
    attention = Attention(arch.dim, arch.heads, arch.qkv_bias)
    return start(Block(attention, mlp_, arch.dim, eps=arch.eps, layer_scale=None, drop_path=0.0))


class Mugs(Method):
    """Student and teacher, their means, the keys of both InfoNCE losses and the centre of the prototypes."""

    family = "mugs"

    def __init__(self, arch: ViTConfig, config: Config) -> None:
        super().__init__()
        self.arch, self.config = arch, config
        c = config
        self.student = Network(replace(arch, drop_path=c.drop_path), c)
        self.teacher = Network(arch, c)
        follow(self.teacher, self.student)
        widths = [c.bottleneck, c.predictor, c.bottleneck]
        self.instance_predictor, self.local_group_predictor = (
            mlp(widths, norm=False, bias=False, activation=nn.GELU) for _ in range(2)
        )
        self.student_means, self.teacher_means = Means(c.queue, arch.dim), Means(c.queue, arch.dim)
        self.instance_keys, self.local_group_keys = Queue(c.queue, c.bottleneck), Queue(c.queue, c.bottleneck)
        self.centre = Centre(c.prototypes, c.centre_momentum, c.sinkhorn)

    def views(self, images: Tensor, rng: torch.Generator) -> Views:
        """Crops as the released code makes them (multicropdataset.py:317-358)."""
        first, second, small = self.config.crops.kinds()
        teacher = draw(images, first, rng).pixels, draw(images, second, rng).pixels
        parts = self._parts(len(images), rng)
        large = _mixed(images, first, parts, rng), _mixed(images, second, parts, rng)
        small_parts = (self._parts(len(images), rng) for _ in range(self.config.crops.small))
        weak = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        weak[parts[0]] = True
        return Views(teacher, large, tuple(_mixed(images, small, each, rng) for each in small_parts), weak)

    def _parts(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Numbers of the images that are augmented weakly and strongly: always as many, so that nothing waits for a GPU."""
        order = torch.randperm(n, device=rng.device, generator=rng)
        strong, weak = order.tensor_split([round(n * self.config.strong)])
        return weak, strong

    def forward(self, views: Views, now: Now) -> Output:
        """See `Method`."""
        c, crops = self.config, 2 + len(views.small)
        with torch.no_grad():
            cls, means, group = self.teacher(torch.cat(views.teacher), self.teacher_means, c.neighbours)
            taught = [torch.stack(x.chunk(2)) for x in self.teacher.project(cls, group)]
        sizes = [views.large, views.small] if views.small else [views.large]
        found = [self.student(torch.cat(same), self.student_means, c.neighbours) for same in sizes]
        instance, local, logits = self.student.project(*(torch.cat([f[i] for f in found]) for i in (0, 2)))
        instance = F.normalize(self.instance_predictor(instance), dim=1)
        local = F.normalize(self.local_group_predictor(local), dim=1)
        said = [torch.stack(x.chunk(crops)) for x in (instance, local, logits)]
        assigned = self._assigned(taught[2], now)
        terms = (
            contrast(said[0], taught[0], self.instance_keys.keys(), c.temperature),
            contrast(said[1], taught[1], self.local_group_keys.keys(), c.temperature),
            cluster(said[2], assigned, c.student_temp),
        )
        self._remember(taught, means, found[0][1], views.weak)
        names = ("instance", "local_group", "group")
        losses = {n: halves(t) * w / sum(c.weights) for n, t, w in zip(names, terms, c.weights, strict=True)}
        return losses, {"features": cls[: len(views.weak)], "teacher_entropy": entropy(assigned)}

    def _assigned(self, logits: Tensor, now: Now) -> Tensor:
        """The teacher's prototypes, centred and sharpened (loss.py:162-163)."""
        c = self.config
        done = now.epoch / c.warmup_teacher_temp_epochs if c.warmup_teacher_temp_epochs else 1.0
        temperature = linear(c.warmup_teacher_temp, c.teacher_temp, done)
        return self.centre(logits, temperature)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _remember(self, taught: list[Tensor], means: Tensor, own: Tensor, weak: Tensor) -> None:
        """Keys of both teacher crops enter the queues, means of the first large crop too: the student's where it is weakly
        augmented (main.py:702-709). The centre moves."""
        for queue, keys in ((self.instance_keys, taught[0]), (self.local_group_keys, taught[1])):
            for crop in keys:
                queue.push(crop)
        self.student_means.push(own[: len(weak)], weak)
        self.teacher_means.push(means[: len(weak)], torch.ones_like(weak))
        self.centre.move([taught[2]])

    def pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        """See `Method`."""
        return ((self.teacher, self.student),)

    def momentum(self, now: Now) -> float:
        """See `Method`."""
        return cosine(self.config.momentum, 1.0, now.done)

    def frozen(self, now: Now) -> Iterable[nn.Parameter]:
        """The student's prototypes at the beginning (optimizer.py:38-47)."""
        return self.student.group_head.last_layer.parameters() if now.epoch < self.config.freeze else ()  # type: ignore[union-attr]

    def encode(self, images: Tensor) -> Tensor:
        """The teacher's class tokens."""
        return self.teacher.backbone(images)[:, 0]  # type: ignore[no-any-return]

    def export(self) -> dict[str, Tensor]:
        """The teacher under the names of the training file that main.py:544-563 writes, without its prototypes."""
        places = {
            "relation_blocks.": "backbone.relation_blocks.", "instance_head.": "instance_head.projector.",
            "local_group_head.": "local_group_head.projector.", "group_head.mlp.": "group_head.projector.",
        }  # fmt: skip
        state = {k: v for k, v in self.teacher.state_dict().items() if not k.startswith("group_head.last_layer")}
        for ours, theirs in places.items():
            state = {theirs + k.removeprefix(ours) if k.startswith(ours) else k: v for k, v in state.items()}
        return state


def _mixed(images: Tensor, kind: View, parts: tuple[Tensor, Tensor], rng: torch.Generator) -> Tensor:
    """(B, 3, s, s) crops of one kind; those of the second part have RandAugment in place of the weak changes."""
    out = torch.empty(len(images), 3, kind.size, kind.size, device=images.device)
    for part, strong in zip(parts, (False, True), strict=True):
        if len(part):
            out[part] = draw(images[part], replace(kind, strong=strong), rng).pixels
    return out


METHOD = Mugs
