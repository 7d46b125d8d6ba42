"""Linear probe: a linear classifier on frozen features, every learning rate and pooling in one pass.

What:   SGD with momentum on the cross-entropy, cosine to 0, heads N(0, 0.01); for each seed its own first weights,
        order and held-out images. "cached" trains on stored features of one fixed view, "online" on augmented images
        (random resized crop and flip), each encoded once for all heads. They are different protocols and need
        different recipe ids.
Source: DINO (arXiv:2104.14294; facebookresearch/dino 7c446df eval_linear.py), the sweep of 45 rates of iBOT
        (bytedance/ibot da316d8 eval_linear_multi.py), many heads in one pass as DINOv2 (wheel 0.0.1.dev2,
        eval/linear.py).
Rule:   fixed rates train on the whole training split and the last epoch is reported. Sweeps choose rate and pooling by
        accuracy on 5 % of the training images held out by group (then by lower loss, lower rate, earlier pooling) and
        report that head, trained on the other 95 %. What the test split would have chosen is the extra "best-on-test".
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
from evalkit.probing.heads import Heads, first_weights
from evalkit.probing.holdout import hold_out
from evalkit.types import Augmentation, Batch, Features, Interpolation, Job, Score

SWEEP = tuple(digit * 10.0**power for power in range(-4, 1) for digit in range(1, 10))
"""The 45 base rates {1..9} x 10^{-4..0} of iBOT's sweep."""


@dataclass(frozen=True)
class Config:
    """How to train the heads.

    mode: "cached" or "online", see the module. poolings: "cls", "mean" (patch tokens), "cls+mean" (concatenated; DINO
    for ViT-B); several are swept. last_blocks: class tokens of so many last blocks, each through the final norm,
    concatenated, earliest first (DINO: 4 for ViT-S, 1 for ViT-B); "mean" always is the last block's. rates: base
    rates; the rate applied is base x batch / 256 as the papers state theirs, with the batch that is really used.
    epochs: 100 (DINO).
    batch_size: 1024 (DINO: 8 GPUs x 128); fewer images make one batch. momentum 0.9, weight_decay 0 (all sources).
    schedule: cosine per "epoch" (DINO, MoCo v3) or per "iteration" (DINOv2), or "constant". select: "held-out" for
    sweeps, "fixed" for one rate and one pooling. held_out: share of the training images that choose. seeds: one run
    each.
    size, scale, interpolation: of the online crops; 224, (0.08, 1), bilinear as DINO; the size is rounded down to a
    multiple of the patch. Online, all seeds see the same crops in the same order, so that the encoder runs once.
    Raises UsageError for values that cannot be.
    """

    mode: Literal["cached", "online"] = "cached"
    poolings: tuple[pool.Pooling, ...] = ("cls",)
    last_blocks: int = 1
    rates: tuple[float, ...] = SWEEP
    epochs: int = 100
    batch_size: int = 1024
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: schedules.Schedule = "epoch"
    select: Literal["fixed", "held-out"] = "held-out"
    held_out: float = 0.05
    seeds: tuple[int, ...] = (0, 1, 2)
    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        pool.check(self.poolings)
        Heads(torch.zeros(1, 1), self.rates, momentum=self.momentum, weight_decay=self.weight_decay)
        for name in ("last_blocks", "epochs", "batch_size", "size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"seeds is {list(self.seeds)}; at least one is needed, each once")
        if not 0 < self.held_out < 1:
            raise UsageError(f"held_out is {self.held_out}; it is a share of the training images, between 0 and 1")
        if self.select == "fixed" and len(self.rates) * len(self.poolings) > 1:
            raise UsageError("select is 'fixed', but several rates or poolings are given; only 'held-out' can choose")
        if self.select == "held-out" and self.mode == "online":
            raise UsageError("mode 'online' sees no image twice alike and holds none out: it needs select = 'fixed'")


@dataclass(frozen=True)
class Trained:
    """The heads of one seed by pooling, and the one that was chosen: its pooling and its place among the rates."""

    stacks: Mapping[str, Heads]
    pooling: str
    index: int


def run(job: Job) -> Iterator[Score]:
    """Yield "top1" (headline), "top1@seed=0" ... (note "seed") and, for sweeps, "best-on-test" (note "best-on-test").

    Values are fractions in [0, 1]; the outcome of a test image is the share of seeds that got it right; n is the
    number of test images, intervals are grouped by image and hold the heads fixed (the spread over seeds is the fact
    "seed_std").
    The chosen heads are kept as "head": `<seed>/weight` (C, D) and `<seed>/bias` (C,). Online, unfinished training is
    taken up where it was. Raises ProtocolError where a split is empty, training has a single class or no head survives;
    FeatureError where features are not finite; Unsupported is the job's to raise.
    """
    config: Config = job.config
    test = job.features("test", blocks=_blocks(config), parts=pool.parts_of(config.poolings))
    if len(test) == 0:
        raise ProtocolError("the test split has no image: there is nothing to score")
    trained = _cached(job, config, test) if config.mode == "cached" else _online(job, config, test)
    inputs: dict[str, Tensor] = {
        name: pool.of_features(test, name, _blocks(config)).to(job.device) for name in config.poolings
    }
    right = {seed: _correct(t, inputs, test.labels.to(job.device)) for seed, t in trained.items()}
    _keep(job, trained)
    chosen = {seed: right[seed][t.pooling][t.index] for seed, t in trained.items()}
    best = {
        seed: max((row for rows in of.values() for row in rows), key=lambda row: int(row.sum()))
        for seed, of in right.items()
    }
    yield from _scores(job, chosen, best, test)


def _scores(job: Job, chosen: Mapping[int, Tensor], best: Mapping[int, Tensor], test: Features) -> Iterator[Score]:
    groups = test.groups.numpy()
    per_seed = torch.stack(list(chosen.values())).float()
    accuracies = per_seed.double().mean(dim=1)
    job.fact("seed_std", float(accuracies.std()) if len(chosen) > 1 else None)
    yield bootstrap.score("top1", per_seed.mean(dim=0).numpy(), groups, seed=job.seed)
    for seed, row in zip(chosen, per_seed, strict=True):
        yield bootstrap.score(f"top1@seed={seed}", row.numpy(), groups, note="seed", seed=job.seed)
    if job.config.select != "fixed":
        outcomes = torch.stack(list(best.values())).float().mean(dim=0).numpy()
        yield bootstrap.score("best-on-test", outcomes, groups, note="best-on-test", seed=job.seed)


def _cached(job: Job, config: Config, test: Features) -> dict[int, Trained]:
    stored = job.features("train", blocks=_blocks(config), parts=pool.parts_of(config.poolings))
    _check_train(len(stored), classification.seen_classes(stored.labels))
    classes = 1 + int(torch.cat([stored.labels, test.labels]).max())
    inputs: dict[str, Tensor] = {
        name: pool.of_features(stored, name, _blocks(config)).to(job.device) for name in config.poolings
    }
    labels = stored.labels.to(job.device)
    trained: dict[int, Trained] = {}
    facts: dict[str, Any] = {}
    for seed in config.seeds:
        held = torch.zeros(len(stored), dtype=torch.bool)
        if config.select == "held-out":
            held = hold_out(stored.groups, config.held_out, job.rng("linear", "held-out", seed))
        trained[seed], facts[f"seed={seed}"] = _one_seed(
            job, seed, inputs, labels, held=held.to(job.device), classes=classes
        )
    job.fact("chosen", facts)
    return trained


def _one_seed(
    job: Job, seed: int, inputs: Mapping[str, Tensor], labels: Tensor, *, held: Tensor, classes: int
) -> tuple[Trained, dict[str, Any]]:
    config: Config = job.config
    seen = {name: rows[~held] for name, rows in inputs.items()}
    count = int((~held).sum())
    plan = train.Plan(config.epochs, min(config.batch_size, count), config.schedule)
    widths = {name: rows.shape[1] for name, rows in inputs.items()}
    stacks = _stacks(job, seed, widths, classes=classes, batch=plan.batch)
    train.fit(
        stacks,
        seen,
        labels[~held],
        plan=plan,
        order=lambda epoch: torch.randperm(count, generator=job.rng("linear", "order", seed, epoch)),
        track=partial(job.track, what=f"linear probe, seed {seed}", total=config.epochs),
    )
    measured = {name: train.measure(heads, inputs[name][held], labels[held]) for name, heads in stacks.items()}
    pooling, index = _choose(config, measured)
    facts = _facts(config, stacks, pooling, index, batch=plan.batch)
    if held.any():
        facts |= {"held_out": int(held.sum()), "held_out_top1": float(measured[pooling].correct[index].double().mean())}
    return Trained(stacks, pooling, index), facts


def _online(job: Job, config: Config, test: Features) -> dict[int, Trained]:
    dataset = job.dataset("train")
    present = {dataset[index].label for index in range(len(dataset))}
    _check_train(len(dataset), len(present))
    classes = 1 + max(max(present), int(test.labels.max()))
    plan = train.Plan(config.epochs, min(config.batch_size, len(dataset)), config.schedule)
    width = job.encoder.spec.dim
    widths: dict[str, int] = {p: width * (config.last_blocks * ("cls" in p) + ("mean" in p)) for p in config.poolings}
    of_seed = {seed: _stacks(job, seed, widths, classes=classes, batch=plan.batch) for seed in config.seeds}

    def encode(images: Tensor) -> dict[str, Tensor]:
        found = pool.of_tokens(job.encode(images, blocks=_blocks(config)), config.poolings)
        return {f"{seed}/{name}": found[name] for seed in of_seed for name in config.poolings}

    train.fit_stream(
        {f"{seed}/{name}": heads for seed, stacks in of_seed.items() for name, heads in stacks.items()},
        partial(_batches, job, _augmentation(job, config), plan, len(dataset)),
        encode,
        plan=plan,
        images=len(dataset),
        checkpoint=job.checkpoint,
    )
    pooling = config.poolings[0]
    facts = {}
    for seed, stacks in of_seed.items():
        if not stacks[pooling].alive()[0]:
            raise ProtocolError(f"the head diverged at base rate {config.rates[0]:g}: its weights are not finite")
        facts[f"seed={seed}"] = _facts(config, stacks, pooling, 0, batch=plan.batch)
    job.fact("chosen", facts)
    return {seed: Trained(stacks, pooling, 0) for seed, stacks in of_seed.items()}


def _batches(job: Job, augmentation: Augmentation, plan: train.Plan, images: int, first: int) -> Iterable[Batch]:
    stream = job.stream("train", augmentation, epochs=plan.epochs, batch_size=plan.batch, first_epoch=first)
    return job.track(stream, "linear probe, online", total=(plan.epochs - first) * -(-images // plan.batch))


def _augmentation(job: Job, config: Config) -> Augmentation:
    spec = job.encoder.spec
    size = config.size // spec.patch * spec.patch
    if size < spec.patch:
        raise ProtocolError(f"crops of {config.size} px hold no patch of {spec.patch} px")
    if size != config.size:
        job.fact("crop_size", {"asked": config.size, "used": size, "patch": spec.patch})
    given = spec.preprocessing
    return Augmentation(size, scale=config.scale, interpolation=config.interpolation, mean=given.mean, std=given.std)


def _stacks(job: Job, seed: int, widths: Mapping[str, int], *, classes: int, batch: int) -> dict[str, Heads]:
    config: Config = job.config
    rates = [schedules.peak(base, batch) for base in config.rates]
    stacks = {}
    for name, width in widths.items():
        first = first_weights(width, classes, job.rng("linear", "first", seed, name)).to(job.device)
        stacks[name] = Heads(first, rates, momentum=config.momentum, weight_decay=config.weight_decay)
    return stacks


def _choose(config: Config, measured: Mapping[str, train.Measured]) -> tuple[str, int]:
    """The best living head: held-out accuracy, then lower loss, lower rate, earlier pooling."""
    ranks = [
        (-int(of.correct[index].sum()), float(of.loss[index]) if of.correct.shape[1] else 0.0, rate, place, index)
        for place, of in enumerate(measured.values())
        for index, rate in enumerate(config.rates)
        if of.alive[index]
    ]
    if not ranks:
        raise ProtocolError(
            f"every head diverged: the base rates {min(config.rates):g} to {max(config.rates):g} are too high"
        )
    best = min(ranks)
    return list(measured)[best[3]], best[4]


def _facts(config: Config, stacks: Mapping[str, Heads], pooling: str, index: int, *, batch: int) -> dict[str, Any]:
    rate = stacks[pooling].rates[index]
    facts: dict[str, Any] = {"pooling": pooling, "base_rate": config.rates[index], "rate": rate, "batch": batch}
    dead = {
        name: [rate for rate, alive in zip(config.rates, heads.alive().tolist(), strict=True) if not alive]
        for name, heads in stacks.items()
    }
    return facts | ({"diverged": dead} if any(dead.values()) else {})


def _correct(trained: Trained, inputs: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """(H, n) bool per pooling; heads that diverged are right nowhere."""
    return {name: train.measure(heads, inputs[name], labels).correct for name, heads in trained.stacks.items()}


def _keep(job: Job, trained: Mapping[int, Trained]) -> None:
    tensors: dict[str, Tensor] = {}
    for seed, of in trained.items():
        weight, bias = of.stacks[of.pooling].head(of.index)
        tensors |= {f"{seed}/weight": weight.cpu(), f"{seed}/bias": bias.cpu()}
    job.keep("head", tensors)


def _blocks(config: Config) -> tuple[int, ...]:
    return tuple(range(-config.last_blocks, 0))


def _check_train(images: int, classes: int) -> None:
    if images == 0:
        raise ProtocolError("the training split has no image: there is nothing to train on")
    if classes < 2:
        raise ProtocolError("all training images have the same class: a classifier has nothing to tell apart")
