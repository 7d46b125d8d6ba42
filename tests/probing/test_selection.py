"""The choice of a head by held-out images, and what the test split would have chosen."""

from __future__ import annotations

import pytest
import torch

from evalkit.errors import ProtocolError
from evalkit.probing.heads import Heads
from evalkit.probing.selection import BestOnTest, choose
from evalkit.probing.train import Measured


def measured(right, loss, alive=None):
    correct = torch.tensor([[True] * n + [False] * (4 - n) for n in right])
    return Measured(correct, torch.tensor(loss), torch.tensor(alive or [True] * len(right)))


def test_most_right_then_loss_then_rate_then_the_earlier_stack():
    rates = (0.1, 0.2)
    assert choose({"a": measured([1, 3], [0.1, 0.9]), "b": measured([2, 2], [0.0, 0.0])}, rates) == ("a", 1)
    assert choose({"a": measured([3, 3], [0.5, 0.4]), "b": measured([3, 3], [0.9, 0.3])}, rates) == ("b", 1)
    assert choose({"a": measured([1, 3], [0.5, 0.5]), "b": measured([3, 0], [0.5, 0.5])}, rates) == ("b", 0)
    assert choose({"a": measured([3, 3], [0.5, 0.5]), "b": measured([3, 3], [0.5, 0.5])}, rates) == ("a", 0)


def test_the_dead_are_not_chosen():
    assert choose({"a": measured([4, 1], [0.0, 2.0], [False, True])}, (0.1, 0.2)) == ("a", 1)
    with pytest.raises(ProtocolError, match="every head diverged"):
        choose({"a": measured([4, 4], [0.0, 0.0], [False, False])}, (0.1, 0.2))
    with pytest.raises(ProtocolError, match="the head diverged at base rate 3"):
        choose({"a": measured([4], [0.0], [False])}, (3.0,))


def test_nothing_held_out():
    nothing = Measured(torch.zeros(1, 0, dtype=torch.bool), torch.tensor([torch.inf]), torch.tensor([True]))
    assert choose({"a": nothing}, (0.1,)) == ("a", 0)


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
