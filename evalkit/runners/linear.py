"""Linear probe: a linear classifier on frozen features, every learning rate and pooling in one pass.

What:   SGD with momentum (or LARS behind a batch norm) on the cross-entropy, cosine to 0, heads N(0, 0.01); for each seed
        its own first weights and order. "cached" trains on stored features of one fixed view, "online" on augmented
        images (random resized crop and flip), each encoded once for all heads. They are different protocols and need
        different recipe ids.
Source: DINO (arXiv:2104.14294; facebookresearch/dino 7c446df eval_linear.py), Mugs (sail-sg/mugs 10ab634
        eval/eval_linear_probing), MoCo v3 (facebookresearch/moco-v3 c349e6e main_lincls.py), MAE (facebookresearch/mae
        efb2a80 main_linprobe.py), the sweep of 45 rates of iBOT (bytedance/ibot da316d8 eval_linear_multi.py), the 52
        heads of DINOv2 (facebookresearch/dinov2 b8931f7 dinov2/eval/linear.py).
Rule:   fixed rates train on the whole training split and the last epoch is reported. Sweeps choose rate and pooling by
        accuracy on 5 % of the training images held out by group, seen by the deterministic view (then by lower loss,
        lower rate, earlier pooling) and report that head, trained on the other 95 %. What the test split would have
        chosen is the extra "best-on-test".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from evalkit.errors import ProtocolError, UsageError
from evalkit.metrics import bootstrap, classification
from evalkit.probing import pooling as pool
from evalkit.probing import schedules, train
from evalkit.probing.crops import crops
from evalkit.probing.heads import Heads, Optimiser, first_weights
from evalkit.probing.holdout import groups_of, hold_out, without
from evalkit.probing.norm import BatchNorm
from evalkit.probing.pooling import Split
from evalkit.probing.resume import Between, Share
from evalkit.probing.selection import BestOnTest, choose
from evalkit.types import Augmentation, Batch, Features, Fitting, Interpolation, Job, Score

SWEEP = tuple(digit * 10.0**power for power in range(-4, 1) for digit in range(1, 10))
"""The 45 base rates {1..9} x 10^{-4..0} of iBOT's sweep."""


@dataclass(frozen=True)
class Config:
    """How to train the heads.

    mode: "cached" or "online", see the module. poolings: "cls", "mean" (patch tokens), "cls+mean" (concatenated; DINO
    for ViT-B); several are swept. last_blocks: class tokens of so many last blocks, each through the final norm,
    concatenated, earliest first (DINO: 4 for ViT-S, 1 for ViT-B); several numbers are swept (DINOv2: 1 and 4); "mean"
    always is the last block's. rates: base rates; the rate applied is base x batch / 256 as the papers state theirs, with
    the batch that is really used. epochs: 100 (DINO). iterations: steps in all in place of epochs, 0 for none (DINOv2:
    12,500). batch_size: 1024 (DINO: 8 GPUs x 128); fewer images make one batch. drop_last: leave out an epoch's last
    batch where it is not whole (MAE, DINOv2).
    optimiser: "sgd", or "lars" (MAE). momentum 0.9, weight_decay 0 (all sources). norm: "batch" puts a batch norm
    without weights, eps 1e-6, before the heads (MAE); norm_images: it counts so many images at a time, 0 for the batch
    (MAE: the 512 of one GPU).
    schedule: cosine per "epoch" (DINO, MoCo v3) or per "iteration" (DINOv2, MAE), or "constant". warmup: epochs of linear
    growth first (MAE: 10). min_rate: the cosine's end, as applied; one rate only (Mugs: 1e-5 for some checkpoints).
    select: "held-out" for sweeps, "fixed" for one rate and one pooling. held_out: share of the training images that
    choose. best: what "best-on-test" may choose: "heads" of the last epoch, or also the epoch ("heads+epochs"), as the
    released scripts of DINO, iBOT, Mugs, MoCo v3 and MAE do; then fixed rates have the extra too. seeds: one run each.
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


@dataclass(frozen=True)
class Trained:
    """The heads of one seed by input, the one that was chosen (its input, its place among the rates), and what the best
    got right on the test split."""

    stacks: Mapping[str, Heads]
    name: str
    index: int
    best: BestOnTest


def run(job: Job) -> Iterator[Score]:
    """Yield "top1" (headline), "top1@seed=0" ... (note "seed") and "best-on-test" (note "best-on-test") for sweeps, and
    for fixed rates where `best` is "heads+epochs".

    Values are fractions in [0, 1]; the outcome of a test image is the share of seeds that got it right; n is the
    number of test images, intervals are grouped by image and hold the heads fixed (the spread over seeds is the fact
    "seed_std").
    The chosen heads are kept as "head": `<seed>/weight` (C, D), `<seed>/bias` (C,) and, behind a batch norm,
    `<seed>/norm_mean` and `<seed>/norm_var` (D,). Unfinished training is taken up after its last whole epoch. Raises
    ProtocolError where a split is empty, training has a single class or no head survives; FeatureError where features are
    not finite; Unsupported is the job's to raise.
    """
    config: Config = job.config
    test = job.features("test", blocks=config.blocks, parts=pool.parts_of(config.poolings))
    if len(test) == 0:
        raise ProtocolError("the test split has no image: there is nothing to score")
    shown = _split(job, test)
    trained = _cached(job, shown) if config.mode == "cached" else _online(job, shown)
    _keep(job, trained)
    chosen = {
        seed: train.measure(t.stacks[t.name], shown.inputs[t.name], shown.labels).correct[t.index]
        for seed, t in trained.items()
    }
    yield from _scores(job, chosen, {seed: t.best.best[0] for seed, t in trained.items() if len(t.best.best)}, test)


def _scores(job: Job, chosen: Mapping[int, Tensor], best: Mapping[int, Tensor], test: Features) -> Iterator[Score]:
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


def _cached(job: Job, test: Split) -> dict[int, Trained]:
    config: Config = job.config
    stored = job.features("train", blocks=config.blocks, parts=pool.parts_of(config.poolings))
    _check_train(len(stored), classification.seen_classes(stored.labels))
    given = _split(job, stored)
    classes = 1 + int(torch.cat([given.labels, test.labels]).max())
    trained: dict[int, Trained] = {}
    facts: dict[str, Any] = {}
    for seed in config.seeds:
        held = torch.zeros(len(stored), dtype=torch.bool)
        if config.select == "held-out":
            held = hold_out(stored.groups, config.held_out, job.rng("linear", "held-out", seed))
        seen, kept = given.rows(~held), given.rows(held)
        stacks = _fit(job, seed, seen, test=test, classes=classes)
        trained[seed], facts[f"seed={seed}"] = _chosen(job, stacks, kept, len(seen.labels))
    job.fact("chosen", facts)
    return trained


def _fit(job: Job, seed: int, seen: Split, *, test: Split, classes: int) -> tuple[dict[str, Heads], BestOnTest]:
    config: Config = job.config
    count = len(seen.labels)
    widths = {name: rows.shape[1] for name, rows in seen.inputs.items()}
    stacks = _stacks(job, seed, widths, classes=classes, batch=min(config.batch_size, count))
    best = BestOnTest(stacks, test.inputs, test.labels)
    train.fit(
        stacks,
        seen.inputs,
        seen.labels,
        plan=_plan(config, count),
        order=lambda epoch: torch.randperm(count, generator=job.rng("linear", "order", seed, epoch)),
        track=lambda epochs: job.track(epochs, f"linear probe, seed {seed}", total=len(epochs)),
        between=Between(Share(job.checkpoint, f"seed={seed}"), _watching(config, best)),
    )
    return stacks, best


def _online(job: Job, test: Split) -> dict[int, Trained]:
    config: Config = job.config
    dataset = job.dataset("train")
    labels = torch.tensor([dataset[index].label for index in range(len(dataset))], dtype=torch.int64)
    _check_train(len(dataset), classification.seen_classes(labels))
    held = torch.zeros(len(dataset), dtype=torch.bool)
    if config.select == "held-out":
        held = hold_out(groups_of(dataset), config.held_out, job.rng("linear", "held-out"))
    count, classes = int((~held).sum()), 1 + max(int(labels.max()), int(test.labels.max()))
    plan = _plan(config, count)
    widths = {name: rows.shape[1] for name, rows in test.inputs.items()}
    of_seed = {seed: _stacks(job, seed, widths, classes=classes, batch=plan.batch) for seed in config.seeds}
    best = {str(seed): BestOnTest(stacks, test.inputs, test.labels) for seed, stacks in of_seed.items()}

    def encode(images: Tensor) -> dict[str, Tensor]:
        tokens = job.encode(images, blocks=config.blocks)
        found = {name: pool.of_tokens(tokens[-n:], [p])[p] for name, (p, n) in config.inputs.items()}
        return {f"{seed}/{name}": rows for seed in of_seed for name, rows in found.items()}

    train.fit_stream(
        {f"{seed}/{name}": heads for seed, stacks in of_seed.items() for name, heads in stacks.items()},
        partial(_batches, job, plan, held),
        encode,
        plan=plan,
        images=count,
        checkpoint=job.checkpoint,
        watch={name: one for seen in best.items() for name, one in _watching(config, seen[1], seen[0]).items()},
    )
    kept = _held(job, held) if held.any() else test.rows(torch.zeros(0, dtype=torch.int64))
    both = {seed: _chosen(job, (stacks, best[str(seed)]), kept, count) for seed, stacks in of_seed.items()}
    job.fact("chosen", {f"seed={seed}": facts for seed, (_, facts) in both.items()})
    return {seed: trained for seed, (trained, _) in both.items()}


def _held(job: Job, held: Tensor) -> Split:
    """The held-out training images under the deterministic view."""
    config: Config = job.config
    positions = held.nonzero().flatten().tolist()
    return _split(
        job, job.features("train", blocks=config.blocks, parts=pool.parts_of(config.poolings), positions=positions)
    )


def _batches(job: Job, plan: train.Plan, held: Tensor, first: int) -> Iterable[Batch]:
    size, epochs = min(plan.batch, train.ENCODED), plan.passes(int((~held).sum()))
    stream = job.stream("train", _crops(job), epochs=epochs, batch_size=size, first_epoch=first)
    total = (epochs - first) * -(-len(held) // size)
    return without(job.track(stream, "linear probe, online", total=total), held)


def _crops(job: Job) -> Augmentation:
    config: Config = job.config
    like = Augmentation(0, scale=config.scale, fitting=config.fitting, interpolation=config.interpolation)
    return crops(job, config.size, like)


def _plan(config: Config, images: int) -> train.Plan:
    batch = min(config.batch_size, images)
    lowest = config.min_rate / schedules.peak(config.rates[0], batch)
    return train.Plan(config.epochs, batch, config.schedule, config.warmup, lowest, config.drop_last, config.iterations)


def _stacks(job: Job, seed: int, widths: Mapping[str, int], *, classes: int, batch: int) -> dict[str, Heads]:
    config: Config = job.config
    rates = [schedules.peak(base, batch) for base in config.rates]
    stacks = {}
    for name, width in widths.items():
        first = first_weights(width, classes, job.rng("linear", "first", seed, name)).to(job.device)
        norm = BatchNorm(width, first, config.norm_images) if config.norm == "batch" else None
        stacks[name] = Heads(
            first, rates, momentum=config.momentum, weight_decay=config.weight_decay, optimiser=config.optimiser,
            norm=norm,
        )  # fmt: skip
    return stacks


def _watching(config: Config, best: BestOnTest, name: str = "best") -> Mapping[str, BestOnTest]:
    return {name: best} if config.best == "heads+epochs" else {}


def _chosen(
    job: Job, trained: tuple[Mapping[str, Heads], BestOnTest], kept: Split, images: int
) -> tuple[Trained, dict[str, Any]]:
    """One seed's head, by the images held out for it, and the facts about it. images: trained on."""
    config: Config = job.config
    stacks, best = trained
    if config.best == "heads" and config.select == "held-out":
        best.look()
    measured = {name: train.measure(heads, kept.inputs[name], kept.labels) for name, heads in stacks.items()}
    name, index = choose(measured, config.rates)
    facts = _facts(config, stacks, name, index, batch=min(config.batch_size, images))
    if len(kept.labels):
        correct = measured[name].correct[index]
        facts |= {"held_out": len(correct), "held_out_top1": float(correct.double().mean())}
    return Trained(stacks, name, index, best), facts


def _facts(config: Config, stacks: Mapping[str, Heads], name: str, index: int, *, batch: int) -> dict[str, Any]:
    pooling, depth = config.inputs[name]
    facts: dict[str, Any] = {"pooling": pooling, "base_rate": config.rates[index], "rate": stacks[name].rates[index]}
    facts |= {"batch": batch} | ({"last_blocks": depth} if len(config.depths) > 1 else {})
    dead = {
        name: [rate for rate, alive in zip(config.rates, heads.alive().tolist(), strict=True) if not alive]
        for name, heads in stacks.items()
    }
    return facts | ({"diverged": dead} if any(dead.values()) else {})


def _keep(job: Job, trained: Mapping[int, Trained]) -> None:
    tensors: dict[str, Tensor] = {}
    for seed, of in trained.items():
        heads = of.stacks[of.name]
        weight, bias = heads.head(of.index)
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
