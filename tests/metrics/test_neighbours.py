"""Nearest neighbours against a stable sort of everything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from evalkit.errors import FeatureError, ProtocolError
from evalkit.metrics.neighbours import nearest
from evalkit.metrics.similarity import cosines, normalise


def gathered(queries, bank, k, block=None):
    values, index = zip(*nearest(queries, bank, k=k, block=block), strict=True)
    return torch.cat(values), torch.cat(index)


def obvious(queries, bank, k):
    """All similarities, sorted stably: equal ones stay in the order of the bank."""
    found = cosines(normalise(queries), normalise(bank)).sort(dim=1, descending=True, stable=True)
    return found.values[:, :k], found.indices[:, :k]


def signs(*shape, seed):
    """Rows of +-1 in 16 dimensions: cosines are exact multiples of 1/8, full of ties."""
    return torch.randint(2, (*shape, 16), generator=torch.Generator().manual_seed(seed)).float() * 2 - 1


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 3000), st.integers(1, 30), st.integers(0, 10**6), st.sampled_from([1, 7, None])
)
def test_equals_a_stable_sort_even_where_everything_ties(queries, rows, k, seed, block):
    asked, bank = signs(queries, seed=seed), signs(rows, seed=seed + 1)
    k = min(k, rows)
    values, index = gathered(asked, bank, k, block)
    right_values, right_index = obvious(asked, bank, k)
    assert torch.equal(values, right_values)
    assert torch.equal(index, right_index)


@pytest.mark.parametrize(("rows", "k"), [(5000, 200), (5001, 200), (3000, 1), (1000, 1000), (900, 899), (17, 5)])
def test_equals_a_full_top_k_on_ordinary_features(rows, k):
    rng = torch.Generator().manual_seed(0)
    queries, bank = torch.randn(50, 24, generator=rng), torch.randn(rows, 24, generator=rng)
    values, index = gathered(queries, bank, k)
    right = (F.normalize(queries) @ F.normalize(bank).T).topk(k, dim=1)
    assert torch.allclose(values, right.values, atol=1e-6)
    assert (index == right.indices).float().mean() > 0.999


def test_a_bank_sorted_by_similarity_is_no_special_case():
    angles = torch.linspace(0, 3, 4000)
    bank = torch.stack([angles.cos(), angles.sin()], dim=1)
    _, index = gathered(bank[:5] * 3, bank, 100)
    assert torch.equal(index[0], torch.arange(100))


def test_all_similarities_negative():
    bank = -torch.rand(600, 8, generator=torch.Generator().manual_seed(0)) - 0.1
    values, index = gathered(torch.ones(2, 8), bank, 10)
    assert (values < 0).all()
    assert (index < 600).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_and_any_length(dtype):
    bank = signs(300, seed=3).to(dtype)
    values, index = gathered(bank[:4] * 100, bank, 7)
    assert values.dtype == torch.float32
    assert torch.equal(index, obvious(bank[:4], bank, 7)[1])


def test_zero_rows_have_cosine_zero():
    values, index = gathered(torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0], [0.0, 0.0], [2.0, 0.0]]), 3)
    assert values.tolist() == [[1.0, 0.0, -1.0]]
    assert index.tolist() == [[2, 1, 0]]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_names_rows_that_are_not_finite(wrong):
    bank = torch.ones(5, 3)
    bank[2, 1] = wrong
    with pytest.raises(FeatureError, match="bank are not finite, the first is row 2"):
        nearest(torch.ones(1, 3), bank, k=1)
    with pytest.raises(FeatureError, match="queries"):
        nearest(bank, torch.ones(1, 3), k=1)


def test_refuses_what_cannot_be_searched():
    with pytest.raises(ProtocolError, match="0 queries"):
        nearest(torch.ones(0, 3), torch.ones(2, 3), k=1)
    with pytest.raises(ProtocolError, match="bank of 0"):
        nearest(torch.ones(1, 3), torch.ones(0, 3), k=1)
    with pytest.raises(ProtocolError, match=r"k = 3 .* N = 2"):
        nearest(torch.ones(1, 3), torch.ones(2, 3), k=3)
    with pytest.raises(FeatureError, match="4 dimensions, the bank has 3"):
        nearest(torch.ones(1, 4), torch.ones(2, 3), k=1)
    with pytest.raises(FeatureError, match="shape"):
        nearest(torch.ones(1, 2, 3), torch.ones(2, 3, 3), k=1)
    with pytest.raises(ProtocolError, match="block of 0"):
        nearest(torch.ones(1, 3), torch.ones(2, 3), k=1, block=0)
