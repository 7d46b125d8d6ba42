"""Average precision of rankings by cosine similarity, exactly, in blocks, without ever holding (queries x gallery).

What:   AP of a query = the mean, over its relevant items, of the precision among all items at least as similar as that
        one. It is the area that scikit-learn's `average_precision_score` sums, which the released retrieval code calls
        once per query (JiePKU/understand-ssl-part-aware ffea818, pr_patch_retrieval.py:352-364).
Ties:   items of equal similarity enter together, so no order of the gallery can change a number, and features that are
        all alike score the share of relevant items. Scores may have any sign. What is equal, `similarity` says.
How:    the gallery is sorted by class, so that the relevant items of a block of queries are one slice of columns. That
        slice and the rest are sorted by value alone; the precision at an item is two binary searches. Nothing is
        sorted by index, which is what a ranking otherwise costs.
Cost:   60,000 queries over 60,000 rows of 384: a float64 matrix product and about as much again (bench/retrieval.py).
        Revisited landmarks have their own area, `trapezoid`, with items removed from the ranking.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from evalkit.errors import FeatureError, ProtocolError
from evalkit.metrics.similarity import normalise

BUDGET = 1 << 23
"""Similarities held at once (32 MB, and 64 MB while they are exact)."""


def average_precision(scores: Tensor, relevant: Tensor) -> Tensor:
    """AP of each row, for rankings of any origin.

    scores: (Q, N) finite float, higher ranks earlier, any sign. relevant: (Q, N) bool, true for what should be found.
    Returns (Q,) float64 in (0, 1]; NaN for a row without any relevant item. Raises FeatureError for scores that are not
    finite, ProtocolError where the shapes differ or are not two-dimensional.
    """
    if scores.ndim != 2 or scores.shape != relevant.shape:
        raise ProtocolError(f"scores {tuple(scores.shape)} and relevant {tuple(relevant.shape)} must both be (Q, N)")
    if not bool(torch.isfinite(scores).all()):
        raise FeatureError("scores of a ranking must be finite")
    scores = scores if scores.dtype == torch.float64 else scores.float()
    none = scores.new_tensor(-torch.inf)
    own, rest = torch.where(relevant, scores, none), torch.where(relevant, none, scores)
    precision = _precisions(_ascending(own), _ascending(rest))
    return torch.where(own > none, precision, 0).sum(1) / relevant.sum(1)  # 0 / 0 is NaN


class Block(NamedTuple):
    """Queries [start, stop) of the class whose rows are [first, last), in the sorted gallery."""

    first: int
    last: int
    start: int
    stop: int


@dataclass(frozen=True)
class LeaveOneOut:
    """Every row of a labelled gallery asks for all others; the same class is relevant. Iterate over it.

    rows: (N, D) float64, as `similarity.normalise` gives them, sorted by class. order: (N,) int64, where each came from.
    blocks: in that order. itself: the query is ranked too, as its own first hit (the released code does that); False leaves it out.
    """

    rows: Tensor
    order: Tensor
    blocks: tuple[Block, ...]
    itself: bool = False

    @classmethod
    def of(cls, rows: Tensor, labels: Tensor, *, itself: bool = False, block: int | None = None) -> LeaveOneOut:
        """Sort a gallery. rows: (N, D), any float dtype and norm (a zero row has cosine 0 to all). labels: (N,) int64
        from 0, gaps allowed. block: queries at once, by default so many that a block has 2^23 similarities.

        Raises ProtocolError for no rows, labels that do not fit, negative labels or a block below 1; FeatureError for
        rows that are not finite.
        """
        _check(rows, labels, block)
        order = torch.argsort(labels, stable=True)
        size = block or max(1, BUDGET // len(rows))
        blocks, first = [], 0
        for count in torch.unique(labels, return_counts=True)[1].tolist():
            last = first + count
            blocks += [Block(first, last, start, min(start + size, last)) for start in range(first, last, size)]
            first = last
        return cls(normalise(rows[order], "gallery").double(), order, tuple(blocks), itself)

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(B,) int64 queries, as numbered when they were given, and (B,) float64 their AP; NaN without a relevant
        item."""
        widest = max((block.stop - block.start for block in self.blocks), default=0)
        exact = self.rows.new_empty(widest, len(self.rows))
        rounded = torch.empty_like(exact, dtype=torch.float32)
        for block in self.blocks:
            queries = slice(block.stop - block.start)
            torch.mm(self.rows[block.start : block.stop], self.rows.T, out=exact[queries])
            yield self.order[block.start : block.stop], self._block(block, rounded[queries].copy_(exact[queries]))

    def _block(self, block: Block, rest: Tensor) -> Tensor:
        """(B,) AP from similarities to all rows (B, N), which are used up."""
        own = rest[:, block.first : block.last].clone()
        rest[:, block.first : block.last] = -torch.inf
        if not self.itself:
            own.diagonal(block.start - block.first).fill_(-torch.inf)
        own = _ascending(own)[:, 0 if self.itself else 1 :].contiguous()
        return _precisions(own, _ascending(rest)).mean(1)  # the mean of nothing is NaN


def leave_one_out(rows: Tensor, labels: Tensor, *, itself: bool = False, block: int | None = None) -> Tensor:
    """(N,) float64: AP of every row as a query over all others, in the order of the rows; NaN for a row that is alone
    in its class. Arguments and errors as `LeaveOneOut.of`."""
    found = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    for index, precision in LeaveOneOut.of(rows, labels, itself=itself, block=block):
        found[index] = precision
    return found


def ranks(order: Tensor, relevant: Tensor, removed: Tensor) -> Tensor:
    """Where the relevant items of one ranking stand once some items are taken out of it.

    order: (N,) int64, items from first to last. relevant, removed: (N,) bool by item.
    Returns (P,) int64, from 0, ascending: how many items that stay come before each relevant one.
    """
    stays = ~removed[order]
    before = stays.cumsum(0) - stays.long()
    return before[relevant[order]]


def trapezoid(found: Tensor) -> float:
    """Average precision as the revisited Oxford and Paris benchmark defines it: the area under precision over recall,
    by the trapezoidal rule (filipradenovic/revisitop be39832, python/evaluate.py:3-37).

    found: (P,) int64, ranks from 0 of all P relevant items, ascending, as `ranks` gives them. NaN for P = 0.
    Each relevant item adds the mean of the precision just before it (1 at rank 0) and with it.
    """
    rank = found.double()
    seen = torch.arange(len(found), dtype=torch.float64, device=found.device)
    before = torch.where(rank > 0, seen / rank, 1.0)
    return float(((before + (seen + 1) / (rank + 1)) / 2).mean())


def precision_at(found: Tensor, k: int) -> float:
    """Share of relevant items among the first k; k ends at the last relevant item, so that a query with fewer than k of
    them can reach 1 (revisitop be39832, python/evaluate.py:106-110). found: as in `trapezoid`. NaN for none.

    Raises ProtocolError for a k below 1.
    """
    if k < 1:
        raise ProtocolError(f"precision at {k} was asked for; k is at least 1")
    if not len(found):
        return float("nan")
    depth = min(int(found.max()) + 1, k)
    return float((found < depth).sum()) / depth


def _ascending(values: Tensor) -> Tensor:
    """Rows sorted, in place where they lie on the CPU: numpy's vectorised sort is ten times as fast as torch's."""
    if values.device.type == "cpu":
        values.numpy().sort(axis=1)
        return values
    return values.sort(dim=1).values


def _precisions(own: Tensor, rest: Tensor) -> Tensor:
    """(Q, R) float64: share of relevant items among all that score at least as much as each relevant one.

    own: (Q, R) scores of relevant items, rest: (Q, M) of others, both ascending; -inf stands for no item.
    """
    hits = own.shape[1] - torch.searchsorted(own, own)
    others = rest.shape[1] - torch.searchsorted(rest, own)
    return hits.double() / (hits + others)


def _check(rows: Tensor, labels: Tensor, block: int | None) -> None:
    if len(rows) == 0 or labels.shape != (len(rows),):
        raise ProtocolError(f"each row of a gallery needs one label: {len(rows)} rows, labels {tuple(labels.shape)}")
    if int(labels.min()) < 0:
        raise ProtocolError(f"the gallery holds the label {int(labels.min())}; unlabelled rows cannot be judged")
    if block is not None and block < 1:
        raise ProtocolError(f"a block of {block} queries was asked for; at least 1")
