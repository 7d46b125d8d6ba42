"""Exact nearest neighbours by cosine similarity, in blocks, without ever holding (queries x bank).

What:   for every query the k most similar rows of a bank, most similar first; equal similarities in the bank's order.
How:    a block of similarities is reduced to the maxima of groups of g columns. The k + 1 groups with the largest
        maxima hold k + 1 values that are at least as large as any value outside them, so a top-k over those
        (k + 1) x g candidates is exact; g = sqrt(N / k) makes both steps equally small. A group takes every (N / g)-th
        row, so that banks sorted by class spread over the groups. One more neighbour than asked for is found, to
        see ties at the boundary: only those rows are settled on the whole block.
Cost:   for 50,000 rows and k = 200 about a fifth on top of the bare matrix product (bench/knn.py measures it).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from evalkit.errors import FeatureError, ProtocolError

BUDGET = 1 << 23
"""Similarities held at once (32 MB): enough for an efficient product, and still in a large cache when it is read again."""

ALIGNED = 16
"""Floats in a vector register: a product into rows of another length is a third slower."""


def normalise(rows: Tensor, what: str = "features", *, spare: int = 0) -> Tensor:
    """Rows of length 1 as float32; a zero row stays zero.

    rows: (N, D) any float dtype. spare: zero rows to append, so that padding costs no second copy.
    Raises FeatureError, naming `what`, for another shape and for values that are not finite.
    """
    if rows.ndim != 2:
        raise FeatureError(f"{what} must be rows, shape (N, D); what came has shape {tuple(rows.shape)}")
    rows = rows.detach().float()
    length: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    wrong = (~torch.isfinite(length)).nonzero()
    if wrong.numel():
        raise FeatureError(
            f"{len(wrong)} of {len(rows)} rows of the {what} are not finite, the first is row {wrong[0, 0]}"
        )
    unit = rows.new_zeros(len(rows) + spare, rows.shape[1])
    torch.div(rows, length.clamp_min(torch.finfo(torch.float32).tiny), out=unit[: len(rows)])
    return unit


def nearest(queries: Tensor, bank: Tensor, *, k: int, block: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """The k nearest rows of the bank, block of queries by block of queries.

    queries, bank: (Q, D) and (N, D), any float dtype and norm, on one device. k: in [1, N]. block: queries at once, by
    default so many that a block has 2^23 similarities.
    Yields (values, index), both (B, k): cosine in [-1, 1] float32, falling; row of the bank int64. Equal float32
    values come in the order of the rows, at rank k too. (Two copies of a row are equal wherever the matrix product
    rounds them alike; it does not promise that for every position.)
    Raises, before the first block, ProtocolError for no queries, an empty bank or a k outside [1, N], and FeatureError
    for rows that are not finite or whose widths differ.
    """
    _check(queries, bank, k, block)
    group = max(1, math.isqrt(len(bank) // (k + 1)))
    spare = -len(bank) % (group * ALIGNED)  # groups are complete, and rows of similarities begin aligned
    asked, padded = normalise(queries, "queries"), normalise(bank, "bank", spare=spare)
    if asked.shape[1] != padded.shape[1]:
        raise FeatureError(f"queries have {asked.shape[1]} dimensions, the bank has {padded.shape[1]}")
    return _blocks(asked, padded, k, group, rows=len(bank), block=block or _default_block(bank))


def _check(queries: Tensor, bank: Tensor, k: int, block: int | None) -> None:
    if len(queries) == 0 or len(bank) == 0:
        raise ProtocolError(
            f"nearest neighbours need both sides: {len(queries)} queries and a bank of {len(bank)} came"
        )
    if not 1 <= k <= len(bank):
        raise ProtocolError(f"k = {k} neighbours cannot be taken from a bank of N = {len(bank)}; 1 <= k <= N")
    if block is not None and block < 1:
        raise ProtocolError(f"a block of {block} queries was asked for; at least 1")


def _default_block(bank: Tensor) -> int:
    return max(1, min(1024, BUDGET // len(bank)))


def _blocks(
    queries: Tensor, bank: Tensor, k: int, group: int, *, rows: int, block: int
) -> Iterator[tuple[Tensor, Tensor]]:
    buffer = bank.new_empty(min(block, len(queries)), len(bank))
    for start in range(0, len(queries), block):
        part = queries[start : start + block]
        similarity = torch.mm(part, bank.T, out=buffer[: len(part)])
        similarity[:, rows:] = -torch.inf  # the rows that pad the last group
        yield _top(similarity, k, min(k + 1, rows), group)


def _top(similarity: Tensor, k: int, wanted: int, group: int) -> tuple[Tensor, Tensor]:
    """The k best of each row; `wanted` is k + 1, to see a tie at the boundary, or k where the row has no more."""
    values, index = _candidates(similarity, wanted, group) if group > 1 else similarity.topk(wanted, dim=1)
    equal = values[:, 1:] == values[:, :-1]
    straddles = equal[:, k - 1] if wanted > k else equal.new_zeros(len(equal))
    values, index = values[:, :k], index[:, :k]
    for rows, choose in ((straddles, True), (equal.any(dim=1) & ~straddles, False)):
        which = rows.nonzero().squeeze(1)
        if which.numel():
            chosen = _earliest(similarity[which], values[which, -1:], k) if choose else index[which].sort(dim=1).values
            index[which], values[which] = _by_value_then_row(similarity, which, chosen)
    return values, index


def _candidates(similarity: Tensor, wanted: int, group: int) -> tuple[Tensor, Tensor]:
    columns = similarity.view(len(similarity), group, -1)  # member m of group j is column m * (number of groups) + j
    chosen = columns.amax(dim=1).topk(wanted, dim=1, sorted=False).indices
    held = columns.gather(2, chosen.unsqueeze(1).expand(-1, group, -1)).flatten(1)
    values, place = held.topk(wanted, dim=1)
    member, slot = place.div(wanted, rounding_mode="floor"), place.remainder(wanted)
    return values, member * columns.shape[2] + chosen.gather(1, slot)


def _earliest(similarity: Tensor, bound: Tensor, k: int) -> Tensor:
    """(R, k) columns above the bound (R, 1) and, of those equal to it, the earliest; ascending."""
    above, equal = similarity > bound, similarity == bound
    missing = k - above.sum(dim=1, keepdim=True)
    keep = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= missing))
    return keep.nonzero()[:, 1].view(-1, k)


def _by_value_then_row(similarity: Tensor, which: Tensor, ascending: Tensor) -> tuple[Tensor, Tensor]:
    values, order = similarity[which.unsqueeze(1), ascending].sort(dim=1, descending=True, stable=True)
    return ascending.gather(1, order), values
