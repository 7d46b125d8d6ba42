"""Schedules against their closed forms and torch's own."""

from __future__ import annotations

import math

import pytest
import torch

from evalkit.errors import UsageError
from evalkit.probing import schedules


def test_epoch_schedule_is_torchs_cosine_annealing():
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 20, eta_min=0)
    for epoch in range(20):
        mine = 0.3 * schedules.factor("epoch", epoch=epoch, epochs=20, step=3, steps=5)
        assert mine == pytest.approx(sgd.param_groups[0]["lr"], abs=1e-12)
        sgd.step()
        annealing.step()


def test_iteration_schedule_counts_all_steps():
    found = [schedules.factor("iteration", epoch=e, epochs=3, step=s, steps=4) for e in range(3) for s in range(4)]
    assert found == pytest.approx([0.5 * (1 + math.cos(math.pi * t / 12)) for t in range(12)])


def test_ends():
    assert schedules.cosine(0) == 1
    assert schedules.cosine(0.5) == pytest.approx(0.5)
    assert schedules.cosine(1) == schedules.cosine(1.2) == 0
    assert schedules.factor("constant", epoch=9, epochs=10, step=0, steps=1) == 1
    assert schedules.peak(0.1, 1024) == pytest.approx(0.4)


def test_refuses_an_unknown_schedule():
    with pytest.raises(UsageError, match="linear"):
        schedules.factor("linear", epoch=0, epochs=1, step=0, steps=1)
