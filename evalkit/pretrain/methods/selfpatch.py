"""SelfPatch on top of DINO: patches learn from their most similar neighbours (Yun et al. 2022, arXiv:2206.07990).

The backbone knows patches only. Its head, two class-attention blocks and a norm, makes a class token of all patches of an
image, and in the teacher also, by the same weights, an aggregate of each patch's neighbourhood: of its 4 most similar
patches among the 8 around it. Two losses: DINO's between views on the class token, and DINO's between each patch of the
student and the teacher's aggregate around the same patch of the same crop, for all crops, weighed by 0.1. Equation
numbers are those of DINO, arXiv:2104.14294; lines those of alinlab/SelfPatch 81aef14 (Apache-2.0), main_selfpatch.py
(losses: 419-456) unless another file is named. The teacher is evaluated.

As in the released code: the neighbourhood goes on at the opposite border (selfpatch_vision_transformer.py:425-443), so
that every patch has 8 neighbours; the class token's centre follows all crops of the teacher, not only the large ones
(454); the student's patches pass the head's norm before their own head (selfpatch_vision_transformer.py:419-421).
Deviations: backbone and head start as `VisionTransformer.initialise` does, not from a normal of deviation 0.02; a
neighbour's keys and values are computed once, not for each of the patches around it, which changes no number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.adapters.class_attention import ClassAttention, ClassBlock, ClassToken
from evalkit.adapters.vit import ViTConfig
from evalkit.errors import PretrainError
from evalkit.pretrain.heads import prototype_head
from evalkit.pretrain.method import Method, Now, Output, follow, transformer
from evalkit.pretrain.multicrop import Crops, MultiCrop, crops
from evalkit.pretrain.precision import exact
from evalkit.pretrain.prototypes import Centre, cross_entropy, distilled, entropy
from evalkit.pretrain.schedules import cosine


@dataclass(frozen=True)
class Config:
    """Defaults: main_selfpatch.py (arguments 44-134) and selfpatch_vision_transformer.py:446.

    hidden, bottleneck: of both heads. prototypes, patch_prototypes: of the class token's and of the patches' (57, 59).
    neighbours: 70. patch_weight: 456. freeze: epochs before prototypes are trained (98). Temperatures: 76, 402; the
    teacher's is constant (79). sinkhorn: rounds in the place of both centres. momentum: its start, rising to 1
    on half a cosine (65, 266). drop_path: of the student (184). crops: 112-121, 502-524.
    """

    hidden: int = 2048
    bottleneck: int = 256
    prototypes: int = 65536
    patch_prototypes: int = 4096
    neighbours: int = 4
    patch_weight: float = 0.1
    freeze: float = 1.0
    student_temp: float = 0.1
    teacher_temp: float = 0.04
    centre_momentum: float = 0.9
    sinkhorn: int = 0
    momentum: float = 0.996
    drop_path: float = 0.1
    crops: MultiCrop = field(default_factory=lambda: MultiCrop(scale=(0.25, 1.0), small_scale=(0.05, 0.25)))


def ring(n: int, device: torch.device | str = "cpu") -> Tensor:
    """(n * n, 8) the patches around each patch of an n x n grid, rows first, n at least 3; the grid closes on itself."""
    at = torch.arange(n * n, device=device)
    around = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]
    return torch.stack([(at // n + y) % n * n + (at % n + x) % n for y, x in around], 1)


def similar(patches: Tensor, count: int) -> Tensor:
    """(B, n * n, D) -> (B, n * n, count): for each patch the most similar of those around it, by cosine, best first."""
    unit = F.normalize(patches, dim=-1)
    around = ring(round(patches.shape[1] ** 0.5), patches.device).expand(len(patches), -1, -1)
    best = (unit @ unit.mT).gather(2, around).topk(count, dim=2).indices
    return around.gather(2, best)


def aggregated(head: ClassToken, patches: Tensor, index: Tensor) -> Tensor:
    """The head's class token as if each patch had an image of its own, of its neighbours: (B, N, D) patches and (B, N, k)
    indices of neighbours -> (B, N, D), before the head's norm."""
    token: Tensor = head.cls_token
    for block in cast(Iterable[ClassBlock], head.cls_blocks):
        own, around = block.norm1(token), block.norm1(patches)
        token = token + _looked(block.attn, own, around, index)
        token = token + block.mlp(block.norm2(token))
    return token


def _looked(attention: ClassAttention, own: Tensor, around: Tensor, index: Tensor) -> Tensor:
    """Class attention of tokens (B or 1, N or 1, D), each over itself and its neighbours among (B, N, D)."""
    (b, n, d), heads = around.shape, attention.heads
    batch = torch.arange(b, device=around.device)[:, None, None]

    def seen(linear: nn.Module) -> Tensor:
        """(B, N, 1 + k, heads, D / heads): by each token, of itself and of its neighbours."""
        mine = linear(own).expand(b, n, -1)[:, :, None]
        return torch.cat([mine, linear(around)[batch, index]], 2).view(b, n, -1, heads, d // heads)

    query = attention.q(own).expand(b, n, -1).reshape(b, n, heads, -1) * (d // heads) ** -0.5
    rows = torch.einsum("bnhd,bnkhd->bnhk", query, seen(attention.k)).softmax(-1)
    out: Tensor = attention.proj(torch.einsum("bnhk,bnkhd->bnhd", rows, seen(attention.v)).flatten(2))
    return out


class Network(nn.Module):
    """Backbone, the head that makes class tokens, and a projection with prototypes for these and for patches."""

    def __init__(self, arch: ViTConfig, config: Config) -> None:
        super().__init__()
        self.backbone = transformer(arch)
        self.ca_head = _started(ClassToken(arch))
        self.c_head = prototype_head(arch.dim, config.hidden, config.bottleneck, config.prototypes)
        self.p_head = prototype_head(arch.dim, config.hidden, config.bottleneck, config.patch_prototypes)

    def forward(self, images: Tensor, neighbours: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) -> (B, D) class tokens, (B, K) their logits, (B, N, K') logits of patches, or of the aggregates of
        as many neighbours, where that is not 0."""
        patches = self.backbone(images)
        cls = self.ca_head(patches)
        if neighbours:
            patches = aggregated(self.ca_head, patches, similar(patches, neighbours))
        return cls, self.c_head(cls), self.p_head(self.ca_head.norm(patches))


class SelfPatch(Method):
    """Student and teacher."""

    family: ClassVar[str] = "selfpatch"

    def __init__(self, arch: ViTConfig, config: Config) -> None:
        super().__init__()
        self.arch, self.config = arch, config
        _check(arch, config)
        self.student = Network(replace(arch, drop_path=config.drop_path), config)
        self.teacher = Network(arch, config)
        for target, source in self.pairs():
            follow(target, source)
        self.centre = Centre(config.prototypes, config.centre_momentum, config.sinkhorn)
        self.patch_centre = Centre(config.patch_prototypes, config.centre_momentum, config.sinkhorn)

    def views(self, images: Tensor, rng: torch.Generator) -> Crops:
        """Two large crops and the small ones."""
        return crops(images, self.config.crops, rng)

    def forward(self, views: Crops, now: Now) -> Output:
        """The losses `global` and `patch`, the latter with its weight."""
        c = self.config
        sizes = [torch.cat(group) for group in (views.large, views.small) if group]
        with torch.no_grad():
            taught = [self.teacher(pixels, c.neighbours) for pixels in sizes]
        said = [self.student(pixels) for pixels in sizes]
        with exact(said[0][0]):
            large = self.centre(taught[0][1], c.teacher_temp).chunk(2)
            seen = torch.cat([logits for _, logits, _ in said]).chunk(len(views.large) + len(views.small))
            around = [self.patch_centre(logits, c.teacher_temp) for _, _, logits in taught]
            patch = [cross_entropy(x[2], shares, c.student_temp) for x, shares in zip(said, around, strict=True)]
            losses = {
                "global": distilled(seen, large, c.student_temp),
                "patch": c.patch_weight * _each_crop_alike(patch, views),
            }
            watched = {
                "features": taught[0][0].chunk(2)[0],
                "teacher_entropy": entropy(large[0]),
                "patch_entropy": entropy(around[0].chunk(2)[0]),
            }
            self.centre.move([logits for _, logits, _ in taught])
            self.patch_centre.move([logits for _, _, logits in taught])
        return losses, watched

    def pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        """The teacher follows the student."""
        return ((self.teacher, self.student),)

    def momentum(self, now: Now) -> float:
        """On half a cosine to 1."""
        return cosine(self.config.momentum, 1.0, now.done)

    def frozen(self, now: Now) -> Iterable[nn.Parameter]:
        """Both layers of prototypes, for the first epochs (utils.py:124-129)."""
        if now.epoch >= self.config.freeze:
            return ()
        heads = self.student.c_head, self.student.p_head
        return [p for head in heads for p in head.last_layer.parameters() if p.requires_grad]  # type: ignore[union-attr]

    def encode(self, images: Tensor) -> Tensor:
        """(B, D) class tokens of the teacher's head, after its norm."""
        return self.teacher.ca_head(self.teacher.backbone(images))  # type: ignore[no-any-return]

    def export(self) -> dict[str, Tensor]:
        """The teacher without prototypes: `backbone.`, `ca_head.`, `c_head.mlp.`, `p_head.mlp.`."""
        return {key: value for key, value in self.teacher.state_dict().items() if ".last_layer." not in key}


def _started(head: ClassToken) -> ClassToken:
    """Weights as the backbone's: at .02, the token of a narrow network would drown what it has seen of an image."""
    nn.init.normal_(head.cls_token, std=0.02)
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return head


def _each_crop_alike(means: Sequence[Tensor], views: Crops) -> Tensor:
    """The mean over crops of the mean over large and that over small ones, however many patches they have."""
    counts = [len(group) for group in (views.large, views.small) if group]
    total = torch.stack([mean * count for mean, count in zip(means, counts, strict=True)]).sum()
    return total / sum(counts)


def _check(arch: ViTConfig, config: Config) -> None:
    """Raises PretrainError where crops and neighbours do not fit."""
    sizes = [config.crops.size, *[config.crops.small_size] * bool(config.crops.small)]
    for size in sizes:
        if size % arch.patch or size < 3 * arch.patch:
            raise PretrainError(
                f"crops of {size} pixels with patches of {arch.patch}: neighbourhoods of 3 x 3 patches need a multiple "
                f"of {arch.patch}, at least {3 * arch.patch}"
            )
    if not 1 <= config.neighbours <= 8:
        raise PretrainError(f"{config.neighbours} neighbours: a patch has 8 around it")


METHOD = SelfPatch
