"""Ranking of classes and its rule for ties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evalkit.errors import ProtocolError
from evalkit.metrics import classification

rows = st.integers(1, 9).flatmap(
    lambda c: st.lists(st.lists(st.integers(0, 3), min_size=c, max_size=c), min_size=1, max_size=6)
)


@given(rows, st.integers(1, 6))
def test_equal_scores_go_to_the_lowest_class(scores, top):
    found = classification.ranked(torch.tensor(scores, dtype=torch.float32), top).tolist()
    assert found == [sorted(range(len(row)), key=lambda c: (-row[c], c))[:top] for row in scores]


def test_many_equal_scores_stay_in_the_order_of_the_classes():
    scores = (torch.arange(2000) % 7 == 3).float().repeat(2, 1)
    assert classification.ranked(scores, 5).tolist() == [[3, 10, 17, 24, 31]] * 2


def test_correct_counts_the_first_n():
    ranking = torch.tensor([[2, 0, 1], [1, 2, 0]])
    labels = torch.tensor([0, 0])
    assert classification.correct(ranking, labels, 1).tolist() == [False, False]
    assert classification.correct(ranking, labels, 2).tolist() == [True, False]
    assert classification.correct(torch.stack([ranking, ranking]), labels, 3).shape == (2, 2)


@pytest.mark.parametrize("n", [0, 4])
def test_refuses_more_classes_than_ranked(n):
    with pytest.raises(ProtocolError, match=f"top-{n}"):
        classification.correct(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), n)


def test_refuses_no_class():
    with pytest.raises(ProtocolError):
        classification.ranked(torch.zeros(2, 0), 1)
