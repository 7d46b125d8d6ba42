"""How values of pairs of two kinds are spread: histograms, their overlap, and intervals over what the pairs are made of.

What:   a histogram per kind ("intra", "inter") over [-1, 1] in bins of equal width, and the exact sums; the overlap of two
        histograms of area 1 is the area under both: 1 where they are alike, 0 where they share no bin.
Interval: a pair belongs to two units, so units are resampled and a pair counts as often as the product of its units'
        draws (a pair within one unit as often as the unit). Many units are put into blocks first.
Source: Inman and Bradley, The overlapping coefficient (Communications in Statistics A 18, 1989); MMC Table 5 names O.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evalkit.errors import ProtocolError
from evalkit.metrics import similarity

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

CHUNK = 1024
"""Rows multiplied at once with as many others: products that stay in a processor's cache."""
RESAMPLED = 1 << 24
"""Numbers held at once while resampling."""


@dataclass(frozen=True)
class Spread:
    """Pairs of two kinds, 0 and 1, between U units: intra and inter.

    counts: (U, U, 2, B) pairs by bin, filled where the second unit is not before the first; None between units where pairs
    lie within units only: then (U, 2, B). sums: the same without B, of the values.
    """

    counts: Counts
    sums: Floats

    @property
    def total(self) -> tuple[Counts, Floats]:
        """(2, B) pairs and (2,) sums of all."""
        axes = tuple(range(self.sums.ndim - 1))
        return self.counts.sum(axis=axes), self.sums.sum(axis=axes)

    def resampled(self, resamples: int, seed: int) -> Iterator[tuple[Floats, Floats]]:
        """(R, 2, B) and (R, 2) of resamples, in pieces of R; with as many units as there are, drawn with replacement."""
        units, width = len(self.counts), self.counts.shape[-1] + 1
        both = np.concatenate([self.counts, self.sums[..., None]], axis=-1)  # (U, [U,] 2, B + 1)
        across = both.ndim == 4
        within = both[np.arange(units), np.arange(units)] if across else both
        rng, step = np.random.default_rng(seed), max(1, RESAMPLED // (2 * width * units))
        if across:
            both[np.arange(units), np.arange(units)] = 0
        for first in range(0, resamples, step):
            rows = min(step, resamples - first)
            drawn = rng.multinomial(units, np.full(units, 1 / units), size=rows).astype(np.float64)
            found = drawn @ within.reshape(units, -1)
            if across:
                partner = (drawn @ both.reshape(units, -1)).reshape(rows, units, -1)
                found = found + np.einsum("ru,ruk->rk", drawn, partner)
            found = found.reshape(rows, 2, width)
            yield found[..., :-1], found[..., -1]


def overlap(counts: npt.ArrayLike) -> Floats:
    """(...) in [0, 1] from two histograms (..., 2, B) of any size; NaN where one is empty."""
    values = np.asarray(counts, np.float64)
    whole = values.sum(axis=-1, keepdims=True)
    shares = np.divide(values, whole, out=np.full_like(values, np.nan), where=whole > 0)
    found: Floats = shares.min(axis=-2).sum(axis=-1)
    return found


def means(counts: npt.ArrayLike, sums: npt.ArrayLike) -> Floats:
    """(..., 2) mean value of each kind from counts (..., 2, B) and sums (..., 2); NaN for a kind without pairs."""
    pairs, total = np.asarray(counts, np.float64).sum(axis=-1), np.asarray(sums, np.float64)
    found: Floats = np.divide(total, pairs, out=np.full_like(total, np.nan), where=pairs > 0)
    return found


def histogram(values: Tensor, bins: int) -> Tensor:
    """(bins,) int64: how many values lie in each of the bins of equal width from -1 to 1.

    A bin holds its lower edge, the last one 1 too; values beyond, by rounding, belong to the outer bins.
    """
    place = ((values.flatten() + 1) * (bins / 2)).to(torch.int32).clamp_(0, bins - 1)
    return torch.bincount(place, minlength=bins)


def within(rows: Tensor, labels: Tensor, bins: int) -> tuple[Counts, Floats]:
    """(2, bins) and (2,): all pairs of unlike rows, by cosine, of one label and of two.

    rows: (P, D) as `similarity.normalise` gives them. labels: (P,) int64. Every pair counts once, a row not with itself.
    """
    return _between(rows, labels, rows, labels, bins=bins, above=True)


def between_blocks(rows: Tensor, labels: Tensor, blocks: Tensor, *, bins: int, count: int = 0) -> Spread:
    """The cosines of all pairs of rows, by block of the one and of the other.

    rows: (P, D) as `similarity.normalise` gives them; labels: (P,) int64; blocks: (P,) int64 from 0, rising. count: how many
    blocks there are, the last ones perhaps empty; 0: up to the last that has a row. Nothing of size (P, P) is held.
    Raises ProtocolError where blocks fall.
    """
    if bool((blocks[1:] < blocks[:-1]).any()):
        raise ProtocolError("rows must be sorted by block")
    count = max(count, int(blocks[-1]) + 1 if len(blocks) else 0)
    counts, sums = np.zeros((count, count, 2, bins), np.int64), np.zeros((count, count, 2))
    pieces = list(_pieces(labels, blocks))
    for number, (block, mine) in enumerate(pieces):
        for other, theirs in pieces[number:]:
            found = _between(rows[mine], labels[mine], rows[theirs], labels[theirs], bins=bins, above=mine is theirs)
            counts[block, other] += found[0]
            sums[block, other] += found[1]
    return Spread(counts, sums)


def _pieces(labels: Tensor, blocks: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Block and rows, at most CHUNK of one block, equal labels beside each other."""
    for block in torch.unique(blocks).tolist():
        rows = (blocks == block).nonzero().squeeze(1)
        rows = rows[labels[rows].argsort(stable=True)]
        yield from ((block, piece) for piece in rows.tensor_split(-(-len(rows) // CHUNK)))


def _between(a: Tensor, labels: Tensor, b: Tensor, others: Tensor, *, bins: int, above: bool) -> tuple[Counts, Floats]:
    """(2, bins) and (2,) of the pairs of a's rows with b's; above: b is a, and each pair counts once.

    Pairs of one label are picked out, those of two are the rest.
    """
    cosines = similarity.cosines(a, b)
    picked = labels[:, None] == others[None]
    every = cosines
    if above:
        kept = torch.ones_like(picked).triu(1)
        picked, every = picked & kept, cosines[kept]
    alike = cosines[picked]
    counts = torch.stack([histogram(values, bins) for values in (alike, every)]).cpu().numpy()
    sums = [float(values.sum(dtype=torch.float64)) for values in (alike, every)]
    return np.stack([counts[0], counts[1] - counts[0]]), np.array([sums[0], sums[1] - sums[0]])
