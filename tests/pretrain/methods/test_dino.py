"""DINO: loss, gradients and centre against loops over crops and images; schedules; two processes; a small fit; the file."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from evalkit.pretrain.distillation import entropy, projection_head
from evalkit.pretrain.method import Now
from evalkit.pretrain.methods import dino
from evalkit.pretrain.multicrop import MultiCrop
from tests.pretrain.methods.trials import (
    CROPS,
    PLAIN,
    TINY,
    differences,
    fitted,
    in_double,
    loaded,
    made,
    mean,
    normalised,
    pictures,
    rng,
)
from tests.pretrain.two import compare, doubled

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*expandable.*")

SMALL = dino.Config(hidden=16, bottleneck=8, prototypes=12, drop_path=0.0, momentum=0.9, crops=CROPS)
NOW = Now(step=30, steps=100, epoch=3.0, epochs=10.0)


def softmax(values, temperature):
    weights = [math.exp((v - max(values)) / temperature) for v in values]
    return [w / sum(weights) for w in weights]


def logits(network: nn.Module, head: nn.Module, crop: torch.Tensor) -> torch.Tensor:
    """Of one crop of one image, by the published layers: MLP, unit length, prototypes of stated length and direction."""
    cls = network(crop[None])[0, 0]
    for layer in head.layers:
        cls = layer(cls)
    last = head.last_layer
    directions = torch.stack([row / row.norm() for row in last.weight_v])
    return (directions @ (cls / cls.norm())) * last.weight_g[:, 0]


def restated(method, views, teacher_temp, centre):
    """Eq. 3 by loops: each large crop of the teacher against each other crop of the student."""
    crops = [*views.large, *views.small]
    total, terms = 0.0, 0
    for i in range(len(views.large[0])):
        for t in range(2):
            with torch.no_grad():
                raw = logits(method.teacher, method.teacher_head, crops[t][i])
            p = softmax((raw - centre).tolist(), teacher_temp)
            for s, crop in enumerate(crops):
                if s == t:
                    continue
                said = logits(method.student, method.student_head, crop[i]) / 0.1
                said = said - said.logsumexp(0)
                total = total - sum(p[k] * said[k] for k in range(len(p)))
                terms += 1
    return total / terms


def test_loss_gradients_and_centre_are_those_of_the_equations():
    method = made(dino, replace(SMALL, norm_last=False, warmup_teacher_temp_epochs=5.0)).double()
    for p in method.teacher_head.parameters():
        p.add_(torch.randn(p.shape, generator=rng(1)) * 0.3)  # a teacher of its own
    method.loss.center.copy_(torch.randn(1, 1, 12, generator=rng(2)) * 0.2)
    centre = method.loss.center.flatten().clone()
    views = doubled(method.views(pictures(3), rng(3)))
    learn = [p for p in method.parameters() if p.requires_grad]
    with in_double():
        losses, watched = method(views, NOW)
    found = torch.autograd.grad(losses["dino"], learn)
    temp = 0.04 + 0.03 * 3 / 5  # three of five warm-up epochs lie behind
    expected = restated(method, views, temp, centre)
    assert losses["dino"].item() == pytest.approx(expected.item(), abs=1e-12)
    for ours, theirs in zip(found, torch.autograd.grad(expected, learn), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    raw = torch.stack([logits(method.teacher, method.teacher_head, c) for crop in views.large for c in crop])
    torch.testing.assert_close(method.loss.center.flatten(), 0.9 * centre + 0.1 * raw.mean(0))  # Eq. 4
    told = [softmax((row - centre).tolist(), temp) for row in raw[:3]]
    assert float(watched["teacher_entropy"]) == pytest.approx(-sum(p * math.log(p) for row in told for p in row) / 3)
    torch.testing.assert_close(watched["features"], method.teacher(views.large[0])[:, 0])


def test_gradients_are_finite_differences():
    method = made(dino, replace(SMALL, norm_last=False)).double()
    views = doubled(method.views(pictures(2), rng(3)))
    start = method.loss.center.clone()

    def loss() -> torch.Tensor:
        method.loss.center.copy_(start)
        with in_double():
            return method(views, NOW)[0]["dino"]

    last = method.student_head.last_layer
    parameters = [method.student.patch_embed.proj.weight, method.student.cls_token, last.weight_v, last.weight_g]
    for exact, measured in differences(loss, parameters):
        assert exact == pytest.approx(measured, rel=1e-5, abs=1e-8)


def test_views_are_the_crops_of_the_configuration():
    views = made(dino, SMALL).views(pictures(3), rng())
    assert [tuple(v.shape) for v in views.large] == [(3, 3, 32, 32)] * 2
    assert [tuple(v.shape) for v in views.small] == [(3, 3, 16, 16)] * 2
    first, second, small = MultiCrop().kinds()  # main_dino.py:435-456
    assert (first.size, first.scale, first.blur_p, first.solarise_p) == (224, (0.4, 1.0), 1.0, 0.0)
    assert (second.size, second.scale, second.blur_p, second.solarise_p) == (224, (0.4, 1.0), 0.1, 0.2)
    assert (small.size, small.scale, small.blur_p, small.solarise_p) == (96, (0.05, 0.4), 0.5, 0.0)
    assert len(made(dino, replace(SMALL, crops=replace(CROPS, small=0))).views(pictures(1), rng()).small) == 0


def test_without_small_crops():
    method = made(dino, replace(SMALL, crops=replace(CROPS, small=0)))
    losses, _ = method(method.views(pictures(2), rng()), NOW)
    assert torch.isfinite(losses["dino"])


def test_a_black_image_is_no_trouble():
    method = made(dino, SMALL)
    losses, _ = method(method.views(torch.zeros(2, 3, 40, 40, dtype=torch.uint8), rng()), NOW)
    losses["dino"].backward()
    assert all(p.grad.isfinite().all() for p in method.student.parameters())


def test_the_teacher_follows_by_a_momentum_that_rises_to_one():
    method = made(dino, SMALL)
    assert method.momentum(replace(NOW, step=0)) == pytest.approx(0.9)
    assert method.momentum(replace(NOW, step=50)) == pytest.approx(0.95)
    assert method.momentum(replace(NOW, step=100)) == 1.0
    with torch.no_grad():
        for p in method.student.parameters():
            p.add_(1.0)
    before = method.teacher.cls_token.clone()
    method.after_step(replace(NOW, step=50))
    torch.testing.assert_close(method.teacher.cls_token, before + 0.05)
    assert not any(p.requires_grad for p in [*method.teacher.parameters(), *method.teacher_head.parameters()])


@pytest.mark.parametrize("norm_last", [True, False])
def test_prototypes_rest_at_first(norm_last):
    method = made(dino, replace(SMALL, norm_last=norm_last, freeze=1.0))
    last = method.student_head.last_layer
    expected = {id(last.weight_v)} | (set() if norm_last else {id(last.weight_g)})
    assert {id(p) for p in method.frozen(replace(NOW, epoch=0.9))} == expected
    assert list(method.frozen(replace(NOW, epoch=1.0))) == []


@pytest.mark.parametrize("hidden", [128, 512, 2048])
def test_a_narrow_head_gives_as_much_as_a_wide_one(hidden):
    """At the authors' width the start is theirs; at others the output before the L2 norm is as large."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = projection_head(384, hidden, 64, 8, norm_last=True)
    stds = [head.layers[i].weight.std().item() for i in (0, 2, 4)]
    assert stds == pytest.approx([0.02, *[0.02 * (2048 / hidden) ** 0.5] * 2], rel=0.05)
    with torch.no_grad():
        out = head.layers(torch.randn(64, 384, generator=rng()))
    assert out.std().item() == pytest.approx(0.08, rel=0.3)


def test_entropy_at_its_ends():
    sure = torch.eye(4) * 100
    assert float(entropy(sure, torch.zeros(1, 1, 4), 0.04)) == pytest.approx(0.0, abs=1e-6)
    assert float(entropy(sure, sure[:1], 0.04)) == pytest.approx(math.log(4) / 4, abs=1e-6)  # one of four is all alike


def test_two_processes_are_one():
    compare("dino", SMALL, TINY)


def test_it_fits_a_few_images_and_does_not_collapse():
    """The loss holds the teacher's entropy, which grows while prototypes are shared out: what must fall is the rest."""
    config = replace(SMALL, hidden=32, bottleneck=16, prototypes=64, teacher_temp=0.04, momentum=0.99, crops=PLAIN)
    told, seen = fitted(made(dino, config), steps=80)
    assert mean(told[-10:], "dino", "teacher_entropy") < 0.5 * mean(told[:10], "dino", "teacher_entropy")
    assert 0.5 < mean(told[-10:], "teacher_entropy") < math.log(64) - 0.5
    assert seen["feature_std"] > 0.2
    assert seen["effective_rank"] > 2


def test_the_exported_file_is_the_teacher(tmp_path, monkeypatch):
    method = made(dino, SMALL)
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.add_(torch.randn(p.shape, generator=rng(8)) * 0.05)
    encoder = loaded(method, tmp_path / "x.safetensors", monkeypatch)
    images = normalised(pictures(4))
    (tokens,) = encoder.encode(images)
    with torch.no_grad():
        expected = method.teacher(images)
        bottleneck = nn.functional.normalize(method.teacher_head.layers(expected[:, 0]), dim=-1)
    torch.testing.assert_close(tokens.cls, expected[:, 0], rtol=0, atol=0.02)
    torch.testing.assert_close(tokens.patches.flatten(1, 2), expected[:, 1:], rtol=0, atol=0.02)
    torch.testing.assert_close(encoder.project(tokens, at="bottleneck"), bottleneck, rtol=0, atol=0.02)
    torch.testing.assert_close(method.encode(images), expected[:, 0])
    assert not any("last_layer" in key for key in method.export())
