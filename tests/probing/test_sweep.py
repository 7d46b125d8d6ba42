"""The head of a sweep: what trials measure reaches the rule, whichever way images were held out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from evalkit.errors import ProtocolError
from evalkit.probing.heads import Heads
from evalkit.probing.pooling import Split
from evalkit.probing.sweep import Trial, choose_head

RATES = (0.2, 0.1)


def stack(*scales):
    """A head per rate that is right everywhere, the surer the larger its scale; negative ones are always wrong."""
    heads = Heads(torch.zeros(3, 3), RATES)
    state = heads.state()
    state["weight"] = torch.cat([scale * torch.eye(3) for scale in scales])
    heads.restore(state)
    return heads


LABELS = torch.arange(60) % 3
JUDGES = Split({"a": torch.eye(3)[LABELS], "b": torch.eye(3)[LABELS]}, LABELS)
HALVES = torch.arange(60) % 2 == 0


def test_folds_and_seeds_are_judged_on_what_they_left_out():
    stacks = [{"a": stack(1.0, -1.0), "b": stack(2.0, 1.0)}, {"a": stack(3.0, 1.0), "b": stack(2.0, -1.0)}]
    trials = [Trial(of, out) for of, out in zip(stacks, (HALVES, ~HALVES), strict=True)]
    found = choose_head(stacks, trials, JUDGES, RATES)
    losses = {scale: F.cross_entropy(scale * torch.eye(3)[LABELS], LABELS).item() for scale in (1.0, 2.0, 3.0)}
    assert (losses[1.0] + losses[3.0]) / 2 > losses[2.0]
    assert (found.name, found.index) == ("b", 0)  # right like "a" at this rate, and the lower loss over both halves
    assert (found.choice.score, found.choice.held_out, found.choice.near, found.choice.candidates) == (1.0, 60, 2, 4)
    shared = choose_head(stacks, [Trial(of, HALVES) for of in stacks], JUDGES, RATES)
    assert (shared.name, shared.choice.held_out, shared.choice.score) == ("b", 30, 1.0)


def test_equal_heads_go_to_the_lower_rate_then_the_earlier_input():
    stacks = {"a": stack(1.0, 1.0), "b": stack(1.0, 1.0)}
    found = choose_head([stacks], [Trial(stacks, HALVES)], JUDGES, RATES)
    assert (found.name, RATES[found.index]) == ("a", 0.1)
    assert choose_head([stacks], [], JUDGES.rows(HALVES & ~HALVES), RATES).index == 1


@pytest.mark.parametrize("where", ["reported", "trial"])
def test_a_head_that_died_anywhere_is_not_chosen(where):
    good, dead = {"a": stack(1.0, 1.0)}, {"a": stack(1.0, torch.inf)}
    reported, tried = (dead, good) if where == "reported" else (good, dead)
    found = choose_head([good, reported], [Trial(tried, HALVES)], JUDGES, RATES)
    assert RATES[found.index] == 0.2
    with pytest.raises(ProtocolError, match=r"every head diverged: the base rates 0\.1 to 0\.2"):
        choose_head([{"a": stack(torch.inf, torch.inf)}], [], JUDGES, RATES)
