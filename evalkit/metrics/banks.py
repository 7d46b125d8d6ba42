"""Nearest neighbours in large banks by FAISS: exactly, or approximately with measured recall.

What:   `flat` is `neighbours.nearest` with FAISS's IndexFlatIP in the place of the matrix product. `Inverted` is FAISS's
        IndexIVFFlat over the whole bank: only the lists nearest to a query are read. What either finds is settled exactly
        as there.
Source: Johnson, Douze, Jegou, Billion-scale similarity search with GPUs (arXiv:1702.08734); github.com/facebookresearch/faiss.
Cost:   IndexFlatIP of faiss-cpu 1.15 takes several times as long as the product (bench/knn.py measures both): FAISS is for
        machines where it has GPUs or for `Inverted`.
Ties:   as `neighbours.nearest`. Which lists hold a row, FAISS decides with products of its own, so that what an approximate
        search leaves out may differ between machines.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from evalkit.errors import ProtocolError
from evalkit.metrics.neighbours import BLOCK, SPARE, TILE, Found, check, nearest, settled
from evalkit.metrics.similarity import normalise

GPU_K = 2048
"""FAISS finds no more neighbours than this on a GPU."""


class Search(Protocol):
    """The k nearest rows of a bank, as `neighbours.nearest` gives them: blocks of cosines and rows, both (B, k)."""

    def __call__(self, queries: Tensor, bank: Tensor, *, k: int) -> Found: ...


def flat(queries: Tensor, bank: Tensor, *, k: int, tile: int = TILE) -> Found:
    """As `neighbours.nearest`, by FAISS's IndexFlatIP, on its GPUs where it has them. Yields and raises as `nearest`."""
    return nearest(queries, bank, k=k, tile=tile, coarse=_flat)


def _flat(queries: Tensor, rows: Tensor, *, k: int, block: int) -> Found:
    faiss = _faiss()
    index = faiss.IndexFlatIP(rows.shape[1])
    if faiss.get_num_gpus() and k < GPU_K:
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(rows.cpu().numpy())
    return _asked(index, queries, k, max(block, BLOCK))


def _asked(index: Any, queries: Tensor, k: int, block: int) -> Found:
    """What an index of FAISS finds: products and rows, both (B, k)."""
    for part in torch.split(queries, block):
        products, rows = index.search(part.cpu().numpy(), k)
        yield torch.from_numpy(products).to(part.device), torch.from_numpy(rows).to(part.device)


@dataclass(frozen=True)
class Inverted:
    """An approximate `Search` in one bank (N, D): its rows lie in about 4 sqrt(N) lists by their nearest centre.

    probes: lists that are read per query; all of them make the search exact. seed: of the k-means that places the
    centres (10 rounds on at most 64 rows per centre, ours: making the index must not cost more than it saves). Queries
    that find too few rows, or that cannot tell whose rank is k, are compared with the whole bank.
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
        check(queries, bank, k)
        if bank is not self.bank:
            raise ProtocolError(
                "an inverted index finds neighbours in the bank that it is made of, and another one came"
            )
        asked = normalise(queries, "queries")
        found = _asked(self.index, asked, min(k + SPARE, len(bank)), BLOCK)
        return settled(asked, found, lambda rows: normalise(bank.index_select(0, rows)), k=k, count=len(bank))


def recall(search: Search, queries: Tensor, bank: Tensor, *, ks: tuple[int, ...], sample: int = 1000) -> dict[str, Any]:
    """How much of the exact neighbours a search finds: {"queries": n, "recall@k": share in [0, 1] ...}.

    On at most `sample` queries, evenly spread. Neighbours count by their rows. Raises as `nearest`.
    """
    count = min(sample, len(queries))
    chosen = queries[torch.arange(count, device=queries.device) * len(queries) // max(1, count)]
    exact, found = (torch.cat([rows for _, rows in way(chosen, bank, k=max(ks))]) for way in (nearest, search))
    shares = {f"recall@{k}": float(_shared(exact[:, :k], found[:, :k])) for k in ks}
    return {"queries": count, **shares}


def _shared(exact: Tensor, found: Tensor) -> Tensor:
    """Mean share of the first that the second holds; both (B, k), no row twice."""
    both = torch.cat([exact, found], 1).sort(dim=1).values
    return (both[:, 1:] == both[:, :-1]).sum(dim=1).float().mean() / exact.shape[1]


def _faiss() -> Any:
    import faiss  # half a second that the exact search need not wait for

    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss
