"""Mugs' three losses against loops in float64, one step against a slow restatement, and what a run leaves behind."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from evalkit import adapters
from evalkit.adapters.vit import ViTConfig
from evalkit.errors import NoProjection
from evalkit.pretrain import watch
from evalkit.pretrain.augment import draw
from evalkit.pretrain.experiment import compose
from evalkit.pretrain.method import Now
from evalkit.pretrain.methods.mugs import Config, Mugs, cluster, contrast, halves
from evalkit.pretrain.multicrop import MultiCrop
from evalkit.types import Manifest
from tests.pretrain.two import compare, doubled

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*expandable.*")
ARCH = ViTConfig(dim=16, depth=2, heads=2, patch=8, size=32)
CROPS = MultiCrop(size=32, scale=(0.25, 1.0), small=2, small_size=16, small_scale=(0.05, 0.25))
SMALL = Config(
    CROPS, hidden=24, predictor=20, bottleneck=8, queue=24, neighbours=3, prototypes=12, drop_path=0.0,
    warmup_teacher_temp_epochs=4.0, momentum=0.9,
)  # fmt: skip
NOW = Now(step=4, steps=8, epoch=2.0, epochs=4.0)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(n: int, side: int = 40) -> Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=rng(n))


def made(config: Config = SMALL) -> Mugs:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Mugs(ARCH, config)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=rng(seed), dtype=torch.float64), dim=-1)


def one_contrast(s: Tensor, t: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """One image, one pair of crops."""
    positive = torch.exp(s @ t / temperature)
    return -torch.log(positive / (positive + sum(torch.exp(s @ key / temperature) for key in keys)))


def one_cluster(logits: Tensor, q: Tensor, temperature: float) -> Tensor:
    total = sum(torch.exp(x / temperature) for x in logits)
    return -sum(p * torch.log(torch.exp(x / temperature) / total) for p, x in zip(q, logits, strict=True))


def by_loop(one, student: Tensor, teacher: Tensor) -> Tensor:
    """(2, C) means over images."""
    return torch.stack([
        torch.stack([sum(one(s[b], t[b]) for b in range(len(s))) / len(s) for s in student]) for t in teacher
    ])  # fmt: skip


def test_instance_and_local_group_loss_are_the_loops():
    student, teacher, keys = unit(4, 3, 5).requires_grad_(), unit(2, 3, 5, seed=1), unit(7, 5, seed=2)
    found = contrast(student, teacher, keys, 0.2)
    slow = by_loop(lambda s, t: one_contrast(s, t, keys, 0.2), student, teacher)
    assert torch.allclose(found, slow, rtol=0, atol=1e-12)
    weights = torch.rand(2, 4, generator=rng(3), dtype=torch.float64)
    mine, theirs = (torch.autograd.grad((x * weights).sum(), student)[0] for x in (found, slow))
    assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda s: contrast(s, teacher, keys, 0.2), student)


def test_group_loss_is_the_loop():
    student = torch.randn(3, 4, 6, generator=rng(), dtype=torch.float64).requires_grad_()
    assigned = torch.randn(2, 4, 6, generator=rng(1), dtype=torch.float64).softmax(2)
    found = cluster(student, assigned, 0.1)
    slow = by_loop(lambda s, q: one_cluster(s, q, 0.1), student, assigned)
    assert torch.allclose(found, slow, rtol=0, atol=1e-11)
    weights = torch.rand(2, 3, generator=rng(3), dtype=torch.float64)
    mine, theirs = (torch.autograd.grad((x * weights).sum(), student)[0] for x in (found, slow))
    assert torch.allclose(mine, theirs, rtol=0, atol=1e-11)
    assert torch.autograd.gradcheck(lambda s: cluster(s, assigned, 0.1), student)


def test_losses_of_half_precision_are_taken_in_float32():
    student, teacher, keys = (unit(*shape).bfloat16() for shape in ((3, 4, 64), (2, 4, 64), (50, 64)))
    with torch.autocast("cpu", torch.bfloat16):
        found, logits = contrast(student, teacher, keys, 0.2), cluster(student, teacher.softmax(2), 0.1)
    assert found.dtype == logits.dtype == torch.float32
    exact = contrast(student.double(), teacher.double(), keys.double(), 0.2)
    assert torch.allclose(found.double(), exact, rtol=0, atol=1e-5)


def test_large_and_small_crops_weigh_half_and_half():
    """As the released code counts: no student crop is taught by the teacher's crop of its own number."""
    terms = torch.rand(2, 5, generator=rng())
    large = [terms[t, s] for t in range(2) for s in range(2) if t != s]
    small = [terms[t, s] for t in range(2) for s in range(2, 5)]
    assert halves(terms).item() == pytest.approx((sum(large) / 2 + sum(small) / 6).item() / 2)
    assert halves(terms[:, :2]).item() == pytest.approx(sum(large).item() / 2)


def restated(method: Mugs, views, now: Now) -> dict[str, Tensor]:
    """One forward pass crop by crop and image by image, with the method's layers and none of its arithmetic."""
    c = method.config

    def look(network, crop: Tensor, queue: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = network.backbone(crop[None])[0]
        mean = tokens[1:].mean(0)
        order = sorted(range(len(queue)), key=lambda i: -F.cosine_similarity(mean, queue[i], dim=0).item())
        group = torch.stack([mean, *(queue[i] for i in order[: c.neighbours])])[None]
        for block in network.relation_blocks:
            y = block.norm1(group)
            q, k, v = block.attn.qkv(y).view(*y.shape[:2], 3, ARCH.heads, -1).permute(2, 0, 3, 1, 4)
            weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
            group = group + block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
            group = group + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(group))))
        group = network.backbone.norm(group[0, 0])
        instance, local = network.instance_head(tokens[0]), network.local_group_head(group)
        head = network.group_head
        bottleneck = head.mlp(tokens[0])
        directions = head.last_layer.weight_v / head.last_layer.weight_v.norm(dim=1, keepdim=True)
        logits = (directions * head.last_layer.weight_g) @ (bottleneck / bottleneck.norm())
        return instance / instance.norm(), local / local.norm(), logits

    temperature = c.warmup_teacher_temp + (c.teacher_temp - c.warmup_teacher_temp) * min(
        1, now.epoch / c.warmup_teacher_temp_epochs
    )
    crops = [*views.large, *views.small]
    sums = {"instance": [[], []], "local_group": [[], []], "group": [[], []]}
    for b in range(len(views.weak)):
        with torch.no_grad():
            taught = [look(method.teacher, crop[b], method.teacher_means.rows) for crop in views.teacher]
        for i, crop in enumerate(crops):
            instance, local, logits = look(method.student, crop[b], method.student_means.rows)
            instance, local = method.instance_predictor(instance), method.local_group_predictor(local)
            for j, (t_instance, t_local, t_logits) in enumerate(taught):
                if i == j:
                    continue
                q = ((t_logits - method.centre.value) / temperature).softmax(0)
                size = int(i >= 2)
                keys = method.instance_keys.rows, method.local_group_keys.rows
                sums["instance"][size].append(one_contrast(instance / instance.norm(), t_instance, keys[0], 0.2))
                sums["local_group"][size].append(one_contrast(local / local.norm(), t_local, keys[1], 0.2))
                sums["group"][size].append(one_cluster(logits, q, c.student_temp))
    return {k: sum(torch.stack(part).mean() for part in parts) / 2 / 3 for k, parts in sums.items()}


def test_a_step_is_its_restatement_with_gradients():
    method = made().double()
    views = doubled(method.views(pixels(3), rng()))
    method.centre.value.normal_(generator=rng(1))
    slow = restated(method, views, NOW)
    learn = [p for p in method.parameters() if p.requires_grad]
    expected = torch.autograd.grad(sum(slow.values()), learn)
    before = copy.deepcopy(method)
    losses, _ = method(views, NOW)
    assert losses.keys() == slow.keys()
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(slow[name].item(), abs=1e-10), name
    found = torch.autograd.grad(sum(losses.values()), learn)
    for (name, _), mine, theirs in zip(
        [(n, p) for n, p in method.named_parameters() if p.requires_grad], found, expected, strict=True
    ):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-10), name
        assert mine.abs().max() > 0, name
    differences(
        before, views, dict(zip([n for n, p in method.named_parameters() if p.requires_grad], found, strict=True))
    )


def differences(method: Mugs, views, gradients: dict[str, Tensor]) -> None:
    """Two random entries of every fifth parameter, by central differences. Each time from the same queues."""
    state, step = copy.deepcopy(method.state_dict()), 1e-6

    def total(name: str, entry: int, by: float) -> float:
        method.load_state_dict(state)
        with torch.no_grad():
            method.get_parameter(name).view(-1)[entry] += by
            return sum(loss.item() for loss in method(views, NOW)[0].values())

    for name, gradient in list(gradients.items())[::5]:
        for entry in torch.randint(gradient.numel(), (2,), generator=rng(len(name))).tolist():
            slope = (total(name, entry, step) - total(name, entry, -step)) / (2 * step)
            assert slope == pytest.approx(gradient.view(-1)[entry].item(), rel=1e-4, abs=1e-7), (name, entry)


def test_what_a_step_remembers():
    """Keys of both teacher crops, the first after the other; means of the first large crops, the student's only of images
    that are weakly augmented; the centre by its momentum."""
    method = made()
    views = method.views(pixels(6), rng())
    before = copy.deepcopy(method)
    cls, means, group = before.teacher(torch.cat(views.teacher), before.teacher_means, 3)
    instance, local, logits = before.teacher.project(cls, group)
    _, own, _ = before.student(views.large[0], before.student_means, 3)
    method(views, NOW)
    assert torch.allclose(method.instance_keys.rows[:12], instance, atol=1e-6)
    assert torch.allclose(method.local_group_keys.rows[:12], local, atol=1e-6)
    assert torch.allclose(method.teacher_means.rows[:6], means[:6], atol=1e-6)
    assert torch.allclose(method.student_means.rows[:3], own[views.weak], atol=1e-6)
    assert torch.equal(method.student_means.rows[3:], before.student_means.rows[3:])
    assert torch.allclose(method.centre.value, 0.1 * logits.mean(0), atol=1e-6)


def test_half_of_the_student_crops_are_strong(monkeypatch):
    seen = []

    def watched(images, view, generator):
        seen.append((len(images), view.size, view.strong))
        return draw(images, view, generator)

    monkeypatch.setattr("evalkit.pretrain.methods.mugs.draw", watched)
    views = made().views(pixels(7), rng())
    weak, strong = (3, False), (4, True)
    assert seen == [
        (7, 32, False), (7, 32, False), *((n, 32, s) for n, s in (weak, strong) * 2),
        *((n, 16, s) for n, s in (weak, strong) * 2),
    ]  # fmt: skip
    assert views.weak.sum() == 3
    assert [x.shape for x in (*views.teacher, *views.large)] == [(7, 3, 32, 32)] * 4
    assert [x.shape for x in views.small] == [(7, 3, 16, 16)] * 2
    again = made().views(pixels(7), rng())
    assert all(torch.equal(a, b) for a, b in zip(views.large, again.large, strict=True))
    assert made(replace(SMALL, strong=0.0)).views(pixels(3), rng()).weak.all()
    assert not made(replace(SMALL, strong=1.0)).views(pixels(3), rng()).weak.any()


def test_crops_of_strong_images_lie_where_these_images_are():
    """One colour per image: each crop must be of its own image, weak or strong."""
    images = torch.arange(8, dtype=torch.uint8).mul(30).view(8, 1, 1, 1).expand(8, 3, 40, 40)
    config = replace(SMALL, crops=replace(CROPS, jitter_p=0.0, grey_p=0.0, solarise_p=(0.0, 0.0, 0.0)))
    views = made(config).views(images, rng())
    expected = ((torch.arange(8) * 30 / 255) - 0.485) / 0.229
    for crop in views.large:
        assert torch.allclose(crop[views.weak][:, 0, 16, 16], expected[views.weak], atol=1e-3)


def test_two_processes_are_one():
    compare("mugs", SMALL, ARCH)


def test_schedules():
    method = made()
    start, end = Now(0, 8, 0.0, 4.0), Now(7, 8, 4.0, 4.0)
    frozen = list(method.frozen(start))
    assert {id(p) for p in frozen} == {id(p) for p in method.student.group_head.last_layer.parameters()}
    assert list(method.frozen(end)) == []
    assert method.momentum(start) == pytest.approx(0.9)
    assert method.momentum(end) == pytest.approx(1.0, abs=0.005)
    logits = torch.randn(1, 2, 12, generator=rng())
    assert torch.allclose(method._assigned(logits, start), (logits / 0.04).softmax(2))
    assert torch.allclose(method._assigned(logits, end), (logits / 0.07).softmax(2))
    constant = made(replace(SMALL, warmup_teacher_temp_epochs=0.0, norm_last=True))
    assert torch.allclose(constant._assigned(logits, start), (logits / 0.07).softmax(2))
    assert not constant.student.group_head.last_layer.weight_g.requires_grad
    assert method.student.group_head.last_layer.weight_g.requires_grad


def test_32_images_are_learnt_without_collapse():
    """The group loss is small as long as all images share a prototype: it rises while the centre spreads them."""
    colours = torch.rand(32, 3, 2, 2, generator=rng(9))
    images = (F.interpolate(colours, (32, 32), mode="bilinear") * 255).byte()
    crops = replace(
        CROPS,
        scale=(0.5, 1.0),
        small=1,
        small_scale=(0.2, 0.5),
        jitter_p=0.0,
        grey_p=0.0,
        solarise_p=(0.0,) * 3,
        blur_p=(0.0,) * 3,
    )
    method = made(replace(SMALL, crops=crops, strong=0.0, queue=32, freeze=0.0))
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=4e-3)
    views = [method.views(images, rng(i)) for i in range(8)]
    history = []
    for step in range(80):
        now = Now(0, 80, 5.0, 10.0)
        losses, watched = method(views[step % 8], now)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        method.after_step(now)
        history.append(torch.stack(list(losses.values())).detach())
    means = torch.stack(history).unfold(0, 5, 5).mean(2)
    assert (means[-1] < 0.75 * means.max(0).values).all(), means
    signs = watch.signs(watched["features"])
    assert signs["feature_std"] > 0.3
    assert signs["effective_rank"] > 2
    assert 0.02 < watched["teacher_entropy"].item() < 0.99 * math.log(SMALL.prototypes)


def test_the_export_loads_with_its_head(tmp_path, monkeypatch):
    monkeypatch.setitem(adapters.module("mugs").ARCHITECTURES, "tiny", ARCH)
    method = made()
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=rng(1))
    state = method.export()
    assert not any("last_layer" in key for key in state)
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "mugs.safetensors")
    encoder = adapters.load(Manifest(id="x", family="mugs", arch="tiny"), tmp_path / "mugs.safetensors")
    images = torch.randn(2, 3, 32, 32, generator=rng())
    tokens = encoder.encode(images)[0]
    own = method.teacher.backbone(images)
    assert torch.equal(tokens.cls, own[:, 0])
    assert torch.equal(tokens.patches.flatten(1, 2), own[:, 1:])
    assert torch.equal(tokens.cls, method.encode(images))
    found = encoder.project(tokens, at="bottleneck")
    assert torch.equal(found, method.teacher.group_head(own[:, 0], bottleneck=True))
    with pytest.raises(NoProjection, match="prototype"):
        encoder.project(tokens)
    dropped = encoder.spec.audit["backbone"]["dropped"]
    assert set(dropped) == {"relation-blocks", "instance-head", "local-group-head"}


@pytest.mark.parametrize("preset", ["micro", "paper-imagenet"])
def test_presets_are_read(preset):
    experiment = compose("mugs", preset)
    assert experiment.config.crops.size == (48 if preset == "micro" else experiment.vit.size)
    if preset == "paper-imagenet":
        assert experiment.config == Config()
