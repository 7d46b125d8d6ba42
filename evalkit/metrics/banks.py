"""Nearest neighbours in large banks: exactly, tile by tile, with or without FAISS; or approximately, with measured recall.

What:   `tiled` gives the neighbours of `neighbours.nearest`, ties included, from a bank that is looked at in tiles: each
        is normalised on its own and the best rows so far are merged, so that neither a second copy of the bank nor
        products of a few queries with millions of rows are needed. `flat` is a search for one tile by FAISS's
        IndexFlatIP. `Inverted` is FAISS's IndexIVFFlat over the whole bank: only the lists nearest to a query are read.
Source: Johnson, Douze, Jegou, Billion-scale similarity search with GPUs (arXiv:1702.08734); github.com/facebookresearch/faiss.
Cost:   `tiled` takes about as long as `nearest`, IndexFlatIP of faiss-cpu 1.15 several times as long (bench/knn.py measures
        all three): FAISS is for machines where it has GPUs or for `Inverted`.
Ties:   equal float32 similarities in the order of the rows. FAISS rounds products in its own way: of 384 numbers, to
        within 3e-7; neighbours that lie closer together than that may come in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from evalkit.errors import FeatureError, ProtocolError
from evalkit.metrics.neighbours import nearest, normalise

TILE = 1 << 16
"""Rows looked at at once; a bank of no more rows is one matrix product per block of queries."""

BLOCK = 1024
"""Queries per block that comes out."""

GPU_K = 2048
"""FAISS finds no more neighbours than this on a GPU."""

Found = Iterator[tuple[Tensor, Tensor]]


class Search(Protocol):
    """The k nearest rows of a bank, as `neighbours.nearest` gives them: blocks of cosines and rows, both (B, k)."""

    def __call__(self, queries: Tensor, bank: Tensor, *, k: int) -> Found: ...


def tiled(queries: Tensor, bank: Tensor, *, k: int, tile: int = TILE, within: Search = nearest) -> Found:
    """As `neighbours.nearest`, tile by tile; the k best of every query so far are held.

    tile: rows at once. within: finds the neighbours in one tile. Yields and raises as `nearest`.
    """
    if len(bank) <= tile:
        return within(queries, bank, k=k)
    _check(queries, bank, k)
    return _merged(queries, bank, k, tile, within)


def _merged(queries: Tensor, bank: Tensor, k: int, tile: int, within: Search) -> Found:
    values = queries.new_empty((len(queries), 0), dtype=torch.float32)
    index = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    for first in range(0, len(bank), tile):
        rows = bank[first : first + tile]
        done, pieces = 0, []
        for found, row in within(queries, rows, k=min(k, len(rows))):
            stop = done + len(found)
            # Rows of earlier tiles stand first, so a stable sort keeps equal values in the order of the rows.
            merged, order = torch.cat([values[done:stop], found], 1).sort(dim=1, descending=True, stable=True)
            rows_of = torch.cat([index[done:stop], row + first], 1).gather(1, order[:, :k])
            pieces.append((merged[:, :k], rows_of))
            done = stop
        values, index = (torch.cat(column) for column in zip(*pieces, strict=True))
    yield from zip(torch.split(values, BLOCK), torch.split(index, BLOCK), strict=True)


def flat(queries: Tensor, bank: Tensor, *, k: int) -> Found:
    """As `neighbours.nearest`, by FAISS's IndexFlatIP, on its GPUs where it has them. Yields and raises as `nearest`."""
    _check(queries, bank, k)
    faiss = _faiss()
    rows = normalise(bank, "bank")
    index = faiss.IndexFlatIP(rows.shape[1])
    if faiss.get_num_gpus() and k < GPU_K:
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(rows.cpu().numpy())
    return _asked(index, queries, bank, k)


def _asked(index: Any, queries: Tensor, bank: Tensor, k: int) -> Found:
    """One more neighbour than asked for is found, to see ties at the boundary: those queries, and any that found too few,
    are settled by `nearest`."""
    wanted = min(k + 1, len(bank))
    for part in torch.split(queries, BLOCK):
        unit = normalise(part, "queries").cpu().numpy()
        values, rows = (torch.from_numpy(found).to(part.device) for found in index.search(unit, wanted))
        values, rows = _by_value_then_row(values, rows)
        open_ = (rows[:, :k] < 0).any(dim=1)
        if wanted > k:
            open_ |= values[:, k] == values[:, k - 1]
        values, rows = values[:, :k], rows[:, :k]
        if open_.any():
            settled = zip(*nearest(part[open_], bank, k=k), strict=True)
            values[open_], rows[open_] = (torch.cat(column) for column in settled)
        yield values, rows


def _by_value_then_row(values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    rows, order = rows.sort(dim=1)
    values, falling = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, rows.gather(1, falling)


@dataclass(frozen=True)
class Inverted:
    """An approximate `Search` in one bank (N, D): its rows lie in about 4 sqrt(N) lists by their nearest centre.

    probes: lists that are read per query; all of them make the search exact. seed: of the k-means that places the
    centres (10 rounds on at most 64 rows per centre, ours: making the index must not cost more than it saves). Queries
    that find fewer than k rows, or a tie at rank k, are settled exactly.
    """

    bank: Tensor
    probes: int
    seed: int = 0

    @cached_property
    def index(self) -> Any:
        """The index of FAISS; made once."""
        faiss = _faiss()
        rows = normalise(self.bank, "bank").cpu().numpy()
        lists = max(1, min(round(4 * len(rows) ** 0.5), len(rows) // 39))  # FAISS asks for 39 rows per centre
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(rows.shape[1]), rows.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = self.seed
        index.cp.niter, index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 10, 1, 64
        index.train(rows)
        index.add(rows)
        index.nprobe = min(self.probes, lists)
        return index

    @property
    def facts(self) -> dict[str, Any]:
        """What to tell of it: its name, as FAISS writes it, and the lists read per query."""
        return {"index": f"IVF{self.index.nlist},Flat", "probes": self.index.nprobe}

    def __call__(self, queries: Tensor, bank: Tensor, *, k: int) -> Found:
        """Yields and raises as `nearest`. bank: the one that the index is made of; ProtocolError for another."""
        _check(queries, bank, k)
        if bank is not self.bank:
            raise ProtocolError(
                "an inverted index finds neighbours in the bank that it is made of, and another one came"
            )
        return _asked(self.index, queries, bank, k)


def recall(search: Search, queries: Tensor, bank: Tensor, *, ks: tuple[int, ...], sample: int = 1000) -> dict[str, Any]:
    """How much of the exact neighbours a search finds: {"queries": n, "recall@k": share in [0, 1] ...}.

    On at most `sample` queries, evenly spread. Neighbours count by their rows. Raises as `nearest`.
    """
    count = min(sample, len(queries))
    chosen = queries[torch.arange(count, device=queries.device) * len(queries) // max(1, count)]
    exact, found = (torch.cat([rows for _, rows in way(chosen, bank, k=max(ks))]) for way in (tiled, search))
    shares = {f"recall@{k}": float(_shared(exact[:, :k], found[:, :k])) for k in ks}
    return {"queries": count, **shares}


def _shared(exact: Tensor, found: Tensor) -> Tensor:
    """Mean share of the first that the second holds; both (B, k), no row twice."""
    both = torch.cat([exact, found], 1).sort(dim=1).values
    return (both[:, 1:] == both[:, :-1]).sum(dim=1).float().mean() / exact.shape[1]


def _check(queries: Tensor, bank: Tensor, k: int) -> None:
    if len(queries) == 0 or not 1 <= k <= len(bank):
        raise ProtocolError(f"{k} neighbours of {len(queries)} queries cannot be found in a bank of N = {len(bank)}")
    if queries.shape[1:] != bank.shape[1:]:
        raise FeatureError(f"queries have {queries.shape[-1]} dimensions, the bank has {bank.shape[-1]}")


def _faiss() -> Any:
    import faiss  # half a second that the exact search need not wait for

    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss
