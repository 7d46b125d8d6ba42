"""Linear probe: a linear classifier on frozen features, every learning rate and pooling in one pass.

What:   SGD with momentum (or LARS behind a batch norm) on the cross-entropy, cosine to 0, heads N(0, 0.01); for each seed
        its own first weights and order. "cached" trains on stored features of one fixed view, "online" on augmented
        images (random resized crop and flip), each encoded once for all heads. They are different protocols and need
        different recipe ids.
Source: DINO (arXiv:2104.14294; facebookresearch/dino 7c446df eval_linear.py), Mugs (sail-sg/mugs 10ab634
        eval/eval_linear_probing), MoCo v3 (facebookresearch/moco-v3 c349e6e main_lincls.py), MAE (facebookresearch/mae
        efb2a80 main_linprobe.py), the sweep of 45 rates of iBOT (bytedance/ibot da316d8 eval_linear_multi.py), the 52
        heads of DINOv2 (facebookresearch/dinov2 b8931f7 dinov2/eval/linear.py).
Rule:   fixed rates train on the whole training split and the last epoch is reported. Sweeps choose one rate and pooling
        for all seeds, on training images held out by group and seen by the deterministic view, by the rule of
        `probing.selection`. Where 5 % of the training split are few (below `holdout.FEW`), five folds choose, each by heads
        trained as a seed's are but without the fold (online on the same augmented images), and the reported heads are
        trained on all of the training split. Where they are many, the 5 % choose, the same for all seeds, and the reported
        heads are those trained on the other 95 %. What the test split would have chosen is the extra "best-on-test".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from evalkit.errors import ProtocolError, UsageError
from evalkit.metrics import bootstrap, classification
from evalkit.probing import pooling as pool
from evalkit.probing import schedules, selection, train
from evalkit.probing.crops import crops
from evalkit.probing.heads import Heads, Optimiser, first_weights
from evalkit.probing.holdout import groups_of, trials, without
from evalkit.probing.norm import BatchNorm
from evalkit.probing.pooling import Split
from evalkit.probing.resume import Between, Share
from evalkit.probing.selection import BestOnTest
from evalkit.probing.sweep import Head, Trial, choose_head
from evalkit.types import Augmentation, Batch, Features, Fitting, Interpolation, Job, Score
from evalkit.validation import LATER

SWEEP = tuple(digit * 10.0**power for power in range(-4, 1) for digit in range(1, 10))
"""The 45 base rates {1..9} x 10^{-4..0} of iBOT's sweep."""


@dataclass(frozen=True)
class Config:
    """How to train the heads.

    mode: "cached" or "online", see the module. poolings: "cls", "mean" (patch tokens), "cls+mean" (concatenated; DINO
    for ViT-B); several are swept. last_blocks: class tokens of so many last blocks, each through the final norm,
    concatenated, earliest first (DINO: 4 for ViT-S, 1 for ViT-B); several numbers are swept (DINOv2: 1 and 4); "mean"
    always is the last block's. rates: base rates; the rate applied is base x batch / 256 as the papers state theirs, with
    the batch that is really used, or with batch_size where `nominal`, as the released scripts do when there are fewer
    images than a batch. epochs: 100 (DINO). iterations: steps in all in place of epochs, 0 for none (DINOv2:
    12,500). batch_size: 1024 (DINO: 8 GPUs x 128); fewer images make one batch. drop_last: leave out an epoch's last
    batch where it is not whole (MAE, DINOv2).
    optimiser: "sgd", or "lars" (MAE). momentum 0.9, weight_decay 0 (all sources). norm: "batch" puts a batch norm
    without weights, eps 1e-6, before the heads (MAE); norm_images: it counts so many images at a time, 0 for the batch
    (MAE: the 512 of one GPU).
    schedule: cosine per "epoch" (DINO, MoCo v3) or per "iteration" (DINOv2, MAE), or "constant". warmup: epochs of linear
    growth first (MAE: 10). min_rate: the cosine's end, as applied; one rate only (Mugs: 1e-5 for some checkpoints).
    select: "held-out" for sweeps, "fixed" for one rate and one pooling. held_out: share of the training images that
    choose, where they are enough (see the module). best: what "best-on-test" may choose: "heads" of the last epoch, or
    also the epoch ("heads+epochs"), as the released scripts of DINO, iBOT, Mugs, MoCo v3 and MAE do; then fixed rates have
    the extra too. seeds: one run each.
    size, scale, interpolation, fitting: of the online crops; 224 ("encoder": the encoder's own size, at most 224),
    (0.08, 1), bilinear as DINO, "cut" for MAE (see `Augmentation`); the size is rounded down to a multiple of the patch.
    Online, all seeds see the same crops in the same order and hold out the same images, so that the encoder runs once.
    Raises UsageError for values that cannot be.
    """

    mode: Literal["cached", "online"] = "cached"
    poolings: tuple[pool.Pooling, ...] = ("cls",)
    last_blocks: int | tuple[int, ...] = 1
    rates: tuple[float, ...] = SWEEP
    epochs: int = 100
    iterations: int = 0
    batch_size: int = 1024
    drop_last: bool = False
    nominal: bool = field(default=False, metadata=LATER)
    optimiser: Optimiser = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    norm: Literal["none", "batch"] = "none"
    norm_images: int = 0
    schedule: schedules.Schedule = "epoch"
    warmup: float = 0.0
    min_rate: float = 0.0
    select: Literal["fixed", "held-out"] = "held-out"
    held_out: float = 0.05
    best: Literal["heads", "heads+epochs"] = "heads"
    seeds: tuple[int, ...] = (0, 1, 2)
    size: int | Literal["encoder"] = 224
    scale: tuple[float, float] = (0.08, 1.0)
    interpolation: Interpolation = "bilinear"
    fitting: Fitting = "again"

    def __post_init__(self) -> None:
        pool.check(self.poolings)
        Heads(torch.zeros(1, 1), self.rates, momentum=self.momentum, weight_decay=self.weight_decay)
        lowest = {"epochs": 1, "batch_size": 1, "iterations": 0, "norm_images": 0, "warmup": 0, "min_rate": 0}
        given = {name: getattr(self, name) for name in lowest} | {"last_blocks": min(self.depths, default=0)}
        given |= {} if self.size == "encoder" else {"size": self.size}
        for name, value in given.items():
            if value < lowest.get(name, 1):
                raise UsageError(f"{name} is {value}; it must be at least {lowest.get(name, 1)}")
        for name, values in (("seeds", self.seeds), ("last_blocks", self.depths)):
            if not values or len(set(values)) < len(values):
                raise UsageError(f"{name} is {list(values)}; at least one is needed, each once")
        if not 0 < self.held_out < 1:
            raise UsageError(f"held_out is {self.held_out}; it is a share of the training images, between 0 and 1")
        if not self.iterations and self.warmup >= self.epochs:
            raise UsageError(f"warmup is {self.warmup:g} epochs; it must be fewer than the {self.epochs} of training")
        if self.select == "fixed" and len(self.rates) * len(self.inputs) > 1:
            raise UsageError("select is 'fixed', but several rates or poolings are given; only 'held-out' can choose")
        if self.min_rate and len(self.rates) > 1:
            raise UsageError("min_rate is the end of one rate, but several rates are given")

    @property
    def depths(self) -> tuple[int, ...]:
        """The numbers of last blocks that class tokens come from."""
        return (self.last_blocks,) if isinstance(self.last_blocks, int) else self.last_blocks

    @property
    def inputs(self) -> Mapping[str, tuple[pool.Pooling, int]]:
        """What the stacks of heads read, by name: pooling and number of last blocks."""
        return pool.inputs_of(self.poolings, self.depths)

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks that are needed, ascending."""
        return tuple(range(-max(self.depths), 0))


Who = int | str
"""A seed, whose heads are reported, or the name of a fold, whose heads choose."""


@dataclass(frozen=True)
class Trained:
    """stacks: of heads, by who and input. left_out: (N,) bool by who, the training images they were not trained on. best:
    what the best head of each seed got right on the test split. judges: training images, some may be unreadable, and
    `rows` (n,) int64 their positions."""

    stacks: Mapping[Who, Mapping[str, Heads]]
    left_out: Mapping[Who, Tensor]
    best: Mapping[Who, BestOnTest]
    judges: Split
    rows: Tensor

    @property
    def reported(self) -> dict[Who, Mapping[str, Heads]]:
        """The stacks of the seeds."""
        return {who: self.stacks[who] for who in self.best}

    @property
    def folds(self) -> list[Who]:
        """Those who choose for the seeds; none where the seeds choose, or nothing is chosen."""
        return [who for who in self.stacks if who not in self.best]

    @property
    def trials(self) -> list[Trial]:
        """What chooses."""
        choosing = [who for who in self.folds or self.best if self.left_out[who].any()]
        return [Trial(self.stacks[who], self.left_out[who][self.rows]) for who in choosing]


def run(job: Job) -> Iterator[Score]:
    """Yield "top1" (headline), "top1@seed=0" ... (note "seed") and "best-on-test" (note "best-on-test") for sweeps, and
    for fixed rates where `best` is "heads+epochs".

    Values are fractions in [0, 1]; the outcome of a test image is the share of seeds that got it right; n is the
    number of test images, intervals are grouped by image and hold the heads fixed (the spread over seeds is the fact
    "seed_std"). What a sweep chose, and how, are the facts "chosen" and "choices".
    The chosen heads are kept as "head": `<seed>/weight` (C, D), `<seed>/bias` (C,) and, behind a batch norm,
    `<seed>/norm_mean` and `<seed>/norm_var` (D,). Unfinished training is taken up after the last epoch that was saved.
    Raises ProtocolError where a split is empty, training has a single class or no head survives; FeatureError where features
    are not finite; Unsupported is the job's to raise.
    """
    config: Config = job.config
    test = job.features("test", blocks=config.blocks, parts=pool.parts_of(config.poolings))
    if len(test) == 0:
        raise ProtocolError("the test split has no image: there is nothing to score")
    shown = _split(job, test)
    trained = _cached(job, shown) if config.mode == "cached" else _online(job, shown)
    if config.best == "heads" and config.select == "held-out":
        for best in trained.best.values():
            best.look()
    head = choose_head(list(trained.reported.values()), trained.trials, trained.judges, config.rates)
    _tell(job, trained, head)
    _keep(job, trained, head)
    chosen = {
        seed: train.measure(stacks[head.name], shown.inputs[head.name], shown.labels).correct[head.index]
        for seed, stacks in trained.reported.items()
    }
    yield from _scores(job, chosen, {seed: of.best[0] for seed, of in trained.best.items() if len(of.best)}, test)


def _scores(job: Job, chosen: Mapping[Who, Tensor], best: Mapping[Who, Tensor], test: Features) -> Iterator[Score]:
    groups = test.groups.numpy()
    per_seed = torch.stack(list(chosen.values())).float()
    accuracies = per_seed.double().mean(dim=1)
    job.fact("seed_std", float(accuracies.std()) if len(chosen) > 1 else None)
    yield bootstrap.score("top1", per_seed.mean(dim=0).numpy(), groups, labels=test.labels, seed=job.seed)
    for seed, row in zip(chosen, per_seed, strict=True):
        yield bootstrap.score(f"top1@seed={seed}", row.numpy(), groups, note="seed", seed=job.seed)
    if best:
        outcomes = torch.stack(list(best.values())).float().mean(dim=0).numpy()
        yield bootstrap.score("best-on-test", outcomes, groups, note="best-on-test", seed=job.seed)


def _cached(job: Job, test: Split) -> Trained:
    config: Config = job.config
    stored = job.features("train", blocks=config.blocks, parts=pool.parts_of(config.poolings))
    _check_train(len(stored), classification.seen_classes(stored.labels))
    given, left_out = _split(job, stored), _left_out(job, stored.groups)
    classes = 1 + int(torch.cat([given.labels, test.labels]).max())
    stacks = {who: _stacks(job, who, test, int((~out).sum()), classes) for who, out in left_out.items()}
    best: dict[Who, BestOnTest] = {seed: BestOnTest(stacks[seed], test.inputs, test.labels) for seed in config.seeds}
    for who, out in left_out.items():
        _fit(job, who, stacks[who], given.rows(~out), _watching(config, best[who]) if who in best else {})
    return Trained(stacks, left_out, best, given, torch.arange(len(stored)))


def _left_out(job: Job, groups: Tensor) -> dict[Who, Tensor]:
    """(N,) bool: the training images that a seed, or a fold, is not trained on."""
    config: Config = job.config
    nothing = torch.zeros(len(groups), dtype=torch.bool)
    if config.select == "fixed":
        return dict.fromkeys(config.seeds, nothing)
    held = trials(groups, config.held_out, job.rng("linear", "held-out"))
    if len(held) == 1:
        return dict.fromkeys(config.seeds, held[0])
    return dict.fromkeys(config.seeds, nothing) | {f"fold {n}": fold for n, fold in enumerate(held)}


def _fit(job: Job, who: Who, stacks: Mapping[str, Heads], seen: Split, watch: Mapping[str, BestOnTest]) -> None:
    """Train the stacks of a seed, or of a fold, in place on stored features."""
    count, name = len(seen.labels), f"seed={who}" if isinstance(who, int) else who
    train.fit(
        stacks,
        seen.inputs,
        seen.labels,
        plan=_plan(job.config, count),
        order=lambda epoch: torch.randperm(count, generator=job.rng("linear", "order", who, epoch)),
        track=lambda epochs: job.track(epochs, f"linear probe, {name}", total=len(epochs)),
        between=Between(Share(job.checkpoint, name), watch),
    )


def _online(job: Job, test: Split) -> Trained:
    config: Config = job.config
    dataset = job.dataset("train")
    labels = torch.tensor([dataset[index].label for index in range(len(dataset))], dtype=torch.int64)
    _check_train(len(dataset), classification.seen_classes(labels))
    left_out = _left_out(job, groups_of(dataset))
    classes = 1 + max(int(labels.max()), int(test.labels.max()))
    courses: dict[Who, train.Course] = {}
    for who, out in left_out.items():
        count = int((~out).sum())
        courses[who] = train.Course(_stacks(job, who, test, count, classes), _plan(config, count), count, out)
    best: dict[Who, BestOnTest] = {
        seed: BestOnTest(courses[seed].stacks, test.inputs, test.labels) for seed in config.seeds
    }
    unseen = torch.stack(list(left_out.values())).all(dim=0)
    passes = max(course.passes for course in courses.values())
    train.fit_stream(
        {str(who): course for who, course in courses.items()},
        lambda first: _batches(job, passes, unseen, first),
        lambda images: pool.of_inputs(job.encode(images, blocks=config.blocks), config.inputs),
        checkpoint=job.checkpoint,
        watch={name: one for seed, of in best.items() for name, one in _watching(config, of, str(seed)).items()},
    )
    judges, rows = _judges(job, torch.stack(list(left_out.values())).any(dim=0), test)
    return Trained({who: of.stacks for who, of in courses.items()}, left_out, best, judges, rows)


def _judges(job: Job, held: Tensor, test: Split) -> tuple[Split, Tensor]:
    """The held-out training images under the deterministic view, as far as they can be read, and their positions."""
    config: Config = job.config
    if not held.any():
        return test.rows(torch.zeros(0, dtype=torch.int64)), torch.zeros(0, dtype=torch.int64)
    positions, dataset = held.nonzero().flatten().tolist(), job.dataset("train")
    found = job.features("train", blocks=config.blocks, parts=pool.parts_of(config.poolings), positions=positions)
    place = {dataset[position].id: position for position in positions}
    return _split(job, found), torch.tensor([place[name] for name in found.ids], dtype=torch.int64)


def _batches(job: Job, passes: int, unseen: Tensor, first: int) -> Iterable[Batch]:
    """The stream, without the images that nobody is trained on."""
    size = min(job.config.batch_size, int((~unseen).sum()), train.ENCODED)
    stream = job.stream("train", _crops(job), epochs=passes, batch_size=size, first_epoch=first)
    total = (passes - first) * -(-len(unseen) // size)
    return without(job.track(stream, "linear probe, online", total=total), unseen)


def _crops(job: Job) -> Augmentation:
    config: Config = job.config
    like = Augmentation(0, scale=config.scale, fitting=config.fitting, interpolation=config.interpolation)
    return crops(job, config.size, like)


def _plan(config: Config, images: int) -> train.Plan:
    batch = min(config.batch_size, images)
    lowest = config.min_rate / _peak(config, config.rates[0], images)
    return train.Plan(config.epochs, batch, config.schedule, config.warmup, lowest, config.drop_last, config.iterations)


def _peak(config: Config, base: float, images: int) -> float:
    """The rate that is applied to heads that are trained on so many images."""
    return schedules.peak(base, config.batch_size if config.nominal else min(config.batch_size, images))


def _stacks(job: Job, who: Who, like: Split, images: int, classes: int) -> dict[str, Heads]:
    """Heads of a seed, or of a fold, for the inputs of `like`, to be trained on so many images."""
    config: Config = job.config
    rates = [_peak(config, base, images) for base in config.rates]
    stacks = {}
    for name, rows in like.inputs.items():
        width = rows.shape[1]
        first = first_weights(width, classes, job.rng("linear", "first", who, name)).to(job.device)
        norm = BatchNorm(width, first, config.norm_images) if config.norm == "batch" else None
        stacks[name] = Heads(
            first, rates, momentum=config.momentum, weight_decay=config.weight_decay, optimiser=config.optimiser,
            norm=norm,
        )  # fmt: skip
    return stacks


def _watching(config: Config, best: BestOnTest, name: str = "best") -> Mapping[str, BestOnTest]:
    return {name: best} if config.best == "heads+epochs" else {}


def _tell(job: Job, trained: Trained, head: Head) -> None:
    config: Config = job.config
    pooling, depth = config.inputs[head.name]
    base, images = config.rates[head.index], int((~trained.left_out[config.seeds[0]]).sum())
    rate = trained.stacks[config.seeds[0]][head.name].rates[head.index]
    found = {"pooling": pooling, "base_rate": base, "rate": rate, "batch": min(config.batch_size, images)}
    found |= {"last_blocks": depth} if len(config.depths) > 1 else {}
    dead = {
        name: [
            rate
            for at, rate in enumerate(config.rates)
            if not all(s[name].alive()[at] for s in trained.reported.values())
        ]
        for name in config.inputs
    }
    job.fact("chosen", found | ({"diverged": dead} if any(dead.values()) else {}))
    if trained.trials:
        folds = len(trained.folds)
        fact = selection.fact("base rate", config.rates, base, head.choice, folds=folds, input=head.name)
        job.fact("choices", {"top1": fact})


def _keep(job: Job, trained: Trained, head: Head) -> None:
    tensors: dict[str, Tensor] = {}
    for seed, stacks in trained.reported.items():
        heads = stacks[head.name]
        weight, bias = heads.head(head.index)
        tensors |= {f"{seed}/weight": weight.cpu(), f"{seed}/bias": bias.cpu()}
        if heads.norm is not None:
            tensors |= {f"{seed}/norm_mean": heads.norm.mean.cpu(), f"{seed}/norm_var": heads.norm.var.cpu()}
    job.keep("head", tensors)


def _split(job: Job, features: Features) -> Split:
    return pool.split_of(features, job.config.inputs, job.device)


def _check_train(images: int, classes: int) -> None:
    if images == 0:
        raise ProtocolError("the training split has no image: there is nothing to train on")
    if classes < 2:
        raise ProtocolError("all training images have the same class: a classifier has nothing to tell apart")
