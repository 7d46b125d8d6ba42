"""Sinkhorn-Knopp in the centre's place: against loops, and in the losses of the methods that teach by prototypes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from evalkit.pretrain.method import Now
from evalkit.pretrain.methods import dino, ibot, mugs, selfpatch
from evalkit.pretrain.prototypes import Centre, balanced, distilled, entropy
from tests.pretrain.methods.trials import CROPS, TINY, in_double, made, pictures, rng
from tests.pretrain.two import compare, doubled

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*expandable.*")

NOW = Now(step=30, steps=100, epoch=3.0, epochs=10.0)
SMALL = {"hidden": 16, "bottleneck": 8, "prototypes": 12, "drop_path": 0.0, "momentum": 0.9, "sinkhorn": 3}
METHODS = {
    "dino": (dino, dino.Config(**SMALL, crops=CROPS), TINY),
    "ibot": (ibot, ibot.Config(**SMALL, crops=CROPS), TINY),
    "mugs": (mugs, mugs.Config(**SMALL, crops=CROPS, predictor=20, queue=24, neighbours=3), TINY),
    "selfpatch": (
        selfpatch,
        selfpatch.Config(**SMALL, crops=replace(CROPS, small_size=24), patch_prototypes=10),
        replace(TINY, cls=False, final_norm=False),
    ),
}


def slow(logits, temperature, rounds):
    """Shares: all prototypes to one sum, then all rows to 1, again and again."""
    table = [[math.exp(x / temperature) for x in row] for row in logits.tolist()]
    for _ in range(rounds):
        sums = [sum(row[k] for row in table) for k in range(len(table[0]))]
        table = [[x / s for x, s in zip(row, sums, strict=True)] for row in table]
        table = [[x / sum(row) for x in row] for row in table]
    return torch.tensor(table, dtype=torch.float64)


@pytest.mark.parametrize("rounds", [1, 3])
def test_balanced_is_the_loop(rounds):
    logits = torch.randn(2, 4, 5, generator=rng(), dtype=torch.float64)
    found = balanced(logits, 0.3, rounds)
    assert found.shape == logits.shape
    shares = (found / 0.3).softmax(-1).flatten(0, 1)
    torch.testing.assert_close(shares, slow(logits.flatten(0, 1), 0.3, rounds), rtol=1e-10, atol=1e-14)


def test_without_rounds_logits_stay():
    logits = torch.randn(4, 5, generator=rng())
    assert torch.equal(balanced(logits, 0.3, 0), logits)


def test_in_the_end_every_prototype_has_as_much():
    logits = torch.randn(6, 3, generator=rng(), dtype=torch.float64) + torch.tensor([5.0, 0.0, 0.0])
    shares = Centre(3, 0.9, sinkhorn=200)(logits, 0.5)
    torch.testing.assert_close(shares.sum(0), torch.full((3,), 2.0, dtype=torch.float64))


def test_sharp_temperatures_do_not_overflow():
    shares = Centre(12, 0.9, sinkhorn=3)(torch.randn(8, 12, generator=rng()) * 30, 0.01)
    assert shares.isfinite().all()
    torch.testing.assert_close(shares.sum(-1), torch.ones(8))


def test_the_centre_rests():
    centre = Centre(4, 0.9, sinkhorn=3)
    centre.move([torch.randn(5, 4, generator=rng())])
    assert centre.value.tolist() == [0.0] * 4


def heads(name, method):
    """(the student's, the teacher's) head of class tokens."""
    if name in ("dino", "ibot"):
        return method.student_head, method.teacher_head
    part = "group_head" if name == "mugs" else "c_head"
    return getattr(method.student, part), getattr(method.teacher, part)


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_on_class_tokens_is_taught_by_balanced_shares(name):
    module, config, arch = METHODS[name]
    method = made(module, config, arch).double()
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.add_(torch.randn(p.shape, generator=rng(1)) * 0.3)
    told = {0: [], 1: []}
    for which, head in enumerate(heads(name, method)):
        head.register_forward_hook(lambda _, __, out, rows=told[which]: rows.append(out.detach()))
    views = doubled(method.views(pictures(4), rng(3)))
    with in_double():
        losses, watched = method(views, NOW)
    said, taught = (torch.cat([x[:, 0] if x.ndim == 3 else x for x in told[i]]) for i in (0, 1))
    temperature = config.teacher_temp if name == "selfpatch" else 0.04 + 0.03 * 3 / 30
    shares = slow(taught[:8], temperature, 3).chunk(2)
    assert float(watched["teacher_entropy"]) == pytest.approx(
        float(entropy(torch.cat(shares) if name == "mugs" else shares[0]))
    )
    if name == "mugs":
        assigned, logits = torch.stack(shares), said.view(4, 4, -1)
        expected = mugs.halves(mugs.cluster(logits, assigned, 0.1)) / 3
    else:
        expected = distilled(said.chunk(4), shares, 0.1)
    key = {"mugs": "group", "selfpatch": "global", "ibot": "cls"}.get(name, name)
    assert losses[key].item() == pytest.approx(expected.item(), rel=1e-9)
    resting = [b for n, b in method.named_buffers() if "cent" in n]
    assert resting
    assert all(not b.any() for b in resting)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_are_one(name):
    _, config, arch = METHODS[name]
    compare(name, config, arch)
