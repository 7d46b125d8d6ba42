"""Every operation of the strong augmentation against PIL on single images, the policy's shares, and its determinism."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from evalkit.pretrain import strong
from evalkit.pretrain.strong import FILL, NONE, OPERATIONS, Draw, applied, draws, erase, randaugment

LEVELS = (0.0, 4.5, 8.3, 9.0, 9.6, 10.0)
GEOMETRIC = ("rotate", "shear-x", "shear-y", "translate-x", "translate-y")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, height: int = 24, width: int = 32) -> Tensor:
    """Whole numbers: smooth gradients with noise, so that an error in a place or a table shows."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    base = torch.stack([x, y, (x + y) / 2]) * 180
    noise = torch.rand(n, 3, height, width, generator=rng(n)) * 70
    return (base + noise).round()


def pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).byte().numpy())


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def enhanced(kind):
    return lambda image, level, sign: kind(image).enhance(1 + sign * level / 10 * 0.9)


def mapped(data):
    """data: (level, sign, width, height) -> PIL's six numbers, new place to old."""

    def change(image, level, sign):
        numbers = data(sign * level / 10, *image.size)
        return image.transform(
            image.size, Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR, fillcolor=tuple(map(int, FILL))
        )

    return change


def solarise_add(image, level, sign):
    add = int(level / 10 * 110)
    return image.point([min(255, i + add) if i < 128 else i for i in range(256)] * 3)


def posterise(image, level, sign):
    bits = 4 - int(level / 10 * 4)
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)  # what PIL did before it forbade 0


PIL = {
    "autocontrast": lambda image, level, sign: ImageOps.autocontrast(image),
    "equalise": lambda image, level, sign: ImageOps.equalize(image),
    "invert": lambda image, level, sign: ImageOps.invert(image),
    "posterise": posterise,
    "solarise": lambda image, level, sign: ImageOps.solarize(image, 256 - int(level / 10 * 256)),
    "solarise-add": solarise_add,
    "contrast": enhanced(ImageEnhance.Contrast),
    "brightness": enhanced(ImageEnhance.Brightness),
    "colour": enhanced(ImageEnhance.Color),
    "sharpness": enhanced(ImageEnhance.Sharpness),
    "rotate": lambda image, level, sign: image.rotate(
        sign * level * 3, Image.Resampling.BILINEAR, fillcolor=tuple(map(int, FILL))
    ),
    "shear-x": mapped(lambda by, width, height: (1, 0.3 * by, 0, 0, 1, 0)),
    "shear-y": mapped(lambda by, width, height: (1, 0, 0, 0.3 * by, 1, 0)),
    "translate-x": mapped(lambda by, width, height: (1, 0, 0.45 * by * width, 0, 1, 0)),
    "translate-y": mapped(lambda by, width, height: (1, 0, 0, 0, 1, 0.45 * by * height)),
}
"""How timm and Mugs' code do it, one image at a time."""


def draw(name: str, n: int = len(LEVELS)) -> Draw:
    """One operation at every level, with alternating signs."""
    sign = torch.tensor([1.0, -1.0] * n)[:n]
    return Draw(torch.full((n,), OPERATIONS.index(name)), torch.tensor(LEVELS[:n]), sign)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pils(name):
    before, one = images(len(LEVELS)), draw(name)
    after = applied(before, one)
    for i, (level, sign) in enumerate(zip(LEVELS, one.sign.tolist(), strict=True)):
        expected = tensor(PIL[name](pil(before[i]), level, sign))
        apart = (after[i] - expected).abs()
        # a place on the very border of the image may fall in or out
        beside = apart.flatten().kthvalue(math.ceil(apart.numel() * 0.995)).values if name in GEOMETRIC else apart.max()
        assert beside <= 1, (name, level, beside)


@pytest.mark.parametrize("name", ["autocontrast", "equalise", "contrast", "colour"])
@pytest.mark.parametrize("value", [0.0, 90.0, 255.0])
def test_one_colour_is_no_special_case_to_pil(name, value):
    before = torch.full((2, 3, 8, 8), value)
    before[1, 0, 0, 0] = 17.0  # two values in one channel
    after = applied(before, Draw(torch.full((2,), OPERATIONS.index(name)), torch.full((2,), 9.0), torch.ones(2)))
    for i in range(2):
        assert (after[i] - tensor(PIL[name](pil(before[i]), 9.0, 1.0))).abs().max() <= 1


def test_no_operation_changes_nothing():
    before = images(3)
    assert torch.equal(applied(before, Draw(torch.full((3,), NONE), torch.full((3,), 9.0), torch.ones(3))), before)


def test_to_treat_all_images_is_to_treat_those_that_change(monkeypatch):
    """What a GPU does is what a CPU does."""
    n = 8 * (NONE + 1)
    before, one = images(n), Draw(torch.arange(n) % (NONE + 1), draws(n, rng(), 1, 1.0)[0].level, torch.ones(n))
    some = applied(before, one)
    monkeypatch.setattr(strong, "_those", lambda on: slice(None))
    assert torch.equal(applied(before, one), some)


def test_the_policy_draws_two_different_operations_with_chance_one_half():
    n = 30_000
    first, second = draws(n, rng(1), 2, 0.5)
    both = (first.operation < NONE) & (second.operation < NONE)
    assert not (both & (first.operation == second.operation)).any()
    assert both.float().mean() == pytest.approx(0.25, abs=0.01)
    for one in (first, second):
        shares = torch.bincount(one.operation, minlength=NONE + 1) / n
        assert shares[:NONE].numpy() == pytest.approx(np.full(NONE, 0.5 / NONE), abs=0.006)
        assert one.level.mean().item() == pytest.approx(9.0, abs=0.02)
        assert one.level.max() <= 10
        assert one.sign.mean().item() == pytest.approx(0.0, abs=0.03)


def test_the_same_generator_gives_the_same_images():
    before = images(16) / 255
    assert torch.equal(randaugment(before, rng(4)), randaugment(before, rng(4)))
    assert not torch.equal(randaugment(before, rng(4)), randaugment(before, rng(5)))


def test_values_stay_in_range_but_for_the_erased_ones():
    after = randaugment(images(64) / 255, rng(), erased=0.0)
    assert after.min() >= 0
    assert after.max() <= 1
    assert torch.equal(after * 255, (after * 255).round())


def test_erasing_takes_rectangles_of_the_stated_share_and_shape():
    n, side = 2500, 32
    after = erase(torch.full((n, 3, side, side), 7.0), 0.25, rng(2))
    gone = (after != 7.0).all(1)
    assert torch.equal(gone, (after != 7.0).any(1))  # all channels, each with its own noise
    hit = gone.flatten(1).any(1)
    assert hit.float().mean().item() == pytest.approx(0.25, abs=0.02)
    tall, wide = gone[hit].any(2).sum(1), gone[hit].any(1).sum(1)
    area = gone[hit].flatten(1).sum(1)
    assert torch.equal(area, tall * wide)  # no hole, no second one
    assert (area >= 0.015 * side * side).all()
    assert (area <= 0.36 * side * side).all()
    assert (tall / wide).min() >= 0.25
    assert (tall / wide).max() <= 4
    noise = after[hit][gone[hit][:, None].expand(-1, 3, -1, -1)]
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    rows = torch.arange(side).expand(int(hit.sum()), -1)[gone[hit].any(2)]
    assert rows.min() == 0
    assert rows.max() == side - 1
