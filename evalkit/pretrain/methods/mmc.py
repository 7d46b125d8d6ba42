"""MMC, masked momentum contrast (Wu et al. 2023, arXiv:2308.11448). Neither code nor weights are public.

The student sees large views with corrupted blocks (GMML), the teacher, its moving average, clean views. Three terms of
equal weight (Eq. 4; the paper's numbers of the single terms were not at hand):
- reconstruction: the L1 distance of the predicted pixels of corrupted patches from the clean ones;
- patches: InfoNCE of a student's patch, the same patch of the clean view its positive, patches of other images the
  negatives;
- class token: InfoNCE of a student's class token, another clean view of the image its positive, other images' the negatives.
Each has a three-layer head of its own; temperature 0.2.

What the paper leaves open is taken from SiT, the method before it of the same group (Atito et al. 2021, arXiv:2104.03602;
Sara-Ahmed/SiT 7f22e9c, GPL: nothing of it is in this file): batch norm in the contrastive heads, ReLU after the first layer
and GELU after the second, 256 outputs; two large views, each the class token's positive of the other; negatives from the
batch; the error over all corrupted pixels of both views. GMML's two kinds of corruption, and what its "up to 75 %" and
"30 %" are, in `masking.corrupt`. Assumed besides: small views, clean, are seen by the teacher alone and are further
positives of the class tokens ("multi-crop unmasked for the teacher"); the reconstruction's head has GELU and no batch norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.adapters.vit import VisionTransformer, ViTConfig
from evalkit.errors import PretrainError
from evalkit.pretrain.distributed import average, gather, rank
from evalkit.pretrain.heads import mlp
from evalkit.pretrain.masking import corrupt
from evalkit.pretrain.method import Method, Now, Output, follow, transformer
from evalkit.pretrain.multicrop import MultiCrop, crops, each
from evalkit.pretrain.patches import at, patches_of
from evalkit.pretrain.precision import exact, full
from evalkit.pretrain.schedules import cosine


@dataclass(frozen=True)
class Config:
    """Defaults: the paper's where it says so, else SiT's (main.py:29-60, datasets/datasets_utils.py:147-186).

    crops: views; scale and colours are SiT's, the number of small ones is assumed. noise, foreign: shares of an image that
    corruption takes (GMML, main.py:50-51). hidden, out: widths of the heads. temperature: of both contrasts. places:
    patches of a view that are contrasted, drawn at random; 0: all. momentum: rises on half a cosine to 1. drop_path: of
    the student.
    """

    crops: MultiCrop = field(default_factory=lambda: MultiCrop(scale=(0.2, 1.0), small_scale=(0.05, 0.2)))
    noise: float = 0.75
    foreign: float = 0.3
    hidden: int = 4096
    out: int = 256
    temperature: float = 0.2
    places: int = 0
    momentum: float = 0.996
    drop_path: float = 0.1


@dataclass(frozen=True)
class Views:
    """clean, corrupted: large views (B, 3, s, s), normalised, the same but for corruption. masks: (B, P) bool, True where a
    patch is corrupted. places: (B, K) indices of the patches that are contrasted. small: clean small views."""

    clean: tuple[Tensor, Tensor]
    corrupted: tuple[Tensor, Tensor]
    masks: tuple[Tensor, Tensor]
    places: tuple[Tensor, Tensor]
    small: tuple[Tensor, ...]


def reconstruction(predicted: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
    """First term of Eq. 4: the mean of |predicted - pixels| over the corrupted patches of all images, on all processes.

    predicted, pixels: (B, P, pixels). mask: (B, P) bool. Returns a scalar, 0 where nothing is corrupted.
    """
    error = (full(predicted) - full(pixels)).abs().mean(-1) * mask
    count = average(mask.sum().to(error.dtype))
    return error.sum() / torch.where(count > 0, count, 1)


def contrast(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Second and third term of Eq. 4: InfoNCE of (B, K, D) queries, of each image K, against keys (B, K, D) of all images.

    A query's positive is the key of its own image and place; its negatives are all keys of other images, on all processes;
    other keys of its own image do not count. Queries and keys are brought to unit length. Returns the mean, a scalar.
    """
    b, k, _ = queries.shape
    with exact(queries):
        q, own = F.normalize(full(queries), dim=-1), F.normalize(full(keys.detach()), dim=-1)
        everyone = gather(own)
        logits = q @ everyone.flatten(0, 1).T / temperature  # (B, K, images K)
        images = torch.arange(len(everyone), device=q.device).repeat_interleave(k)
        mine = images == (rank() * b + torch.arange(b, device=q.device))[:, None]
        positive = (q * own).sum(-1) / temperature
        others = torch.logsumexp(logits.masked_fill(mine[:, None], -torch.inf), -1)
        return (torch.logaddexp(positive, others) - positive).mean()


class Heads(nn.Module):
    """The contrastive heads, which the teacher has too: one for class tokens, one for patches."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.cls, self.patches = (projector(dim, hidden, out) for _ in range(2))


def projector(dim: int, hidden: int, out: int) -> nn.Sequential:
    """SiT's contrastive head (vision_transformer.py:246-275): three layers, batch norm after each, the last one plain."""
    head = mlp([dim, hidden, hidden, out], norm=True, last_norm=True)
    head[5] = nn.GELU()
    return head


class MMC(Method):
    """Student and teacher with their contrastive heads, and the student's head that predicts pixels."""

    family = "mmc"

    def __init__(self, arch: ViTConfig, config: Config) -> None:
        super().__init__()
        patches = (config.crops.size // arch.patch) ** 2
        if not 0 <= config.places <= patches:
            raise PretrainError(f"places = {config.places} of {patches} patches; choose 0, which is all, to {patches}")
        self.arch, self.config = arch, config
        self.student = transformer(replace(arch, drop_path=config.drop_path))
        self.student_heads = Heads(arch.dim, config.hidden, config.out)
        self.pixels = mlp([arch.dim, config.hidden, config.hidden, arch.patch**2 * 3], norm=False, activation=nn.GELU)
        self.teacher, self.teacher_heads = VisionTransformer(arch), Heads(arch.dim, config.hidden, config.out)
        for target, source in self.pairs():
            follow(target, source)

    def views(self, images: Tensor, rng: torch.Generator) -> Views:
        """Two large views, clean and corrupted, and the small ones."""
        c, found = self.config, crops(images, self.config.crops, rng)
        first, second = (corrupt(x, self.arch.patch, rng, noise=c.noise, foreign=c.foreign) for x in found.large)
        places = self._places(first[1], rng), self._places(second[1], rng)
        return Views(found.large, (first[0], second[0]), (first[1], second[1]), places, found.small)

    def _places(self, mask: Tensor, rng: torch.Generator) -> Tensor:
        """(B, K) patches, all or some at random."""
        order = torch.rand(mask.shape, device=rng.device, generator=rng).argsort(1)
        return order[:, : self.config.places or mask.shape[1]]

    def forward(self, views: Views, now: Now) -> Output:
        """The losses `pixels`, `patches` and `cls`."""
        with torch.no_grad():
            seen = each(self.teacher, views.clean)
            keys = _patches(self.teacher_heads, seen, views.places)
            classes = [tokens[:, 0] for tokens in (*seen, *each(self.teacher, views.small))]
            taught = _rows(self.teacher_heads.cls, classes)
        tokens = each(self.student, views.corrupted)
        queries = _patches(self.student_heads, tokens, views.places)
        said = _rows(self.student_heads.cls, [x[:, 0] for x in tokens])
        losses = {
            "pixels": self._reconstruction(tokens, views),
            "patches": self._mean(
                [contrast(q, k, self.config.temperature) for q, k in zip(queries, keys, strict=True)]
            ),
            "cls": self._classes(said, taught),
        }
        return losses, {"features": classes[0]}

    def _reconstruction(self, tokens: Sequence[Tensor], views: Views) -> Tensor:
        predicted = self.pixels(torch.cat([x[:, 1:] for x in tokens]))
        return reconstruction(predicted, patches_of(torch.cat(views.clean), self.arch.patch), torch.cat(views.masks))

    def _classes(self, said: Sequence[Tensor], taught: Sequence[Tensor]) -> Tensor:
        """Every student view against every other clean view."""
        others = [(q, k) for i, q in enumerate(said) for j, k in enumerate(taught) if i != j]
        return self._mean([contrast(q[:, None], k[:, None], self.config.temperature) for q, k in others])

    @staticmethod
    def _mean(terms: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(terms)).mean()

    def encode(self, images: Tensor) -> Tensor:
        """The teacher's class tokens."""
        return self.teacher(images)[:, 0]  # type: ignore[no-any-return]

    def pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        """The teacher follows the student, its contrastive heads the student's."""
        return (self.teacher, self.student), (self.teacher_heads, self.student_heads)

    def momentum(self, now: Now) -> float:
        """On half a cosine to 1, as the paper and SiT (main.py:162)."""
        return cosine(self.config.momentum, 1.0, now.done)

    def export(self) -> dict[str, Tensor]:
        """The teacher, `backbone.*`, and its head of the class token, `head.mlp.*`, as SiT's files call them."""
        state = {f"backbone.{key}": value for key, value in self.teacher.state_dict().items()}
        return state | {f"head.mlp.{key}": value for key, value in self.teacher_heads.cls.state_dict().items()}


def _rows(head: nn.Module, rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The head on (B, D) of several views at once."""
    return head(torch.cat(list(rows))).chunk(len(rows))  # type: ignore[no-any-return]


def _patches(heads: Heads, tokens: Sequence[Tensor], places: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Patches at their places (B, K), by the head for patches: (B, K, D') for each view."""
    chosen = torch.cat([at(x[:, 1:], i) for x, i in zip(tokens, places, strict=True)])
    return heads.patches(chosen.flatten(0, 1)).view(*chosen.shape[:2], -1).chunk(len(tokens))  # type: ignore[no-any-return]


METHOD = MMC
