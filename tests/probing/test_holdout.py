"""Held-out images: whole groups, the share asked for, never everything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evalkit.errors import ProtocolError
from evalkit.probing import holdout
from evalkit.probing.holdout import folds, groups_of, hold_out, trials, without
from evalkit.types import Batch, Sample


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


@given(st.lists(st.integers(0, 12), min_size=2, max_size=80).filter(lambda g: len(set(g)) > 1), st.integers(2, 7))
def test_folds_hold_out_every_sample_once_and_groups_together(numbers, count):
    groups = torch.tensor(numbers)
    found = folds(groups, count, torch.Generator().manual_seed(0))
    assert found.shape == (min(count, len(set(numbers))), len(groups))
    assert found.sum(dim=0).tolist() == [1] * len(groups)
    assert found.any(dim=1).all() and not found.all(dim=1).any()
    for fold in found:
        assert set(groups[fold].tolist()).isdisjoint(groups[~fold].tolist())
    largest = int(torch.bincount(groups).max())
    assert int(found.sum(dim=1).max() - found.sum(dim=1).min()) <= largest


def test_folds_choose_where_few_would_be_held_out(monkeypatch):
    rng = lambda: torch.Generator().manual_seed(0)
    groups = torch.arange(400)
    assert len(trials(groups, 0.05, rng())) == holdout.FOLDS
    monkeypatch.setattr(holdout, "FEW", 20)
    (one,) = trials(groups, 0.05, rng())
    assert torch.equal(one, hold_out(groups, 0.05, rng()))


def test_one_image_cannot_be_split():
    for split in (hold_out, trials):
        with pytest.raises(ProtocolError, match="come from 1"):
            split(torch.zeros(9, dtype=torch.int64), 0.05, torch.Generator())


def test_groups_are_numbered_in_the_order_of_the_data_set():
    names = ["b", "b", "a", "c", "a"]
    assert groups_of([Sample(str(n), name, 0) for n, name in enumerate(names)]).tolist() == [0, 0, 1, 2, 1]


def test_a_stream_without_the_held_out_samples():
    given = [
        Batch(torch.tensor(rows).float(), torch.tensor(rows) + 10, torch.tensor(rows), epoch, last)
        for epoch, rows, last in ((0, [3, 0], False), (0, [1, 2], True), (1, [2, 1], False), (1, [0, 3], True))
    ]
    found = list(without(given, torch.tensor([False, True, True, False])))
    assert [batch.positions.tolist() for batch in found] == [[3, 0], [], [], [0, 3]]
    assert [batch.labels.tolist() for batch in found] == [[13, 10], [], [], [10, 13]]
    assert [batch.images.tolist() for batch in found] == [[3.0, 0.0], [], [], [0.0, 3.0]]
    assert [(batch.epoch, batch.last_of_epoch) for batch in found] == [(0, False), (0, True), (1, False), (1, True)]
