"""MMC: the three terms of Eq. 4 and their gradients against loops over images and patches; two processes; a fit; the file."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from evalkit.errors import NoProjection, PretrainError
from evalkit.pretrain.method import Now
from evalkit.pretrain.methods import mmc
from evalkit.pretrain.multicrop import MultiCrop
from tests.pretrain.methods.trials import TINY, differences, fitted, loaded, made, normalised, pictures, rng
from tests.pretrain.two import compare, doubled

CROPS = MultiCrop(size=32, scale=(0.4, 1.0), small=1, small_size=16)
SMALL = mmc.Config(crops=CROPS, hidden=12, out=6, places=3, momentum=0.9, drop_path=0.0)
NOW = Now(step=3, steps=10, epoch=0.3, epochs=1.0)


def unit(vector):
    length = sum(v * v for v in vector) ** 0.5
    return [v / length for v in vector]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def slow_contrast(queries, keys, t):
    """InfoNCE by its definition, query by query: negatives are all keys of other images."""
    terms = []
    for i, image in enumerate(queries):
        for j, query in enumerate(image):
            q = unit(query)
            positive = (dot(q, unit(keys[i][j])) / t).exp()
            others = sum((dot(q, unit(key)) / t).exp() for n, other in enumerate(keys) if n != i for key in other)
            terms.append(-(positive / (positive + others)).log())
    return sum(terms) / len(terms)


def batch_norm(rows, layer):
    mean = sum(rows) / len(rows)
    variance = sum((r - mean) ** 2 for r in rows) / len(rows)
    out = [(r - mean) / (variance + layer.eps).sqrt() for r in rows]
    return out if layer.weight is None else [o * layer.weight + layer.bias for o in out]


def projected(head, rows):
    """SiT's head on a list of rows."""
    one, norm1, _, two, norm2, _, three, norm3 = head
    rows = [r.clamp(min=0) for r in batch_norm([one(r) for r in rows], norm1)]
    rows = [nn.functional.gelu(r) for r in batch_norm([two(r) for r in rows], norm2)]
    return batch_norm([three(r) for r in rows], norm3)


def cut(rows, *sizes):
    """A flat list in nested lists of these sizes."""
    for size in reversed(sizes[1:]):
        rows = [rows[i : i + size] for i in range(0, len(rows), size)]
    return rows


def restated(method, views):
    c, b, p = method.config, len(views.clean[0]), method.arch.patch
    seen = [[method.student(x[None])[0] for x in view] for view in views.corrupted]
    with torch.no_grad():
        clean = [[method.teacher(x[None])[0] for x in view] for view in views.clean]
        small = [[method.teacher(x[None])[0] for x in view] for view in views.small]

    def patches(tokens, head):
        places = [view.tolist() for view in views.places]
        rows = [tokens[v][i][1 + j] for v in range(2) for i in range(b) for j in places[v][i]]
        return cut(projected(head, rows), 2, b, c.places)

    queries, keys = patches(seen, method.student_heads.patches), patches(clean, method.teacher_heads.patches)
    keys = [[[k.detach() for k in image] for image in view] for view in keys]
    said = cut(projected(method.student_heads.cls, [t[0] for view in seen for t in view]), 2, b)
    taught = projected(method.teacher_heads.cls, [t[0] for view in [*clean, *small] for t in view])
    taught = cut([t.detach() for t in taught], 3, b)
    globals_ = [
        slow_contrast([[q] for q in said[s]], [[k] for k in taught[t]], c.temperature)
        for s in range(2)
        for t in range(3)
        if s != t
    ]
    errors = []
    for view, image in ((v, i) for v in range(2) for i in range(b)):
        for j in views.masks[view][image].nonzero()[:, 0].tolist():
            pixels = views.clean[view][image][:, j // 4 * p : j // 4 * p + p, j % 4 * p : j % 4 * p + p]
            guess = method.pixels(seen[view][image][1 + j]).view(p, p, 3)
            errors += [abs(pixels[ch, y, x] - guess[y, x, ch]) for y in range(p) for x in range(p) for ch in range(3)]
    return {
        "pixels": sum(errors) / len(errors),
        "patches": sum(slow_contrast(q, k, c.temperature) for q, k in zip(queries, keys, strict=True)) / 2,
        "cls": sum(globals_) / len(globals_),
    }


def own_teacher(method):
    with torch.no_grad():
        for p in [*method.teacher.parameters(), *method.teacher_heads.parameters()]:
            p.add_(torch.randn(p.shape, generator=rng(1)) * 0.1)
    return method


def test_losses_and_gradients_are_those_of_equation_4():
    method = own_teacher(made(mmc, SMALL).double())
    views = doubled(method.views(pictures(3), rng(3)))
    learn = [p for p in method.parameters() if p.requires_grad]
    losses, watched = method(views, NOW)
    expected = restated(method, views)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name].item(), abs=1e-11), name
        found, theirs = (
            torch.autograd.grad(v, learn, retain_graph=True, allow_unused=True) for v in (value, expected[name])
        )
        for ours, other in zip(found, theirs, strict=True):
            assert (ours is None) == (other is None)
            if ours is not None:
                torch.testing.assert_close(ours, other, rtol=0, atol=1e-10)
    torch.testing.assert_close(watched["features"], method.teacher(views.clean[0])[:, 0])


def test_gradients_are_finite_differences():
    method = own_teacher(made(mmc, SMALL).double())
    views = doubled(method.views(pictures(3), rng(3)))
    parameters = [
        method.student.patch_embed.proj.weight, method.student.cls_token, method.student_heads.cls[0].weight,
        method.student_heads.patches[4].weight, method.pixels[0].weight,
    ]  # fmt: skip
    for exact, measured in differences(lambda: sum(method(views, NOW)[0].values()), parameters):
        assert exact == pytest.approx(measured, rel=1e-4, abs=1e-7)


def test_contrast_at_its_ends():
    """Keys at right angles: each query on its key, or on another image's."""
    keys = torch.eye(4).view(2, 2, 4)
    found = mmc.contrast(keys, keys, 0.2)
    assert found.item() == pytest.approx(math.log(1 + 2 * math.exp(-5)), abs=1e-6)
    assert mmc.contrast(keys.flip(0), keys, 0.2).item() == pytest.approx(math.log(2 + math.exp(5)), abs=1e-6)
    # the other patch of the same image is no negative
    assert mmc.contrast(keys.flip(1), keys, 0.2).item() == pytest.approx(math.log(3), abs=1e-6)
    assert mmc.contrast(7 * keys, 3 * keys, 0.2).item() == pytest.approx(found.item(), abs=1e-6)


def test_contrast_stands_extreme_temperatures():
    q, k = torch.randn(4, 2, 3, requires_grad=True), torch.randn(4, 2, 3)
    mmc.contrast(q, k, 1e-3).backward()
    assert q.grad.isfinite().all()


def test_reconstruction_counts_corrupted_patches_only():
    said, pixels = torch.zeros(2, 3, 5), torch.ones(2, 3, 5)
    pixels[0, 1], pixels[1, 2] = 4.0, -2.0
    mask = torch.tensor([[False, True, False], [False, False, True]])
    assert mmc.reconstruction(said, pixels, mask).item() == 3.0
    assert mmc.reconstruction(said, pixels, torch.zeros_like(mask)).item() == 0.0


def test_views_are_clean_and_corrupted_alike():
    views = made(mmc, SMALL).views(pictures(6), rng())
    for clean, corrupted, mask in zip(views.clean, views.corrupted, views.masks, strict=True):
        changed = (clean != corrupted).any(1).unfold(1, 8, 8).unfold(2, 8, 8).any(-1).any(-1).flatten(1)
        assert not (changed & ~mask).any()
        assert mask.any(1).all()
    assert [tuple(v.shape) for v in views.small] == [(6, 3, 16, 16)]
    assert views.places[0].shape == (6, 3)
    assert (
        made(mmc, replace(SMALL, places=0)).views(pictures(2), rng()).places[1].sort(1).values.tolist()
        == [[*range(16)]] * 2
    )


def test_without_small_crops():
    method = made(mmc, replace(SMALL, crops=replace(CROPS, small=0)))
    losses, _ = method(method.views(pictures(3), rng()), NOW)
    assert all(torch.isfinite(v) for v in losses.values())


def test_a_black_image_is_no_trouble():
    method = made(mmc, SMALL)
    losses, _ = method(method.views(torch.zeros(3, 3, 40, 40, dtype=torch.uint8), rng()), NOW)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_the_teacher_follows():
    method = made(mmc, SMALL)
    assert method.momentum(replace(NOW, step=0)) == pytest.approx(0.9)
    assert method.momentum(replace(NOW, step=10)) == 1.0
    with torch.no_grad():
        for p in method.student.parameters():
            p.add_(1.0)
    before = method.teacher.cls_token.clone()
    method.after_step(replace(NOW, step=5))
    torch.testing.assert_close(method.teacher.cls_token, before + 0.05)
    assert not any(p.requires_grad for p in [*method.teacher.parameters(), *method.teacher_heads.parameters()])


def test_more_places_than_patches_are_refused():
    with pytest.raises(PretrainError, match="places = 17 of 16"):
        made(mmc, replace(SMALL, places=17))


def test_two_processes_are_one():
    compare("mmc", SMALL, TINY)


def test_it_fits_a_few_images_and_does_not_collapse():
    method = made(mmc, replace(SMALL, hidden=64, out=32, places=4))
    views = method.views(pictures(32), rng())
    method.views = lambda *_: views  # the same views again and again
    told, seen = fitted(method, steps=80)
    for name, share in (("pixels", 0.93), ("patches", 0.6), ("cls", 0.5)):
        first, last = (sum(t[name] for t in part) / 5 for part in (told[:5], told[-5:]))
        assert last < share * first, name
    assert seen["feature_std"] > 0.1
    assert seen["effective_rank"] > 2


def test_the_exported_file_is_the_teacher_with_its_head(tmp_path, monkeypatch):
    method = own_teacher(made(mmc, SMALL))
    method(method.views(pictures(8), rng()), NOW)  # running means and variances of the head
    encoder = loaded(method, tmp_path / "x.safetensors", monkeypatch)
    images = normalised(pictures(4))
    (tokens,) = encoder.encode(images)
    method.eval()
    with torch.no_grad():
        expected = method.teacher(images)
        projection = method.teacher_heads.cls(expected[:, 0])
    torch.testing.assert_close(tokens.cls, expected[:, 0], rtol=0, atol=0.02)
    torch.testing.assert_close(tokens.patches.flatten(1, 2), expected[:, 1:], rtol=0, atol=0.02)
    torch.testing.assert_close(encoder.project(tokens), projection, rtol=0, atol=0.05)
    with pytest.raises(NoProjection):
        encoder.project(tokens, at="bottleneck")
    torch.testing.assert_close(method.encode(images), expected[:, 0])
