"""Reading features: rows from mapped shards on disk, or from shards in memory; grids may differ from image to image.

A shard holds `cls.<block>`, `mean.<block>`, `projection.<block>` and `bottleneck.<block>` (rows, D) float32, each of
its own width, and for patch tokens `patches.<block>` (tokens, D) flat, `grids` (rows, 2) int32 (h, w) and `offsets`
(rows + 1) int64: the tokens of row i are offsets[i] to offsets[i + 1], in reading order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from evalkit.errors import FeatureError
from evalkit.features.key import Request, numbered
from evalkit.features.shards import Facts
from evalkit.types import Dataset, Part

Rows = dict[str, Tensor]
"""Named tensors of some rows, without `offsets`; every tensor's first axis runs over rows, or over tokens."""


@dataclass(frozen=True)
class Columns:
    """What is known of the samples before any image is opened. labels, groups: (N,) int64; group numbers count from 0
    in order of first appearance. order: (id, group, box) of each, what the key hashes."""

    order: tuple[tuple[str, str, object], ...]
    labels: Tensor
    groups: Tensor

    @staticmethod
    def of(dataset: Dataset) -> Columns:
        """Reads every sample once. Raises FeatureError for a dataset without samples."""
        samples = [dataset[position] for position in range(len(dataset))]
        if not samples:
            raise FeatureError(f"{dataset.name} has no samples in split {dataset.split!r}")
        numbers: dict[str, int] = {}
        groups = [numbers.setdefault(sample.group, len(numbers)) for sample in samples]
        order = tuple((sample.id, sample.group, sample.box) for sample in samples)
        labels = torch.tensor([sample.label for sample in samples], dtype=torch.int64)
        return Columns(order, labels, torch.tensor(groups, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.order)

    def without(self, skipped: Sequence[int]) -> tuple[Columns, tuple[str, ...]]:
        """The columns of the rows that are there, and the ids of those at the positions `skipped`."""
        if not skipped:
            return self, ()
        gone = set(skipped)
        kept = [position for position in range(len(self)) if position not in gone]
        rows = torch.tensor(kept, dtype=torch.int64)
        order = tuple(self.order[position] for position in kept)
        return Columns(order, self.labels[rows], self.groups[rows]), tuple(self.order[p][0] for p in sorted(gone))


class Shard(Protocol):
    """Some consecutive rows."""

    @property
    def rows(self) -> int: ...
    def tensor(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class MappedShard:
    """Rows in a file, mapped when asked for: nothing stays open, and a tensor read is a view of the file."""

    path: Path
    rows: int

    def tensor(self, name: str) -> Tensor:
        """One named tensor. Raises FeatureError where the file went away."""
        try:
            with safe_open(self.path, framework="pt") as file:
                found: Tensor = file.get_tensor(name)
                return found
        except OSError as error:
            raise FeatureError(f"{self.path} went away while it was read; run again to make it again") from error


@dataclass(frozen=True)
class MemoryShard:
    """Rows that were never written."""

    rows: int
    tensors: Mapping[str, Tensor]

    def tensor(self, name: str) -> Tensor:
        """One named tensor."""
        return self.tensors[name]


class StoredFeatures:
    """`Features` over shards, in sample order; see `evalkit.types.Features` for the columns."""

    def __init__(
        self, shards: Sequence[Shard], columns: Columns, skipped: Sequence[int], request: Request, depth: int
    ) -> None:
        kept, self._skipped = columns.without(skipped)
        self._columns, self._request, self._depth = kept, request, depth
        self._shards = [shard for shard in shards if shard.rows]
        held = sum(shard.rows for shard in self._shards)
        if held != len(kept):
            raise FeatureError(f"{held} rows of features for {len(kept)} samples; run `evalkit cache verify`")
        self._ids = tuple(row[0] for row in kept.order)

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""
        return self._columns.labels

    @property
    def groups(self) -> Tensor:
        """(N,) int64: samples with the same number come from the same image."""
        return self._columns.groups

    @property
    def ids(self) -> Sequence[str]:
        """Ids of the rows."""
        return self._ids

    @property
    def skipped(self) -> Sequence[str]:
        """Ids of the samples that could not be decoded."""
        return self._skipped

    def __len__(self) -> int:
        return len(self._ids)

    def get(self, part: Part, block: int = -1) -> Tensor:
        """(N, D) float32, or (N, h, w, D) as stored for "patches", in memory. Raises FeatureError for a part or block
        that was not asked for, or for grids that differ (`tokens` reads those)."""
        return torch.cat(list(self._pieces(part, block)))

    def batches(self, part: Part, block: int = -1, size: int = 1024) -> Iterator[Tensor]:
        """The rows of `get` in pieces of at most `size`, views of mapped shards. Raises as `get` does."""
        if size < 1:
            raise FeatureError(f"batches take a size of at least 1; got {size}")
        return (rows for piece in self._pieces(part, block) for rows in torch.split(piece, size))

    def tokens(self, row: int, block: int = -1) -> Tensor:
        """(h, w, D) patch tokens of one row, whatever the grids of the others. Raises FeatureError as `get`,
        IndexError."""
        name = self._name("patches", block)
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        for shard in self._shards:
            if row < shard.rows:
                start, stop = shard.tensor("offsets")[row : row + 2].tolist()
                height, width = shard.tensor("grids")[row].tolist()
                return shard.tensor(name)[start:stop].view(height, width, -1)
            row -= shard.rows
        raise IndexError(row)

    def _name(self, part: Part, block: int) -> str:
        return named(self._request, self._depth, part, block)

    def _pieces(self, part: Part, block: int) -> Iterator[Tensor]:
        name = self._name(part, block)
        if part != "patches":
            return (shard.tensor(name) for shard in self._shards)
        grids = torch.cat([shard.tensor("grids") for shard in self._shards])
        height, width = (int(side) for side in grids[0])
        if bool((grids != grids[0]).any()):
            raise FeatureError("the images have different grids of patch tokens; read them row by row with tokens(row)")
        return (shard.tensor(name).view(shard.rows, height, width, -1) for shard in self._shards)


def named(request: Request, depth: int, part: Part, block: int) -> str:
    """Name of a tensor in a shard. Raises FeatureError where it was not asked for."""
    number = numbered(block, depth)
    if part not in request.parts or number not in request.blocks:
        held = f"parts {', '.join(request.parts)} of blocks {', '.join(map(str, request.blocks))}"
        raise FeatureError(f"there is no {part!r} of block {block} here: these features hold {held}")
    return f"{part}.{number}"


class Gathered:
    """Rows that come batch by batch, below each other in memory that is taken with the first of them.

    Held batch by batch they would lie in the gaps that the large blocks of a forward pass leave, which then find no gap of
    their size (glibc): a process grew by the tokens of a batch with every batch. images: how many are expected.
    """

    def __init__(self, images: int) -> None:
        self._images, self._held, self._filled = images, dict[str, Tensor](), dict[str, int]()

    def add(self, rows: Rows, images: int) -> None:
        """The rows of so many images."""
        for name, values in rows.items():
            first, held = self._filled.get(name, 0), self._held.get(name)
            last = first + len(values)
            if held is None or last > len(held):
                room = max(last, len(values) * self._images // max(images, 1))
                grown = values.new_empty((room, *values.shape[1:]))
                if held is not None:
                    grown[:first] = held[:first]
                held = self._held[name] = grown
            held[first:last] = values
            self._filled[name] = last

    def rows(self) -> Rows:
        """All that came."""
        return {name: values[: self._filled[name]] for name, values in self._held.items()}


def with_offsets(rows: Rows) -> Rows:
    """The rows with `offsets` beside `grids`, as a shard holds them."""
    if "grids" not in rows:
        return rows
    counts = rows["grids"].to(torch.int64).prod(1)
    return {**rows, "offsets": torch.cat([counts.new_zeros(1), counts.cumsum(0)])}


def serialised(rows: Rows, facts: Facts) -> bytes:
    """A shard's bytes before `shards.seal`; equal rows and facts give equal bytes."""
    blob: bytes = save({name: tensor.contiguous() for name, tensor in with_offsets(rows).items()}, facts.metadata())
    return blob
