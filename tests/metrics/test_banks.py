"""Searches in large banks against sorting every similarity: ties, tiles of any size, one row, duplicates, all equal."""

from __future__ import annotations

import sys
from functools import partial
from types import SimpleNamespace

import faiss
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.errors import FeatureError, ProtocolError
from evalkit.metrics import banks
from evalkit.metrics.neighbours import nearest


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def held(found):
    values, rows = (torch.cat(column) for column in zip(*found, strict=True))
    return values, rows


def slow(queries, bank, k):
    """Every similarity in double precision, sorted in Python by value, then by row."""
    unit = [torch.nn.functional.normalize(rows.double(), dim=1) for rows in (queries, bank)]
    similarity = (unit[0] @ unit[1].T).tolist()
    return [sorted(range(len(bank)), key=lambda j: (-round(row[j], 6), j))[:k] for row in similarity]


@pytest.mark.parametrize("search", [nearest, banks.flat])
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 70), st.integers(1, 40), st.integers(0, 10**6), st.booleans(), st.data())
def test_equals_the_slow_search_for_every_tile(search, queries, rows, tile, seed, ties, data):
    asked, bank = normal(queries, 4, seed=seed), normal(rows, 4, seed=seed + 1)
    if ties:  # signs in four dimensions: cosines are multiples of 1 / 2, exactly, and hardly any row is alone
        asked, bank = asked.sign(), bank.sign()
    k = data.draw(st.integers(1, rows))
    values, index = held(search(asked, bank, k=k, tile=tile))
    assert index.tolist() == slow(asked, bank, k)
    unit = [torch.nn.functional.normalize(rows, dim=1) for rows in (asked, bank)]
    assert torch.allclose(values, (unit[0] @ unit[1].T).gather(1, index), atol=1e-6)


@pytest.mark.parametrize("search", [nearest, banks.flat])
def test_tiles_change_nothing(search):
    queries, bank = normal(2500, 16, seed=0), normal(3000, 16, seed=1)
    values, rows = held(nearest(queries, bank, k=50))
    blocks = list(search(queries, bank, k=50, tile=700))
    assert [len(block[0]) for block in blocks] == [1024, 1024, 452]
    found, index = held(blocks)
    assert torch.allclose(found, values, atol=1e-6)
    assert torch.equal(index, rows)


@pytest.mark.parametrize("search", [nearest, banks.flat])
def test_equal_rows_come_in_their_order_across_tiles(search):
    bank = torch.tensor([[1.0, 0.0]]).repeat(50, 1)
    bank[[7, 23]] = torch.tensor([0.0, 1.0])
    for k in (1, 3, 24, 47, 48, 49, 50):
        _, rows = held(search(bank[:1], bank, k=k, tile=10))
        assert rows[0].tolist() == [*(j for j in range(50) if j not in (7, 23)), 7, 23][:k]


def test_negative_cosines_and_zero_rows_are_ranked():
    bank = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [-0.5, -0.5], [0.0, -1.0]])
    for search in (nearest, banks.flat):
        values, rows = held(search(torch.tensor([[1.0, 1.0]]), bank, k=4, tile=3))
        assert rows[0].tolist() == [1, 0, 3, 2]
        assert values[0].tolist() == pytest.approx([0, -(0.5**0.5), -(0.5**0.5), -1])


def clustered(rows, queries, seed=0):
    """Rows around 40 centres, and queries around the same ones."""
    centres = normal(40, 12, seed=seed)
    made = [
        centres[torch.arange(count) % 40] + 0.3 * normal(count, 12, seed=seed + place)
        for place, count in ((1, rows), (2, queries))
    ]
    return made[1], made[0]


def test_an_inverted_index_that_reads_every_list_is_exact():
    queries, bank = clustered(2000, 60)
    search = banks.Inverted(bank, probes=10**6)
    assert search.facts == {"index": "IVF51,Flat", "probes": 51}
    assert torch.equal(held(search(queries, bank, k=20))[1], held(nearest(queries, bank, k=20))[1])
    assert banks.recall(search, queries, bank, ks=(1, 20)) == {"queries": 60, "recall@1": 1.0, "recall@20": 1.0}


def test_recall_is_the_share_of_exact_neighbours_found():
    queries, bank = normal(60, 8, seed=0), normal(2000, 8, seed=1)
    search = banks.Inverted(bank, probes=1)
    found = banks.recall(search, queries, bank, ks=(5, 40))
    exact, rows = (held(way(queries, bank, k=40))[1].tolist() for way in (nearest, search))
    for k in (5, 40):
        shares = [len(set(one[:k]) & set(other[:k])) / k for one, other in zip(exact, rows, strict=True)]
        assert found[f"recall@{k}"] == pytest.approx(sum(shares) / 60)
    assert 0.2 < found["recall@40"] < found["recall@5"] < 1
    more = banks.recall(banks.Inverted(bank, probes=8), queries, bank, ks=(40,))
    assert more["recall@40"] > found["recall@40"]


def test_recall_looks_at_a_spread_sample():
    queries, bank = clustered(500, 60)
    asked = []

    def search(given, bank, *, k):
        asked.append(given)
        return nearest(given, bank, k=k)

    assert banks.recall(search, queries, bank, ks=(3,), sample=7) == {"queries": 7, "recall@3": 1.0}
    assert torch.equal(asked[0], queries[[0, 8, 17, 25, 34, 42, 51]])


def test_queries_that_find_too_few_rows_are_settled_exactly():
    queries, bank = clustered(400, 20)
    search = banks.Inverted(bank, probes=1)  # ten lists of some 40 rows
    assert torch.equal(held(search(queries, bank, k=399))[1], held(nearest(queries, bank, k=399))[1])


def test_an_index_of_another_bank_is_refused():
    bank = normal(50, 4, seed=0)
    with pytest.raises(ProtocolError, match="another one came"):
        banks.Inverted(bank, probes=1)(bank, bank.clone(), k=1)


def test_the_same_seed_makes_the_same_index():
    queries, bank = clustered(2000, 60)
    one, other = (held(banks.Inverted(bank, probes=1, seed=3)(queries, bank, k=30))[1] for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize("rows", [1, 2, 30])
def test_a_small_bank_has_one_list(rows):
    bank = normal(rows, 5, seed=0)
    search = banks.Inverted(bank, probes=3)
    assert search.facts == {"index": "IVF1,Flat", "probes": 1}
    assert held(search(bank, bank, k=1))[1].flatten().tolist() == list(range(rows))


def test_faiss_searches_on_its_gpus_where_it_has_them(monkeypatch):
    moved = []
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", lambda index: moved.append(index) or index, raising=False)
    bank = normal(3000, 4, seed=0)
    held(banks.flat(bank[:2], bank, k=5))
    assert len(moved) == 1
    held(banks.flat(bank[:2], bank, k=banks.GPU_K))
    assert len(moved) == 1


@pytest.mark.parametrize(
    "search",
    [
        nearest,
        partial(nearest, tile=8),
        banks.flat,
        partial(banks.flat, tile=8),
        lambda q, b, *, k: banks.Inverted(b, 1)(q, b, k=k),
    ],
)
@pytest.mark.parametrize(
    ("queries", "rows", "k", "error", "said"),
    [
        (torch.ones(0, 3), torch.ones(20, 3), 1, ProtocolError, "0 queries"),
        (torch.ones(2, 3), torch.ones(0, 3), 1, ProtocolError, "0"),
        (torch.ones(2, 3), torch.ones(20, 3), 21, ProtocolError, "N = 20"),
        (torch.ones(2, 3), torch.ones(20, 3), 0, ProtocolError, "N = 20"),
        (torch.ones(2, 3), torch.full((20, 3), float("nan")), 1, FeatureError, "bank are not finite"),
        (torch.full((2, 3), float("inf")), torch.ones(20, 3), 1, FeatureError, "queries are not finite"),
        (torch.ones(2, 4), torch.ones(20, 3), 1, FeatureError, "4 dimensions, the bank has 3"),
    ],
)
def test_says_what_is_wrong(search, queries, rows, k, error, said):
    with pytest.raises(error, match=said):
        list(search(queries, rows, k=k))


def test_exact_search_needs_no_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", SimpleNamespace())
    bank = normal(30, 4, seed=0)
    assert held(nearest(bank, bank, k=1, tile=8))[1].flatten().tolist() == list(range(30))
