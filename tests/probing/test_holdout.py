"""Held-out images: whole groups, the share asked for, never everything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evalkit.errors import ProtocolError
from evalkit.probing.holdout import hold_out


@given(st.lists(st.integers(0, 12), min_size=2, max_size=80).filter(lambda g: len(set(g)) > 1), st.floats(0.01, 0.9))
def test_whole_groups_and_about_the_share(numbers, share):
    groups = torch.tensor(numbers)
    held = hold_out(groups, share, torch.Generator().manual_seed(0))
    assert set(groups[held].tolist()).isdisjoint(groups[~held].tolist())
    assert 0 < held.sum() < len(groups)
    largest = int(torch.bincount(groups).max())
    assert held.sum() <= share * len(groups) + largest


def test_the_generator_decides():
    groups = torch.arange(400)
    draws = [hold_out(groups, 0.05, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert draws[0].sum() == 20


def test_one_image_cannot_be_split():
    with pytest.raises(ProtocolError, match="come from 1"):
        hold_out(torch.zeros(9, dtype=torch.int64), 0.05, torch.Generator())
