"""MGC: Eqs. 2 and 3 and their gradients against loops over tokens; the whole method restated; two processes; the file."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from evalkit.adapters.positions import moco_v3
from evalkit.errors import PretrainError
from evalkit.pretrain.augment import View
from evalkit.pretrain.method import Now
from evalkit.pretrain.methods import mgc
from tests.pretrain.methods.trials import TINY, differences, fitted, loaded, made, normalised, pictures, rng
from tests.pretrain.two import compare, doubled

PLAIN = View(32, (0.3, 1.0), jitter_p=0.0, grey_p=0.0)
SMALL = mgc.Config(
    PLAIN, PLAIN, windows=(1, 2, 4), tokens=(5, 3, 1), hidden=16, bottleneck=8, momentum=0.9, drop_path=0.0
)
NOW = Now(step=3, steps=10, epoch=0.3, epochs=1.0)


def restated(queries, keys, area, temperature):
    """Eq. 3, one query after the other. Lists of images of lists of vectors; area[b][i][j]."""
    everyone = [(b, j, z / z.norm()) for b, image in enumerate(keys) for j, z in enumerate(image)]
    total, count = queries[0][0].sum() * 0, 0
    for b, image in enumerate(queries):
        for i, q in enumerate(image):
            whole = sum(float(area[b][i][j]) for j in range(len(keys[b])))
            if whole == 0:
                continue
            count += 1
            scores = [(q / q.norm()) @ z / temperature for _, _, z in everyone]
            partition = sum(s.exp() for s in scores)
            for (c, j, _), score in zip(everyone, scores, strict=True):
                target = float(area[b][i][j]) / whole if c == b else 0.0  # Eq. 2
                total = total - target * (score.exp() / partition).log()
    return total / max(count, 1)


def question(seed, *, empty=()):
    """Queries and keys (3, 4, 6), areas (3, 4, 4), rows `empty` without overlap."""
    q, z = (torch.randn(3, 4, 6, generator=rng(seed + i), dtype=torch.float64) for i in (0, 1))
    area = torch.rand(3, 4, 4, generator=rng(seed + 2), dtype=torch.float64)
    area = area * (torch.rand(3, 4, 4, generator=rng(seed + 3)) < 0.6)
    for b, i in empty:
        area[b, i] = 0
    return q.requires_grad_(), z, area


@pytest.mark.parametrize("empty", [(), ((0, 1), (2, 3)), [(1, i) for i in range(4)]])
def test_contrast_is_equation_3(empty):
    q, z, area = question(10, empty=empty)
    found, expected = mgc.contrast(q, z, area, 0.1), restated(q, z, area, 0.1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    ours, theirs = torch.autograd.grad(found, q)[0], torch.autograd.grad(expected, q)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert all(ours[b, i].abs().max() == 0 for b, i in empty)
    assert torch.autograd.gradcheck(lambda x: mgc.contrast(x, z, area, 0.1), q)


def test_no_overlap_at_all_is_no_loss():
    q, z, area = question(20)
    loss = mgc.contrast(q, z, area * 0, 0.1)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(q.grad, torch.zeros_like(q))


def test_keys_get_no_gradient():
    q, z, area = question(30)
    z.requires_grad_()
    mgc.contrast(q, z, area, 0.1).backward()
    assert z.grad is None


def test_targets_are_shares():
    shares = mgc.targets(torch.tensor([[[1.0, 3.0], [0.0, 0.0]]]))
    assert shares.tolist() == [[[0.25, 0.75], [0.0, 0.0]]]


def test_perfect_features_reach_the_entropy_of_the_targets():
    """Tokens of one place alike, of others opposed: no smaller loss exists than the targets' entropy."""
    area = torch.tensor([[[0.5, 0.5]], [[0.5, 0.5]]])
    q = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]])
    loss = mgc.contrast(q, q.expand(-1, 2, -1), area, 0.05)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)


def test_pooling_is_a_mean_over_squares():
    patches = torch.randn(2, 16, 3, generator=rng())
    grid = patches.view(2, 4, 4, 3)
    for window in (1, 2, 4):
        found = mgc.pooled(patches, window)
        side = 4 // window
        assert found.shape == (2, side * side, 3)
        for i in range(side * side):
            y, x = i // side * window, i % side * window
            torch.testing.assert_close(found[:, i], grid[:, y : y + window, x : x + window].mean((1, 2)))


def normed(rows, layer):
    """Batch norm by the batch's own mean and variance."""
    out = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + layer.eps).sqrt()
    return out if layer.weight is None else out * layer.weight + layer.bias


def through(head, rows):
    """Linear layers by hand, batch norm by hand, ReLU."""
    for layer in head:
        if isinstance(layer, torch.nn.Linear):
            rows = rows @ layer.weight.T
        elif isinstance(layer, torch.nn.ReLU):
            rows = rows * (rows > 0)
        else:
            rows = normed(rows, layer)
    return rows


def tokens(encoder, images, window, index):
    """Drawn tokens of each image, one after the other: means over the patches of a square."""
    side = 4 // window
    found = []
    for image, drawn in zip(images, index, strict=True):
        patches = encoder(image[None])[0, 1:]
        for i in drawn.tolist():
            y, x = i // side * window, i % side * window
            inside = [patches[(y + a) * 4 + x + b] for a in range(window) for b in range(window)]
            found.append(sum(inside) / len(inside))
    return torch.stack(found)


def whole(method, views):
    """The losses of all granularities, by loops."""
    losses = {}
    for name, window, pairs in zip(("patch", "divide_16", "divide_32"), (1, 2, 4), views.pairs, strict=True):
        shape = (len(views.first), pairs.first.shape[1], -1)
        queries, keys = [], []
        for images, index in ((views.first, pairs.first), (views.second, pairs.second)):
            rows = through(method.projectors[name], tokens(method.base_encoder, images, window, index))
            queries.append(through(method.predictors[name], rows).view(shape))
            rows = tokens(method.momentum_encoder, images, window, index)
            keys.append(through(method.momentum_projectors[name], rows).view(shape).detach())
        losses[f"contrast_{window}"] = restated(queries[0], keys[1], pairs.area, 0.1) + restated(
            queries[1], keys[0], pairs.area.mT, 0.1
        )
    return losses


def apart(method):
    """Momentum networks of their own."""
    for target, _ in method.pairs():
        for name, p in target.named_parameters():
            if "pos_embed" not in name:
                p.add_(torch.randn(p.shape, generator=rng(1)) * 0.1)
    return method


def test_losses_and_gradients_of_the_method_are_those_of_the_equations():
    method = apart(made(mgc, SMALL)).double()
    views = doubled(method.views(pictures(3), rng(3)))
    learn = [p for p in method.parameters() if p.requires_grad]
    losses, watched = method(views, NOW)
    expected = whole(method, views)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-10)
    ours, theirs = (torch.autograd.grad(sum(v.values()), learn) for v in (losses, expected))
    for found, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-7, atol=1e-9)
    seen = method.base_encoder(views.first)[:, 1:].mean(1)
    torch.testing.assert_close(watched["features"], seen.detach())


def test_gradients_are_finite_differences():
    method = apart(made(mgc, SMALL)).double()
    views = doubled(method.views(pictures(3), rng(3)))
    parameters = [
        method.base_encoder.patch_embed.proj.weight, method.base_encoder.blocks[1].attn.qkv.weight,
        method.base_encoder.cls_token, method.base_encoder.norm.weight, method.projectors["patch"][0].weight,
        method.predictors["divide_16"][1].bias, method.predictors["divide_32"][3].weight,
    ]  # fmt: skip
    for exact, measured in differences(lambda: sum(method(views, NOW)[0].values()), parameters):
        assert exact == pytest.approx(measured, rel=1e-4, abs=1e-7)


def test_the_position_table_is_fixed():
    method = made(mgc, SMALL)
    table = method.base_encoder.pos_embed
    expected = moco_v3(torch.zeros(1, 4, 4, 16), (4, 4))
    assert torch.equal(table[:, 1:], expected.flatten(1, 2))
    assert not table[:, :1].any()
    assert not table.requires_grad
    method.after_step(NOW)
    assert torch.equal(method.momentum_encoder.pos_embed, table)


def test_momentum_networks_follow():
    method = apart(made(mgc, SMALL))
    before = [p.clone() for p in method.momentum_projectors.parameters()]
    method.after_step(NOW)
    keep = 1 - 0.1 * (math.cos(math.pi * 0.3) + 1) / 2
    for old, new, base in zip(
        before, method.momentum_projectors.parameters(), method.projectors.parameters(), strict=True
    ):
        torch.testing.assert_close(new, keep * old + (1 - keep) * base)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"windows": (1, 3, 4)}, "3 tokens of 3 x 3 patches from a grid of 4 x 4"),
        ({"tokens": (5, 5, 1)}, "5 tokens of 2 x 2 patches"),
        ({"tokens": (5, 5)}, "3 windows and 2 numbers of tokens"),
        ({"first": replace(PLAIN, size=40)}, "views of 40 and 32 pixels"),
        ({"first": replace(PLAIN, size=36), "second": replace(PLAIN, size=36)}, "multiple of the patch of 8"),
    ],
)
def test_what_does_not_fit_is_refused(changes, says):
    with pytest.raises(PretrainError, match=says):
        made(mgc, replace(SMALL, **changes))


def test_two_processes_are_one():
    compare("mgc", SMALL, TINY)


def test_it_fits_a_few_images_and_does_not_collapse():
    told, seen = fitted(made(mgc, SMALL), steps=100, lr=5e-3)
    for name in ("contrast_1", "contrast_2", "contrast_4"):
        first, last = (sum(t[name] for t in part) / 5 for part in (told[:5], told[-5:]))
        assert last < 0.8 * first, (name, first, last)
    assert seen["feature_std"] > 0.1
    assert seen["effective_rank"] > 2


def test_the_exported_file_is_the_encoder(tmp_path, monkeypatch):
    method = made(mgc, SMALL).eval()
    encoder = loaded(method, tmp_path / "x.safetensors", monkeypatch)
    assert encoder.spec.audit["backbone"]["dropped"].keys() == {"projectors and predictors"}
    assert encoder.spec.network == "base"
    images = normalised(pictures(4))
    (seen,) = encoder.encode(images)
    expected = method.base_encoder(images)
    torch.testing.assert_close(seen.cls, expected[:, 0], rtol=0, atol=5e-3)
    torch.testing.assert_close(seen.patches.flatten(1, 2), expected[:, 1:], rtol=0, atol=5e-3)
    torch.testing.assert_close(
        F.normalize(method.encode(images)), F.normalize(seen.patches.mean((1, 2))), atol=5e-3, rtol=0
    )
