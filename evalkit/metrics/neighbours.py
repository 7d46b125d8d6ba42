"""Exact nearest neighbours by cosine similarity, in blocks, without ever holding (queries x bank).

What:   for every query the k most similar rows of a bank, most similar first; equal similarities in the bank's order. What
        is equal, `similarity` says: rows, values and ties are the same however the work is cut, on any processor.
How:    a float32 product finds a few more rows than asked for. Its error has a bound (`similarity.tolerance`), and those
        among them that lie closer together than that are ranked by their similarities. Where a row that it left out may
        belong to the k nearest all the same, the query is compared exactly with the whole bank.
        A block of products is reduced to the maxima of groups of g columns. The K groups with the largest maxima hold K
        values that are at least as large as any value outside them, so a top-K over those K x g candidates is exact;
        g = sqrt(N / K) makes both steps equally small. A group takes every (N / g)-th row, so that banks sorted by
        class spread over the groups. A bank of many rows is looked at in tiles, each normalised on its own, and the best
        of every query so far are held: neither a second copy of the bank nor products of few queries with millions of
        rows are needed.
Cost:   for 50,000 rows and k = 200 about a third on top of the bare matrix product (bench/knn.py measures it), for more rows
        less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from evalkit.errors import FeatureError, ProtocolError
from evalkit.metrics.similarity import Rows, cosines, near, normalise, of_pairs, tolerance

BUDGET = 1 << 23
"""Similarities held at once (32 MB): enough for an efficient product, and still in a large cache when it is read again."""

TILE = 1 << 16
"""Rows looked at at once; a bank of no more rows is one matrix product per block of queries."""

BLOCK = 1024
"""Queries per block that comes out, at most."""

SETTLED = 8192
"""Queries settled together where the bank comes in tiles."""

SPARE = 8
"""Rows found beyond the k, so that hardly a query must be compared with the whole bank."""

ALIGNED = 16
"""Floats in a vector register: a product into rows of another length is a third slower."""

Found = Iterator[tuple[Tensor, Tensor]]


class Coarse(Protocol):
    """Finds k rows to within `similarity.tolerance`: blocks of products, falling, and rows, both (B, k); -1 for no row.

    queries, rows: unit rows. block: queries at once.
    """

    def __call__(self, queries: Tensor, rows: Tensor, *, k: int, block: int) -> Found: ...


def product(queries: Tensor, rows: Tensor, *, k: int, block: int) -> Found:
    """The `Coarse` search by matrix products."""
    group = max(1, math.isqrt(len(rows) // k))
    width = len(rows) + -len(rows) % (group * ALIGNED)  # groups are complete, and rows of products begin aligned
    buffer = queries.new_full((min(block, len(queries)), width), -torch.inf)
    for part in torch.split(queries, block):
        products = buffer[: len(part)]
        _multiply(part, rows, products[:, : len(rows)])
        yield _best(products, k, group)


def nearest(
    queries: Tensor, bank: Tensor, *, k: int, block: int | None = None, tile: int = TILE, coarse: Coarse = product
) -> Found:
    """The k nearest rows of the bank, block of queries by block of queries.

    queries, bank: (Q, D) and (N, D), any float dtype and norm, on one device. k: in [1, N]. block: queries at once, by
    default so many that a block has 2^23 products. tile: rows at once. coarse: finds candidates.
    Yields (values, index), both (B, k): cosine float32, falling, in [-1, 1] but for the rounding of rows (2^-22); row of the
    bank int64. Equal values come in the order of the rows, at rank k too, and two copies of a row are equal.
    Raises, before the first block, ProtocolError for no queries, an empty bank or a k outside [1, N], and FeatureError
    for rows that are not finite or whose widths differ.
    """
    check(queries, bank, k, block)
    asked = normalise(queries, "queries")
    wanted = min(k + SPARE, len(bank))
    if len(bank) > tile:
        found = _of_tiles(asked, bank, wanted, block, tile=tile, coarse=coarse)
        return settled(asked, found, lambda rows: normalise(bank.index_select(0, rows)), k=k, count=len(bank))
    unit = normalise(bank, "bank")
    found = coarse(asked, unit, k=wanted, block=block or _default_block(unit))
    return settled(asked, found, lambda rows: unit.index_select(0, rows), k=k, count=len(bank))


def settled(asked: Tensor, found: Found, rows: Rows, *, k: int, count: int) -> Found:
    """The k nearest of what a coarse search found, exactly, as `nearest` yields them.

    asked: (Q, D) unit rows. found: blocks of at least k candidates for them, in their order. rows: the bank's unit rows by
    number, count: how many there are.
    """
    done, slack = 0, 2 * tolerance(asked.shape[1])  # two products that are compared may both be off
    for values, index in found:
        part = asked[done : done + len(index)]
        done += len(index)
        open_ = (index[:, :k] < 0).any(dim=1)
        if index.shape[1] < count:
            open_ |= values[:, -1] >= values[:, k - 1] - slack
        values, index = _settle(part, rows, values, index.clamp_min(0), k=k, slack=slack)
        if bool(open_.any()):
            values[open_], index[open_] = _whole(part[open_], rows, k, count)
        yield from zip(torch.split(values, BLOCK), torch.split(index, BLOCK), strict=True)


def _settle(
    asked: Tensor, rows: Rows, products: Tensor, index: Tensor, *, k: int, slack: float
) -> tuple[Tensor, Tensor]:
    """(B, k) each: what lies within the slack of another gets its similarity; ranked by that, then by row."""
    which, place = near(products, products[:, k - 1 : k] - slack, slack)
    values = products.index_put((which, place), of_pairs(asked, rows, which, index[which, place]))
    some = (values[:, 1:] >= values[:, :-1]).any(dim=1).nonzero().squeeze(1)
    rising, order = index[some].sort(dim=1)
    values[some], order = values[some].gather(1, order).sort(dim=1, descending=True, stable=True)
    index[some] = rising.gather(1, order)
    return values[:, :k], index[:, :k]


def _whole(asked: Tensor, rows: Rows, k: int, count: int) -> tuple[Tensor, Tensor]:
    """The k nearest of the whole bank, by exact products with some rows after others."""
    values = asked.new_empty(len(asked), 0)
    index = torch.empty(len(asked), 0, dtype=torch.int64, device=asked.device)
    step = max(k, BUDGET // 4 // len(asked))  # sorting needs several times the room
    for start in range(0, count, step):
        some = torch.arange(start, min(start + step, count), device=asked.device)
        both = torch.cat([values, cosines(asked, rows(some))], 1), torch.cat([index, some.expand(len(asked), -1)], 1)
        values, index = _by_value(*both, k)
    return values, index


def _by_value(values: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest, falling; equal ones stay in their order."""
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values[:, :k], index.gather(1, order[:, :k])


def _of_tiles(queries: Tensor, bank: Tensor, k: int, block: int | None, *, tile: int, coarse: Coarse) -> Found:
    """What `coarse` finds in the whole bank: the k best of every query so far are merged with those of each tile."""
    values = queries.new_empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.int32, device=queries.device)
    for first in range(0, len(bank), tile):
        unit = normalise(bank[first : first + tile], "bank")
        done, pieces = 0, []
        for found, rows in coarse(queries, unit, k=min(k, len(unit)), block=block or _default_block(unit)):
            stop = done + len(found)
            both = torch.cat([values[done:stop], found], 1), torch.cat([index[done:stop], (rows + first).int()], 1)
            best, order = both[0].topk(min(k, both[0].shape[1]), dim=1)
            pieces.append((best, both[1].gather(1, order)))
            done = stop
        values, index = (torch.cat(column) for column in zip(*pieces, strict=True))
    blocks = zip(torch.split(values, SETTLED), torch.split(index, SETTLED), strict=True)
    return ((some, rows.long()) for some, rows in blocks)


def _multiply(queries: Tensor, rows: Tensor, out: Tensor) -> None:
    """Products to within the tolerance: where float32 is allowed to be multiplied as something shorter, by float64."""
    if torch.get_float32_matmul_precision() == "highest":
        torch.mm(queries, rows.T, out=out)
    else:
        out.copy_(cosines(queries, rows))


def _best(products: Tensor, k: int, group: int) -> tuple[Tensor, Tensor]:
    """(B, k) the largest, falling, and their columns."""
    if group == 1:
        values, index = products.topk(k, dim=1)
        return values, index
    columns = products.view(len(products), group, -1)  # member m of group j is column m * (number of groups) + j
    chosen = _largest(columns.amax(dim=1), k)
    held = columns.gather(2, chosen.unsqueeze(1).expand(-1, group, -1)).flatten(1)
    place = _largest(held, k)
    values, order = held.gather(1, place).sort(dim=1, descending=True)
    place = place.gather(1, order)
    member, slot = place.div(k, rounding_mode="floor"), place.remainder(k)
    return values, member * columns.shape[2] + chosen.gather(1, slot)


def _largest(values: Tensor, k: int) -> Tensor:
    """(B, k) columns of the k largest, in no order: on a CPU numpy's vectorised partition is three times as fast as topk."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.argpartition(values.numpy(), -k, axis=1)[:, -k:])
    return values.topk(k, dim=1, sorted=False).indices


def check(queries: Tensor, bank: Tensor, k: int, block: int | None = None) -> None:
    """Raises what `nearest` raises, but for rows that are not finite."""
    if len(queries) == 0 or len(bank) == 0:
        raise ProtocolError(
            f"nearest neighbours need both sides: {len(queries)} queries and a bank of {len(bank)} came"
        )
    if not 1 <= k <= len(bank):
        raise ProtocolError(f"k = {k} neighbours cannot be taken from a bank of N = {len(bank)}; 1 <= k <= N")
    if block is not None and block < 1:
        raise ProtocolError(f"a block of {block} queries was asked for; at least 1")
    if queries.ndim == bank.ndim == 2 and queries.shape[1] != bank.shape[1]:
        raise FeatureError(f"queries have {queries.shape[1]} dimensions, the bank has {bank.shape[1]}")


def _default_block(rows: Tensor) -> int:
    return max(1, min(BLOCK, BUDGET // len(rows)))
