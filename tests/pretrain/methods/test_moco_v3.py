"""MoCo v3: loss and gradients against loops over queries and keys; what is fixed; two processes; a small fit; the file."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from evalkit.pretrain.method import Now
from evalkit.pretrain.methods import moco_v3
from tests.pretrain.methods.trials import TINY, differences, fitted, loaded, made, mean, normalised, pictures, rng
from tests.pretrain.two import compare, doubled

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*expandable.*")

ARCH = replace(TINY, positions="moco_v3")
SMALL = moco_v3.Config(size=32, crop_min=0.4, hidden=16, out=8, momentum=0.9)
NOW = Now(step=30, steps=100, epoch=3.0, epochs=10.0)


def infonce(queries, keys, temperature):
    """Eq. 1 with the factor of Algorithm 1, one query and one key at a time."""
    total = 0.0
    for i, q in enumerate(queries):
        scores = [(q / q.norm()) @ (k / k.norm()) / temperature for k in keys]
        total = total - scores[i] + torch.stack(scores).exp().sum().log()
    return 2 * temperature * total / len(queries)


def batch_norm(rows, gain, shift):
    """By the mean and the biased variance of each column."""
    columns = []
    for column in rows.T:
        m = sum(column) / len(column)
        v = sum((x - m) ** 2 for x in column) / len(column)
        columns.append((column - m) / (v + 1e-5).sqrt())
    out = torch.stack(columns, 1)
    return out if gain is None else out * gain + shift


def through(head, rows):
    """Linear layers without biases, batch norm, ReLU."""
    for layer in head.layers:
        if isinstance(layer, nn.Linear):
            assert layer.bias is None
            rows = torch.stack([layer.weight @ row for row in rows])
        elif isinstance(layer, nn.ReLU):
            rows = rows.clamp(min=0)
        else:
            rows = batch_norm(rows, layer.weight, layer.bias)
    return rows


def restated(method, views):
    """Algorithm 1; one image at a time through the encoders."""

    def classes(vit, images):
        return torch.stack([vit(image[None])[0, 0] for image in images])

    queries = [through(method.predictor, through(method.head, classes(method.base, v))) for v in views]
    with torch.no_grad():
        keys = [through(method.momentum_head, classes(method.momentum_encoder, v)) for v in views]
    return infonce(queries[0], keys[1], 0.2) + infonce(queries[1], keys[0], 0.2)


def apart(seed: int = 0):
    """A method in float64 whose momentum encoder is not its base."""
    method = made(moco_v3, SMALL, ARCH).double()
    for target, _ in method.pairs():
        for p in target.parameters():
            p.add_(torch.randn(p.shape, generator=rng(seed)) * 0.2)
    return method


def test_loss_and_gradients_are_those_of_the_equations():
    method = apart()
    views = doubled(method.views(pictures(4), rng(3)))
    learn = [p for p in method.parameters() if p.requires_grad]
    losses, watched = method(views, NOW)
    found = torch.autograd.grad(losses["infonce"], learn)
    expected = restated(method, views)
    assert losses["infonce"].item() == pytest.approx(expected.item(), abs=1e-12)
    for ours, theirs in zip(found, torch.autograd.grad(expected, learn), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(watched["features"], method.base(views[0])[:, 0].detach())


def test_gradients_are_finite_differences():
    method = apart()
    views = doubled(method.views(pictures(4), rng(3)))
    parameters = [method.base.norm.weight, method.base.blocks[0].attn.qkv.weight, method.head.layers[0].weight,
                  method.predictor.layers[1].bias]  # fmt: skip
    for exact, measured in differences(lambda: method(views, NOW)[0]["infonce"], parameters):
        assert exact == pytest.approx(measured, rel=1e-5, abs=1e-8)


def test_the_loss_at_its_ends():
    """Queries that are their keys among orthogonal ones; queries that know nothing."""
    keys = torch.eye(6)[:5] * 3
    loss, accuracy = moco_v3.contrast(7 * keys, keys, 0.2)
    assert loss.item() == pytest.approx(0.4 * math.log(1 + 4 * math.exp(-5)), rel=1e-5)
    assert accuracy == 1
    loss, _ = moco_v3.contrast(torch.eye(6)[5:].expand(5, 6), keys, 0.2)
    assert loss.item() == pytest.approx(0.4 * math.log(5), rel=1e-5)


def test_gradients_do_not_reach_the_keys():
    queries, keys = (torch.randn(3, 4, generator=rng(i)).requires_grad_() for i in (0, 1))
    moco_v3.contrast(queries, keys, 0.2)[0].backward()
    assert queries.grad is not None
    assert keys.grad is None


def test_patch_projection_and_positions_are_never_trained():
    method = made(moco_v3, SMALL, ARCH)
    still = {name for name, p in method.named_parameters() if not p.requires_grad}
    own = {name for name in still if not name.startswith("momentum_")}
    assert own == {"base.pos_embed", "base.patch_embed.proj.weight", "base.patch_embed.proj.bias"}
    assert all(name in still for name, _ in method.named_parameters() if name.startswith("momentum_"))
    weight = method.base.patch_embed.proj.weight
    assert weight.abs().max() <= math.sqrt(6 / (3 * 64 + 16))
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (3 * 64 + 16)), rel=0.1)
    qkv = method.base.blocks[0].attn.qkv.weight
    assert qkv.abs().max().item() == pytest.approx(math.sqrt(6 / 32), rel=0.02)  # q, k and v each by itself
    assert method.base.cls_token.abs().max() < 1e-5


def test_momentum_rises_to_one_and_batch_norms_keep_their_own_statistics():
    method = made(moco_v3, SMALL, ARCH)
    assert [method.momentum(replace(NOW, step=s)) for s in (0, 50, 100)] == pytest.approx([0.9, 0.95, 1.0])
    method(method.views(pictures(4), rng()), NOW)
    before = method.momentum_head.layers[1].running_mean.clone()
    with torch.no_grad():
        method.head.layers[1].running_mean.fill_(9.0)
    method.after_step(NOW)
    assert torch.equal(method.momentum_head.layers[1].running_mean, before)
    assert list(method.frozen(NOW)) == []


def test_views_are_the_authors():
    first, second = moco_v3.Config().kinds()  # main_moco.py:262-285
    assert (first.size, first.scale, first.blur_p, first.solarise_p) == (224, (0.08, 1.0), 1.0, 0.0)
    assert (second.size, second.scale, second.blur_p, second.solarise_p) == (224, (0.08, 1.0), 0.1, 0.2)


def test_two_processes_are_one():
    compare("moco_v3", SMALL, ARCH)


def test_it_fits_a_few_images_and_does_not_collapse():
    config = replace(SMALL, crop_min=0.6, hidden=32, out=16, momentum=0.95, jitter_p=0.0, grey_p=0.0,
                     blur_p=(0.0, 0.0), solarise_p=(0.0, 0.0))  # fmt: skip
    told, seen = fitted(made(moco_v3, config, ARCH), steps=60, lr=1e-2)
    assert mean(told[-10:], "infonce") < 0.5 * 2 * 0.4 * math.log(32)  # a guess among 32 keys, both ways
    assert mean(told[-10:], "infonce") < 0.5 * mean(told[:5], "infonce")
    assert mean(told[-10:], "accuracy") > 0.5
    assert seen["feature_std"] > 0.2
    assert seen["effective_rank"] > 2


def test_the_exported_file_is_the_base_encoder(tmp_path, monkeypatch):
    method = made(moco_v3, SMALL, ARCH)
    for step in range(3):  # batch norms see some images
        method(method.views(pictures(8), rng(step)), NOW)
    encoder = loaded(method, tmp_path / "x.safetensors", monkeypatch)
    images = normalised(pictures(4))
    (tokens,) = encoder.encode(images)
    method.eval()
    with torch.no_grad():
        expected = method.base(images)
        projection = method.head(expected[:, 0])
    torch.testing.assert_close(tokens.cls, expected[:, 0], rtol=0, atol=0.02)
    torch.testing.assert_close(tokens.patches.flatten(1, 2), expected[:, 1:], rtol=0, atol=0.02)
    torch.testing.assert_close(encoder.project(tokens), projection, rtol=0, atol=0.05)
    torch.testing.assert_close(method.encode(images), expected[:, 0])
