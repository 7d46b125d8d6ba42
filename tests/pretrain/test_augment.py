"""Views: boxes are where they say, a crop is torchvision's, colours stay in range, everything follows the generator."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from evalkit.pretrain.augment import View, draw, jittered, normalised, placed, random_boxes, solarised
from evalkit.pretrain.augment import _blurring as blurring

PLAIN = View(16, jitter_p=0, grey_p=0)


def images(n: int = 6, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("left", "top", "right", "bottom"), [(8, 4, 24, 30), (0, 0, 32, 32), (5, 1, 10, 31), (31, 0, 32, 1)]
)
@pytest.mark.parametrize("size", [8, 16, 48])
@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_equals_torchvisions_resized_crop(
    left: int, top: int, right: int, bottom: int, size: int, flip: bool
) -> None:
    image = images(1).double()
    box = torch.tensor([[left, top, right, bottom]], dtype=torch.float64) / 32
    rows, columns = placed(box, torch.tensor([flip]), (32, 32), size)
    found = rows[:, None] @ image @ columns[:, None].mT
    expected = F.resized_crop(
        image, top, left, bottom - top, right - left, [size, size], InterpolationMode.BICUBIC, antialias=True
    )
    assert torch.allclose(found, expected.flip(-1) if flip else expected, atol=1e-9)


def test_the_boxes_told_are_the_boxes_cut() -> None:
    crop = draw(images(20), PLAIN, rng())
    rows, columns = placed(crop.boxes, crop.flipped, (32, 32), 16)
    assert torch.allclose(crop.pixels, normalised(rows[:, None] @ (images(20) / 255) @ columns[:, None].mT).clamp(
        normalised(torch.zeros(3, 1, 1)), normalised(torch.ones(3, 1, 1))), atol=1e-5)  # fmt: skip
    assert crop.flipped.any() and not crop.flipped.all()


def test_boxes_have_the_areas_and_aspects_asked_for_and_lie_inside() -> None:
    boxes = random_boxes(4000, View(16, (0.2, 0.5)), rng())
    assert boxes.min() >= 0 and boxes.max() <= 1 + 1e-6
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    area, ratio = width * height, width / height
    assert area.min() >= 0.2 - 1e-5 and area.max() <= 0.5 + 1e-5
    assert ratio.min() >= 3 / 4 - 1e-4 and ratio.max() <= 4 / 3 + 1e-4
    assert area.mean() == pytest.approx(0.35, abs=0.01)
    assert (boxes[:, 0] / (1 - width)).mean() == pytest.approx(0.5, abs=0.02)


def test_a_box_that_never_fits_is_the_whole_image() -> None:
    boxes = random_boxes(3, View(16, (1.0, 1.0), (2.0, 2.0)), rng())
    assert torch.equal(boxes, torch.tensor([[0.0, 0, 1, 1]]).expand(3, 4))


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_equals_torchvisions(sigma: float) -> None:
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64, generator=rng())
    matrix = blurring(torch.tensor([sigma], dtype=torch.float64), 16)
    expected = F.gaussian_blur(image, [31, 31], [sigma, sigma])  # it mirrors the border as often as it is passed
    found = matrix @ image @ matrix.mT
    assert torch.allclose(found[..., 6:10, 6:10], expected[..., 6:10, 6:10], atol=1e-6)
    assert torch.allclose(found, expected, atol=1e-3)
    assert torch.equal(blurring(torch.zeros(1), 5), torch.eye(5)[None])


def test_views_follow_the_generator_alone() -> None:
    view = View(16, blur_p=0.5, solarise_p=0.5)
    one, two, other = (draw(images(), view, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.pixels, two.pixels) and torch.equal(one.boxes, two.boxes)
    assert not torch.equal(one.pixels, other.pixels)
    low, high = normalised(torch.zeros(3, 1, 1)), normalised(torch.ones(3, 1, 1))
    assert ((one.pixels >= low - 1e-5) & (one.pixels <= high + 1e-5)).all()


def test_grey_is_grey_and_no_jitter_changes_nothing() -> None:
    pixels = images() / 255
    grey = jittered(pixels, View(32, grey_p=1), rng())
    assert (grey.amax(1) - grey.amin(1)).max() < 2e-3
    assert torch.allclose(jittered(pixels, View(32, jitter_p=0, grey_p=0), rng()), pixels, atol=1e-5)


def test_brightness_and_contrast_are_torchvisions() -> None:
    pixels = images(1) / 255
    bright = jittered(pixels, View(32, jitter=(0.5, 0, 0, 0), jitter_p=1, grey_p=0), rng())
    gain = bright.sum() / pixels.sum()
    assert torch.allclose(bright, pixels * gain, atol=1e-4)
    flat = jittered(pixels, View(32, jitter=(0, 0.5, 0, 0), jitter_p=1, grey_p=0), rng())
    spread = flat.std() / pixels.std()
    expected = F.adjust_contrast(pixels, float(spread))
    inside = (expected > 0) & (expected < 1)  # torchvision cuts to [0, 1] here, a view at its end
    assert torch.allclose(flat[inside], expected[inside], atol=2e-3)


def test_solarisation_inverts_bright_values() -> None:
    pixels = torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1)
    assert torch.allclose(solarised(pixels, 1.0, rng()).flatten(), torch.tensor([0.2, 0.5, 0.1]))
    assert solarised(pixels, 0.0, rng()) is pixels
