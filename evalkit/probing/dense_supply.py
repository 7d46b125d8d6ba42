"""What linear segmentation trains and tests on: tokens beside labels, of crops and windows or of whole photos as stored.

`batches` gives the iterations of a training, `label_maps` what a head says of the test photos. Sizes and blocks are those
of a `Plan`, which a runner makes for one encoder.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor

from evalkit.errors import FeatureError, ProtocolError, UsageError
from evalkit.features.view import scale
from evalkit.probing import dense_windows
from evalkit.probing.dense_crops import Crop, Jitter, Photo, Scale, Shaken, Truth, Whole
from evalkit.probing.dense_head import LinearHead
from evalkit.probing.dense_windows import Sliding, through
from evalkit.probing.enlarging import best, enlargement
from evalkit.types import Job

AT_ONCE = {"cpu": 4, "cuda": 32}
"""Windows that go through the encoder together."""

PIECE = 16
"""Crops that go through the encoder together, and test photos that are held at once."""


@dataclass(frozen=True)
class Plan:
    """mode: crops and windows ("online") or stored whole photos ("cached"). blocks: the encoder's own, ascending. norm:
    final norm on every block. jitter: of training photos. test_scale: that test photos are resized to. sliding: the
    windows at test, and how logits are enlarged. steps, batch: iterations and samples of each."""

    mode: Literal["online", "cached"]
    blocks: tuple[int, ...]
    norm: bool
    jitter: Jitter
    test_scale: Scale
    sliding: Sliding
    steps: int
    batch: int


def batches(job: Job, plan: Plan, first: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (iteration, tokens (B, h, w, K x D), labels (B, H, W)), on the device, from iteration `first` on.

    Samples whose photo is broken and may be skipped are left out of their batch, and batches that this empties too.
    Raises UsageError where stored tokens do not fit into memory, ProtocolError where no photo can be read.
    """
    return _online(job, plan, first) if plan.mode == "online" else _cached(job, plan, first)


def order(job: Job, step: int, batch: int) -> list[tuple[int, int]]:
    """(position, turn) of the samples of an iteration: pass after pass over the split, each shuffled anew."""
    count, found = len(job.dataset("train")), []
    shuffled: dict[int, list[int]] = {}
    for number in range(step * batch, (step + 1) * batch):
        turn, place = divmod(number, count)
        if turn not in shuffled:
            shuffled[turn] = torch.randperm(count, generator=job.rng("segmentation", "order", turn)).tolist()
        found.append((shuffled[turn][place], turn))
    return found


def _online(job: Job, plan: Plan, first: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Crops, encoded when they are needed."""
    reader = Shaken(plan.sliding.crop, len(job.dataset("train").classes), plan.jitter, job.seed)
    steps = range(first, plan.steps)
    items = ((position, turn, step) for step in steps for position, turn in order(job, step, plan.batch))
    for step, several in groupby(job.read("train", reader, items), key=lambda answer: answer[0][2]):
        crops = [crop for _, crop in several]
        tokens = encode(job, plan, _normalised(job, crops))
        require_finite(job, tokens)
        yield step, tokens, _stacked(job, [crop.labels for crop in crops])


def _normalised(job: Job, crops: Sequence[Crop]) -> Tensor:
    """(B, 3, S, S): padding is 0 after normalising, as released."""
    given = job.encoder.spec.preprocessing
    images = scale(_stacked(job, [crop.pixels for crop in crops]), given.mean, given.std)
    for image, crop in zip(images, crops, strict=True):
        image[:, crop.size[0] :] = 0
        image[:, :, crop.size[1] :] = 0
    return images


def _stacked(job: Job, tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).to(job.device, non_blocking=True)


def encode(job: Job, plan: Plan, images: Tensor) -> Tensor:
    """(B, h, w, K x D) tokens of normalised images (B, 3, H, W), the blocks of the plan side by side."""
    pieces = [
        torch.cat([t.patches for t in job.encode(piece, blocks=plan.blocks, norm=plan.norm)], dim=-1)
        for piece in torch.split(images, PIECE)
    ]
    return torch.cat(pieces)


def require_finite(job: Job, tokens: Tensor) -> None:
    """Raise FeatureError where a token is NaN or infinite."""
    # one number to wait for; a NaN or an infinity anywhere makes the sum one
    if not math.isfinite(float(tokens.sum(dtype=torch.float32))):
        raise FeatureError(f"{job.encoder.spec.id} gave tokens that are not finite; try --precision fp32")


def _cached(job: Job, plan: Plan, first: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Stored tokens and labels of whole photos, held in memory."""
    tokens, positions = _stored(job, plan)
    side = (tokens.shape[1] * plan.sliding.patch, tokens.shape[2] * plan.sliding.patch)
    reader = Truth(len(job.dataset("train").classes), side)
    read = job.read("train", reader, ((position,) for position in positions))
    maps = {item[0]: labels for item, labels in job.track(read, "labels", total=len(positions))}
    rows = {position: row for row, position in enumerate(positions) if position in maps}
    if not rows:
        raise ProtocolError("no photo of the training split can be read: there is nothing to train on")
    for step in range(first, plan.steps):
        taken = [position for position, _ in order(job, step, plan.batch) if position in rows]
        if taken:
            index = torch.tensor([rows[position] for position in taken])
            yield step, tokens[index].to(job.device), _stacked(job, [maps[position] for position in taken])


def _stored(job: Job, plan: Plan) -> tuple[Tensor, list[int]]:
    """(N, h, w, K x D) stored tokens of the training split in memory, and the positions of their photos.

    Raises UsageError beyond half of this machine's memory.
    """
    dataset = job.dataset("train")
    features = job.features("train", blocks=plan.blocks, norm=plan.norm, parts=("patches",))
    one = next(iter(features.batches("patches", plan.blocks[0], size=1)))
    needed = one[0].nbytes * len(plan.blocks) * len(features)
    if needed > (room := _memory() // 2):
        raise UsageError(
            f"the tokens of {len(features)} photos take {needed / 1e9:.0f} GB and this machine has {room / 1e9:.0f} GB "
            "for them; take the online recipe, a smaller view, or --limit"
        )
    held = torch.empty(len(features), *one.shape[1:-1], one.shape[-1] * len(plan.blocks), dtype=one.dtype)
    for number, block in enumerate(plan.blocks):
        columns, row = slice(number * one.shape[-1], (number + 1) * one.shape[-1]), 0
        for piece in features.batches("patches", block, size=PIECE):
            held[row : row + len(piece), ..., columns] = piece
            row += len(piece)
    gone = set(features.skipped)
    return held, [position for position in range(len(dataset)) if dataset[position].id not in gone]


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def label_maps(
    job: Job, plan: Plan, head: LinearHead, positions: Sequence[int]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (position, predicted (H, W) int64 on the device, truth (H, W) int16) of these test photos, in order.

    head: on the job's device. positions: ascending. Call it without gradients.
    """
    return (_slid if plan.mode == "online" else _whole)(job, plan, head, positions)


def _slid(job: Job, plan: Plan, head: LinearHead, positions: Iterable[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
    reader = Whole(plan.test_scale, len(job.dataset("test").classes))
    given, sliding = job.encoder.spec.preprocessing, plan.sliding
    at_once = AT_ONCE.get(job.device.type, AT_ONCE["cuda"])

    def logits(windows: Tensor) -> Tensor:
        tokens = encode(job, plan, windows)
        require_finite(job, tokens)
        found: Tensor = head(tokens)
        return found

    read = job.read("test", reader, ((position,) for position in positions))
    for several in _pieces(read, sliding, at_once):
        photos = [scale(p.pixels.to(job.device)[None], given.mean, given.std)[0] for _, p in several]
        sizes = [(p.labels.shape[0], p.labels.shape[1]) for _, p in several]
        maps = dense_windows.label_maps(photos, sizes, sliding, logits=logits, at_once=at_once)
        yield from ((item[0], found, p.labels) for (item, p), found in zip(several, maps, strict=True))


def _pieces(read: Iterable[Any], sliding: Sliding, at_once: int) -> Iterator[list[tuple[tuple[int, ...], Photo]]]:
    """Photos in pieces whose windows fill a batch or more."""
    held: list[tuple[tuple[int, ...], Photo]] = []
    windows = 0
    for item, photo in read:
        held.append((item, photo))
        windows += math.prod(sliding.grid((photo.pixels.shape[1], photo.pixels.shape[2])))
        if windows >= at_once or len(held) >= PIECE:
            yield held
            held, windows = [], 0
    if held:
        yield held


def _whole(job: Job, plan: Plan, head: LinearHead, positions: Sequence[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The same from stored tokens of whole photos."""
    dataset, blocks = job.dataset("test"), plan.blocks
    features = job.features("test", blocks=blocks, norm=plan.norm, parts=("patches",), positions=list(positions))
    gone = set(features.skipped)
    kept = [position for position in positions if dataset[position].id not in gone]
    columns = [
        (row for piece in features.batches("patches", block, size=PIECE) for row in piece) for block in blocks
    ]  # fmt: skip
    rows = zip(kept, *columns, strict=True)
    reader = Truth(len(dataset.classes))
    for (position, *_), truth in job.read("test", reader, ((position,) for position in kept)):
        tokens = next(torch.cat(found, dim=-1) for at, *found in rows if at == position)
        maps = head(tokens.to(job.device)[None])[0].transpose(1, 2)
        size = (truth.shape[0], truth.shape[1])
        path = [through(n, plan.sliding.between, length) for n, length in zip(maps.shape[::2], size, strict=True)]
        onto = enlargement((maps.shape[0], maps.shape[2]), *zip(*(p[1:] for p in path), strict=True))
        yield position, best(maps, onto.to(job.device)), truth
