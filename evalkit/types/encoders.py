"""What an encoder is, what it gives, and what is known of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from evalkit.types.words import IMAGENET_MEAN, IMAGENET_STD, Need

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """What one block of an encoder says of a batch.

    cls: (B, D) float, or None where the network has no class token.
    patches: (B, h, w, D) float, rows from top to bottom. Register and mask tokens never appear here.
    """

    cls: Tensor | None
    patches: Tensor


@dataclass(frozen=True)
class Preprocessing:
    """How the encoder's authors feed it. size: side in pixels. mean, std: per channel, of pixels in [0, 1]."""

    size: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    source: str = ""


@dataclass(frozen=True)
class EncoderSpec:
    """What is known of a loaded encoder.

    dim, depth, heads: width, number of blocks, attention heads. patch: side of a patch in pixels.
    grid: (h, w) patches at the native size. network: which of the file's networks was taken
    ("teacher", "momentum", "backbone", "untrained" ...). digest: sha256 of the weights file, "" where
    there is none. seed: of an untrained encoder. offers: the needs it can meet. audit: what loading did with each key.
    """

    id: str
    family: str
    arch: str
    dim: int
    depth: int
    heads: int
    patch: int
    grid: tuple[int, int]
    preprocessing: Preprocessing
    network: str
    digest: str
    adapter_version: int
    offers: frozenset[Need]
    seed: int | None = None
    parameters: int = 0
    audit: Mapping[str, Any] = field(default_factory=dict)


class Encoder(Protocol):
    """A frozen network: normalised images in, `Tokens` out. Threads may share it: `encode` leaves nothing in it that
    another call could take for its own."""

    @property
    def spec(self) -> EncoderSpec: ...

    def to(self, device: torch.device) -> Encoder: ...

    def encode(
        self, images: Tensor, blocks: Sequence[int] = (-1,), norm: bool | Sequence[bool] = True
    ) -> tuple[Tokens, ...]:
        """One `Tokens` per block asked for, in the order asked for.

        images: (B, 3, H, W) float, already normalised, H and W multiples of the patch; other sizes than the native
        one resize the position embedding as the family's own code does.
        blocks: 0-based from the input, negative from the output. norm: apply the final norm (one flag, or one per block).
        Raises FeatureError where a block does not exist or the size is no multiple of the patch.
        """
        ...

    def project(self, tokens: Tokens, at: Literal["output", "bottleneck"] = "output") -> Tensor:
        """(B, D') output of the pretraining head. Raises NoProjection where the file holds none."""
        ...

    def attention(self, images: Tensor, queries: Sequence[str | int] = ("cls",)) -> Tensor:
        """(B, heads, Q, N) rows of the last block's attention, each summing to 1; N counts every token, class token
        first. queries: "cls" or the flat index of a patch. Raises Unsupported where there is no attention."""
        ...


@dataclass(frozen=True)
class PublishedAs:
    """Under which names papers print numbers of a checkpoint: the rows of reports/published/papers.csv whose columns say this.

    pretrain_epochs: as printed, "" for rows that state none; several where papers count differently (Mugs counts views);
    () takes every row. papers, tables: only of these, () of all; a table that ablates a method has rows of other networks.
    """

    method: str
    arch: str
    pretrain_data: str
    pretrain_epochs: tuple[str, ...] = ()
    papers: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """`model_zoo/<id>.toml`: one checkpoint.

    family: an adapter. arch: one of that adapter's names. file: a path beside the manifest, or a name in the cache when
    `url` is given ("": the last part of `url`). url: where it is fetched from, "" where only people can get it: then
    `origin` is the page and `notes` says how. sha256: of the whole file, only where its authors publish it; sha256_prefix,
    md5_prefix: the first digits, where they publish those. size: in bytes, 0 where not known. network: which network to
    take, "" for the family's default. prefix: of the network's keys, where the file leaves that open. grid: (h, w) of its
    position table, where that is no square. seed: of an untrained control.
    published: rows of numbers that belong to it; published_as: the same by reference to reports/published.
    """

    id: str
    family: str
    arch: str
    title: str = ""
    file: str = ""
    url: str = ""
    sha256: str = ""
    sha256_prefix: str = ""
    md5_prefix: str = ""
    size: int = 0
    network: str = ""
    prefix: str = ""
    grid: tuple[int, int] | None = None
    licence: str = ""
    origin: str = ""
    paper: str = ""
    notes: str = ""
    shipped: bool = False
    control: bool = False
    seed: int | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    published: tuple[Mapping[str, Any], ...] = ()
    published_as: PublishedAs | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
