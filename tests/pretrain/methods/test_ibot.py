"""iBOT: both losses, gradients and centres against loops over tokens; masks; two processes; a small fit; the file."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from evalkit.pretrain.method import Now
from evalkit.pretrain.methods import ibot
from tests.pretrain.methods.test_dino import softmax
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

SMALL = ibot.Config(hidden=16, bottleneck=8, prototypes=12, drop_path=0.0, momentum=0.9, crops=CROPS)
NOW = Now(step=30, steps=100, epoch=3.0, epochs=10.0)


def logits(head, tokens):
    """Of each token, by the published layers: MLP, unit length, prototypes of stated length and direction."""
    for layer in head.layers:
        tokens = layer(tokens)
    last = head.last_layer
    directions = torch.stack([row / row.norm() for row in last.weight_v])
    return [(directions @ (token / token.norm())) * last.weight_g[:, 0] for token in tokens]


def cross_entropy(p, said, temperature=0.1):
    said = said / temperature
    said = said - said.logsumexp(0)
    return -sum(p[k] * said[k] for k in range(len(p)))


def masked_tokens(vit, image, mask):
    """The mask token is written over the embedded patches before positions are added; (1 + h w, D) of one image."""
    x = vit.patch_embed(image[None]).flatten(1, 2)[0]
    x = torch.stack([vit.mask_token[0] if m else row for m, row in zip(mask.tolist(), x, strict=True)])
    x = torch.cat([vit.cls_token[0], x]) + vit.pos_embed[0]
    geometry = vit.embed(image[None])[1]
    x = x[None]
    for block in vit.blocks:
        x = block(x, geometry)
    return vit.norm(x)[0]


def restated(method, views, temps, centres):
    """(Eq. 2, Eq. 3) by loops; also the teacher's raw logits of class tokens and of patches."""
    large, small, n = views.crops.large, views.crops.small, len(views.masks[0])
    cls_total, patch_total, terms, raw_cls, raw_patches = 0.0, 0.0, 0, [], []
    for i in range(n):
        said = [logits(method.student_head, masked_tokens(method.student, v[i], m[i]))
                for v, m in zip(large, views.masks, strict=True)]  # fmt: skip
        said_cls = [s[0] for s in said] + [
            logits(method.student_head, method.student(v[i][None])[0, :1])[0] for v in small
        ]
        for t in range(2):
            with torch.no_grad():
                taught = logits(method.teacher_head, method.teacher(large[t][i][None])[0])
            raw_cls.append(taught[0])
            raw_patches += taught[1:]
            p = softmax((taught[0] - centres[0]).tolist(), temps[0])
            for s, logit in enumerate(said_cls):
                if s != t:
                    cls_total, terms = cls_total + cross_entropy(p, logit), terms + 1
            hidden = [at for at, m in enumerate(views.masks[t][i].tolist()) if m]
            for at in hidden:
                p = softmax((taught[1 + at] - centres[1]).tolist(), temps[1])
                patch_total = patch_total + cross_entropy(p, said[t][1 + at]) / len(hidden) / (2 * n)
    return cls_total / terms, patch_total, torch.stack(raw_cls), torch.stack(raw_patches)


def apart(config, seed: int = 0):
    """A method in float64 whose teacher is not its student."""
    method = made(ibot, config).double()
    for target, _ in method.pairs():
        for p in target.parameters():
            p.add_(torch.randn(p.shape, generator=rng(seed)) * 0.2)
    return method


def test_losses_gradients_and_centres_are_those_of_the_equations():
    method = apart(replace(SMALL, warmup_teacher_temp_epochs=5.0, warmup_patch_temp=0.05, weights=(0.7, 1.3)))
    centres = torch.randn(2, 12, generator=rng(2)) * 0.2
    method.cls_loss.center.copy_(centres[0])
    method.patch_loss.center.center.copy_(centres[1])
    views = doubled(method.views(pictures(3), rng(3)))
    views = replace(views, masks=tuple(torch.rand(3, 16, generator=rng(i)) < torch.tensor([[0.0], [0.1], [0.6]])
                                       for i in (5, 6)))  # fmt: skip
    assert views.masks[0].sum(1).tolist() != views.masks[1].sum(1).tolist()  # images have masks of unlike sizes
    learn = [p for p in method.parameters() if p.requires_grad]
    with in_double():
        losses, watched = method(views, NOW)
    found = torch.autograd.grad(losses["cls"] + losses["patch"], learn)
    temps = (0.04 + 0.03 * 3 / 5, 0.05 + 0.02 * 3 / 5)
    cls, patch, raw_cls, raw_patches = restated(method, views, temps, centres.double())
    assert losses["cls"].item() == pytest.approx(0.7 * cls.item(), abs=1e-12)
    assert losses["patch"].item() == pytest.approx(1.3 * patch.item(), abs=1e-12)
    for ours, theirs in zip(found, torch.autograd.grad(0.7 * cls + 1.3 * patch, learn), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    new = method.cls_loss.center.flatten(), method.patch_loss.center.center.flatten()
    torch.testing.assert_close(new[0], 0.9 * centres[0].double() + 0.1 * raw_cls.mean(0))
    torch.testing.assert_close(new[1], 0.9 * centres[1].double() + 0.1 * raw_patches.mean(0))
    torch.testing.assert_close(watched["features"], method.teacher(views.crops.large[0])[:, 0])


def test_gradients_are_finite_differences():
    method = apart(SMALL)
    views = doubled(method.views(pictures(3), rng(3)))
    assert torch.cat(views.masks).any()
    state = {k: v.clone() for k, v in method.state_dict().items()}

    def loss() -> torch.Tensor:
        method.cls_loss.center.copy_(state["cls_loss.center"])
        method.patch_loss.center.center.copy_(state["patch_loss.center.center"])
        with in_double():
            losses, _ = method(views, NOW)
        return losses["cls"] + losses["patch"]

    last = method.student_head.last_layer
    parameters = [method.student.mask_token, method.student.norm.weight, last.weight_v, last.weight_g]
    for exact, measured in differences(loss, parameters):
        assert exact == pytest.approx(measured, rel=1e-5, abs=1e-8)


def test_without_a_mask_in_the_batch():
    """The patch loss is zero then, its gradients too, and the centre moves on."""
    method = made(ibot, replace(SMALL, mask_chance=0.0))
    views = method.views(pictures(3), rng())
    assert not torch.cat(views.masks).any()
    losses, _ = method(views, NOW)
    assert losses["patch"].item() == 0
    losses["patch"].backward()
    assert all(p.grad is None or not p.grad.any() for p in method.student.parameters())
    assert method.patch_loss.center.center.isfinite().all()
    assert method.patch_loss.center.center.any()


def test_masks_lie_on_the_large_crops_only():
    method = made(ibot, replace(SMALL, mask_chance=1.0))
    views = method.views(pictures(64), rng())
    share = torch.cat(views.masks).float().mean(1)
    assert views.masks[0].shape == (64, 16)
    assert 0 < share.max() <= 0.5
    assert not torch.equal(*views.masks)
    assert made(ibot, SMALL).views(pictures(64), rng()).masks[0].any(1).float().mean().item() == pytest.approx(
        0.5, abs=0.25
    )


def test_the_teacher_sees_no_mask():
    method = made(ibot, SMALL)
    views = method.views(pictures(4), rng())
    _, one = method(views, NOW)
    _, other = method(replace(views, masks=tuple(~m for m in views.masks)), NOW)
    assert torch.equal(one["features"], other["features"])


def test_prototypes_rest_at_first_and_momentum_rises():
    method = made(ibot, SMALL)
    assert len(list(method.frozen(replace(NOW, epoch=0.9)))) == 2
    assert list(method.frozen(replace(NOW, epoch=1.0))) == []
    assert [method.momentum(replace(NOW, step=s)) for s in (0, 50, 100)] == pytest.approx([0.9, 0.95, 1.0])


def test_two_processes_are_one():
    compare("ibot", SMALL, TINY)


def test_it_fits_a_few_images_and_does_not_collapse():
    """Of the class tokens' loss, what the teacher's entropy leaves must fall; see the test of DINO."""
    config = replace(SMALL, hidden=32, bottleneck=16, prototypes=64, teacher_temp=0.04, patch_temp=0.04, momentum=0.99,
                     crops=PLAIN)  # fmt: skip
    told, seen = fitted(made(ibot, config), steps=80)
    assert mean(told[-10:], "cls", "teacher_entropy") < 0.6 * mean(told[:10], "cls", "teacher_entropy")
    assert mean(told[-10:], "patch", "patch_entropy") < 0.8 * mean(told[:10], "patch", "patch_entropy")
    assert 0.5 < mean(told[-10:], "teacher_entropy") < math.log(64) - 0.5
    assert seen["feature_std"] > 0.2
    assert seen["effective_rank"] > 2


def test_the_exported_file_is_the_teacher(tmp_path, monkeypatch):
    method = made(ibot, SMALL)
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.add_(torch.randn(p.shape, generator=rng(8)) * 0.05)
    encoder = loaded(method, tmp_path / "x.safetensors", monkeypatch)
    images = normalised(pictures(4))
    (tokens,) = encoder.encode(images)
    with torch.no_grad():
        expected = method.teacher(images)
        bottleneck = torch.nn.functional.normalize(method.teacher_head.layers(expected[:, 0]), dim=-1)
    torch.testing.assert_close(tokens.cls, expected[:, 0], rtol=0, atol=0.02)
    torch.testing.assert_close(tokens.patches.flatten(1, 2), expected[:, 1:], rtol=0, atol=0.02)
    torch.testing.assert_close(encoder.project(tokens, at="bottleneck"), bottleneck, rtol=0, atol=0.02)
    torch.testing.assert_close(method.encode(images), expected[:, 0])
    assert method.export()["backbone.masked_embed"].shape == (1, 16)
