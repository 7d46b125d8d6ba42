"""A sweep of linear heads: one input and one rate for all seeds, from heads that were trained without the images that judge.

What:   trials are stacks of heads, each with the training images that it did not see. Folds hold out every image once, one
        share is held out by every seed alike; either way an outcome is what heads of equal input and rate got right on
        an image, on average, and `selection.choose` takes the rule from there.
Order:  candidates are listed by rate, lowest first, then as the inputs are listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.errors import ProtocolError
from evalkit.probing import train
from evalkit.probing.heads import Heads
from evalkit.probing.pooling import Split
from evalkit.probing.selection import Choice, choose


@dataclass(frozen=True)
class Trial:
    """stacks: of heads, by input. held: (n,) bool on the CPU, the rows of the judging split that they were not trained on."""

    stacks: Mapping[str, Heads]
    held: Tensor


@dataclass(frozen=True)
class Head:
    """name: of the input. index: among the rates. choice: how it was chosen."""

    name: str
    index: int
    choice: Choice


def choose_head(
    reported: Sequence[Mapping[str, Heads]], trials: Sequence[Trial], judges: Split, rates: Sequence[float]
) -> Head:
    """The head that is reported; without trials the living one of the lowest rate.

    reported: the trained stacks of each seed, by input; a head that died in one of them, or in a trial, is not chosen.
    judges: the held-out images, in the rows that the trials name. rates: base rates of the heads of every stack. Raises
    ProtocolError where no head is alive.
    """
    names, order = list(reported[0]), sorted(range(len(rates)), key=rates.__getitem__)
    places = [(name, index) for index in order for name in names]
    alive = torch.stack([_each(names, order, [of[name].alive().cpu() for name in names]) for of in reported]).all(dim=0)
    rows, times = len(judges.labels), torch.zeros(len(judges.labels))
    right, lost = torch.zeros(len(places), rows), torch.zeros(len(places), dtype=torch.float64)
    for trial in trials:
        held = judges.rows(trial.held)
        found = [train.measure(trial.stacks[name], held.inputs[name], held.labels) for name in names]
        right[:, trial.held] += _each(names, order, [of.correct for of in found]).float()
        lost += _each(names, order, [of.loss for of in found]) * len(held.labels)
        times[trial.held] += 1
        alive &= _each(names, order, [of.alive for of in found])
    if not bool(alive.any()):
        raise ProtocolError(_dead(rates))
    judged = times > 0
    choice = choose(right[:, judged] / times[judged], lost / times.sum() if trials else None, alive)
    return Head(*places[choice.index], choice)


def _each(names: Sequence[str], order: Sequence[int], per_stack: Sequence[Tensor]) -> Tensor:
    """Rows in the order of the candidates, from tensors (rates, ...) of each stack."""
    return torch.stack([per_stack[stack][index] for index in order for stack in range(len(names))])


def _dead(rates: Sequence[float]) -> str:
    if len(rates) == 1:
        return f"the head diverged at base rate {rates[0]:g}: its weights are not finite"
    return f"every head diverged: the base rates {min(rates):g} to {max(rates):g} are too high"
