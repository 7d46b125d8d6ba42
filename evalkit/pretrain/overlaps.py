"""Which tokens of two views show the same place: areas of overlap in the original image, and pairs of tokens drawn by them.

Exact and without loops: a token is a rectangle with sides along the image's, so that two of them share the length that
they share along x times the length that they share along y. Tokens are the cells of an n x n grid over the view, rows
first; a flipped view has its cells in the reverse order along x.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.pretrain.augment import Crop


@dataclass(frozen=True)
class Overlaps:
    """Of the tokens of two views. rows, columns: (B, n, n) lengths shared along y and x by row (column) i of the first view
    and j of the second, in shares of the image's sides, so that products are shares of its area."""

    rows: Tensor
    columns: Tensor

    def covered(self) -> Tensor:
        """(B, n * n) area of each token of the first view that the second view shows too."""
        return (self.rows.sum(2)[:, :, None] * self.columns.sum(2)[:, None]).flatten(1)

    def areas(self, first: Tensor, second: Tensor) -> Tensor:
        """(B, K) and (B, L) indices of tokens of the two views -> (B, K, L) areas that they share."""
        n = self.rows.shape[1]
        rows = _of_queries(self.rows, first // n).gather(2, _spread(second // n, first))
        return rows * _of_queries(self.columns, first % n).gather(2, _spread(second % n, first))


@dataclass(frozen=True)
class Pairs:
    """Tokens drawn from two views. first, second: (B, K) indices. area: (B, K, K) shared by each with each."""

    first: Tensor
    second: Tensor
    area: Tensor

    def swapped(self) -> Pairs:
        """The same, seen from the second view."""
        return Pairs(self.second, self.first, self.area.mT)


def overlaps(first: Crop, second: Crop, n: int) -> Overlaps:
    """Of the n x n tokens of two crops of the same images."""
    sides = []
    for low, high in ((1, 3), (0, 2)):
        a, b = (_cells(crop.boxes[:, low], crop.boxes[:, high], n) for crop in (first, second))
        if low == 0:
            a, b = (torch.where(c.flipped[:, None, None], x.flip(1), x) for c, x in ((first, a), (second, b)))
        sides.append(_shared(a, b))
    return Overlaps(*sides)


def drawn(found: Overlaps, count: int, rng: torch.Generator) -> Pairs:
    """`count` different tokens of the first view, drawn by the area that the second shows of them, and for each of them one
    of the second, drawn by the area that the two share.

    Where fewer tokens overlap, any others fill up; they share nothing.
    """
    n = found.rows.shape[1]
    first = _race(found.covered(), rng).topk(count, dim=1).indices
    row = _race(_of_queries(found.rows, first // n), rng).argmax(2)
    column = _race(_of_queries(found.columns, first % n), rng).argmax(2)
    second = row * n + column
    return Pairs(first, second, found.areas(first, second))


def _cells(low: Tensor, high: Tensor, n: int) -> Tensor:
    """(B,) ends of intervals -> (B, n, 2) ends of their n equal parts."""
    at = torch.arange(n + 1, device=low.device, dtype=low.dtype) / n
    edges = torch.lerp(low[:, None], high[:, None], at)
    return torch.stack([edges[:, :-1], edges[:, 1:]], 2)


def _shared(a: Tensor, b: Tensor) -> Tensor:
    """(B, n, 2) and (B, m, 2) intervals -> (B, n, m) lengths of their intersections."""
    low = torch.maximum(a[:, :, None, 0], b[:, None, :, 0])
    high = torch.minimum(a[:, :, None, 1], b[:, None, :, 1])
    return (high - low).clamp(min=0)


def _race(weights: Tensor, rng: torch.Generator) -> Tensor:
    """Weights divided by exponential variables: the largest is a draw by weight, the k largest are k draws without
    replacement (Efraimidis & Spirakis 2006)."""
    noise = torch.empty_like(weights).exponential_(generator=rng)
    return weights / noise.clamp(min=torch.finfo(noise.dtype).tiny)


def _of_queries(lengths: Tensor, index: Tensor) -> Tensor:
    """(B, n, n) at (B, K) -> (B, K, n)."""
    return lengths.gather(1, index[..., None].expand(-1, -1, lengths.shape[2]))


def _spread(index: Tensor, first: Tensor) -> Tensor:
    """(B, L) indices for each of (B, K): (B, K, L)."""
    return index[:, None].expand(-1, first.shape[1], -1)
