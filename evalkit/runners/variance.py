"""How much features move when the view of an image does: class token over random crops, patch tokens over masked views.

What:   "cls": each image is seen through V random crops (no flip); the variance of each dimension of the class token over
        the crops, mean over dimensions, mean over images. "patches": the image's centre square, V times with half of
        its blocks replaced by noise, each time other ones; the variance of each dimension of each patch token over the
        views, mean over dimensions and positions (also those under noise), mean over images. Population variance (divided
        by V) of the tokens after the final norm as the encoder gives them.
Source: MMC Table 10 (arXiv:2308.11448): 128 random crops, 128 views with 50 % of blocks replaced by noise. No code is
        public, and the paper does not say more. Chosen here: crops of 0.4 to 1 of the area (DINO's global crops,
        facebookresearch/dino 7c446df, main_dino.py); a block is one patch, exactly floor(share x patches) of them; noise is
        N(0, 1) after normalisation (GMML, Sara-Ahmed/GMML 1882712, datasets/datasets_utils.py, from which MMC descends).
Rule:   variance grows with the scale of the features, and families differ in scale. "cls/unit" and "patches/unit" are the
        same of tokens of length 1, summed over dimensions: 0 is no movement, 1 is no common direction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from evalkit.errors import FeatureError, ProtocolError, UsageError
from evalkit.metrics import bootstrap
from evalkit.probing.crops import LARGEST, crops
from evalkit.probing.resume import taken_up
from evalkit.state import Form, OneOf, Sized
from evalkit.types import Augmentation, Interpolation, Job, Score

WHOLE = (1.0, 1.0)
"""Scale and ratio under which a random crop is the centre square of the short side."""


LABELS_APART = True
"""Labels of one split are never held against those of the other, so the splits may have other classes."""


@dataclass(frozen=True)
class Config:
    """views: of each image, for both parts; 128 (MMC). share: of the blocks that become noise; 0.5 (MMC). scale: area of
    the crops, (0.4, 1) as DINO's global crops. size: of both kinds of view, 224; "encoder" is the encoder's own, at most
    224; rounded down to a multiple of the patch. interpolation: bicubic (DINO). batch_size: images encoded at once; the
    noise depends on it. Raises UsageError for values that cannot be."""

    views: int = 128
    share: float = 0.5
    scale: tuple[float, float] = (0.4, 1.0)
    size: int | Literal["encoder"] = 224
    interpolation: Interpolation = "bicubic"
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name, low in (("views", 2), ("batch_size", 1)):
            if getattr(self, name) < low:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {low}")
        if self.size != "encoder" and self.size < 1:
            raise UsageError(f"size is {self.size}; pixels, at least 1, or the encoder's own")
        if not 0 <= self.share <= 1 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UsageError(
                f"share is {self.share} and scale {list(self.scale)}; shares of blocks and area, in [0, 1]"
            )


class Spread:
    """Variance over views of many vectors at once, view by view (Welford's recurrence), in float64.

    Vectors are (n, ..., D); what lies between n and D is averaged over.
    """

    def __init__(self, mean: Tensor, squares: Tensor) -> None:
        self.mean, self.squares = mean, squares

    @staticmethod
    def zeros(*shape: int, device: torch.device) -> Spread:
        """Nothing seen yet, for vectors of this shape."""
        return Spread(
            torch.zeros(shape, dtype=torch.float64, device=device),
            torch.zeros(shape[0], dtype=torch.float64, device=device),
        )

    def add(self, vectors: Tensor, view: int, rows: Tensor | None = None) -> None:
        """One more view, number `view` from 0, of the vectors at `rows` (all without); vectors: (b, ..., D)."""
        at = slice(None) if rows is None else rows
        before = self.mean[at]
        new = vectors.double()
        after = before + (new - before) / (view + 1)
        self.squares[at] += ((new - before) * (new - after)).flatten(1).sum(dim=1)
        self.mean[at] = after

    def variance(self, views: int) -> Tensor:
        """(n,) population variance after so many views, mean over all entries of a vector."""
        return self.squares / (views * self.mean[0].numel())

    def total(self, views: int) -> Tensor:
        """(n,) the same summed over the last axis, and mean over those before it."""
        return self.variance(views) * self.mean.shape[-1]


def corrupt(images: Tensor, patch: int, share: float, rng: torch.Generator) -> Tensor:
    """The images with floor(share x patches) blocks of each, drawn anew, replaced by N(0, 1) noise.

    images: (B, 3, H, W) float, normalised, H and W multiples of `patch`; rng: on their device.
    """
    batch, _, height, width = images.shape
    grid = (height // patch, width // patch)
    order = torch.rand(batch, grid[0] * grid[1], generator=rng, device=images.device).argsort(dim=1).argsort(dim=1)
    hidden = (order < int(share * order.shape[1])).view(batch, 1, *grid)
    hidden = hidden.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
    noise = torch.randn(images.shape, generator=rng, device=images.device, dtype=images.dtype)
    return torch.where(hidden, noise, images)


def run(job: Job) -> Iterator[Score]:
    """Yield "cls" (headline), "patches", "cls/unit" and "patches/unit"; lower is more invariant.

    Values are variances, means over the images of the test split; n is their number, intervals are grouped by photo.
    Unfinished work is taken up after the last whole round of crops, or batch of masked views. Raises ProtocolError for an
    empty split, FeatureError where tokens are not finite.
    """
    dataset = job.dataset("test")
    if len(dataset) == 0:
        raise ProtocolError("the test split has no image: there is nothing to look at")
    form = _form(job.config.views, len(dataset), job.encoder.spec.dim)
    state = taken_up(job.checkpoint, form) or {"epochs": 0, "spread": None, "cls": None, "patches": None}
    if state["cls"] is None:
        state = _crops(job, state, len(dataset))
    found = _masked(job, state, len(dataset))
    seen = ~torch.isnan(found["cls"]) & ~torch.isnan(found["patches"])
    numbers: dict[str, int] = {}
    groups = [numbers.setdefault(dataset[index].group, len(numbers)) for index in range(len(dataset))]
    kept = torch.tensor(groups)[seen].numpy()
    for name in ("cls", "patches", "cls/unit", "patches/unit"):
        note = "tokens of length 1, summed over dimensions" if name.endswith("unit") else ""
        yield bootstrap.score(name, found[name][seen].numpy(), kept, unit="variance", note=note, seed=job.seed)


def _form(views: int, images: int, dim: int) -> Form:
    """Of a state between two rounds of crops, and of one between two batches of masked views."""
    column = Sized(torch.float64, (images,))
    spread = (Sized(torch.float64, (images, dim)), column)
    of_crops = {"spread": (spread, spread), "seen": Sized(torch.bool, (images,)), "cls": None, "patches": None}
    of_masked = {"spread": None, **dict.fromkeys(("cls", "cls/unit", "patches", "patches/unit"), column)}
    return OneOf(({"epochs": range(1, views + 1), **of_crops}, {"epochs": range(views, views + 1), **of_masked}))


def _crops(job: Job, state: dict[str, Any], images: int) -> dict[str, Any]:
    """The state after all rounds of crops: `cls` and `cls/unit` (N,), NaN for images that cannot be decoded."""
    config: Config = job.config
    dim, here = job.encoder.spec.dim, torch.device("cpu")
    spreads = [Spread(*pair) for pair in state["spread"] or ()]
    spreads = spreads or [Spread.zeros(images, dim, device=here) for _ in range(2)]
    seen = state.get("seen", torch.zeros(images, dtype=torch.bool))
    augmentation = _views(job, Augmentation(LARGEST, config.scale))
    stream = job.stream(
        "test", augmentation, epochs=config.views, batch_size=config.batch_size, first_epoch=state["epochs"]
    )
    total = (config.views - state["epochs"]) * -(-images // config.batch_size)
    for batch in job.track(stream, "variance over crops", total=total):
        rows = job.encode(batch.images)[0].cls
        if rows is None:
            raise FeatureError("the variance of the class token needs one, and this encoder has none")
        rows = _finite(rows).cpu()
        for spread, vectors in zip(spreads, (rows, F.normalize(rows.double(), dim=-1)), strict=True):
            spread.add(vectors, batch.epoch, batch.positions)
        seen[batch.positions] = True
        if batch.last_of_epoch:
            saved = [(spread.mean, spread.squares) for spread in spreads]
            state = {"epochs": batch.epoch + 1, "spread": saved, "seen": seen, "cls": None, "patches": None}
            job.checkpoint.save(state)
    found = {"cls": spreads[0].variance(config.views), "cls/unit": spreads[1].total(config.views)}
    empty = torch.full((images,), torch.nan, dtype=torch.float64)
    found = {name: torch.where(seen, values, empty) for name, values in found.items()}
    state = {"epochs": config.views, "spread": None, **found, "patches": empty, "patches/unit": empty.clone()}
    job.checkpoint.save(state)
    return state


def _masked(job: Job, state: dict[str, Any], images: int) -> dict[str, Tensor]:
    """All four columns (N,), those of the patches filled batch by batch."""
    config: Config = job.config
    augmentation = _views(job, Augmentation(LARGEST, WHOLE, WHOLE))
    job.fact("views", {"crops": config.views, "masked": config.views, "size": augmentation.size})
    stream = job.stream("test", augmentation, epochs=1, batch_size=config.batch_size)
    total = -(-images // config.batch_size)
    for number, batch in enumerate(job.track(stream, "variance over masked views", total=total)):
        if not bool(torch.isnan(state["patches"][batch.positions]).any()):
            continue
        seed = job.rng("variance", "noise", number).initial_seed()
        plain, unit = _of_masked(job, batch.images, torch.Generator(batch.images.device).manual_seed(seed))
        state["patches"][batch.positions], state["patches/unit"][batch.positions] = plain.cpu(), unit.cpu()
        job.checkpoint.save(state)
    return {name: state[name] for name in ("cls", "patches", "cls/unit", "patches/unit")}


def _of_masked(job: Job, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """(B,) variance of the patch tokens, and total variance of the same at length 1."""
    config: Config = job.config
    spreads: list[Spread] = []
    for view in range(config.views):
        hidden = corrupt(images, job.encoder.spec.patch, config.share, rng)
        tokens = _finite(job.encode(hidden)[0].patches)
        spreads = spreads or [Spread.zeros(*tokens.shape, device=tokens.device) for _ in range(2)]
        for spread, vectors in zip(spreads, (tokens, F.normalize(tokens.double(), dim=-1)), strict=True):
            spread.add(vectors, view)
    return spreads[0].variance(config.views), spreads[1].total(config.views)


def _views(job: Job, like: Augmentation) -> Augmentation:
    return crops(job, job.config.size, replace(like, flip=0.0, interpolation=job.config.interpolation))


def _finite(tokens: Tensor) -> Tensor:
    if not bool(torch.isfinite(tokens).all()):
        raise FeatureError("the encoder gave tokens that are not finite")
    return tokens.float()
