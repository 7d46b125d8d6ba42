"""MAE: the loss and its gradients against loops over images, patches and pixels; what the decoder may see; the file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evalkit.errors import PretrainError
from evalkit.pretrain.augment import View
from evalkit.pretrain.method import Now
from evalkit.pretrain.methods import mae
from evalkit.pretrain.patches import patches_of
from tests.pretrain.methods.trials import TINY, differences, fitted, loaded, made, normalised, pictures, rng
from tests.pretrain.two import compare, doubled

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*expandable.*")

ARCH = replace(TINY, positions="bicubic")
PLAIN = View(32, (0.2, 1.0), jitter_p=0.0, grey_p=0.0)
SMALL = mae.Config(view=PLAIN, decoder_dim=8, decoder_depth=1, decoder_heads=2)
NOW = Now(step=3, steps=10, epoch=0.3, epochs=1.0)


def restated(method, views, standardise):
    """The definition, pixel by pixel: what the decoder says of every patch that the encoder did not get."""
    total, count, p = 0.0, 0, method.arch.patch
    for i, image in enumerate(views.images):
        seen = views.visible[i].tolist()
        tokens = method.encoder(image[None], keep=views.visible[i][None])[0]
        decoder = method.decoder
        rows = [decoder.embed(tokens[0])]
        rows += [
            decoder.embed(tokens[1 + seen.index(j)]) if j in seen else decoder.blocks.mask_token[0, 0]
            for j in range(16)
        ]
        x = torch.stack(rows)[None] + decoder.blocks.pos_embed
        for block in decoder.blocks.blocks:
            x = block(x)
        said = decoder.predict(decoder.blocks.norm(x))[0, 1:]
        for j in range(16):
            if j in seen:
                continue
            y, x0 = j // 4 * p, j % 4 * p
            values = [image[c, y + a, x0 + b] for a in range(p) for b in range(p) for c in range(3)]
            if standardise:
                mean = sum(values) / len(values)
                variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
                values = [(v - mean) / (variance + 1e-6) ** 0.5 for v in values]
            for v, s in zip(values, said[j], strict=True):
                total, count = total + (v - s) ** 2, count + 1
    return total / count


@pytest.mark.parametrize("standardise", [True, False])
def test_loss_and_gradients_are_those_of_the_definition(standardise):
    method = made(mae, replace(SMALL, standardise=standardise), ARCH).double()
    views = doubled(method.views(pictures(2), rng(3)))
    learn = [p for p in method.parameters() if p.requires_grad]
    losses, watched = method(views, NOW)
    found, expected = torch.autograd.grad(losses["pixels"], learn), restated(method, views, standardise)
    assert losses["pixels"].item() == pytest.approx(expected.item(), abs=1e-12)
    for ours, theirs in zip(found, torch.autograd.grad(expected, learn), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
    seen = method.encoder(views.images, keep=views.visible)[:, 1:].mean(1)
    torch.testing.assert_close(watched["features"], seen)
    assert not watched["features"].requires_grad


def test_gradients_are_finite_differences():
    method = made(mae, SMALL, ARCH).double()
    views = doubled(method.views(pictures(2), rng(3)))
    parameters = [
        method.encoder.patch_embed.proj.weight, method.encoder.cls_token, method.encoder.blocks[0].attn.qkv.weight,
        method.decoder.embed.weight, method.decoder.blocks.mask_token, method.decoder.predict.bias,
    ]  # fmt: skip
    for exact, measured in differences(lambda: method(views, NOW)[0]["pixels"], parameters):
        assert exact == pytest.approx(measured, rel=1e-5, abs=1e-8)


def test_the_encoder_sees_a_quarter():
    views = made(mae, SMALL, ARCH).views(pictures(5), rng())
    assert views.visible.shape == (5, 4)
    assert views.masked.shape == (5, 12)
    both = torch.cat([views.visible, views.masked], 1).sort(1).values
    assert torch.equal(both, torch.arange(16).expand(5, -1))
    assert len({tuple(row) for row in views.visible.tolist()}) > 1


def test_masked_pixels_do_not_reach_the_prediction():
    method = made(mae, SMALL, ARCH)
    views = method.views(pictures(2), rng())
    changed = views.images.clone()
    for i, masked in enumerate(views.masked.tolist()):
        for j in masked:
            changed[i, :, j // 4 * 8 : j // 4 * 8 + 8, j % 4 * 8 : j % 4 * 8 + 8] += 1.0
    with torch.no_grad():
        one, two = (method.encoder(x, keep=views.visible) for x in (views.images, changed))
    torch.testing.assert_close(one, two)


def test_patches_of_pixels():
    image = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    found = patches_of(image, 2)
    assert found.shape == (2, 4, 12)
    assert found[1, 2].tolist() == [image[1, c, 2 + y, x].item() for y in (0, 1) for x in (0, 1) for c in range(3)]


def test_a_black_image_is_no_trouble():
    method = made(mae, SMALL, ARCH)
    losses, _ = method(method.views(torch.zeros(2, 3, 40, 40, dtype=torch.uint8), rng()), NOW)
    losses["pixels"].backward()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)


def test_positions_are_not_trained():
    method = made(mae, SMALL, ARCH)
    assert [n for n, p in method.named_parameters() if not p.requires_grad] == [
        "encoder.pos_embed",
        "decoder.blocks.pos_embed",
    ]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (replace(SMALL, view=replace(PLAIN, size=64)), "32 pixels and views have 64"),
        (replace(SMALL, mask=0.99), "leaves 0 of 16"),
        (replace(SMALL, mask=0.0), "leaves 16 of 16"),
    ],
)
def test_what_does_not_fit_is_refused(config, says):
    with pytest.raises(PretrainError, match=says):
        made(mae, config, ARCH)


def test_two_processes_are_one():
    compare("mae", SMALL, ARCH)


def test_it_fits_a_few_images_and_does_not_collapse():
    method = made(mae, replace(SMALL, decoder_dim=32, decoder_depth=2), ARCH)
    views = method.views(pictures(32), rng())
    method.views = lambda *_: views  # the same crops and masks again and again
    told, seen = fitted(method, steps=120, lr=1e-2)
    first, last = (sum(t["pixels"] for t in part) / 5 for part in (told[:5], told[-5:]))
    assert last < 0.6 * first
    assert seen["feature_std"] > 0.1
    assert seen["effective_rank"] > 2


def test_the_exported_file_is_the_encoder(tmp_path, monkeypatch):
    method = made(mae, SMALL, ARCH)
    encoder = loaded(method, tmp_path / "x.safetensors", monkeypatch)
    images = normalised(pictures(4))
    (tokens,) = encoder.encode(images)
    with torch.no_grad():
        expected = method.encoder(images)
    torch.testing.assert_close(tokens.cls, expected[:, 0], rtol=0, atol=0.02)
    torch.testing.assert_close(tokens.patches.flatten(1, 2), expected[:, 1:], rtol=0, atol=0.02)
    torch.testing.assert_close(method.encode(images), expected[:, 0])
