"""Sizes, frames and masks of label propagation, against the libraries that the released scripts call."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from evalkit.errors import ProtocolError, UsageError
from evalkit.probing.frames import Geometry, Reader, nearest
from tests.runners import plain_video as plain


def picture(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("size", "patch", "expected"), [
    ((480, 854), 16, (480, 832)), ((480, 854), 8, (480, 832)), ((480, 854), 14, (476, 826)), ((480, 1152), 16, (480, 1152)),
    ((1080, 1920), 16, (480, 832)), ((854, 480), 16, (832, 480)), ((480, 480), 16, (480, 448)), ((480, 854), 32, (480, 832)),
    ((480, 910), 16, (480, 896)),
])  # fmt: skip
def test_the_long_side_goes_down_to_a_multiple_of_64_and_then_of_the_patch(size, patch, expected):
    geometry = Geometry(patch)
    assert geometry.fitted(size) == expected
    assert geometry.asked(size) == plain.size_of(*size)


@pytest.mark.parametrize(("size", "patch", "expected"), [
    ((480, 854), 16, (960, 1712)), ((480, 854), 14, (966, 1722)), ((854, 480), 16, (1712, 960)), ((300, 300), 16, (960, 960)),
])  # fmt: skip
def test_dinov3_goes_up_to_a_multiple_of_the_patch(size, patch, expected):
    assert Geometry(patch, "dinov3", 960).fitted(size) == expected


def test_frames_are_resized_as_the_scripts_do():
    image = picture(90, 161)
    array = np.asarray(image)
    mine = Geometry(16, "dino", 48, 16).resized(image)
    assert torch.equal(mine, torch.from_numpy(cv2.resize(array, (80, 48)).transpose(2, 0, 1)))
    bicubic = transforms.resize(image, [48, 96], InterpolationMode.BICUBIC)
    mine = Geometry(16, "dinov3", 48).resized(image)
    assert torch.equal(mine, torch.from_numpy(np.asarray(bicubic).transpose(2, 0, 1).copy()))


@pytest.mark.parametrize(
    ("style", "size"), [("dino", (97, 171)), ("dinov3", (97, 171)), ("dino", (171, 97)), ("dino", (90, 90))]
)
def test_a_mask_has_the_grid_of_its_frame(style, size):
    labels = np.random.default_rng(1).integers(0, 4, size, dtype=np.uint8)
    geometry = Geometry(8, style, 48, 16)
    pixels = geometry.resized(picture(*size)).shape[1:]
    mask = geometry.mask(labels)
    grid = (pixels[0] // 8, pixels[1] // 8)
    assert mask.shape == grid
    resized = Image.fromarray(labels).resize(grid[::-1], Image.Resampling.NEAREST)
    assert torch.equal(mask, torch.from_numpy(np.array(resized)).long()), "both nearest are the same on these sizes"


def test_void_is_background_in_the_first_mask():
    labels = np.array([[0, 255], [1, 255]], np.uint8).repeat(8, 0).repeat(8, 1)
    assert Geometry(8, short=16, multiple=8).mask(labels).tolist() == [[0, 0], [1, 0]]
    assert labels.max() == 255


def test_maps_return_to_the_original_size_by_pillow():
    labels = np.random.default_rng(2).integers(0, 3, (48, 80), dtype=np.uint8)
    expected = np.array(Image.fromarray(labels).resize((161, 90), Image.Resampling.NEAREST))
    assert np.array_equal(nearest(labels, (90, 161)), expected)


def test_a_reader_gives_frame_and_truth():
    class Clips:
        def frame(self, clip, number):
            return picture(60, 100, number)

        def truth(self, clip, number):
            return None if number else np.ones((60, 100), np.uint8)

    read = Reader(Geometry(8, short=32, multiple=16))
    assert read(Clips(), 0, 0).truth.all()
    frame = read(Clips(), 0, 1)
    assert (frame.truth, frame.size, tuple(frame.pixels.shape)) == (None, (60, 100), (3, 32, 48))


def test_sizes_that_leave_nothing_are_refused():
    with pytest.raises(ProtocolError, match=r"20 x 30 becomes \(12, 0\), less than one patch of 16"):
        Geometry(16, short=12).fitted((20, 30))
    with pytest.raises(UsageError, match="short is 0; pixels, at least 1"):
        Geometry(16, short=0)
