"""CAE: Eq. 1 and its gradients against loops over images, patches and heads; what regressor and decoder may see; the file."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from evalkit.adapters.blocks import Geometry
from evalkit.errors import PretrainError
from evalkit.pretrain.augment import View
from evalkit.pretrain.method import Now
from evalkit.pretrain.methods import cae
from tests.pretrain.methods.trials import TINY, differences, fitted, loaded, made, normalised, pictures, rng
from tests.pretrain.two import compare, doubled

ARCH = replace(TINY, positions="bicubic", layer_scale=0.1)
PLAIN = View(32, (0.2, 1.0), jitter_p=0.0, grey_p=0.0)
SMALL = cae.Config(view=PLAIN, masked=7, smallest=2, regressor=2, decoder=1, drop_path=0.0)
NOW = Now(step=3, steps=10, epoch=0.3, epochs=1.0)


def sines(row, column, dim):
    """The place of one patch: sines and cosines of its row, then of its column."""
    waves = [10000 ** -(i / (dim // 4)) for i in range(dim // 4)]
    return [f(n * w) for n in (row, column) for f in (math.sin, math.cos) for w in waves]


def attended(layer, query, keys, values):
    """Attention of one query, head by head."""
    d = layer.q.out_features // layer.heads
    q, k, v = layer.q(query), [layer.k(x) for x in keys], [layer.v(x) for x in values]
    parts = []
    for h in range(layer.heads):
        at = slice(h * d, (h + 1) * d)
        weights = torch.stack([q[at] @ x[at] / d**0.5 for x in k]).softmax(0)
        parts.append(sum(w * x[at] for w, x in zip(weights, v, strict=True)))
    return layer.proj(torch.cat(parts))


def restated(method, views):
    """Both terms of Eq. 1, patch by patch."""
    pixels, align, p, net, dim = [], [], method.arch.patch, method.predictor, method.arch.dim
    table = torch.tensor([sines(j // 4, j % 4, dim) for j in range(16)], dtype=torch.float64)
    for i, image in enumerate(views.images):
        seen, hidden = views.visible[i].tolist(), views.masked[i].tolist()
        latents = method.encoder(image[None], keep=views.visible[i][None])[0, 1:]
        wanted = method.encoder(image[None], keep=views.masked[i][None])[0, 1:].detach()
        x = [net.query[0, 0] for _ in hidden]
        for block in net.regressor:
            tokens, places = [*latents, *x], [table[j] for j in (*seen, *hidden)]
            keys = [block.norm_k(t + w) for t, w in zip(tokens, places, strict=True)]
            values = [block.norm_v(t) for t in tokens]
            found = []
            for q, j in zip(x, hidden, strict=True):
                looked = attended(block.attention, block.norm_q(q + table[j]), keys, values)
                y = block.norm(q + block.scale1.gamma * looked)
                found.append(y + block.scale2.gamma * block.mlp(y))
            x = found
        said = [net.norm(t) for t in x]
        decoded = torch.stack([t + table[j] for t, j in zip(said, hidden, strict=True)])[None]
        for block in net.decoder:
            decoded = block(decoded, Geometry((4, 4)))
        for n, j in enumerate(hidden):
            values = torch.stack(
                [image[c, j // 4 * p + a, j % 4 * p + b] for a in range(p) for b in range(p) for c in range(3)]
            )
            target = (values - values.mean()) / (values.var() + 1e-6).sqrt()
            pixels += [(t - s) ** 2 for t, s in zip(target, net.head(net.norm2(decoded[0, n])), strict=True)]
            align += [(t - s) ** 2 for t, s in zip(wanted[n], said[n], strict=True)]
    return {"pixels": sum(pixels) / len(pixels), "align": 2 * sum(align) / len(align)}


def test_losses_and_gradients_are_those_of_equation_1():
    method = made(cae, SMALL, ARCH).double()
    with torch.no_grad():
        for p in method.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=rng(1)) * 0.1)
    views = doubled(method.views(pictures(2), rng(3)))
    learn = [p for p in method.parameters() if p.requires_grad]
    losses, watched = method(views, NOW)
    expected = restated(method, views)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-6), name  # the table is in float32
        found, theirs = (
            torch.autograd.grad(v, learn, retain_graph=True, allow_unused=True) for v in (value, expected[name])
        )
        for ours, other in zip(found, theirs, strict=True):
            assert (ours is None) == (other is None)
            if ours is not None:
                torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-7)
    seen = method.encoder(views.images, keep=views.visible)[:, 1:].mean(1)
    torch.testing.assert_close(watched["features"], seen)


def test_gradients_are_finite_differences():
    """Of the decoding: the alignment's target moves with the encoder, although no gradient goes there."""
    method = made(cae, replace(SMALL, layer_scale=1.0), ARCH).double()
    views = doubled(method.views(pictures(2), rng(3)))
    net = method.predictor
    parameters = [
        method.encoder.patch_embed.proj.weight, method.encoder.blocks[1].attn.qkv.weight, net.query,
        net.regressor[0].attention.k.weight, net.decoder[0].ls1.gamma, net.head.weight,
    ]  # fmt: skip
    for exact, measured in differences(lambda: method(views, NOW)[0]["pixels"], parameters):
        assert exact == pytest.approx(measured, rel=1e-5, abs=1e-8)
    parameters = [net.query, net.norm.weight, net.regressor[1].mlp.fc1.weight]
    for exact, measured in differences(lambda: method(views, NOW)[0]["align"], parameters):
        assert exact == pytest.approx(measured, rel=1e-5, abs=1e-8)


def test_the_aligned_latents_get_no_gradient():
    latents = torch.randn(2, 3, 4, requires_grad=True)
    cae.alignment(torch.randn(2, 3, 4, requires_grad=True), latents, 2.0).backward()
    assert latents.grad is None


def test_the_decoder_sees_the_predicted_latents_alone():
    """Its pixels have no gradient from the visible latents but through the regressor's prediction."""
    method = made(cae, SMALL, ARCH)
    views = method.views(pictures(1), rng())
    visible = method.encoder(views.images, keep=views.visible)[:, 1:]
    seen = []
    method.predictor.norm.register_forward_hook(lambda m, i, out: seen.append(out) or out.detach())
    _, pixels = method.predictor(visible, (views.masked, views.visible))
    pixels.sum().backward()
    assert len(seen) == 1
    assert method.encoder.patch_embed.proj.weight.grad is None
    assert method.predictor.head.weight.grad is not None


def test_masks_are_exact_and_leave_the_rest_visible():
    views = made(cae, SMALL, ARCH).views(pictures(5), rng())
    assert views.masked.shape == (5, 7)
    both = torch.cat([views.visible, views.masked], 1).sort(1).values
    assert torch.equal(both, torch.arange(16).expand(5, -1))


def test_keys_keep_no_bias():
    method = made(cae, SMALL, ARCH)
    biases = [b.attn.qkv.bias for b in method.encoder.blocks]
    with torch.no_grad():
        for bias in biases:
            bias.fill_(1.0)
    method.after_step(NOW)
    for bias in biases:
        assert torch.equal(bias[16:32], torch.zeros(16))
        assert torch.equal(bias[:16], torch.ones(16))
        assert torch.equal(bias[32:], torch.ones(16))


def test_a_black_image_is_no_trouble():
    method = made(cae, SMALL, ARCH)
    losses, _ = method(method.views(torch.zeros(2, 3, 40, 40, dtype=torch.uint8), rng()), NOW)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (replace(SMALL, view=replace(PLAIN, size=64)), "32 pixels and views have 64"),
        (replace(SMALL, masked=16), "masked = 16 of 16"),
        (replace(SMALL, masked=0), "masked = 0 of 16"),
    ],
)
def test_what_does_not_fit_is_refused(config, says):
    with pytest.raises(PretrainError, match=says):
        made(cae, config, ARCH)


def test_two_processes_are_one():
    compare("cae", SMALL, ARCH)


def test_it_fits_a_few_images_and_does_not_collapse():
    method = made(cae, SMALL, ARCH)
    views = method.views(pictures(32), rng())
    method.views = lambda *_: views  # the same crops and masks again and again
    told, seen = fitted(method, steps=120, lr=1e-2)
    for name, share in (("pixels", 0.6), ("align", 0.4)):
        first, last = (sum(t[name] for t in part) / 5 for part in (told[:5], told[-5:]))
        assert last < share * first, name
    assert seen["feature_std"] > 0.1
    assert seen["effective_rank"] > 2


def test_the_exported_file_is_the_encoder(tmp_path, monkeypatch):
    method = made(cae, SMALL, ARCH)
    with torch.no_grad():
        for block in method.encoder.blocks:
            nn.init.normal_(block.attn.qkv.bias, std=0.1)
    method.after_step(NOW)
    encoder = loaded(method, tmp_path / "x.safetensors", monkeypatch)
    images = normalised(pictures(4))
    (tokens,) = encoder.encode(images)
    with torch.no_grad():
        expected = method.encoder(images)
    torch.testing.assert_close(tokens.cls, expected[:, 0], rtol=0, atol=0.02)
    torch.testing.assert_close(tokens.patches.flatten(1, 2), expected[:, 1:], rtol=0, atol=0.02)
    torch.testing.assert_close(method.encode(images), expected[:, 1:].mean(1))
    assert {
        "encoder.blocks.0.attn.q_bias",
        "encoder.blocks.0.attn.v_bias",
        "encoder.blocks.1.gamma_2",
    } <= method.export().keys()
