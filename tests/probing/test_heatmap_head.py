"""The layer's gradients against autograd, its steps against AdamW written out, its schedule by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from evalkit.errors import UsageError
from evalkit.metrics.pose import Targets, targets
from evalkit.probing.heatmap_head import HeatmapHead, Learner, factor, loss

CELLS = (12, 9)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(grid: tuple[int, int] = (3, 4), people: int = 5, seed: int = 1) -> tuple[torch.Tensor, Targets]:
    g = rng(seed)
    tokens = torch.randn(people, *grid, 6, generator=g)
    points, labelled = torch.rand(people, 4, 2, generator=g) * 14 - 2, torch.rand(people, 4, generator=g) > 0.3
    return tokens, targets(points, labelled, CELLS, sigma=1.5)


@pytest.mark.parametrize("grid", [(3, 4), (12, 9), (5, 11), (1, 1)])
def test_slopes_are_those_of_the_plain_loss(grid: tuple[int, int]):
    head = HeatmapHead(6, 4, CELLS, rng=rng()).double()
    tokens, wanted = batch(grid)
    tokens, wanted = tokens.double(), Targets(*(part.double() for part in wanted))
    maps = F.interpolate(
        torch.einsum("bhwd,kd->bkhw", tokens, head.weight) + head.bias[:, None, None], size=CELLS, mode="bilinear"
    )
    weight = wanted.weight[:, :, None, None].expand_as(maps)
    plain = ((maps - wanted.maps()) ** 2 * weight).sum() / maps.numel()
    slopes = torch.autograd.grad(plain, [head.weight, head.bias])
    for mine, theirs in zip(head.slopes(tokens, wanted), slopes, strict=True):
        assert mine.numpy() == pytest.approx(theirs.numpy(), rel=1e-9, abs=1e-12)
    assert loss(maps, wanted).item() == pytest.approx(plain.item())


def test_enlarging_tokens_first_gives_the_same_heatmaps():
    head = HeatmapHead(6, 4, CELLS, rng=rng())
    tokens, _ = batch()
    large = F.interpolate(tokens.permute(0, 3, 1, 2), size=CELLS, mode="bilinear").permute(0, 2, 3, 1)
    with torch.no_grad():
        assert head(tokens).numpy() == pytest.approx(head(large).numpy(), abs=1e-6)


def test_steps_are_those_of_torch_optim():
    """Beside torch.optim's AdamW with its own clipping, on the plain loss by autograd."""
    plain = HeatmapHead(6, 4, CELLS, rng=rng())
    groups = [{"params": [plain.weight], "weight_decay": 0.1}, {"params": [plain.bias], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups)
    learner = Learner(HeatmapHead(6, 4, CELLS, rng=rng()), weight_decay=0.1, clip=0.003)
    for t in range(1, 8):
        tokens, wanted = batch(seed=t)
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * t
        optimiser.zero_grad()
        loss(plain(tokens), wanted).backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.003)
        optimiser.step()
        learner.step(tokens, wanted, 0.01 * t)
        assert float(norm) > 0.003  # the clipping is at work
        for mine, theirs in zip(learner.head.parameters(), plain.parameters(), strict=True):
            assert mine.detach().numpy() == pytest.approx(theirs.detach().numpy(), rel=1e-4, abs=1e-6)


def test_a_restored_learner_goes_on_to_the_bit():
    one = Learner(HeatmapHead(6, 4, CELLS, rng=rng()), weight_decay=0.1, clip=1.0)
    for seed in range(3):
        one.step(*batch(seed=seed), 0.01)
    other = Learner(HeatmapHead(6, 4, CELLS, rng=rng(9)), weight_decay=0.1, clip=1.0)
    other.restore(one.state())
    for learner in (one, other):
        learner.step(*batch(seed=7), 0.01)
    assert bool((one.head.weight == other.head.weight).all())
    with pytest.raises(UsageError, match="does not fit"):
        Learner(HeatmapHead(5, 4, CELLS, rng=rng()), weight_decay=0.1, clip=1.0).restore(one.state())


def test_the_rate_warms_up_and_drops():
    rates = [factor(step, step // 10, warmup=20, drops=(5, 8)) for step in range(100)]
    assert rates[0] == pytest.approx(0.001)
    assert rates[10] == pytest.approx(0.001 + 0.999 / 2)
    assert rates[20] == rates[49] == 1
    assert rates[50] == pytest.approx(0.1) and rates[80] == pytest.approx(0.01)
    assert factor(0, 0, warmup=0, drops=()) == 1


def test_a_linear_layer_that_can_be_right_becomes_right():
    """Tokens that say where the keypoint is: the loss goes to nearly nothing."""
    points = torch.rand(64, 4, 2, generator=rng()) * torch.tensor([8.0, 11.0])
    wanted = targets(points, torch.ones(64, 4, dtype=torch.bool), CELLS, sigma=1.5)
    small = F.adaptive_avg_pool2d(wanted.maps(), (6, 5)).permute(0, 2, 3, 1)
    tokens = torch.cat([small, torch.zeros(64, 6, 5, 2)], dim=-1)
    learner = Learner(HeatmapHead(6, 4, CELLS, rng=rng()), weight_decay=0.0, clip=1.0)
    before = float(loss(learner.heatmaps(tokens), wanted))
    for _ in range(300):
        learner.step(tokens, wanted, 0.02)
    assert float(loss(learner.heatmaps(tokens), wanted)) < before / 4
