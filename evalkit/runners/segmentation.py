"""Linear segmentation: one 1x1 convolution from the tokens of some frozen blocks to a class for every pixel.

What:   raw tokens of blocks 3, 5, 7, 11 side by side (for other depths than 12: `probing.dense_head.mapped`), one linear
        layer, its logits enlarged 4 times and then to the labels' size, cross-entropy of every pixel; at test windows of
        the resized photo, averaged, resized to the photo's own size. mIoU over the whole set.
Source: Zhu et al., Understanding Self-Supervised Pretraining with Part-Aware Representation Learning (arXiv:2301.11915),
        Tables 3, 5, 7, 8. What it does not say is that of its code, JiePKU/understand-ssl-part-aware ffea818, segmentation/
        (mmsegmentation v0.11): see `probing.dense_crops` (augmentation), `probing.dense_head` (head, AdamW, schedule) and
        `probing.dense_windows` (test). MMC (arXiv:2308.11448), Tables 1 and 3, has blocks 5, 7, 9, 11 and AdamW 1e-4.
Released: `between` 1 enlarges straight to the labels' size; `auxiliary` 0.4 trains the second head of the code beside,
        which cannot change the first.
Choice: "online" trains on augmented crops, encoded when they are needed; "cached" on stored tokens of whole photos squashed
        to the recipe's square view, without augmentation and windows: different protocols with different ids. Pixels are
        normalised as the encoder's authors do; the released code takes ImageNet's mean and deviation for all.
Rule:   one rate, the whole training split, the last iteration. One head; another `--seed` trains another.
Expect: DINO ViT-B/16 on ADE20K 34.5 mIoU, 28.9 on ADE20K-Part (Tables 3 and 5).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from evalkit.errors import FeatureError, ProtocolError, UsageError
from evalkit.features.view import scale
from evalkit.metrics import segmentation
from evalkit.probing import dense
from evalkit.probing.dense_crops import Crop, Jitter, Photo, Shaken, Truth, Whole
from evalkit.probing.dense_head import AuxiliaryHead, Learner, LinearHead, factor, mapped
from evalkit.probing.dense_windows import Sliding, label_maps, through
from evalkit.probing.enlarging import Enlargement, best, enlargement
from evalkit.types import Job, Role, Score

AT_ONCE = {"cpu": 4, "cuda": 32}
"""Windows that go through the encoder together."""

PIECE = 16
"""Crops that go through the encoder together, and test photos that are held at once."""

SAVED_EVERY = 60.0
"""Seconds between two saved states; where a run goes on changes nothing in its result."""

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Config:
    """How to train and to judge; the defaults are those of the part-aware study on ADE20K, see the module.

    mode: "online" or "cached". blocks: 0-based, of a network of 12 blocks. norm: final norm on every block. between:
    cells per patch that logits are enlarged to before the labels' size; 4, and 1 as released. auxiliary: weight of the
    second head's loss, 0 for no such head. rate, weight_decay, warmup, steps, batch (8 x 2): of AdamW, in iterations.
    Of "online" alone: crop: side in pixels, rounded down to a multiple of the patch; a short side of `train_scale` or
    `test_scale` that equals it follows. train_scale, test_scale: (long, short) sides in pixels at most. ratio: scale
    jitter. largest: share of a crop that one class should stay below. flip: probability. colours: photometric
    distortion. stride: of the windows at test in pixels.
    Raises UsageError for values that cannot be.
    """

    mode: Literal["online", "cached"] = "online"
    blocks: tuple[int, ...] = (3, 5, 7, 11)
    norm: bool = False
    between: Positive = 4
    auxiliary: Annotated[float, Field(ge=0)] = 0.0
    rate: Annotated[float, Field(gt=0)] = 4e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup: Annotated[int, Field(ge=0)] = 1500
    steps: Positive = 160_000
    batch: Positive = 16
    crop: Positive = 512
    train_scale: tuple[Positive, Positive] = (2048, 512)
    test_scale: tuple[Positive, Positive] = (2048, 512)
    ratio: tuple[float, float] = (0.5, 2.0)
    largest: Annotated[float, Field(gt=0, le=1)] = 0.75
    flip: Share = 0.5
    colours: bool = True
    stride: Positive = 341

    def __post_init__(self) -> None:
        mapped(self.blocks, 12)
        if len(set(self.blocks)) < len(self.blocks):
            raise UsageError(f"blocks are {list(self.blocks)}; each once")
        if not 0 < self.ratio[0] <= self.ratio[1] or not math.isfinite(self.ratio[1]):
            raise UsageError(f"ratio is {list(self.ratio)}; the smallest and the largest factor, above 0")
        if self.stride > self.crop:
            raise UsageError(f"stride is {self.stride} and crop {self.crop}: pixels between windows would be left out")


@dataclass(frozen=True)
class Plan:
    """What one encoder makes of a config. blocks: its own. crop, train_scale, test_scale: after rounding."""

    config: Config
    blocks: tuple[int, ...]
    patch: int
    crop: int
    train_scale: tuple[int, int]
    test_scale: tuple[int, int]

    @property
    def sliding(self) -> Sliding:
        """The windows at test."""
        return Sliding(self.crop, min(self.config.stride, self.crop), self.patch, self.config.between)

    @property
    def jitter(self) -> Jitter:
        """What happens to a photo in training."""
        c = self.config
        return Jitter(self.train_scale, c.ratio, c.largest, c.flip, c.colours)


def run(job: Job) -> Iterator[Score]:
    """Yield "mIoU" (headline), "mAcc", "aAcc" and "IoU/<class>" for every class that is there.

    Fractions in [0, 1] over the pixels of the whole test split that count; n is the number of photos with such a pixel,
    intervals over photos, the head held fixed. The head is kept as "head": weight (C, blocks x D), bias (C,). Unfinished
    training is taken up where it was last saved, with the same result to the bit.
    Raises ProtocolError where a split is empty or without labelled pixels, or the head diverges; BrokenImage for masks
    that do not fit their photo or hold labels that are no class; FeatureError where tokens are not finite; UsageError for
    a crop below one patch.
    """
    for role in _ROLES:
        if not len(job.dataset(role)):
            raise ProtocolError(f"the split {job.dataset(role).split} of {job.dataset(role).name} holds no photo")
    dense.demand(job, "pixels", "linear segmentation", *_ROLES)
    if job.dataset("train").classes != job.dataset("test").classes:
        raise ProtocolError("the training and the test split have different classes")
    head = train(job)
    job.keep("head", {name: value.cpu() for name, value in head.state_dict().items()})
    dataset = job.dataset("test")
    classes, numbers = len(dataset.classes), dict[str, int]()
    groups, counted = [], []
    found = predictions(job, head)
    for position, predicted, truth in job.track(found, "segmentation, test", total=len(dataset)):
        table = segmentation.confusion(predicted, truth.to(predicted.device), classes)
        counted.append(segmentation.areas(table).cpu())
        groups.append(numbers.setdefault(dataset[position].group, len(numbers)))
    if not counted:
        raise ProtocolError("no photo of the test split can be read: there is nothing to score")
    yield from segmentation.scores(torch.stack(counted), dataset.classes, groups, seed=job.seed)


def plan(job: Job) -> Plan:
    """Sizes and blocks for this encoder, put on record where they are not what was asked for."""
    config: Config = job.config
    spec = job.encoder.spec
    blocks = mapped(config.blocks, spec.depth)
    crop = config.crop // spec.patch * spec.patch
    if not crop and config.mode == "online":
        raise UsageError(f"the crop is {config.crop} pixels, less than one patch of {spec.id} ({spec.patch} pixels)")
    scales = []
    for asked in (config.train_scale, config.test_scale):
        short = crop if min(asked) == config.crop else min(asked)
        scales.append((max(asked), short))
    job.fact("blocks", {"asked": list(config.blocks), "used": list(blocks), "depth": spec.depth})
    if config.mode == "online":
        job.fact("input", {"asked": config.crop, "crop": crop, "train_scale": scales[0], "test_scale": scales[1]})
    return Plan(config, blocks, spec.patch, crop, *scales)


# ---------------------------------------------------------------- training


_ROLES: tuple[Role, ...] = ("train", "test")

_Batches = Callable[[int], Iterator[tuple[int, Tensor, Tensor]]]
"""From an iteration on: (iteration, tokens (B, h, w, K x D), labels (B, H, W)) on the device."""


def train(job: Job) -> LinearHead:
    """The trained head, on the job's device; raises as `run`."""
    config: Config = job.config
    planned, count = plan(job), len(job.dataset("train"))
    learner = _learner(job, planned)
    job.fact("training", {"photos": count, "steps": config.steps, "batch": config.batch,
                          "epochs": round(config.steps * config.batch / count, 2)})  # fmt: skip
    state = job.checkpoint.load()
    first = 0
    if state is not None:
        learner.restore(state["learner"])
        first = int(state["steps"])
    batches = (_online if config.mode == "online" else _cached)(job, planned)
    saved = time.monotonic()
    steps = job.track(batches(first), f"segmentation head, {config.mode}", total=config.steps - first)
    for step, tokens, truth in steps:
        _require_finite(job, tokens)
        onto = _onto(planned, (tokens.shape[1], tokens.shape[2]), (truth.shape[1], truth.shape[2])).to(job.device)
        share = factor(step, steps=config.steps, warmup=config.warmup)
        rng = job.rng("segmentation", "dropout", step)
        learner.step(tokens, truth, onto, rate=config.rate * share, rng=rng)
        if time.monotonic() - saved >= SAVED_EVERY:
            learner.check()
            job.checkpoint.save({"steps": step + 1, "learner": learner.state()})
            saved = time.monotonic()
    learner.check()
    job.checkpoint.save({"steps": config.steps, "learner": learner.state()})
    return learner.head


def _onto(planned: Plan, small: tuple[int, int], size: tuple[int, int]) -> Enlargement:
    """From logits on the grid of patches to the labels' size, as the config has it."""
    between = planned.config.between
    return enlargement(small, *([] if between == 1 else [(small[0] * between, small[1] * between)]), size)


def _learner(job: Job, planned: Plan) -> Learner:
    config, dim, classes = planned.config, job.encoder.spec.dim, len(job.dataset("train").classes)
    if classes < 2:
        raise ProtocolError(f"{job.dataset('train').name} has {classes} class: there is nothing to tell apart")
    head = LinearHead(dim * len(planned.blocks), classes, rng=job.rng("segmentation", "head"))
    second, channels = None, slice(None)
    if config.auxiliary:
        third = min(2, len(planned.blocks) - 1)
        channels = slice(third * dim, (third + 1) * dim)
        second = AuxiliaryHead(dim, classes, rng=job.rng("segmentation", "auxiliary")).to(job.device)
    return Learner(
        head.to(job.device), weight_decay=config.weight_decay, auxiliary=second, third=channels, share=config.auxiliary
    )


def order(job: Job, step: int, config: Config) -> list[tuple[int, int]]:
    """(position, turn) of the samples of an iteration: pass after pass over the split, each shuffled anew."""
    count, found = len(job.dataset("train")), []
    shuffled: dict[int, list[int]] = {}
    for number in range(step * config.batch, (step + 1) * config.batch):
        turn, place = divmod(number, count)
        if turn not in shuffled:
            shuffled[turn] = torch.randperm(count, generator=job.rng("segmentation", "order", turn)).tolist()
        found.append((shuffled[turn][place], turn))
    return found


def _online(job: Job, planned: Plan) -> _Batches:
    """Crops, encoded when they are needed. Of a batch those are left out whose photo is broken and may be skipped."""
    config = planned.config
    reader = Shaken(planned.crop, len(job.dataset("train").classes), planned.jitter, job.seed)

    def batches(first: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        items = (
            (position, turn, step)
            for step in range(first, config.steps)
            for position, turn in order(job, step, config)
        )  # fmt: skip
        for step, several in groupby(job.read("train", reader, items), key=lambda answer: answer[0][2]):
            crops = [crop for _, crop in several]
            yield step, encode(job, planned, _normalised(job, crops)), _stacked(job, [c.labels for c in crops])

    return batches


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


def encode(job: Job, planned: Plan, images: Tensor) -> Tensor:
    """(B, h, w, K x D) tokens of normalised images (B, 3, H, W), the planned blocks side by side."""
    pieces = [
        torch.cat([t.patches for t in job.encode(piece, blocks=planned.blocks, norm=planned.config.norm)], dim=-1)
        for piece in torch.split(images, PIECE)
    ]
    return torch.cat(pieces)


def _require_finite(job: Job, tokens: Tensor) -> None:
    # one number to wait for; a NaN or an infinity anywhere makes the sum one
    if not math.isfinite(float(tokens.sum(dtype=torch.float32))):
        raise FeatureError(f"{job.encoder.spec.id} gave tokens that are not finite; try --precision fp32")


def _cached(job: Job, planned: Plan) -> _Batches:
    """Stored tokens and labels of whole photos, held in memory."""
    config = planned.config
    tokens, positions = _stored(job, planned, "train")
    side = (tokens.shape[1] * planned.patch, tokens.shape[2] * planned.patch)
    reader = Truth(len(job.dataset("train").classes), side)
    read = job.read("train", reader, ((position,) for position in positions))
    maps = {item[0]: labels for item, labels in job.track(read, "labels", total=len(positions))}
    rows = {position: row for row, position in enumerate(positions) if position in maps}
    if not rows:
        raise ProtocolError("no photo of the training split can be read: there is nothing to train on")

    def batches(first: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        for step in range(first, config.steps):
            taken = [position for position, _ in order(job, step, config) if position in rows]
            if taken:
                index = torch.tensor([rows[position] for position in taken])
                yield step, tokens[index].to(job.device), _stacked(job, [maps[position] for position in taken])

    return batches


def _stored(job: Job, planned: Plan, role: Role) -> tuple[Tensor, list[int]]:
    """(N, h, w, K x D) stored tokens in memory, and the positions of their photos. Raises UsageError beyond half of this
    machine's memory."""
    dataset = job.dataset(role)
    features = job.features(role, blocks=planned.blocks, norm=planned.config.norm, parts=("patches",))
    one = next(iter(features.batches("patches", planned.blocks[0], size=1)))
    needed = one[0].nbytes * len(planned.blocks) * len(features)
    if needed > (room := _memory() // 2):
        raise UsageError(
            f"the tokens of {len(features)} photos take {needed / 1e9:.0f} GB and this machine has {room / 1e9:.0f} GB "
            "for them; take the online recipe, a smaller view, or --limit"
        )
    held = torch.empty(len(features), *one.shape[1:-1], one.shape[-1] * len(planned.blocks), dtype=one.dtype)
    for number, block in enumerate(planned.blocks):
        columns, row = slice(number * one.shape[-1], (number + 1) * one.shape[-1]), 0
        for piece in features.batches("patches", block, size=PIECE):
            held[row : row + len(piece), ..., columns] = piece
            row += len(piece)
    gone = set(features.skipped)
    return held, [position for position in range(len(dataset)) if dataset[position].id not in gone]


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# ---------------------------------------------------------------- test


def predictions(
    job: Job, head: LinearHead, positions: Sequence[int] | None = None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (position, predicted (H, W) int64 on the device, truth (H, W) int16) of test photos, in order.

    head: on the job's device. positions: of these photos only, ascending; None for all.
    """
    planned: Plan = plan(job)
    wanted = range(len(job.dataset("test"))) if positions is None else positions
    with torch.no_grad():
        if planned.config.mode == "cached":
            yield from _whole(job, planned, head, wanted)
        else:
            yield from _slid(job, planned, head, wanted)


def _slid(job: Job, planned: Plan, head: LinearHead, positions: Iterable[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
    reader = Whole(planned.test_scale, len(job.dataset("test").classes))
    given, sliding = job.encoder.spec.preprocessing, planned.sliding
    at_once = AT_ONCE.get(job.device.type, AT_ONCE["cuda"])

    def logits(windows: Tensor) -> Tensor:
        tokens = encode(job, planned, windows)
        _require_finite(job, tokens)
        found: Tensor = head(tokens)
        return found

    read = job.read("test", reader, ((position,) for position in positions))
    for several in _pieces(read, sliding, at_once):
        photos = [scale(p.pixels.to(job.device)[None], given.mean, given.std)[0] for _, p in several]
        sizes = [(p.labels.shape[0], p.labels.shape[1]) for _, p in several]
        maps = label_maps(photos, sizes, sliding, logits=logits, at_once=at_once)
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


def _whole(job: Job, planned: Plan, head: LinearHead, positions: Sequence[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The same from stored tokens of whole photos."""
    dataset, blocks = job.dataset("test"), planned.blocks
    features = job.features(
        "test", blocks=blocks, norm=planned.config.norm, parts=("patches",), positions=list(positions)
    )
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
        path = [through(n, planned.config.between, length) for n, length in zip(maps.shape[::2], size, strict=True)]
        onto = enlargement((maps.shape[0], maps.shape[2]), *zip(*(p[1:] for p in path), strict=True))
        yield position, best(maps, onto.to(job.device)), truth
