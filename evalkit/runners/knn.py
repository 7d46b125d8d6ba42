"""k-NN classification: each test image is labelled by the votes of its most similar training images.

What:   cosine similarity of L2-normalised features, one top-k at the largest k, vote weight exp(similarity / T), class
        votes of every k from prefixes of that one ranking.
Source: weighted k-NN of Wu et al. (arXiv:1805.01978) as used by DINO (arXiv:2104.14294; facebookresearch/dino 7c446df,
        eval_knn.py: k = 10 20 100 200, T = 0.07, CLS after the final norm).
Cost:   one matrix product (test x train) and about half more; nothing of size (test x train) is ever held, and a bank of
        many rows is looked at in tiles. FAISS can search instead (`search`): exactly, or approximately with its recall.
Ties:   equal similarities (`metrics.similarity`) rank in the order of the bank's rows; votes are equal where they are as
        float32, and go to the lowest class.
Top-5:  of the classes that a neighbour voted for, be they fewer than five. The published script sorts all classes, those
        without a vote in whatever order its sort leaves equal numbers; what that finds is luck and no neighbour.
Expect: the published procedure's numbers for a bank of at least max(k) rows, without its crashes on few test images,
        gaps in labels or more than 1,000 classes; top-5 as far as five classes have a vote.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from evalkit.errors import ProtocolError, UsageError
from evalkit.metrics import banks, bootstrap, classification
from evalkit.metrics.neighbours import nearest
from evalkit.probing import pooling as pool
from evalkit.probing import projection
from evalkit.types import Features, Job, Part, Score

TOP = 5
"""Classes that `predict` keeps per query: enough for top-1 and top-5."""

NOBODY = -1
"""In the place of a class that no neighbour voted for."""

LEAST = torch.finfo(torch.float32).tiny
"""A neighbour's vote at least: above 0 as float32, however far it is."""

PROJECTED: tuple[Part, ...] = ("projection", "bottleneck")
"""Poolings that the pretraining head makes."""


@dataclass(frozen=True)
class Config:
    """How to vote.

    ks: neighbours, each scored separately; DINO's 10, 20, 100, 200 (Mugs: 10 15 20 30 40 50 100 200; MMC: 10 20 50 100;
    SelfPatch: 20). temperature: divides the cosine, smaller trusts the nearest more; DINO's 0.07 (Mugs: 0.05 for ViT-S,
    0.04 for ViT-B and L). pooling: which representations; "cls" as DINO, "mean" of the patch tokens, "cls+mean" their
    concatenation (MMC Tables 6 and 11). MMC does not say how the two are scaled: here they are concatenated as the
    encoder gives them and the result is L2-normalised. "patches": all patch tokens in their places. "projection": output
    of the pretraining head; "bottleneck": what enters its last layer.
    search: "exact"; "faiss", exact too, by IndexFlatIP in tiles; "faiss-ivf", approximate, by inverted lists of which
    `probes` are read per query (ours, no paper has it), whose recall against the exact search is told as a fact.
    Raises UsageError for a value that cannot be.
    """

    ks: tuple[int, ...] = (10, 20, 100, 200)
    temperature: float = 0.07
    pooling: tuple[pool.Pooling | Literal["projection", "bottleneck"], ...] = ("cls",)
    search: Literal["exact", "faiss", "faiss-ivf"] = "exact"
    probes: int = 32

    def __post_init__(self) -> None:
        _check_options(self.ks, self.temperature)
        _check_poolings(self.pooling)
        if self.probes < 1:
            raise UsageError(f"probes is {self.probes}; at least 1 list must be read")


def vote(
    queries: Tensor,
    bank: Tensor,
    labels: Tensor,
    *,
    ks: Sequence[int],
    temperature: float,
    classes: int | None = None,
) -> Tensor:
    """Class votes for each k; a pure function on plain tensors of one device.

    queries, bank: (Q, D) and (N, D), any float dtype, any norm (rows are normalised here; a zero row has cosine 0 to
    all).
    labels: (N,) int64 from 0, gaps allowed. ks: each in [1, N]. temperature: above 0. classes: C, by default the
    largest label plus 1.
    Returns (len(ks), Q, C) float32: sums of exp((s - s_max) / temperature) with s_max the query's best similarity, so
    that nothing overflows; 0 for a class without a neighbour. Equal similarity at rank k: the earlier row of the bank
    is taken. The whole result is held: for many queries use `predict`.
    Raises ProtocolError for an empty bank or no queries, a k larger than N, labels that do not fit; FeatureError for
    features that are not finite or differ in width; UsageError for ks or a temperature that cannot be.
    """
    _check_options(ks, temperature)
    classes = _class_count(labels, len(bank), classes)
    depths = sorted(set(ks))
    pieces = [
        torch.stack(list(_votes(values, labels[index], depths, temperature, classes)))
        for values, index in nearest(queries, bank, k=depths[-1])
    ]
    return torch.cat(pieces, dim=1)[[depths.index(k) for k in ks]]


def predict(
    queries: Tensor,
    bank: Tensor,
    labels: Tensor,
    *,
    ks: Sequence[int],
    temperature: float,
    classes: int | None = None,
    search: banks.Search = nearest,
) -> Tensor:
    """The best five classes for each k, in blocks of queries: neither (Q, N) nor (len(ks), Q, C) is ever held.

    Arguments and errors as `vote`; search: how neighbours are found, by default exactly.
    Returns (len(ks), Q, min(5, C)) int64, best first, equal votes in the order of the ids; -1 for the places that are left
    where fewer classes have a vote.
    """
    _check_options(ks, temperature)
    classes = _class_count(labels, len(bank), classes)
    depths = sorted(set(ks))
    # Below every vote and falling with the id: classes without a vote then need no tie to be broken.
    unvoted = -1.0 - torch.arange(classes, device=labels.device, dtype=torch.float32)
    pieces = [
        torch.stack(
            [_best(votes, unvoted) for votes in _votes(values, labels[index], depths, temperature, classes, LEAST)]
        )
        for values, index in search(queries, bank, k=depths[-1])
    ]
    return torch.cat(pieces, dim=1)[[depths.index(k) for k in ks]]


def _best(votes: Tensor, unvoted: Tensor) -> Tensor:
    """(B, min(5, C)) int64: as `predict`, of votes (B, C). unvoted: (C,) what orders classes without a vote."""
    best = classification.ranked(torch.where(votes > 0, votes, unvoted), TOP)
    return torch.where(votes.gather(1, best) > 0, best, NOBODY)


def run(job: Job) -> Iterator[Score]:
    """Yield "top1@k=20" (and "top5@k=20" where k >= 5 and there are more than 5 classes) for every k.

    Names of the first pooling carry no prefix, those of the others do: "mean/top1@k=20". Values are fractions in
    [0, 1], n the number of test images, intervals grouped by image. A k larger than the bank is left out and told as
    the fact "ks_left_out"; any search but "exact" is told as the fact "search". Raises ProtocolError where no k is left,
    a split is empty or training has a single class; FeatureError where features are not finite.
    """
    config: Config = job.config
    parts = _parts(config.pooling)
    train, test = job.features("train", parts=parts), job.features("test", parts=parts)
    _check_splits(train, test)
    ks = _fitting(job, config.ks, len(train))
    classes = 1 + int(torch.cat([train.labels, test.labels]).max())
    searched: dict[str, Any] = {}
    labels = train.labels.to(job.device)
    for pooling in job.track(config.pooling, "k-NN", total=len(config.pooling)):
        bank, queries = (rows.to(job.device) for rows in _rows(job, train, test, pooling))
        search, searched[pooling] = _search(config, queries, bank, ks=ks, seed=job.seed)
        ranking = predict(
            queries, bank, labels, ks=ks, temperature=config.temperature, classes=classes, search=search
        ).cpu()
        prefix = "" if pooling == config.pooling[0] else f"{pooling}/"
        for k, row in zip(ks, ranking, strict=True):
            for n in (1, 5) if k >= 5 and classes > 5 else (1,):
                outcomes = classification.correct(row, test.labels, n).numpy()
                name = f"{prefix}top{n}@k={k}"
                yield bootstrap.score(name, outcomes, test.groups.numpy(), labels=test.labels, seed=job.seed)
    if config.search != "exact":
        job.fact("search", searched)


def _search(
    config: Config, queries: Tensor, bank: Tensor, *, ks: tuple[int, ...], seed: int
) -> tuple[banks.Search, dict[str, Any]]:
    """How to find neighbours, and what to tell of it."""
    if config.search == "exact":
        return nearest, {}
    if config.search == "faiss":
        return banks.flat, {"index": "Flat"}
    approximate = banks.Inverted(bank, config.probes, seed)
    measured = banks.recall(approximate, queries, bank, ks=ks)
    return approximate, {**approximate.facts, **measured}


def _parts(poolings: Sequence[str]) -> tuple[Part, ...]:
    """What must be stored: the head reads the class token."""
    return pool.parts_of("cls" if pooling in PROJECTED else pooling for pooling in poolings)


def _rows(job: Job, train: Features, test: Features, pooling: str) -> tuple[Tensor, Tensor]:
    """(N, D') of training and (Q, D') of test images, float32. Raises FeatureError where a row is not finite, NoProjection
    where there is no head."""
    for part in PROJECTED:
        if part == pooling:  # in one go: wide outputs become coordinates in a basis that both must share
            cls = torch.cat([pool.of_features(split, "cls") for split in (train, test)])
            both = projection.of_class_tokens(job.encoder, cls, part, job.device)
            return both[: len(train)], both[len(train) :]
    return pool.of_features(train, pooling), pool.of_features(test, pooling)


def _votes(
    values: Tensor, neighbours: Tensor, depths: Sequence[int], temperature: float, classes: int, least: float = 0.0
) -> Iterator[Tensor]:
    """(B, C) float32 votes at each depth, ascending; a neighbour's is at least `least`. Weights and sums are float64, so
    that rounding to float32 hides how processors differ in an exponential."""
    weights = ((values - values[:, :1]).double() / temperature).exp().clamp_min(least)
    votes = weights.new_zeros(len(values), classes)
    done = 0
    for depth in depths:
        votes.scatter_add_(1, neighbours[:, done:depth], weights[:, done:depth])
        done = depth
        yield votes.float()


def _check_options(ks: Sequence[int], temperature: float) -> None:
    if not ks or min(ks) < 1 or len(set(ks)) < len(ks):
        raise UsageError(f"ks is {list(ks)}; at least one number of neighbours is needed, each from 1 and only once")
    if not 0 < temperature < float("inf"):
        raise UsageError(f"temperature is {temperature}; it must be a finite number above 0")


def _check_poolings(poolings: Sequence[str]) -> None:
    heads = [pooling for pooling in poolings if pooling in PROJECTED]
    rest = [pooling for pooling in poolings if pooling not in PROJECTED]
    if rest or not heads:
        pool.check(rest)
    if len(set(heads)) < len(heads):
        raise UsageError(f"poolings is {list(poolings)}; each is needed once")


def _class_count(labels: Tensor, rows: int, classes: int | None) -> int:
    if labels.shape != (rows,):
        raise ProtocolError(
            f"each of the {rows} rows of the bank needs one label; labels of shape {tuple(labels.shape)} came"
        )
    low, high = (int(labels.min()), int(labels.max())) if rows else (0, 0)
    if low < 0:
        raise ProtocolError(f"the bank holds the label {low}; classes are numbered from 0, unlabelled rows cannot vote")
    if classes is not None and classes <= high:
        raise ProtocolError(f"the bank holds the label {high}, but only {classes} classes were announced")
    return high + 1 if classes is None else classes


def _check_splits(train: Features, test: Features) -> None:
    if len(train) == 0 or len(test) == 0:
        raise ProtocolError(f"k-NN needs images in both splits: train has {len(train)}, test has {len(test)}")
    if classification.seen_classes(train.labels) < 2:
        raise ProtocolError("all training images have the same class: every vote would be right by definition")


def _fitting(job: Job, ks: Sequence[int], rows: int) -> tuple[int, ...]:
    left = tuple(k for k in ks if k <= rows)
    if not left:
        raise ProtocolError(f"every k of {list(ks)} is larger than N = {rows}, the number of training images")
    if len(left) < len(ks):
        job.fact("ks_left_out", {"ks": [k for k in ks if k > rows], "because": f"larger than the bank of {rows}"})
    return left
