"""Encoder x dataset -> features: stored once, computed in pieces of fixed size, resumed where a killed run ended.

    store.py has all of it, sound      -> read; no worker starts, the encoder is not called
    some shards are missing or damaged -> those are made (again), the rest are kept
    larger than the store's budget     -> nothing is stored; each reading computes
    no store                           -> kept in memory if it fits the default budget

Shards cover fixed ranges of samples and batches start where a shard starts, so the result does not depend on where a
run was interrupted or how many workers decode.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from evalkit.errors import BrokenImage, FeatureError, UsageError
from evalkit.features import decoding, shards
from evalkit.features.forward import Forward, check_finite, check_length, pipelined, width
from evalkit.features.key import Key, PatchDtype, Request, key_of, samples_digest
from evalkit.features.store import FeatureStore, Origin, default_budget
from evalkit.features.stored import (
    Columns,
    Gathered,
    MappedShard,
    MemoryShard,
    Rows,
    StoredFeatures,
    named,
    serialised,
)
from evalkit.types import Dataset, Encoder, Features, Part, Precision, Progress, View

LOG = logging.getLogger(__name__)

SHARD_BYTES = 64 << 20
ROWS_LOW, ROWS_HIGH = 256, 2048
ATTEMPTS = 3
"""Times that shards are made before the disk is given up on: they are read back after writing."""


@dataclass(frozen=True)
class ExtractOptions:
    """How to extract; nothing here but `precision` and `patches_dtype` changes what the features are.

    precision: "auto" is resolved by `resolve_precision`. batch_size, workers: None for a default by device.
    skip_broken: leave out images that cannot be decoded, instead of an error. store: None keeps features in memory.
    patches_dtype: of stored patch tokens. shard_rows: samples per shard, None for about 64 MB.
    """

    device: torch.device | str = "cpu"
    precision: Precision = "auto"
    batch_size: int | None = None
    workers: int | None = None
    skip_broken: bool = False
    store: FeatureStore | None = None
    progress: Progress | None = None
    patches_dtype: PatchDtype = "float16"
    shard_rows: int | None = None

    def __post_init__(self) -> None:
        for name, low in (("batch_size", 1), ("workers", 0), ("shard_rows", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"{name} is {value}; it is a whole number of at least {low}, or None for the default")


def resolve_precision(precision: Precision, device: torch.device | str) -> Precision:
    """ "fp32" or "bf16". "auto" is bf16 on a CUDA device that has it, else fp32: on a 2-core CPU bf16 autocast takes
    three times as long as fp32 for a small ViT. Raises UsageError for another word."""
    if precision not in ("auto", "fp32", "bf16"):
        raise UsageError(f"precision is {precision!r}; it can be auto, fp32 or bf16")
    if precision != "auto":
        return precision
    return "bf16" if torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def extract(
    encoder: Encoder, dataset: Dataset, view: View, request: Request, *, options: ExtractOptions | None = None
) -> Features:
    """Features of every sample of a dataset, in sample order; see the module for where they come from.

    Raises BrokenImage (unless `skip_broken`) naming the images; FeatureError for an empty dataset, features that are
    not finite (with the first sample's id; its shard is not stored) or all 0, or a dead worker; Unsupported where a part is not
    there; StoreError where the store cannot be written. Shards finished before an error are kept.
    """
    options = options or ExtractOptions()
    plan = Plan(encoder, dataset, view, request.resolved(encoder.spec.depth), options)
    budget = default_budget() if options.store is None else options.store.budget
    if plan.bytes > budget:
        LOG.info("%s needs %.1f GB, above the budget of %.1f GB: not stored", plan.what, plan.bytes / 1e9, budget / 1e9)
        return RecomputedFeatures(plan)
    return _in_memory(plan) if options.store is None else _stored(plan, options.store)


@dataclass(frozen=True)
class Plan:
    """One extraction, every default resolved. request: resolved."""

    encoder: Encoder
    dataset: Dataset
    view: View
    request: Request
    options: ExtractOptions

    @cached_property
    def columns(self) -> Columns:
        """The samples."""
        return Columns.of(self.dataset)

    @cached_property
    def device(self) -> torch.device:
        """Where the encoder runs."""
        return torch.device(self.options.device)

    @property
    def what(self) -> str:
        """The work, for people."""
        return f"features of {self.dataset.name} ({self.dataset.split}) by {self.encoder.spec.id}"

    @cached_property
    def precision(self) -> Precision:
        """fp32 or bf16."""
        return resolve_precision(self.options.precision, self.device)

    @cached_property
    def row_bytes(self) -> int:
        """Size of one image's features as stored."""
        tokens = (self.view.size // self.encoder.spec.patch) ** 2 * (
            2 if self.options.patches_dtype == "float16" else 4
        )
        size = {part: tokens if part == "patches" else 4 for part in self.request.parts}
        return sum(size[part] * width(self.encoder, part) for part in size) * len(self.request.blocks)

    @property
    def bytes(self) -> int:
        """Size of all features as stored."""
        return self.row_bytes * len(self.columns)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Positions [first, stop) of every shard: a power of two of rows near 64 MB, the same for every batch size."""
        rows = self.options.shard_rows or ROWS_LOW
        while self.options.shard_rows is None and rows < ROWS_HIGH and 2 * rows * self.row_bytes <= SHARD_BYTES:
            rows *= 2
        total = len(self.columns)
        return [(first, min(first + rows, total)) for first in range(0, total, rows)]

    @property
    def loading(self) -> decoding.Loading:
        """How decoding runs."""
        cuda = self.device.type == "cuda"
        batch = self.options.batch_size or (256 if cuda else 64)
        workers = self.options.workers
        if workers is None:
            workers = decoding.default_workers(self.device, len(self.columns), batch)
        return decoding.Loading(workers, cuda, batch)

    @cached_property
    def key(self) -> Key:
        """What the store calls the result."""
        samples = samples_digest(self.columns.order)
        return key_of(
            self.encoder.spec,
            self.dataset,
            self.view,
            request=self.request,
            samples=samples,
            precision=self.precision,
            patches=self.options.patches_dtype,
        )

    def decoded(self, spans: Sequence[tuple[int, int]], what: str) -> Iterator[decoding.Pack]:
        """uint8 batches of the spans, with progress shown."""
        groups: list[int] = self.columns.groups.tolist()
        loading = self.loading
        packs: Iterable[Any] = decoding.decoded(self.dataset, self.view, spans, groups=groups, loading=loading)
        if self.options.progress is not None:
            total = sum(1 for _ in decoding.batches(spans, loading.batch))
            packs = self.options.progress.track(packs, what, total)
        yield from packs

    def computed(self, spans: Sequence[tuple[int, int]], request: Request) -> Iterator[tuple[decoding.Pack, Rows]]:
        """Batches of the spans with their rows, checked. Raises what `extract` raises for images and features."""
        encoder = self.encoder.to(self.device)
        dtype = self.options.patches_dtype
        forward = Forward(encoder, self.view, request, self.device, self.precision, dtype)
        broken = decoding.Broken(self.dataset, self.options.skip_broken)
        packs = _admitted(self.decoded(spans, self.what), broken)
        for pack, rows in pipelined(forward, packs):
            check_finite(rows, [self.columns.order[position][0] for position in pack.positions], encoder.spec.id)
            check_length(rows, encoder.spec.id)
            yield pack, rows

    def shards(self, numbers: Sequence[int]) -> Iterator[tuple[shards.Facts, Rows]]:
        """The shards of these numbers, computed in order."""
        spans = [self.spans[number] for number in numbers]
        batches = self.computed(spans, self.request)
        for number, (first, stop) in zip(numbers, spans, strict=True):
            gathered, skipped = Gathered(stop - first), list[int]()
            for pack, rows in batches:
                gathered.add(rows, len(pack.positions))
                skipped += [position for position, _ in pack.failures]
                if pack.stop == stop:
                    break
            held = stop - first - len(skipped)
            yield shards.Facts(self.key.digest, number, first, stop, held, tuple(skipped)), gathered.rows()


def _admitted(packs: Iterable[decoding.Pack], broken: decoding.Broken) -> Iterator[decoding.Pack]:
    for pack in packs:
        broken.take(pack)
        yield pack


def _in_memory(plan: Plan) -> StoredFeatures:
    made: list[MemoryShard] = []
    skipped: list[int] = []
    for facts, rows in plan.shards(range(len(plan.spans))):
        made.append(MemoryShard(facts.rows, rows))
        skipped += facts.skipped
    return _features(plan, made, skipped)


def _stored(plan: Plan, store: FeatureStore) -> StoredFeatures:
    key = plan.key.digest
    held, problems = store.sound(key, plan.spans)
    for _ in range(ATTEMPTS):
        for problem in problems:
            LOG.warning("damaged shard, made again: %s", problem)
        missing = [number for number in range(len(plan.spans)) if number not in held]
        if not missing:
            break
        _make(plan, store, missing)
        held, problems = store.sound(key, plan.spans)
    if len(held) < len(plan.spans):
        raise FeatureError(f"shards do not read back as written: {'; '.join(problems)}. Check the disk.")
    return _opened(plan, store, [held[number] for number in range(len(plan.spans))])


def _make(plan: Plan, store: FeatureStore, missing: Sequence[int]) -> None:
    folder = store.claim(plan.key.digest)
    (folder / "index.json").unlink(missing_ok=True)
    for facts, rows in plan.shards(missing):
        sealed, _ = shards.seal(serialised(rows, facts))
        shards.write(folder / shards.name(facts.number), sealed)
        del rows, sealed  # before the next shard is made


def _opened(plan: Plan, store: FeatureStore, held: Sequence[shards.Facts]) -> StoredFeatures:
    key = plan.key.digest
    if store.index(key) is None:
        spec, dataset = plan.encoder.spec, plan.dataset
        store.finish(plan.key, Origin(spec.id, dataset.name, dataset.split, len(plan.columns)), held)
    store.touch(key)
    skipped = [position for one in held for position in one.skipped]
    if skipped and not plan.options.skip_broken:
        names = [plan.columns.order[position][1] for position in skipped]
        raise BrokenImage(decoding.refusal(plan.dataset, names))
    mapped = [MappedShard(store.folder(key) / shards.name(one.number), one.rows) for one in held]
    return _features(plan, mapped, skipped)


def _features(plan: Plan, made: Sequence[MappedShard | MemoryShard], skipped: Sequence[int]) -> StoredFeatures:
    if len(skipped) == len(plan.columns):
        raise BrokenImage(f"no image of {plan.dataset.name} ({plan.dataset.split}) can be decoded")
    return StoredFeatures(made, plan.columns, skipped, plan.request, plan.encoder.spec.depth)


class RecomputedFeatures:
    """`Features` too large to store: each `batches` or `get` runs the encoder again. Broken images, where they may be
    skipped, are found once by a pass that decodes only."""

    def __init__(self, plan: Plan) -> None:
        skipped: list[int] = []
        if plan.options.skip_broken:
            for pack in plan.decoded(plan.spans, f"images of {plan.dataset.name}"):
                skipped += [position for position, _ in pack.failures]
        self._columns, self._skipped = plan.columns.without(skipped)
        self._plan = plan

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""
        return self._columns.labels

    @property
    def groups(self) -> Tensor:
        """(N,) int64: samples with the same number come from the same image."""
        return self._columns.groups

    @cached_property
    def ids(self) -> Sequence[str]:
        """Ids of the rows."""
        return tuple(row[0] for row in self._columns.order)

    @property
    def skipped(self) -> Sequence[str]:
        """Ids of the samples that could not be decoded."""
        return self._skipped

    def __len__(self) -> int:
        return len(self._columns)

    def get(self, part: Part, block: int = -1) -> Tensor:
        """(N, D) float32, or (N, h, w, D) for "patches": computed now and held in memory. Raises what `extract`
        raises, and FeatureError for a part or block that was not asked for."""
        return torch.cat(list(self.batches(part, block)))

    def batches(self, part: Part, block: int = -1, size: int = 1024) -> Iterator[Tensor]:
        """The rows of `get` in pieces of at most `size`, computed as they are read. Raises as `get` does."""
        if size < 1:
            raise FeatureError(f"batches take a size of at least 1; got {size}")
        name = named(self._plan.request, self._plan.encoder.spec.depth, part, block)
        return self._computed(name, size)

    def _computed(self, name: str, size: int) -> Iterator[Tensor]:
        part, number = name.split(".")
        alone = self._plan.request.only(part, int(number))  # type: ignore[arg-type]
        for pack, rows in self._plan.computed(self._plan.spans, alone):
            values = rows[name]
            if part == "patches" and pack.positions:
                height, width = rows["grids"][0].tolist()
                values = values.view(len(pack.positions), height, width, -1)
            if pack.positions:
                yield from torch.split(values, size)
