"""Attentive probe: a cross-attention head with one learnable query, trained on all tokens of the frozen encoder.

What:   the class token (where there is one) and all patch tokens of the last block after the final norm; the head is
        `probing.attention_head`. "online" trains on random crops and flips, "cached" on stored features of the recipe's
        one fixed view; they are different protocols with different ids.
Source: CAE (arXiv:2202.03026; lxtGH/CAE d725971, tools/run_attentive.py, scripts/cae_base_800e.sh): SGD 0.9, rate 0.4 at
        batch 8192, weight decay 0, 90 epochs of which 10 warm up, cosine; the last incomplete batch of an epoch is left
        out. Part-aware paper (arXiv:2301.11915, Table 1): rate 0.04 at batch 1024.
Rule:   one rate, the whole training split, the last epoch. Batch norm uses its running statistics at test; the released
        code used the statistics of each test batch, which makes the accuracy depend on batch size and order: that is
        `statistics = "batch"`, with both stated.
Ties:   equal logits go to the lowest class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from evalkit.errors import FeatureError, ProtocolError, UsageError
from evalkit.metrics import bootstrap, classification
from evalkit.probing.attention_head import AttentiveHead, Learner, factor, strided_batches
from evalkit.probing.crops import LARGEST, crops
from evalkit.types import Augmentation, Batch, Features, Interpolation, Job, Part, Score, Tokens
from evalkit.validation import LATER

PIECE = 256
"""Test images whose tokens are in memory at once."""


@dataclass(frozen=True)
class Config:
    """How to train the head; the defaults are CAE's.

    mode: "online" or "cached", see the module. rate, rate_batch: 0.4 at batch 8192; the rate applied is
    rate x batch / rate_batch, with the batch that is really used, or with batch_size where `nominal`, as the released scripts
    do when there are fewer images than a batch. batch_size: 1024 (CAE: 8192, which no single machine
    holds); fewer images make one batch. epochs 90, warmup_epochs 10, momentum 0.9, weight_decay 0. norm_batch: images
    over which batch norm takes its statistics in training; CAE's 256 per GPU, not synchronised; 0 is the whole batch.
    heads: of the attention; 0 takes the encoder's (12 for ViT-B), or where these do not divide the width, the largest
    number below that does. query_std: of the first query; 0.02 (part-aware code), 0 in CAE's code. statistics: see the
    module. test_batch, test_ranks: of "batch": 384 images per batch, in the order of the split for one rank; of R ranks
    each takes every R-th image. seeds: one run each. size, scale, interpolation: of the online crops; 224, (0.08, 1),
    bicubic as CAE; size "encoder" is the encoder's own, at most 224; it is rounded down to a multiple of the patch.
    Online, all seeds see the same crops.
    Raises UsageError for values that cannot be.
    """

    mode: Literal["online", "cached"] = "online"
    rate: float = 0.4
    rate_batch: int = 8192
    batch_size: int = 1024
    nominal: bool = field(default=False, metadata=LATER)
    epochs: int = 90
    warmup_epochs: int = 10
    momentum: float = 0.9
    weight_decay: float = 0.0
    norm_batch: int = 256
    heads: int = 0
    query_std: float = 0.02
    statistics: Literal["running", "batch"] = "running"
    test_batch: int = 384
    test_ranks: int = 1
    seeds: tuple[int, ...] = (0, 1, 2)
    size: int | Literal["encoder"] = 224
    scale: tuple[float, float] = (0.08, 1.0)
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        least = {"rate_batch": 1, "batch_size": 2, "epochs": 1, "test_batch": 1, "test_ranks": 1}
        least |= {"warmup_epochs": 0, "heads": 0, "query_std": 0, "weight_decay": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {low}")
        if self.size != "encoder" and self.size < 1:
            raise UsageError(f"size is {self.size}; pixels, at least 1, or the encoder's own")
        if not self.rate > 0 or not 0 <= self.momentum < 1:
            raise UsageError(f"rate is {self.rate} and momentum {self.momentum}; a rate above 0, momentum in [0, 1)")
        if self.warmup_epochs >= self.epochs:
            raise UsageError(f"{self.warmup_epochs} epochs of warm-up leave none of {self.epochs} to fall in")
        if self.norm_batch < 0 or self.norm_batch == 1:
            raise UsageError(f"norm_batch is {self.norm_batch}; statistics need 2 images, 0 takes the whole batch")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"seeds is {list(self.seeds)}; at least one is needed, each once")


@dataclass(frozen=True)
class Plan:
    """images: of the training split. batch: images per step. steps: whole batches of an epoch, at least 1."""

    config: Config
    images: int

    @property
    def batch(self) -> int:
        """Images per step."""
        return min(self.config.batch_size, self.images)

    @property
    def steps(self) -> int:
        """Steps per epoch: the incomplete batch at the end takes none."""
        return self.images // self.batch

    def rate(self, epoch: int, step: int) -> float:
        """The rate applied at a step of an epoch."""
        config = self.config
        done, total = epoch * self.steps + step, config.epochs * self.steps
        return self.peak * factor(done, steps=total, warmup=config.warmup_epochs * self.steps)

    @property
    def peak(self) -> float:
        """The highest rate applied."""
        config = self.config
        return config.rate * (config.batch_size if config.nominal else self.batch) / config.rate_batch


def run(job: Job) -> Iterator[Score]:
    """Yield "top1" (headline), "top1@seed=0" ... (note "seed"), and with batch statistics also "top1@running-statistics".

    Values are fractions in [0, 1]; the outcome of a test image is the share of seeds that got it right; n is the number
    of test images, intervals are grouped by image and hold the heads fixed. The heads are kept as "head":
    `<seed>/<parameter>`. Unfinished training is taken up at the last whole epoch, with the same result to the bit.
    Raises ProtocolError where a split is empty, training has a single class or a head diverges; FeatureError where tokens
    are not finite.
    """
    config: Config = job.config
    parts: tuple[Part, ...] = ("cls", "patches") if "cls" in job.encoder.spec.offers else ("patches",)
    job.fact("tokens", "class token and patches" if len(parts) == 2 else "patches alone: there is no class token")
    test = job.features("test", parts=parts)
    if len(test) == 0:
        raise ProtocolError("the test split has no image: there is nothing to score")
    learners = _online(job, parts, test) if config.mode == "online" else _cached(job, parts, test)
    job.keep("head", {f"{seed}/{k}": v.cpu() for seed, of in learners.items() for k, v in of.head.state_dict().items()})
    pooled = _pooled(job, learners, test, parts)
    batches = None
    if config.statistics == "batch":
        batches = strided_batches(len(test), config.test_batch, config.test_ranks)
        job.fact("test_batches", {"images": config.test_batch, "ranks": config.test_ranks, "order": "of the split"})
    yield from _scores(job, _right(learners, pooled, test.labels, batches), test, "top1")
    if batches is not None:
        yield from _scores(job, _right(learners, pooled, test.labels, None), test, "top1@running-statistics")


def _scores(job: Job, right: Mapping[int, Tensor], test: Features, name: str) -> Iterator[Score]:
    groups = test.groups.numpy()
    per_seed = torch.stack(list(right.values())).float()
    note = "" if name == "top1" else "batch norm by running statistics"
    yield bootstrap.score(name, per_seed.mean(dim=0).numpy(), groups, labels=test.labels, note=note, seed=job.seed)
    if name != "top1":
        return
    job.fact("seed_std", float(per_seed.double().mean(dim=1).std()) if len(right) > 1 else None)
    for seed, row in zip(right, per_seed, strict=True):
        yield bootstrap.score(f"{name}@seed={seed}", row.numpy(), groups, note="seed", seed=job.seed)


def _right(
    learners: Mapping[int, Learner], pooled: Mapping[int, Tensor], labels: Tensor, batches: list[Tensor] | None
) -> dict[int, Tensor]:
    """(n,) bool per seed: whether the best class is the true one."""
    right = {}
    for seed, learner in learners.items():
        logits = learner.predict(pooled[seed], batches)
        right[seed] = classification.correct(classification.ranked(logits, 1).cpu(), labels, 1)
    return right


def _pooled(job: Job, learners: Mapping[int, Learner], test: Features, parts: tuple[Part, ...]) -> dict[int, Tensor]:
    """(n, D) per seed, read from the test split in pieces."""
    found: dict[int, list[Tensor]] = {seed: [] for seed in learners}
    pieces = zip(*(test.batches(part, size=PIECE) for part in parts), strict=True)
    for rows in job.track(pieces, "attentive probe, test images", total=None):
        tokens = _joined([piece.to(job.device) for piece in rows])
        for seed, learner in learners.items():
            found[seed].append(learner.pool(tokens))
    return {seed: torch.cat(rows) for seed, rows in found.items()}


def _cached(job: Job, parts: tuple[Part, ...], test: Features) -> dict[int, Learner]:
    """Trained seed by seed on stored tokens; all of the training split's are held in memory, as they are stored."""
    config: Config = job.config
    stored = job.features("train", parts=parts)
    _check(len(stored), classification.seen_classes(stored.labels))
    columns = [stored.get(part) for part in parts]
    plan = Plan(config, len(stored))
    learners = _learners(job, plan, 1 + int(torch.cat([stored.labels, test.labels]).max()))
    done = _resumed(job, learners)
    for seed, learner in learners.items():
        for epoch in job.track(range(done[seed], config.epochs), f"attentive probe, seed {seed}", total=None):
            order = torch.randperm(plan.images, generator=job.rng("attentive", "order", seed, epoch))
            for step in range(plan.steps):
                rows = order[step * plan.batch : (step + 1) * plan.batch]
                tokens = _joined([column[rows].to(job.device) for column in columns])
                learner.step(tokens, stored.labels[rows].to(job.device), plan.rate(epoch, step))
            done[seed] = epoch + 1
            _save(job, learners, done)
    return learners


def _online(job: Job, parts: tuple[Part, ...], test: Features) -> dict[int, Learner]:
    """All seeds trained on the same augmented batches, each encoded once."""
    config: Config = job.config
    dataset = job.dataset("train")
    present = {dataset[index].label for index in range(len(dataset))}
    _check(len(dataset), len(present))
    plan = Plan(config, len(dataset))
    learners = _learners(job, plan, 1 + max(max(present), int(test.labels.max())))
    done = _resumed(job, learners)
    first = min(done.values())
    step = 0
    for batch in _batches(job, plan, first) if first < config.epochs else ():
        if step < plan.steps and len(batch.labels) > 1:
            tokens = _of_batch(job.encode(batch.images)[0], parts)
            for learner in learners.values():
                learner.step(tokens, batch.labels, plan.rate(batch.epoch, step))
        step += 1
        if batch.last_of_epoch:
            step = 0
            done = dict.fromkeys(learners, batch.epoch + 1)
            _save(job, learners, done)
    if min(done.values()) < config.epochs:
        raise ProtocolError(f"the stream of images ended after {min(done.values())} of {config.epochs} epochs")
    return learners


def _batches(job: Job, plan: Plan, first: int) -> Iterator[Batch]:
    config = plan.config
    like = Augmentation(LARGEST, scale=config.scale, interpolation=config.interpolation)
    augmentation = crops(job, config.size, like)
    stream = job.stream("train", augmentation, epochs=config.epochs, batch_size=plan.batch, first_epoch=first)
    total = (config.epochs - first) * -(-plan.images // plan.batch)
    yield from job.track(stream, "attentive probe, online", total=total)


def _learners(job: Job, plan: Plan, classes: int) -> dict[int, Learner]:
    config, spec = plan.config, job.encoder.spec
    heads = _heads(config.heads, spec.heads, spec.dim)
    job.fact("training", {"heads": heads, "batch": plan.batch, "steps_per_epoch": plan.steps, "rate": plan.peak})
    learners = {}
    for seed in config.seeds:
        rng = job.rng("attentive", "first", seed)
        head = AttentiveHead(spec.dim, heads, classes, rng=rng, query_std=config.query_std).to(job.device)
        learners[seed] = Learner(
            head, momentum=config.momentum, weight_decay=config.weight_decay, norm_batch=config.norm_batch
        )
    return learners


def _heads(asked: int, encoder: int, dim: int) -> int:
    """As asked (which must divide), else the encoder's or the largest number below that divides the width."""
    if asked:
        return asked
    return next(heads for heads in range(max(1, min(encoder, dim)), 0, -1) if dim % heads == 0)


def _resumed(job: Job, learners: Mapping[int, Learner]) -> dict[int, int]:
    """Epochs done by seed; the learners take over what was saved."""
    state = job.checkpoint.load()
    if state is None:
        return dict.fromkeys(learners, 0)
    for seed, learner in learners.items():
        learner.restore(state["learners"][seed])
    return {seed: int(state["epochs"][seed]) for seed in learners}


def _save(job: Job, learners: Mapping[int, Learner], done: Mapping[int, int]) -> None:
    job.checkpoint.save({"epochs": dict(done), "learners": {seed: of.state() for seed, of in learners.items()}})


def _of_batch(tokens: Tokens, parts: tuple[Part, ...]) -> Tensor:
    columns = [tokens.patches]
    if "cls" in parts:
        if tokens.cls is None:
            raise FeatureError("the encoder promised a class token and gave none")
        columns.insert(0, tokens.cls)
    return _joined(columns)


def _joined(columns: list[Tensor]) -> Tensor:
    """(B, N, D) float32 from [(B, D)] (B, h, w, D). Raises FeatureError where a value is not finite."""
    rows = [column.unsqueeze(1) if column.ndim == 2 else column.flatten(1, 2) for column in columns]
    tokens = torch.cat([row.float() for row in rows], dim=1)
    if not bool(torch.isfinite(tokens).all()):
        raise FeatureError("the encoder gave tokens that are not finite")
    return tokens


def _check(images: int, classes: int) -> None:
    if images == 0:
        raise ProtocolError("the training split has no image: there is nothing to train on")
    if classes < 2:
        raise ProtocolError("all training images have the same class: a classifier has nothing to tell apart")
