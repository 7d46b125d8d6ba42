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


def test_warm_up_is_maes():
    """The rate of facebookresearch/mae efb2a80 util/lr_sched.py: linear from 0, then half a cosine over the rest."""
    for epoch in range(9):
        for step in range(4):
            at = epoch + step / 4
            wanted = at / 3 if at < 3 else 0.5 * (1 + math.cos(math.pi * (at - 3) / (9 - 3)))
            found = schedules.factor("iteration", epoch=epoch, epochs=9, step=step, steps=4, warmup=3)
            assert found == pytest.approx(wanted, abs=1e-15)
    assert schedules.factor("epoch", epoch=1, epochs=4, step=3, steps=4, warmup=2) == 0.5
    assert schedules.factor("constant", epoch=1, epochs=4, step=1, steps=4, warmup=2) == pytest.approx(0.625)
    assert schedules.factor("constant", epoch=2, epochs=4, step=0, steps=4, warmup=2) == 1


def test_lowest_rate_is_torchs_eta_min():
    """Mugs: 0.06 at first, 1e-5 at the end."""
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.06)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 20, eta_min=1e-5)
    for epoch in range(20):
        mine = 0.06 * schedules.factor("epoch", epoch=epoch, epochs=20, step=0, steps=1, lowest=1e-5 / 0.06)
        assert mine == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-9)
        sgd.step()
        annealing.step()
