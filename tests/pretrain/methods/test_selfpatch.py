"""SelfPatch: neighbourhoods, aggregates, both losses, gradients and centres against loops; two processes; the file."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from evalkit.adapters import selfpatch as family
from evalkit.errors import NoProjection, PretrainError
from evalkit.pretrain.method import Now
from evalkit.pretrain.methods import selfpatch
from evalkit.pretrain.prototypes import Centre, cross_entropy, distilled, entropy
from tests.pretrain.methods.trials import (
    PLAIN,
    TINY,
    differences,
    fitted,
    loaded,
    made,
    mean,
    normalised,
    pictures,
    rng,
)
from tests.pretrain.two import compare, doubled

ARCH = replace(TINY, cls=False, final_norm=False)
CROPS = replace(PLAIN, small_size=24)
SMALL = selfpatch.Config(
    hidden=16, bottleneck=8, prototypes=12, patch_prototypes=10, drop_path=0.0, momentum=0.9, crops=CROPS
)
NOW = Now(step=30, steps=100, epoch=3.0, epochs=10.0)


def around(n, i):
    """The eight patches around one, row by row; beyond a border the opposite side begins."""
    found = []
    for y in (i // n - 1, i // n, i // n + 1):
        for x in (i % n - 1, i % n, i % n + 1):
            if (y, x) != (i // n, i % n):
                found.append((y % n) * n + x % n)
    return found


@pytest.mark.parametrize("n", [3, 4, 7])
def test_the_ring_around_each_patch(n):
    ring = selfpatch.ring(n)
    assert ring.tolist() == [around(n, i) for i in range(n * n)]
    assert all(len({*row, i}) == 9 for i, row in enumerate(ring.tolist()))


def test_corners_and_borders_by_hand():
    """5 x 5: the top left corner has the last row above it and the last column to its left."""
    ring = selfpatch.ring(5)
    assert sorted(ring[0].tolist()) == [1, 4, 5, 6, 9, 20, 21, 24]
    assert sorted(ring[2].tolist()) == [1, 3, 6, 7, 8, 21, 22, 23]
    assert sorted(ring[9].tolist()) == [0, 3, 4, 5, 8, 10, 13, 14]
    assert sorted(ring[12].tolist()) == [6, 7, 8, 11, 13, 16, 17, 18]


def chosen(patches, n, k):
    """The k most similar by cosine of the patches around each, for one image."""
    found = []
    for i in range(n * n):
        likeness = {j: (patches[i] @ patches[j] / patches[i].norm() / patches[j].norm()).item() for j in around(n, i)}
        found.append(sorted(likeness, key=likeness.get, reverse=True)[:k])
    return found


@pytest.mark.parametrize("n", [3, 4, 6])
def test_the_most_similar_neighbours(n):
    patches = torch.randn(3, n * n, 5, generator=rng(n), dtype=torch.float64)
    found = selfpatch.similar(patches, 4)
    assert found.tolist() == [chosen(image, n, 4) for image in patches]


def test_length_does_not_make_similar():
    patches = torch.ones(1, 9, 2)
    patches[0, 1] = torch.tensor([100.0, 0.0])
    assert 1 not in selfpatch.similar(patches, 7)[0, 0].tolist()


def filled(method, scale=0.3):
    """Weights of its own for every part of the teacher, centres that are not zero."""
    for p in method.teacher.parameters():
        p.add_(torch.randn(p.shape, generator=rng(1)) * scale)
    for i, centre in enumerate((method.centre, method.patch_centre)):
        centre.value.copy_(torch.randn(centre.value.shape, generator=rng(2 + i)) * 0.2)
    return method


def test_an_aggregate_is_the_class_token_of_an_image_of_neighbours():
    head = filled(made(selfpatch, SMALL, ARCH)).double().teacher.ca_head
    patches = torch.randn(2, 16, 16, generator=rng(), dtype=torch.float64)
    index = selfpatch.similar(patches, 4)
    found = selfpatch.aggregated(head, patches, index)
    for b in range(2):
        for i in range(16):
            alone = head(patches[b, index[b, i]][None], norm=False)[0]
            torch.testing.assert_close(found[b, i], alone, rtol=1e-10, atol=1e-12)


def softmax(values):
    weights = [math.exp(v - max(values)) for v in values]
    return [w / sum(weights) for w in weights]


def said(logits, taught, temperature):
    """H(teacher, student) of one row, by sums."""
    partition = sum((v / temperature).exp() for v in logits)
    return -sum(p * (v / temperature - partition.log()) for p, v in zip(taught, logits, strict=True))


def logits(head, x):
    for layer in head.mlp:
        x = layer(x)
    rows = torch.stack([row / row.norm() for row in head.last_layer.weight_v])
    return rows @ (x / x.norm()) * head.last_layer.weight_g[:, 0]


def seen(network, image, neighbours=0):
    """(logits of the class token, [logits of each patch or aggregate]) of one crop of one image."""
    patches, head = network.backbone(image[None])[0], network.ca_head
    places = [patches[i] for i in range(len(patches))]
    if neighbours:
        n = round(len(patches) ** 0.5)
        groups = chosen(patches, n, neighbours)
        places = [head(patches[group][None], norm=False)[0] for group in groups]
    cls = head(patches[None])[0]
    return logits(network.c_head, cls), [logits(network.p_head, head.norm(x)) for x in places]


def restated(method, views):
    """Both losses and both centres, crop by crop, image by image, patch by patch."""
    crops, n = [*views.large, *views.small], len(views.large[0])
    with torch.no_grad():
        told = [[seen(method.teacher, image, 4) for image in crop] for crop in crops]
    ours = [[seen(method.student, image) for image in crop] for crop in crops]

    def shares(values, centre):
        return softmax(((values - centre.value) / 0.04).tolist())

    pairs = [(t, s) for t in (0, 1) for s in range(len(crops)) if s != t]
    one = sum(said(ours[s][i][0], shares(told[t][i][0], method.centre), 0.1) for t, s in pairs for i in range(n)) / (
        n * len(pairs)
    )
    each = []
    for mine, theirs in zip(ours, told, strict=True):
        terms = [
            said(p, shares(q, method.patch_centre), 0.1)
            for i in range(n)
            for p, q in zip(mine[i][1], theirs[i][1], strict=True)
        ]
        each.append(sum(terms) / len(terms))
    whole = torch.stack([x[0] for crop in told for x in crop]).mean(0)
    patches = torch.stack([q for crop in told for x in crop for q in x[1]]).mean(0)
    centres = [0.9 * c.value + 0.1 * m for c, m in ((method.centre, whole), (method.patch_centre, patches))]
    return {"global": one, "patch": 0.1 * sum(each) / len(each)}, centres


def test_losses_gradients_and_centres():
    method = filled(made(selfpatch, SMALL, ARCH)).double()
    views = doubled(method.views(pictures(2), rng(3)))
    learn = [p for p in method.parameters() if p.requires_grad]
    expected, centres = restated(method, views)
    first = views.large[0]
    told = method.centre(torch.stack([seen(method.teacher, image)[0] for image in first]), 0.04)
    losses, watched = method(views, NOW)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)
        found, theirs = (
            torch.autograd.grad(v, learn, retain_graph=True, allow_unused=True) for v in (value, expected[name])
        )
        for ours, other in zip(found, theirs, strict=True):
            assert (ours is None) == (other is None)
            if ours is not None:
                torch.testing.assert_close(ours, other, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(method.centre.value, centres[0])
    torch.testing.assert_close(method.patch_centre.value, centres[1])
    torch.testing.assert_close(watched["features"], method.encode(first))
    entropies = [-sum(p * math.log(p) for p in row) for row in told.tolist()]
    assert float(watched["teacher_entropy"]) == pytest.approx(sum(entropies) / len(entropies))
    assert 0 < float(watched["patch_entropy"]) < math.log(10)


def test_gradients_are_finite_differences():
    method = filled(made(selfpatch, SMALL, ARCH)).double()
    views = doubled(method.views(pictures(2), rng(3)))
    start = [c.value.clone() for c in (method.centre, method.patch_centre)]

    def loss():
        for centre, value in zip((method.centre, method.patch_centre), start, strict=True):
            centre.value.copy_(value)
        return sum(method(views, NOW)[0].values())

    net = method.student
    parameters = [
        net.backbone.patch_embed.proj.weight, net.backbone.blocks[1].attn.qkv.weight, net.ca_head.cls_token,
        net.ca_head.cls_blocks[0].attn.k.weight, net.ca_head.norm.weight, net.c_head.mlp[0].weight,
        net.p_head.last_layer.weight_v,
    ]  # fmt: skip
    for exact, measured in differences(loss, parameters):
        assert exact == pytest.approx(measured, rel=1e-5, abs=1e-8)


def test_without_small_crops():
    method = made(selfpatch, replace(SMALL, crops=replace(CROPS, small=0)), ARCH).double()
    views = doubled(method.views(pictures(2), rng(3)))
    expected, _ = restated(method, views)
    for name, value in method(views, NOW)[0].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)


def test_centre_and_sharpening():
    centre = Centre(3, 0.8)
    centre.value.copy_(torch.tensor([1.0, 0.0, 0.0]))
    rows = torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    shares = centre(rows, 0.5)
    torch.testing.assert_close(shares[0], torch.full((3,), 1 / 3))
    assert shares[1, 0] == pytest.approx(math.exp(4) / (math.exp(4) + 2))
    centre.move([rows[:, None], torch.ones(2, 2, 3)])
    assert centre.value.tolist() == pytest.approx([0.8 + 0.2 * 8 / 6, 0.2 * 4 / 6, 0.2 * 4 / 6])


def test_cross_entropy_of_a_teacher_that_is_right():
    shares = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    assert entropy(shares).item() == pytest.approx(math.log(2) / 2)
    assert cross_entropy(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), shares, 0.1).item() == pytest.approx(math.log(2) / 2)
    never = distilled([torch.tensor([[9.0, 0.0]]), torch.zeros(1, 2)], [shares[1:], shares[:1]], 1.0)
    assert never.item() == pytest.approx((math.log(2) + 4.5 + math.log1p(math.exp(-9))) / 2)


def test_prototypes_wait_for_the_first_epoch():
    method = made(selfpatch, SMALL, ARCH)
    early, late = (list(method.frozen(replace(NOW, epoch=e))) for e in (0.99, 1.0))
    assert [p.shape for p in early] == [(12, 8), (10, 8)]
    assert late == []
    assert not method.student.c_head.last_layer.weight_g.requires_grad


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"crops": replace(CROPS, small_size=16)}, "crops of 16 pixels with patches of 8: .* at least 24"),
        ({"crops": replace(CROPS, size=36)}, "crops of 36 pixels"),
        ({"neighbours": 9}, "9 neighbours: a patch has 8"),
        ({"neighbours": 0}, "0 neighbours"),
    ],
)
def test_what_does_not_fit_is_refused(changes, says):
    with pytest.raises(PretrainError, match=says):
        made(selfpatch, replace(SMALL, **changes), ARCH)


def test_two_processes_are_one():
    compare("selfpatch", SMALL, ARCH)


def test_it_fits_a_few_images_and_does_not_collapse():
    """Both losses hold the teacher's entropy, which grows while prototypes are shared out: what must fall is the rest."""
    config = replace(
        SMALL, prototypes=64, patch_prototypes=64, hidden=32, bottleneck=16, momentum=0.99, patch_weight=1.0
    )
    told, features = fitted(made(selfpatch, config, ARCH), steps=80)
    for loss, kept in (("global", "teacher_entropy"), ("patch", "patch_entropy")):
        first, last = mean(told[:10], loss, kept), mean(told[-10:], loss, kept)
        assert last < 0.8 * first, (loss, first, last, mean(told[-10:], kept))
    assert 0.5 < mean(told[-10:], "teacher_entropy") < math.log(64) - 0.5
    assert features["feature_std"] > 0.2
    assert features["effective_rank"] > 2


def test_the_exported_file_is_the_encoder(tmp_path, monkeypatch):
    method = made(selfpatch, SMALL, replace(ARCH, positions="dino"))
    filled(method, 0.1)
    monkeypatch.setattr("tests.pretrain.methods.trials.TINY", ARCH)
    encoder = loaded(method, tmp_path / "x.safetensors", monkeypatch)
    assert family.ARCHITECTURES["tiny"] == ARCH
    assert {"cls", "projection"} <= encoder.spec.offers
    images = normalised(pictures(4))
    (found,) = encoder.encode(images)
    patches = method.teacher.backbone(images)
    torch.testing.assert_close(found.patches.flatten(1, 2), patches, rtol=0, atol=5e-3)
    torch.testing.assert_close(found.cls, method.encode(images), rtol=0, atol=5e-3)
    expected = F.normalize(method.teacher.c_head.mlp(found.cls), dim=1)
    torch.testing.assert_close(encoder.project(found, at="bottleneck"), expected, rtol=0, atol=5e-3)
    with pytest.raises(NoProjection, match="not shipped"):
        encoder.project(found)
