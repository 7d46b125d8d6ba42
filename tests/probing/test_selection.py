"""The lowest held-out loss, the ends of grids, and what the test split would have chosen."""

from __future__ import annotations

import math

import pytest
import torch

from evalkit.errors import ProtocolError
from evalkit.probing.heads import Heads
from evalkit.probing.selection import BestOnTest, Choice, choose, edge, fact


def right(*counts, of=100):
    """(H, n): so many of the outcomes are right."""
    return torch.tensor([[True] * n + [False] * (of - n) for n in counts])


def test_the_lowest_loss_then_the_order_of_the_list():
    # the standard error of 60 of 100 is 4.9 points: 56 is near, 55 is not
    assert choose(right(60, 56, 55), torch.tensor([0.9, 0.5, 0.6])) == Choice(1, 0.56, 0.6, 100, 2, 3)
    assert choose(right(60, 56, 55), torch.tensor([0.4, 0.5, math.inf])).index == 0
    assert choose(right(60, 60, 60), torch.tensor([0.5, 0.5, 0.5])).index == 0
    assert choose(right(60, 60), torch.tensor([0.5 + 1e-12, 0.5])).index == 0  # the order of a sum is no difference


def test_one_image_does_not_decide():
    """The most right are ahead by one image, and by another one after a rounding: the choice is the same."""
    before, after = right(60, 59, 58), right(59, 60, 58)
    loss = torch.tensor([0.7, 0.6, 0.8])
    assert before.sum(dim=1).argmax() != after.sum(dim=1).argmax()
    assert choose(before, loss).index == choose(after, loss + 1e-6 * torch.tensor([1, -1, 1])).index == 1


def test_a_smooth_score_is_its_own_loss():
    scores = torch.tensor([[0.1, 0.2], [0.3, 0.9], [0.5, 0.6]])
    assert choose(scores).index == 1
    assert choose(scores).score == pytest.approx(0.6)
    assert choose(torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]])).index == 0
    assert choose(torch.tensor([[0.6], [0.1 + 0.2 + 0.3]], dtype=torch.float64)).index == 0  # 0.6000000000000001


def test_the_dead_are_not_chosen_and_nothing_held_out_takes_the_first_that_lives():
    assert choose(right(90, 10), torch.tensor([0.0, 2.0]), torch.tensor([False, True])).index == 1
    assert choose(right(0, 0, of=0), None, torch.tensor([False, True])).index == 1
    assert math.isnan(choose(right(0, 0, of=0)).score)
    with pytest.raises(ProtocolError, match="none of 2 candidates"):
        choose(right(90, 10), None, torch.tensor([False, False]))


def test_the_ends_of_a_grid():
    assert edge([0.3, 0.1, 0.2], 0.1) == "lowest"
    assert edge([0.3, 0.1, 0.2], 0.3) == "highest"
    assert edge([0.3, 0.1, 0.2], 0.2) is None
    assert edge([0.1], 0.1) is None
    found = fact("T", [0.3, 0.1, 0.2], 0.3, choose(right(3, 1)), folds=5, input="cls")
    assert found["edge"] == "highest" and found["input"] == "cls"
    assert fact("T", [0.3, 0.1], 0.1, choose(right(0, 0, of=0)))["edge"] is None  # nothing was chosen


def test_best_on_test_is_the_best_of_all_looks():
    rng = torch.Generator().manual_seed(0)
    features, labels = torch.randn(40, 4, generator=rng), torch.randint(3, (40,), generator=rng)
    stacks = {name: Heads(torch.zeros(4, 3), [0.5, 50.0]) for name in ("a", "b")}
    inputs = {"a": features, "b": features.flip(1)}
    best = BestOnTest(stacks, inputs, labels)
    seen = []
    for _ in range(12):
        for name, heads in stacks.items():
            heads.step(inputs[name], labels)
            logits = heads.logits(inputs[name])
            seen += [logits[:, head].argmax(1) == labels for head in range(2)]
        best.look()
        again = BestOnTest(stacks, inputs, labels)
        again.restore(best.state())
        best = again
    counts = [int(row.sum()) for row in seen]
    assert len(set(counts)) > 2
    assert torch.equal(best.best[0], seen[counts.index(max(counts))])
