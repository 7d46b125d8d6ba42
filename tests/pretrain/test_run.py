"""Schedules against their closed forms, the order of the images, clipping."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from evalkit.errors import PretrainError
from evalkit.pretrain.run import Plan, Run, clip, mixed, seeded
from evalkit.pretrain.schedules import cosine, linear, warmed

RUN = Run(epochs=5, batch=8, lr=1e-3, min_lr=1e-5, warmup=2, weight_decay=0.1, weight_decay_end=0.3)


def test_the_rate_grows_on_a_line_and_falls_on_half_a_cosine() -> None:
    plan, peak = Plan(RUN, 83), 1e-3 * 8 / 256
    assert (plan.per_epoch, plan.steps) == (10, 50)
    found = [RUN.rate(plan.now(step)) for step in range(50)]
    assert found[:20] == pytest.approx([peak * step / 20 for step in range(20)])
    expected = [1e-5 + 0.5 * (peak - 1e-5) * (1 + math.cos(math.pi * (step - 20) / 30)) for step in range(20, 50)]
    assert found[20:] == pytest.approx(expected)


def test_weight_decay_moves_on_half_a_cosine() -> None:
    plan = Plan(RUN, 83)
    found = [RUN.decay(plan.now(step)) for step in range(50)]
    assert found == pytest.approx([0.3 - 0.1 * (1 + math.cos(math.pi * step / 50)) for step in range(50)])


def test_a_run_shorter_than_its_warm_up_only_warms() -> None:
    plan = Plan(Run(epochs=1, batch=8, lr=1e-3, lr_batch=0, warmup=10), 80)
    assert [plan.run.rate(plan.now(step)) for step in (0, 5)] == pytest.approx([0, 5e-4])


def test_values_beyond_the_ends_stay_at_the_ends() -> None:
    assert (cosine(1, 2, -1), cosine(1, 2, 3), linear(1, 2, 5)) == (1, 2, 2)
    assert warmed(1.0, 0.5, at=0, warmup=0, total=10) == 1.0


def test_an_epoch_shows_each_image_at_most_once_and_the_next_in_another_order() -> None:
    plan = Plan(RUN, 83)
    epochs = [torch.cat([torch.cat(plan.rows(e * 10 + s)) for s in range(10)]) for e in range(2)]
    for epoch in epochs:
        assert len(epoch.unique()) == 80
    assert not torch.equal(*epochs)


def test_processes_and_parts_share_the_batch_in_order() -> None:
    whole = torch.cat(Plan(RUN, 83).rows(3))
    shared = Plan(Run(**{**RUN.__dict__, "accumulate": 2}), 83, world=2)
    parts = [part for rank in range(2) for part in shared.rows(3, rank)]
    assert [len(p) for p in parts] == [2, 2, 2, 2]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(
    ("run", "images", "world", "message"),
    [
        (RUN, 7, 1, "a batch of 8 of 7 images"),
        (RUN, 80, 3, "choose a multiple of 3"),
        (Run(epochs=0, batch=8, lr=1), 80, 1, "0 epochs"),
        (Run(epochs=1, batch=0, lr=1), 80, 1, "a batch of 0"),
    ],
)
def test_a_plan_that_cannot_be_says_why(run: Run, images: int, world: int, message: str) -> None:
    with pytest.raises(PretrainError, match=message):
        Plan(run, images, world)


def test_seeds_differ_in_every_number_and_in_their_order() -> None:
    seeds = {mixed(a, b) for a in range(50) for b in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeded(1, 2).initial_seed() == mixed(1, 2)


@pytest.mark.parametrize("each", [False, True])
def test_clipping_shortens_all_gradients_together_or_each_by_itself(each: bool) -> None:
    a, b, absent = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    a.grad, b.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    clip([a, b, absent], Run(epochs=1, batch=1, lr=1, clip=1.0, clip_each=each))
    assert absent.grad is None
    if each:
        assert a.grad.norm() == pytest.approx(1, abs=1e-5)
        assert torch.equal(b.grad, torch.tensor([0.3, 0.4]))
    else:
        assert torch.cat([a.grad, b.grad]).norm() == pytest.approx(1, abs=1e-5)
        assert torch.allclose(a.grad, 10 * b.grad)
