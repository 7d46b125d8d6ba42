"""People as batches of patch tokens and keypoints: what a pose probe trains on and is tested on.

What:   "online" shakes each box anew in each epoch and encodes it then; "cached" encodes the boxes as they are, once, and
        holds the tokens in float16, as stored features are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from evalkit.errors import FeatureError
from evalkit.features.view import scale
from evalkit.probing.placement import Jitter, Seen, Shaken, Size, Still, in_cells
from evalkit.types import Job, Role

PIECE = 32
"""Boxes that go through the encoder at once."""

HELD = 8 << 30
"""Bytes of tokens that are held in memory; beyond, they are computed anew in each epoch, with the same result."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Frame:
    """size: (H, W) of the input in pixels. cells: (h, w) of the heatmaps that cover it."""

    size: Size
    cells: Size


@dataclass(frozen=True)
class Batch:
    """tokens: (B, rows, columns, D) float32. points: (B, K, 2) x and y in cells. labelled: (B, K) bool."""

    tokens: Tensor
    points: Tensor
    labelled: Tensor


Epoch = Callable[[int], Iterator[tuple[Sequence[int], Batch]]]
"""The batches of an epoch by its number, each with the seeds whose layers it is for."""


def online(job: Job, frame: Frame, batch: int, *, seeds: Sequence[int], jitter: Jitter) -> Epoch:
    """Shaken boxes in batches of `batch`, the same for all seeds."""
    reader = Shaken(frame.size, jitter, job.seed)

    def epoch_of(epoch: int) -> Iterator[tuple[Sequence[int], Batch]]:
        order = torch.randperm(len(job.dataset("train")), generator=job.rng("pose", "order", epoch)).tolist()
        views = (view for _, view in job.read("train", reader, ((index, epoch) for index in order)))
        for piece in pieces(views, batch):
            yield seeds, encoded(job, frame, piece)

    return epoch_of


def cached(job: Job, frame: Frame, batch: int, *, seeds: Sequence[int]) -> Epoch:
    """Boxes as they are, for each seed in an order of its own."""
    spec, people = job.encoder.spec, len(job.dataset("train"))
    bytes_of_one = frame.size[0] // spec.patch * (frame.size[1] // spec.patch) * spec.dim * 2
    held = bytes_of_one * people <= HELD
    job.fact("tokens", "held in float16" if held else "computed in each epoch, rounded to float16")
    return (_held if held else _recomputed)(job, frame, batch, seeds)


def _held(job: Job, frame: Frame, batch: int, seeds: Sequence[int]) -> Epoch:
    found = (encoded(job, frame, piece) for piece in pieces(views(job, "train", frame.size), PIECE))
    still = [
        replace(rows, tokens=rows.tokens.half().cpu()) for rows in found
    ]  # at once: half of what waits for the rest
    tokens = torch.cat([rows.tokens for rows in still])
    points, labelled = torch.cat([rows.points for rows in still]), torch.cat([rows.labelled for rows in still])

    def epoch_of(epoch: int) -> Iterator[tuple[Sequence[int], Batch]]:
        for seed in seeds:
            order = torch.randperm(len(tokens), generator=job.rng("pose", "order", seed, epoch))
            for rows in torch.split(order, batch):
                there = rows.to(job.device)
                yield (seed,), Batch(tokens[rows].to(job.device).float(), points[there], labelled[there])

    return epoch_of


def _recomputed(job: Job, frame: Frame, batch: int, seeds: Sequence[int]) -> Epoch:
    def epoch_of(epoch: int) -> Iterator[tuple[Sequence[int], Batch]]:
        for seed in seeds:
            order = torch.randperm(len(job.dataset("train")), generator=job.rng("pose", "order", seed, epoch)).tolist()
            found = (several[0] for _, several in job.read("train", Still(frame.size), ((index, 1) for index in order)))
            for piece in pieces(found, batch):
                rows = encoded(job, frame, piece)
                yield (seed,), Batch(rows.tokens.half().float(), rows.points, rows.labelled)

    return epoch_of


def views(job: Job, role: Role, size: Size) -> Iterator[Seen]:
    """Everybody in order, one decoding per photo."""
    return (view for _, several in job.read(role, Still(size), by_photo(job, role)) for view in several)


def by_photo(job: Job, role: Role) -> list[tuple[int, int]]:
    """(first sample, how many) of each photo."""
    dataset = job.dataset(role)
    runs = (list(run) for _, run in groupby(range(len(dataset)), key=lambda index: dataset[index].group))
    return [(members[0], len(members)) for members in runs]


def pieces(items: Iterable[Item], count: int) -> Iterator[list[Item]]:
    """The items in lists of `count`, the last one shorter."""
    piece: list[Item] = []
    for item in items:
        piece.append(item)
        if len(piece) == count:
            yield piece
            piece = []
    if piece:
        yield piece


def encoded(job: Job, frame: Frame, several: Sequence[Seen]) -> Batch:
    """Their tokens and keypoints, on the job's device."""
    pixels = torch.stack([view.pixels for view in several])
    tokens = torch.cat([tokens_of(job, part) for part in torch.split(pixels, PIECE)])
    points = torch.stack([view.points for view in several]).to(job.device)
    labelled = torch.stack([view.labelled for view in several]).to(job.device)
    return Batch(tokens, in_cells(points, frame.size, frame.cells), labelled)


def tokens_of(job: Job, pixels: Tensor) -> Tensor:
    """(B, rows, columns, D) float32 patch tokens of (B, 3, H, W) uint8 pixels. Raises FeatureError where not finite."""
    given = job.encoder.spec.preprocessing
    tokens = job.encode(scale(pixels.to(job.device), given.mean, given.std))[0].patches.float()
    if not bool(torch.isfinite(tokens).all()):
        raise FeatureError(f"{job.encoder.spec.id} gave tokens that are not finite")
    return tokens
