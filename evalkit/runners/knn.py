"""k-NN classification: each test image is labelled by the votes of its most similar training images.

What:   cosine similarity of L2-normalised features, one top-k at the largest k, vote weight exp(similarity / T), class
        votes of every k from prefixes of that one ranking.
Source: weighted k-NN of Wu et al. (arXiv:1805.01978) as used by DINO (arXiv:2104.14294; facebookresearch/dino 7c446df,
        eval_knn.py: k = 10 20 100 200, T = 0.07, CLS after the final norm).
Cost:   one matrix product (test x train) and about a third more; nothing of size (test x train) is ever held.
Ties:   similarities that are equal as float32 rank in the order of the bank's rows; equal votes go to the lowest class.
Expect: the published procedure's numbers for a bank of at least max(k) rows, without its crashes on few test images,
        gaps in labels or more than 1,000 classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from evalkit.errors import FeatureError, ProtocolError, UsageError
from evalkit.metrics import bootstrap, classification
from evalkit.runners.neighbours import Bank
from evalkit.types import Features, Job, Part, Score

Pooling = Literal["cls", "mean", "cls+mean"]

TOP = 5
"""Classes that `predict` keeps per query: enough for top-1 and top-5."""

BUDGET = 1 << 24
"""Similarities held at once (64 MB): large enough for an efficient product, small enough for a laptop."""


@dataclass(frozen=True)
class Config:
    """How to vote.

    ks: neighbours, each scored separately; DINO's 10, 20, 100, 200 (Mugs: 10 15 20 30 40 50 100 200; MMC: 10 20 50 100;
    SelfPatch: 20). temperature: divides the cosine, smaller trusts the nearest more; DINO's 0.07 (Mugs: 0.05 for ViT-S,
    0.04 for ViT-B and L). poolings: which representation; "cls" as DINO, "mean" of the patch tokens, "cls+mean" their
    concatenation (MMC Tables 6 and 11). MMC does not say how the two are scaled: here they are concatenated as the
    encoder gives them and the result is L2-normalised.
    """

    ks: tuple[int, ...] = (10, 20, 100, 200)
    temperature: float = 0.07
    poolings: tuple[Pooling, ...] = ("cls",)

    def __post_init__(self) -> None:
        _check_votes(self.ks, self.temperature)
        if not self.poolings or len(set(self.poolings)) < len(self.poolings):
            raise UsageError(f"poolings is {list(self.poolings)}; at least one is needed, each once: cls, mean, cls+mean")


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

    queries, bank: (Q, D) and (N, D), any float dtype, any norm (rows are normalised here; a zero row has cosine 0 to all).
    labels: (N,) int64 from 0, gaps allowed. ks: each in [1, N]. temperature: above 0. classes: C, by default the largest
    label plus 1.
    Returns (len(ks), Q, C) float32: sums of exp((s - s_max) / temperature) with s_max the query's best similarity, so
    that nothing overflows; 0 for a class without a neighbour. Equal float32 similarity at rank k: the earlier row of
    the bank is taken. The whole result is held: for many queries use `predict`.
    Raises ProtocolError for an empty bank or no queries, a k larger than N, labels that do not fit; FeatureError for
    features that are not finite or differ in width; UsageError for ks or a temperature that cannot be.
    """
    prepared = _prepare(queries, bank, labels, ks=ks, temperature=temperature)
    classes = _class_count(labels, classes)
    pieces = [
        torch.stack(list(_prefix_votes(values, labels[index], ks, temperature, classes)))
        for values, index in prepared.nearest(queries, max(ks), _block(None, len(bank)))
    ]
    order = torch.tensor([sorted(set(ks)).index(k) for k in ks], device=queries.device)
    return torch.cat(pieces, dim=1)[order]


def predict(
    queries: Tensor,
    bank: Tensor,
    labels: Tensor,
    *,
    ks: Sequence[int],
    temperature: float,
    classes: int | None = None,
    block: int | None = None,
) -> Tensor:
    """The best five classes for each k, in blocks of queries: neither (Q, N) nor (len(ks), Q, C) is ever held.

    Arguments and errors as `vote`; block: queries at once, by default so many that a block has 2^24 similarities.
    Returns (len(ks), Q, min(5, C)) int64, best first; equal votes, and classes without any vote, in the order of their ids.
    """
    prepared = _prepare(queries, bank, labels, ks=ks, temperature=temperature)
    classes = _class_count(labels, classes)
    order = [sorted(set(ks)).index(k) for k in ks]
    unvoted = -1.0 - torch.arange(classes, device=queries.device, dtype=torch.float32)
    best = torch.empty(len(ks), len(queries), min(TOP, classes), dtype=torch.int64, device=queries.device)
    start = 0
    for values, index in prepared.nearest(queries, max(ks), _block(block, len(bank))):
        rows = slice(start, start + len(values))
        votes = _prefix_votes(values, labels[index], ks, temperature, classes)
        # below every vote and falling with the id: classes without a vote need no tie to be broken
        found = [classification.ranked(torch.where(v > 0, v, unvoted), TOP) for v in votes]
        for place, which in enumerate(order):
            best[place, rows] = found[which]
        start = rows.stop
    return best


def run(job: Job) -> Iterator[Score]:
    """Yield "top1@k=20" (and "top5@k=20" where k >= 5 and there are more than 5 classes) for every k.

    Names of the first pooling carry no prefix, those of the others do: "mean/top1@k=20". Values are fractions in
    [0, 1], n the number of test images, intervals grouped by image. A k larger than the bank is left out and told as
    the fact "ks_left_out". Raises ProtocolError where no k is left, a split is empty or training has a single class;
    FeatureError where features are not finite.
    """
    config: Config = job.config
    parts = parts_of(config.poolings)
    train, test = job.features("train", parts=parts), job.features("test", parts=parts)
    _check_splits(train, test)
    ks = _fitting(job, config.ks, len(train))
    for pooling in job.track(config.poolings, "k-NN", total=len(config.poolings)):
        prefix = "" if pooling == config.poolings[0] else f"{pooling}/"
        yield from _scores(job, _pooled(train, pooling, job), _pooled(test, pooling, job), train, test, ks, prefix)


def parts_of(poolings: Iterable[str]) -> tuple[Part, ...]:
    """The stored representations that the poolings are made from, "cls" first."""
    asked = {part for pooling in poolings for part in pooling.split("+")}
    known: tuple[Part, ...] = ("cls", "mean")
    return tuple(part for part in known if part in asked)
