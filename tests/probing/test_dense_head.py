"""The linear head against a plain re-statement: forward, optimiser steps, schedule."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from evalkit.errors import ProtocolError, UsageError
from evalkit.probing.dense_head import AuxiliaryHead, Learner, LinearHead, factor, mapped, restored
from evalkit.probing.enlarging import enlargement

ONTO = enlargement((3, 4), (12, 16), (25, 30))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(seed=1):
    tokens = torch.randn(2, 3, 4, 10, generator=rng(seed))
    return tokens, torch.randint(-1, 5, (2, 25, 30), generator=rng(seed + 1))


def learner(share=0.0):
    second = AuxiliaryHead(4, 5, rng=rng(7)) if share else None
    return Learner(LinearHead(10, 5, rng=rng()), weight_decay=0.05, auxiliary=second, third=slice(2, 6), share=share)


def test_steps_are_those_of_the_plain_procedure():
    """Tokens enlarged 4 times, a 1x1 convolution, logits resized, cross-entropy over all pixels, torch's AdamW."""
    mine = learner()
    layer = torch.nn.Conv2d(10, 5, 1)
    layer.weight.data, layer.bias.data = mine.head.weight.data[:, :, None, None].clone(), mine.head.bias.data.clone()
    optimiser = torch.optim.AdamW(layer.parameters(), lr=1.0, betas=(0.9, 0.999), weight_decay=0.05)
    for step in range(4):
        tokens, truth = batch(step)
        rate = 0.01 * factor(step, steps=10, warmup=2)
        loss = mine.step(tokens, truth, ONTO, rate=rate, rng=rng())
        wide = F.interpolate(tokens.permute(0, 3, 1, 2), scale_factor=4, mode="bilinear", align_corners=False)
        logits = F.interpolate(layer(wide), size=(25, 30), mode="bilinear", align_corners=False)
        wanted = F.cross_entropy(logits, truth, ignore_index=-1, reduction="none").mean()
        optimiser.param_groups[0]["lr"] = rate
        optimiser.zero_grad()
        wanted.backward()
        optimiser.step()
        assert float(loss) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert torch.allclose(mine.head.weight, layer.weight[:, :, 0, 0], atol=2e-6)
    assert torch.allclose(mine.head.bias, layer.bias, atol=2e-6)


def test_the_second_head_learns_and_leaves_the_first_as_it_is():
    alone, both = learner(), learner(share=0.4)
    before = both.auxiliary.kernel.detach().clone()
    for step in range(3):
        tokens, truth = batch(step)
        for one in (alone, both):
            one.step(tokens, truth, ONTO, rate=0.01, rng=rng(step))
    assert torch.equal(alone.head.weight, both.head.weight)
    assert not torch.equal(before, both.auxiliary.kernel)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_a_saved_state_goes_on_identically(share):
    whole, first = learner(share), learner(share)
    for step in range(4):
        tokens, truth = batch(step)
        whole.step(tokens, truth, ONTO, rate=0.01, rng=rng(step))
        if step == 2:
            again = learner(share)
            again.restore(first.state())
            first = again
        first.step(tokens, truth, ONTO, rate=0.01, rng=rng(step))
    assert torch.equal(whole.head.weight, first.head.weight)
    if share:
        assert torch.equal(whole.auxiliary.kernel, first.auxiliary.kernel)
    with pytest.raises(UsageError, match="does not fit"):
        Learner(LinearHead(3, 5, rng=rng()), weight_decay=0).restore(whole.state())


def test_the_rate_rises_and_falls_as_mmcv_has_it():
    """poly with power 1 to 0, linear warm-up from a ratio of 1e-6 (mmcv v1, runner/hooks/lr_updater.py)."""
    for step in (0, 1, 700, 1499, 1500, 80_000, 159_999):
        wanted = 1 - step / 160_000
        if step < 1500:
            wanted *= 1 - (1 - step / 1500) * (1 - 1e-6)
        assert factor(step, steps=160_000, warmup=1500) == pytest.approx(wanted)
    assert factor(0, steps=10, warmup=0) == 1


def test_blocks_are_those_of_the_same_depth_share():
    assert mapped((3, 5, 7, 11), 12) == (3, 5, 7, 11)
    assert mapped((3, 5, 7, 11), 24) == (7, 11, 15, 23)
    assert mapped((3, 5, 7, 11), 6) == (1, 2, 3, 5)
    assert mapped((3, 5, 7, 11), 4) == (1, 2, 3)  # two of them are one block, which is taken once
    with pytest.raises(UsageError, match=r"0 ... 11"):
        mapped((12,), 12)


def test_a_head_that_diverged_says_so_and_one_that_was_kept_comes_back():
    one = learner()
    kept = {name: value.clone() for name, value in one.head.state_dict().items()}
    tokens, _ = batch()
    assert torch.equal(restored(kept)(tokens), one.head(tokens))
    one.head.weight.data[0, 0] = float("nan")
    with pytest.raises(ProtocolError, match="diverged"):
        one.check()
