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
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from evalkit.errors import ProtocolError, UsageError
from evalkit.metrics import segmentation
from evalkit.probing import dense
from evalkit.probing.dense_crops import Jitter
from evalkit.probing.dense_head import AuxiliaryHead, Learner, LinearHead, factor, mapped
from evalkit.probing.dense_supply import Plan, batches, label_maps
from evalkit.probing.dense_windows import Sliding
from evalkit.probing.enlarging import Enlargement, enlargement
from evalkit.probing.resume import taken_up
from evalkit.types import Job, Role, Score

SAVED_EVERY = 60.0
"""Seconds between two saved states; where a run goes on changes nothing in its result."""

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]

_ROLES: tuple[Role, ...] = ("train", "test")


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
    dense.check_labels(job)
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
    """Sizes and blocks for this encoder, put on record."""
    config: Config = job.config
    spec = job.encoder.spec
    blocks = mapped(config.blocks, spec.depth)
    crop = config.crop // spec.patch * spec.patch
    if not crop and config.mode == "online":
        raise UsageError(f"the crop is {config.crop} pixels, less than one patch of {spec.id} ({spec.patch} pixels)")
    train_scale, test_scale = (
        (max(asked), crop if min(asked) == config.crop else min(asked))
        for asked in (config.train_scale, config.test_scale)
    )
    job.fact("blocks", {"asked": list(config.blocks), "used": list(blocks), "depth": spec.depth})
    if config.mode == "online":
        sizes = {"crop": crop, "train_scale": train_scale, "test_scale": test_scale}
        job.fact("input", {"asked": config.crop, **sizes})
    jitter = Jitter(train_scale, config.ratio, config.largest, config.flip, config.colours)
    sliding = Sliding(crop, min(config.stride, crop), spec.patch, config.between)
    return Plan(config.mode, blocks, config.norm, jitter, test_scale, sliding, config.steps, config.batch)


def train(job: Job) -> LinearHead:
    """The trained head, on the job's device; raises as `run`."""
    config: Config = job.config
    planned, count = plan(job), len(job.dataset("train"))
    learner = _learner(job, planned)
    job.fact("training", {"photos": count, "steps": config.steps, "batch": config.batch,
                          "epochs": round(config.steps * config.batch / count, 2)})  # fmt: skip
    state = taken_up(job.checkpoint, {"steps": range(1, config.steps + 1), "learner": learner.form()})
    first = 0
    if state is not None:
        learner.restore(state["learner"])
        first = int(state["steps"])
    saved = time.monotonic()
    steps = job.track(batches(job, planned, first), f"segmentation head, {config.mode}", total=config.steps - first)
    for step, tokens, truth in steps:
        onto = _onto(config.between, (tokens.shape[1], tokens.shape[2]), (truth.shape[1], truth.shape[2]))
        share = factor(step, steps=config.steps, warmup=config.warmup)
        rng = job.rng("segmentation", "dropout", step)
        learner.step(tokens, truth, onto.to(job.device), rate=config.rate * share, rng=rng)
        if time.monotonic() - saved >= SAVED_EVERY:
            learner.check()
            job.checkpoint.save({"steps": step + 1, "learner": learner.state()})
            saved = time.monotonic()
    learner.check()
    job.checkpoint.save({"steps": config.steps, "learner": learner.state()})
    return learner.head


def _onto(between: int, small: tuple[int, int], size: tuple[int, int]) -> Enlargement:
    """From logits on the grid of patches to the labels' size, as the config has it."""
    return enlargement(small, *([] if between == 1 else [(small[0] * between, small[1] * between)]), size)


def _learner(job: Job, planned: Plan) -> Learner:
    config, dim, classes = job.config, job.encoder.spec.dim, len(job.dataset("train").classes)
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


def predictions(
    job: Job, head: LinearHead, positions: Sequence[int] | None = None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (position, predicted (H, W) int64 on the device, truth (H, W) int16) of test photos, in order.

    head: on the job's device. positions: of these photos only, ascending; None for all.
    """
    wanted = range(len(job.dataset("test"))) if positions is None else positions
    with torch.no_grad():
        yield from label_maps(job, plan(job), head, wanted)
