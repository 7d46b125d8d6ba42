"""Cosine similarity as a pure function of two rows: the same bits wherever the rows stand and whatever multiplies them.

What:   a row is divided by its length and rounded to multiples of 2^-24. The similarity of two such rows is their exact
        product, rounded once to float32. Two similarities are equal where these float32 are; two copies of a row have
        equal similarities to everything. Every ranking of this tree compares similarities of this kind and no others.
Why:    a product of float32 is rounded at every addition, in an order that its kernel chooses by position, block, threads
        and processor: copies of a row then differ in their last bit, and what is a tie here is none there.
How:    whole numbers up to 2^24 stand behind such a row, so float32 holds it exactly, and every partial sum of a product of
        two stays below 2^49 (Cauchy-Schwarz): float64 adds without ever rounding, in any order. Lengths are added up by
        halves, number by number, so that no kernel has an order to choose there either.
Cost:   a float64 product takes 1.6 times as long as one of float32 on an AMD EPYC. Full rankings pay it (`cosines`); a
        search for few neighbours takes a float32 product, which is off by less than `tolerance`, and settles what lies
        closer together than that (`of_pairs`).
Source: numbers on a grid whose sums are exact: Rump, Ogita and Oishi, Accurate floating-point summation (SIAM J. Sci.
        Comput. 31, 2008); the bound: Higham and Mary, Probabilistic rounding error analysis (SIAM J. Sci. Comput. 41, 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from evalkit.errors import FeatureError

GRID = 2.0**-24
"""Coordinates of a unit row are multiples of this: cosines move by some 2e-8, less than float32 tells apart near 1."""

CHUNK = {"cpu": 1 << 17, "cuda": 1 << 24}
"""Float64 numbers worked on at once. On a CPU they stay in its cache; with more of them torch's threads, which wait for each
other after every step, take 20 times as long where other work holds the cores."""

ROUNDING = 1.5 * 2.0**52 * GRID
"""Added to a float64 and taken away again, it leaves the nearest multiple of GRID (the even one of two). `round` would do,
but waits for all threads each time."""

SHORTEST = 1e-60
"""Below every length but 0: the smallest float32 is 1e-45."""

Rows = Callable[[Tensor], Tensor]
"""Unit rows (P, D) of a bank, float32 on the grid, by their numbers (P,)."""


def normalise(rows: Tensor, what: str = "features") -> Tensor:
    """Rows of length 1 on the grid, as float32; a zero row stays zero. Equal rows become equal, and so do multiples by a
    power of two. (What went through this is no fixed point of it: normalise once.)

    rows: (N, D) any float dtype. Raises FeatureError, naming `what`, for another shape and for values that are not finite.
    """
    if rows.ndim != 2:
        raise FeatureError(f"{what} must be rows, shape (N, D); what came has shape {tuple(rows.shape)}")
    rows = rows.detach()
    unit = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    length = torch.empty(len(rows), 1, dtype=torch.float64, device=rows.device)
    for some in _pieces(len(rows), rows.shape[1], rows.device):
        exact = rows[some].float().double()
        length[some] = _squares(exact).sqrt_()
        unit[some] = exact.mul_(1 / length[some].clamp_min(SHORTEST)).add_(ROUNDING).sub_(ROUNDING)
    wrong = (~torch.isfinite(length)).nonzero()
    if wrong.numel():
        raise FeatureError(
            f"{len(wrong)} of {len(rows)} rows of the {what} are not finite, the first is row {wrong[0, 0]}"
        )
    return unit


def cosines(queries: Tensor, rows: Tensor) -> Tensor:
    """(Q, N) float32 similarities of all pairs. queries, rows: (Q, D) and (N, D) as `normalise` gives them, float32 or,
    to convert them once for many calls, float64."""
    return torch.mm(queries.double(), rows.double().T).float()


def of_pairs(queries: Tensor, rows: Rows, which: Tensor, index: Tensor) -> Tensor:
    """(P,) float32 similarities of query which[p] to row index[p]. queries: (Q, D) unit rows."""
    found = torch.empty(len(index), dtype=torch.float32, device=queries.device)
    for some in _pieces(len(index), queries.shape[1], queries.device):
        products = rows(index[some]).double().mul_(queries.index_select(0, which[some]).double())
        found[some] = products.sum(1)
    return found


def above(queries: Tensor, rows: Tensor, products: Tensor, bound: Tensor) -> Tensor:
    """(Q, N): the similarities of all whose product is at least the bound (Q, 1); -inf for the others.

    queries, rows: unit rows (Q, D) and (N, D). products: theirs (Q, N), -inf where two are not to be compared.
    """
    wanted = (products >= bound) & products.isfinite()
    which, place = wanted.nonzero(as_tuple=True)
    if len(which) > len(rows):  # each pair of its own would take longer
        return cosines(queries, rows).masked_fill_(~wanted, -torch.inf)
    found = torch.full_like(products, -torch.inf)
    found[which, place] = of_pairs(queries, lambda some: rows.index_select(0, some), which, place)
    return found


def near(products: Tensor, bound: Tensor, slack: float) -> tuple[Tensor, Tensor]:
    """Rows and columns (P,) of products that another one of their row is no farther away from than the slack.

    products: (Q, K), falling. bound: (Q, 1), what lies below it need not be known.
    """
    close = (products[:, :-1] - products[:, 1:] <= slack) & (products[:, 1:] >= bound)
    which, place = (F.pad(close, (1, 0)) | F.pad(close, (0, 1))).nonzero(as_tuple=True)
    return which, place


def tolerance(dim: int) -> float:
    """How far a float32 product of two unit rows of so many numbers may be from their similarity.

    No partial sum exceeds 1 (Cauchy-Schwarz), so that each of D additions is off by 2^-25 at most. As they lean to both
    sides, 16 sqrt(D) of them are not exceeded either where that is less (Higham and Mary: with a probability of
    2 exp(-32)). 4 more are for the products and for the similarity's own rounding.
    """
    return (min(dim, 16 * math.sqrt(dim)) + 4) * GRID / 2


def _squares(rows: Tensor) -> Tensor:
    """(B, 1) sums of squares of rows (B, D), float64, by halves: an order that no kernel can choose."""
    sums = rows * rows
    while (width := sums.shape[1]) > 1:
        half = width // 2
        sums[:, :half].add_(sums[:, width - half :])
        sums = sums[:, : width - half]
    return sums.sum(1, keepdim=True)  # of one number, or of none


def _pieces(count: int, each: int, device: torch.device) -> Iterator[slice]:
    """Consecutive slices of `count` things that have `each` numbers."""
    step = max(1, CHUNK["cuda" if device.type == "cuda" else "cpu"] // max(1, each))
    return (slice(start, start + step) for start in range(0, count, step))
