"""Views: the geometry of torchvision to the bit, boxes, and images of hostile shape."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch
from feature_fakes import spec
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2 as transforms
from torchvision.transforms.v2 import InterpolationMode

from evalkit.errors import FeatureError, UsageError
from evalkit.features import view as views
from evalkit.types import Preprocessing, View, ViewRef

MODES = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def published(image: Image.Image, view: View) -> torch.Tensor:
    mode = MODES[view.interpolation]
    size = (view.size, view.size) if view.fit == "squash" else view.resize
    return transforms.Compose(
        [transforms.Resize(size, mode), transforms.CenterCrop(view.size), transforms.PILToTensor()]
    )(image)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 90), st.sampled_from([0.5, 0.875, 1.0]),
    st.sampled_from(["bicubic", "bilinear"]), st.sampled_from(["crop", "squash"]),
)  # fmt: skip
def test_equal_to_torchvision(width, height, crop, interpolation, fit):
    view = View(32, int(32 / crop), fit, interpolation)
    image = photo(width, height)
    expected = published(image, view).int()
    worst = (views.apply(image, None, view).int() - expected).abs().max()
    long, short = max(width, height), min(width, height)
    exact = fit == "squash" or int(view.resize * long / short) <= views.ELONGATED * 32
    assert worst <= (0 if exact else 1)


@pytest.mark.parametrize("size", [(3000, 10), (10, 3000)])
def test_elongated_images_equal_the_whole_way_within_one_level(size):
    view = View(64, 73)
    image = photo(*size)
    difference = views.apply(image, None, view).int() - published(image, view).int()
    assert difference.abs().max() <= 1


def test_an_image_of_12000_by_10_takes_little_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out = views.apply(photo(12_000, 10), None, View(224, 256))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert out.shape == (3, 224, 224)
    assert grown < 64 << 10  # kilobytes; the whole would take 307,200 x 256 x 3 bytes = 225 MB


def test_one_pixel_fills_the_view():
    out = views.apply(Image.new("RGB", (1, 1), (9, 8, 7)), None, View(16, 18))
    assert out.shape == (3, 16, 16)
    assert [channel.unique().tolist() for channel in out] == [[9], [8], [7]]


def test_the_part_of_a_box_outside_the_image_is_black():
    out = views.apply(Image.new("RGB", (4, 4), "white"), (2, 0, 6, 4), View(4, 4))
    assert out[0].tolist() == [[255, 255, 0, 0]] * 4


@pytest.mark.parametrize("box", [(-3, -2, 5, 6), (7, 8, 15, 16), (2, 3, 6, 7), (-9, 20, -4, 25), (-5, -5, 20, 20)])
def test_with_border_edge_the_nearest_pixel_continues(box):
    image = photo(10, 12)
    pixels, out = np.asarray(image), np.asarray(views.cut(image, box, "edge"))
    for row, y in enumerate(range(box[1], box[3])):
        for column, x in enumerate(range(box[0], box[2])):
            assert (out[row, column] == pixels[min(max(y, 0), 11), min(max(x, 0), 9)]).all()
    assert out.shape == (box[3] - box[1], box[2] - box[0], 3)
    assert views.apply(image, box, View(4, 4, "squash", border="edge")).shape == (3, 4, 4)


def test_training_images_may_have_a_crop_of_their_own():
    encoder = spec(patch=16, preprocessing=Preprocessing(224))
    assert views.training(ViewRef(crop=0.5), encoder) == views.resolve(ViewRef(crop=0.5), encoder)[0]
    assert views.training(ViewRef(train_crop=0.875, border="edge"), encoder) == View(224, 256, border="edge")
    assert views.resolve(ViewRef(train_crop=0.875), encoder)[0] == View(224, 224)
    with pytest.raises(UsageError, match="crop is 2"):
        views.training(ViewRef(train_crop=2.0), encoder)


def test_box_corners_round_to_the_nearest_pixel_and_keep_one():
    image = photo(10, 10)
    assert views.cut(image, (1.4, 1.6, 4.6, 5.4)).size == (4, 3)
    assert views.cut(image, (2.1, 2.1, 2.2, 2.2)).size == (1, 1)


@pytest.mark.parametrize("box", [(3, 3, 3, 5), (5, 5, 3, 7), (0, 0, float("nan"), 3), (0, 0, float("inf"), 3)])
def test_a_box_without_area_is_refused(box):
    with pytest.raises(FeatureError, match="no area"):
        views.cut(photo(10, 10), box)


def test_other_modes_are_refused():
    with pytest.raises(FeatureError, match="mode L"):
        views.apply(Image.new("L", (4, 4)), None, View(4, 4))


def test_normalise_is_the_published_arithmetic():
    view = View(8, 8)
    batch = torch.arange(192, dtype=torch.uint8).view(1, 3, 8, 8)
    expected = transforms.Normalize(view.mean, view.std)(batch.float() / 255)
    assert torch.equal(views.normalise(batch, view), expected)
    assert batch[0, 0, 0].tolist() == list(range(8))


def test_resolve_takes_the_size_of_the_manifest_and_the_256_of_a_224_crop():
    encoder = spec(patch=16, preprocessing=Preprocessing(224, (0.5,) * 3, (0.25,) * 3))
    view, facts = views.resolve(ViewRef(crop=0.875), encoder)
    assert view == View(224, 256, "crop", "bicubic", (0.5,) * 3, (0.25,) * 3)
    assert facts == {"size": 224, "asked": 224, "resize": 256}


def test_resolve_rounds_down_to_the_patch_and_says_so():
    view, facts = views.resolve(ViewRef(size=100, crop=0.7), spec(patch=14))
    assert (view.size, view.resize) == (98, 140)
    assert "98" in facts["rounded"]


@pytest.mark.parametrize("ref", [ViewRef(size=7), ViewRef(crop=0.0), ViewRef(crop=1.5)])
def test_resolve_refuses_what_cannot_be(ref):
    with pytest.raises(UsageError):
        views.resolve(ref, spec(patch=8))


@pytest.mark.parametrize(
    ("size", "shape"), [((64, 48), (24, 32)), ((48, 64), (32, 24)), ((20, 30), (30, 20)), ((999, 3), (1, 32))]
)
def test_a_thumbnail_keeps_its_shape_and_is_never_enlarged(size, shape):
    image = photo(*size)
    expected = image.copy()
    expected.thumbnail((32, 32), Image.Resampling.LANCZOS)
    found = views.thumbnail(image, None, 32)
    assert found.shape == (3, *shape)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(expected))
    assert image.size == size


def test_a_thumbnail_of_a_box_is_that_of_the_region():
    image = photo(64, 48)
    assert torch.equal(
        views.thumbnail(image, (8, 4, 48, 24), 16), views.thumbnail(image.crop((8, 4, 48, 24)), None, 16)
    )
    with pytest.raises(FeatureError, match="mode L"):
        views.thumbnail(image.convert("L"), None, 16)
