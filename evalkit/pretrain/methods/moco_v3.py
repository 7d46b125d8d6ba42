"""MoCo v3 (Chen et al. 2021, arXiv:2104.02057): a query of each view must find the momentum encoder's key of the other view
among the keys of the whole batch (Eq. 1), both ways round (Algorithm 1); the patch projection stays as it was drawn.

Code of the authors: facebookresearch/moco-v3 c349e6e, moco/builder.py, main_moco.py, vits.py (CC-BY-NC: described, not
copied). lightly has no loss for it: its NTXentLoss is SimCLR's, or contrasts with a memory bank. Its `ProjectionHead`
makes the heads from the authors' layers: its MoCoProjectionHead has gain and shift in the last batch norm, theirs has none.

Deviations: the momentum encoder moves after a step instead of before the next forward pass (builder.py:89-90), so that the
momentum is that of a step earlier; weight decay spares vectors (the authors decay every parameter, main_moco.py:229).
The base encoder is evaluated (main_lincls.py:181) and exported. Watched: its class tokens of the first view, and
`accuracy`, the share of first views whose key is nearest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.adapters.moco_v3 import start
from evalkit.adapters.vit import VisionTransformer, ViTConfig
from evalkit.errors import ExtraMissing
from evalkit.pretrain.augment import View, draw
from evalkit.pretrain.distributed import BatchNorm, gather, rank
from evalkit.pretrain.method import Method, Now, Output, follow, transformer
from evalkit.pretrain.multicrop import each
from evalkit.pretrain.precision import exact, full
from evalkit.pretrain.schedules import cosine

try:
    from lightly.models.modules.heads import ProjectionHead
except ImportError as error:  # pragma: no cover - the message is what matters
    raise ExtraMissing("pretraining", "pretrain") from error


@dataclass(frozen=True)
class Config:
    """Defaults: the authors' ViT-S/16 (CONFIG.md:126-131, main_moco.py:94-118, 262-285).

    size, crop_min: side in pixels and least area of a view; colours, flips and blurs as BYOL's. hidden, out: widths of the
    MLPs. momentum: of the momentum encoder, on half a cosine to 1.
    """

    size: int = 224
    crop_min: float = 0.08
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_p: float = 0.8
    grey_p: float = 0.2
    blur_p: tuple[float, float] = (1.0, 0.1)
    solarise_p: tuple[float, float] = (0.0, 0.2)
    hidden: int = 4096
    out: int = 256
    temperature: float = 0.2
    momentum: float = 0.99

    def kinds(self) -> tuple[View, View]:
        """The two views."""
        first, second = (
            View(self.size, (self.crop_min, 1.0), jitter=self.jitter, jitter_p=self.jitter_p, grey_p=self.grey_p,
                 blur_p=blur, solarise_p=solarise)
            for blur, solarise in zip(self.blur_p, self.solarise_p, strict=True)
        )  # fmt: skip
        return first, second


def contrast(queries: Tensor, keys: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(2 T x the mean over queries of -log exp(q k+ / T) / sum over all k of exp(q k / T), the share whose k+ is nearest).

    Eq. 1, and Algorithm 1's `ctr`. queries, keys: (B, D) of this process, row by row of the same images, of any length.
    Keys of all processes count; gradients flow into the queries only.
    """
    q = F.normalize(full(queries), dim=1)
    k = gather(F.normalize(full(keys), dim=1))
    with exact(q):
        logits = q @ k.T / temperature
        own = torch.arange(len(q), device=q.device) + len(q) * rank()
        return 2 * temperature * F.cross_entropy(logits, own), (logits.detach().argmax(1) == own).float().mean()


def mlp(layers: int, dim: int, hidden: int, out: int) -> nn.Module:
    """Linear layers without biases, each with batch norm, ReLU between; the last norm without gain and shift
    (builder.py:36-52)."""
    widths = [dim, *[hidden] * (layers - 1)]
    blocks = [(a, hidden, BatchNorm(hidden), nn.ReLU()) for a in widths[:-1]]
    last = (widths[-1], out, BatchNorm(out, affine=False), None)
    return ProjectionHead([*blocks, last])  # type: ignore[no-any-return]


def encoder(arch: ViTConfig) -> VisionTransformer:
    """With the authors' start; positions are never trained."""
    vit = transformer(arch)
    start(vit)
    vit.pos_embed.requires_grad_(False)
    return vit


class MoCoV3(Method):
    """base: encoder, `head` its projector; momentum_*: the moving averages of both; predictor: of the base alone."""

    family = "moco_v3"

    def __init__(self, arch: ViTConfig, config: Config) -> None:
        super().__init__()
        self.arch, self.config = arch, config
        self.base, self.head = encoder(arch), mlp(3, arch.dim, config.hidden, config.out)
        self.momentum_encoder, self.momentum_head = encoder(arch), mlp(3, arch.dim, config.hidden, config.out)
        self.predictor = mlp(2, config.out, config.hidden, config.out)
        self.base.patch_embed.requires_grad_(False)  # the paper's section 4.2: a trained one makes ViT unstable
        for target, source in self.pairs():
            follow(target, source)

    def views(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two views."""
        first, second = self.config.kinds()
        return draw(images, first, rng).pixels, draw(images, second, rng).pixels

    def forward(self, views: tuple[Tensor, Tensor], now: Now) -> Output:
        """The loss `infonce`: both directions, summed. Each view has its own batch statistics in the heads."""
        seen = each(self.encode, views)
        first, second = (self.predictor(self.head(cls)) for cls in seen)
        with torch.no_grad():
            keys = [self.momentum_head(cls) for cls in each(self._key_cls, views)]
        (one, accuracy), (other, _) = (contrast(q, k, self.config.temperature)
                                       for q, k in ((first, keys[1]), (second, keys[0])))  # fmt: skip
        return {"infonce": one + other}, {"features": seen[0].detach(), "accuracy": accuracy}

    def _key_cls(self, images: Tensor) -> Tensor:
        return self.momentum_encoder(images)[:, 0]  # type: ignore[no-any-return]

    def encode(self, images: Tensor) -> Tensor:
        """The base encoder's class tokens."""
        return self.base(images)[:, 0]  # type: ignore[no-any-return]

    def pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        """Encoder and projector; batch norms of the averages keep statistics of their own."""
        return (self.momentum_encoder, self.base), (self.momentum_head, self.head)

    def momentum(self, now: Now) -> float:
        """On half a cosine to 1 (main_moco.py:431-434)."""
        return cosine(self.config.momentum, 1.0, now.done)

    def export(self) -> dict[str, Tensor]:
        """The base encoder under bare keys and its projector, `head.*`."""
        head = {key.replace("layers.", "head.", 1): value for key, value in self.head.state_dict().items()}
        return self.base.state_dict() | head


METHOD = MoCoV3
