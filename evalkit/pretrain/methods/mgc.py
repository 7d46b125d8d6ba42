"""MGC, multi-grained contrast: tokens of two views find those that show the same place (Shen et al. 2024, arXiv:2407.02014).

Written from the paper's equations; lines are those of visresearch/mgc fa5ddea, which is CC-BY-NC-4.0 and has given no code.
Two views of an image are cut into tokens of several sizes: squares of c x c patches, whose features are means over their
patches. Tokens of the two views correspond as far as they show the same place. Each token of one view must find those of
the other among the tokens of all images: softmax over cosine similarities against areas of overlap. Queries come from
the base encoder by projector and predictor, keys from the momentum encoder by its projector; every granularity has heads
of its own. No loss reads the class token: features are means of patches.

What differs from the released code:
- `overlaps.drawn` draws the tokens at random by the area they share; the code walks the overlap in steps and keeps the
  pairs that share most (module/augmentation.py:124-219).
- Targets are Eq. 2's, over all drawn tokens of the image; the code gives a pair a single key and weighs it by its area
  (module/loss.py:11-22), so that other tokens of the same place count as negatives.
- Granularities are summed as in the paper; the code weighs them by their numbers of tokens (main_pretrain.py:108).
- The second crop is not redrawn until it overlaps the first by more than a fifth (module/augmentation.py:467-486): tokens
  that overlap nothing have no target and count for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.adapters.positions import moco_v3
from evalkit.adapters.vit import VisionTransformer, ViTConfig
from evalkit.errors import PretrainError
from evalkit.pretrain.augment import View, draw
from evalkit.pretrain.distributed import average, gather
from evalkit.pretrain.heads import mlp
from evalkit.pretrain.method import Method, Now, Output, follow, transformer
from evalkit.pretrain.overlaps import Pairs, drawn, overlaps
from evalkit.pretrain.precision import exact, full
from evalkit.pretrain.schedules import cosine


@dataclass(frozen=True)
class Config:
    """first, second: the views, of one size (the paper's table of augmentations; the code's crops begin at 0.2, lines 88,
    104). windows: c, sides of the squares in patches (best row of Table 6). tokens: drawn of each size per image
    (config/pretrain/vit_small_pretrain.py:31-33). hidden: 2048 in Table 7, 4096 in the code (:37). bottleneck,
    temperature: :38-39. momentum: its start, rising to 1 on half a cosine (:29). drop_path: :13, of the base encoder."""

    first: View = field(default_factory=lambda: View(224, (0.08, 1.0), blur_p=1.0))
    second: View = field(default_factory=lambda: View(224, (0.08, 1.0), blur_p=0.1, solarise_p=0.2))
    windows: tuple[int, ...] = (1, 2, 7)
    tokens: tuple[int, ...] = (10, 10, 2)
    hidden: int = 2048
    bottleneck: int = 128
    temperature: float = 0.1
    momentum: float = 0.996
    drop_path: float = 0.05


@dataclass(frozen=True)
class Views:
    """first, second: (B, 3, s, s), normalised. pairs: the tokens drawn, for each granularity."""

    first: Tensor
    second: Tensor
    pairs: tuple[Pairs, ...]


def pooled(patches: Tensor, window: int) -> Tensor:
    """Means over squares of window x window patches: (B, n * n, D) -> (B, (n / window)^2, D), rows first."""
    b, count, d = patches.shape
    if window == 1:
        return patches
    m = round(count**0.5) // window
    return patches.view(b, m, window, m, window, d).mean((2, 4)).flatten(1, 2)


def targets(area: Tensor) -> Tensor:
    """Eq. 2: (..., K, L) areas -> shares of each row's sum; zeros where a token overlaps nothing."""
    total = area.sum(-1, keepdim=True)
    return area / torch.where(total > 0, total, 1)


def contrast(queries: Tensor, keys: Tensor, area: Tensor, temperature: float) -> Tensor:
    """Eq. 3: - sum over j of w_ij log softmax_j(cos(q_i, sg z_j) / T), the mean over queries that overlap anything.

    queries: (B, K, D). keys: (B, L, D), L of each image. area: (B, K, L) shared by the tokens of one image; tokens of
    different images, on all processes, share nothing. Zero where no token overlaps any.
    """
    with exact(queries):
        q, z = F.normalize(full(queries), dim=2), F.normalize(full(keys.detach()), dim=2)
        everyone = gather(z).flatten(0, 1)
        norm = torch.logsumexp(q @ everyone.T / temperature, 2)
        weights = targets(full(area))
        # targets of a row sum to 1 or 0: its cross-entropy needs no more logits than those of its own image
        rows = weights.sum(2) * norm - (weights * (q @ z.mT / temperature)).sum(2)
        count = average((area.sum(2) > 0).sum().to(rows.dtype))
        return rows.sum() / torch.where(count > 0, count, 1)


class MGC(Method):
    """Base and momentum encoder; per granularity a projector in both and a predictor."""

    family: ClassVar[str] = "mgc"

    def __init__(self, arch: ViTConfig, config: Config) -> None:
        super().__init__()
        self.arch, self.config = arch, config
        self.grid = config.first.size // arch.patch
        _check(self.grid, arch, config)
        self.base_encoder = _encoder(replace(arch, drop_path=config.drop_path))
        self.momentum_encoder = VisionTransformer(arch)
        self.names = ["patch" if c == 1 else f"divide_{c * arch.patch}" for c in config.windows]
        deep, flat = [arch.dim, config.hidden, config.hidden], [config.bottleneck, config.hidden]
        self.projectors, self.momentum_projectors = self._heads(deep), self._heads(deep)
        self.predictors = self._heads(flat)
        for target, source in self.pairs():
            follow(target, source)

    def _heads(self, widths: list[int]) -> nn.ModuleDict:
        """As MoCo v3's: no biases, batch norm everywhere, at the end without gain and shift (module/model.py)."""
        made = (mlp([*widths, self.config.bottleneck], norm=True, last_norm=True, bias=False) for _ in self.names)
        return nn.ModuleDict(dict(zip(self.names, made, strict=True)))

    def views(self, images: Tensor, rng: torch.Generator) -> Views:
        """Two views, and for each granularity the tokens drawn by what they share."""
        a, b = draw(images, self.config.first, rng), draw(images, self.config.second, rng)
        grains = zip(self.config.windows, self.config.tokens, strict=True)
        pairs = tuple(drawn(overlaps(a, b, self.grid // c), count, rng) for c, count in grains)
        return Views(a.pixels, b.pixels, pairs)

    def forward(self, views: Views, now: Now) -> Output:
        """One loss for each granularity, both directions in it; their sum is the paper's."""
        pixels = torch.cat([views.first, views.second])
        base = self.base_encoder(pixels)[:, 1:].chunk(2)
        with torch.no_grad():
            momentum = self.momentum_encoder(pixels)[:, 1:].chunk(2)
        losses = {}
        for name, window, found in zip(self.names, self.config.windows, views.pairs, strict=True):
            losses[f"contrast_{window}"] = self._grain(name, window, found, base, momentum)
        return losses, {"features": base[0].mean(1).detach()}

    def _grain(
        self, name: str, window: int, found: Pairs, base: tuple[Tensor, ...], momentum: tuple[Tensor, ...]
    ) -> Tensor:
        def ours(tokens: Tensor) -> Tensor:
            return self.predictors[name](self.projectors[name](tokens))  # type: ignore[no-any-return]

        first, second = found.first, found.second
        queries = [_projected(ours, pooled(x, window), i) for x, i in zip(base, (first, second), strict=True)]
        with torch.no_grad():
            head = self.momentum_projectors[name]
            keys = [_projected(head, pooled(x, window), i) for x, i in zip(momentum, (first, second), strict=True)]
        t = self.config.temperature
        return contrast(queries[0], keys[1], found.area, t) + contrast(queries[1], keys[0], found.swapped().area, t)

    def pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        """The momentum encoder and its projectors follow the base's."""
        return (self.momentum_encoder, self.base_encoder), (self.momentum_projectors, self.projectors)

    def momentum(self, now: Now) -> float:
        """Half a cosine from the start to 1 (main_pretrain.py:225)."""
        return cosine(self.config.momentum, 1.0, now.done)

    def encode(self, images: Tensor) -> Tensor:
        """(B, D) mean of the base encoder's patches after the final norm."""
        return self.base_encoder(images)[:, 1:].mean(1)  # type: ignore[no-any-return]

    def export(self) -> dict[str, Tensor]:
        """`base_encoder.` and its projectors under the released files' names, `projector_patch.`, `projector_divide_16.`."""
        state = {f"base_encoder.{key}": value for key, value in self.base_encoder.state_dict().items()}
        for name in self.names:
            state |= {f"projector_{name}.{key}": value for key, value in self.projectors[name].state_dict().items()}
        return state


def _encoder(arch: ViTConfig) -> VisionTransformer:
    """With the fixed table of sines and cosines (rows before columns, zeros for the class token)."""
    encoder = transformer(arch)
    with torch.no_grad():
        table = encoder.pos_embed[:, 1:].view(1, *arch.grid, arch.dim)
        encoder.pos_embed[:, 1:] = moco_v3(table, arch.grid).flatten(1, 2)
    encoder.pos_embed.requires_grad_(False)
    return encoder


def _projected(head: Callable[[Tensor], Tensor], tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, N, D) at (B, K) by a head of rows -> (B, K, D')."""
    rows = tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))
    return head(rows.flatten(0, 1)).view(*index.shape, -1)


def _check(grid: int, arch: ViTConfig, config: Config) -> None:
    """Raises PretrainError where views, windows and tokens do not fit."""
    if config.first.size != config.second.size or config.first.size % arch.patch:
        raise PretrainError(
            f"views of {config.first.size} and {config.second.size} pixels: both need one size, "
            f"a multiple of the patch of {arch.patch}"
        )
    if len(config.windows) != len(config.tokens):
        raise PretrainError(f"{len(config.windows)} windows and {len(config.tokens)} numbers of tokens: give as many")
    for window, count in zip(config.windows, config.tokens, strict=True):
        if window < 1 or grid % window or not 1 <= count <= (grid // window) ** 2:
            raise PretrainError(
                f"{count} tokens of {window} x {window} patches from a grid of {grid} x {grid}: "
                "windows must tile the grid, and no more tokens be drawn than there are"
            )


METHOD = MGC
