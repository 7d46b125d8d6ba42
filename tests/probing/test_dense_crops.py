"""Crops of photos and label maps: sizes, padding, that labels stay with their pixels, and masks that do not fit."""

from __future__ import annotations

import colorsys
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from evalkit.errors import BrokenImage
from evalkit.probing.dense_crops import Jitter, Shaken, Truth, Whole, distorted, fitted, nearest, padded
from evalkit.types import Sample

PLAIN = Jitter((400, 100), (1.0, 1.0), 1.0, 0.0, colours=False)


@dataclass
class Photos:
    """Photos whose red channel is 10 times the label (+ 5), where there is one."""

    labels: list[np.ndarray]
    size: tuple[int, int] | None = None

    def __getitem__(self, index):
        return Sample(f"photo-{index}", str(index), -1)

    def image(self, group):
        red = (10 * self.labels[int(group)].clip(-1) + 15).astype(np.uint8)
        picture = Image.fromarray(np.stack([red, red * 0, red * 0 + 7], axis=-1))
        return picture if self.size is None else picture.resize(self.size)

    def pixels(self, index):
        return self.labels[index]


def blocks(height, width, side=20):
    rows, columns = np.arange(height) // side, np.arange(width) // side
    return ((rows[:, None] * 3 + columns) % 7 - 1).astype(np.int32)


@pytest.mark.parametrize(
    ("size", "scale", "ratio", "wanted"),
    [
        ((480, 640), (2048, 512), 1.0, (512, 683)),
        ((480, 640), (2048, 512), 0.5, (256, 341)),
        ((100, 900), (2048, 512), 1.0, (228, 2048)),
        ((375, 500), (520, 520), 1.0, (390, 520)),
        ((375, 500), (480, 3840), 1.0, (480, 640)),
    ],
)
def test_sizes_are_those_of_the_released_resizing(size, scale, ratio, wanted):
    assert fitted(size, scale, ratio) == wanted


def test_labels_stay_with_their_pixels_whatever_happens():
    photos = Photos([blocks(120, 160), blocks(100, 90)])
    jitter = Jitter((400, 100), (0.5, 2.0), 0.75, 0.5, colours=False)
    reader = Shaken(64, 6, jitter, seed=3)
    for turn in range(6):
        for position in range(2):
            crop = reader(photos, position, turn)
            red, labels = crop.pixels[0].int(), crop.labels.int()
            height, width = crop.size
            right = (red[:height, :width] - 15) == 10 * labels[:height, :width]
            assert right.float().mean() > 0.6  # along borders colours are mixed and labels are not
            assert crop.pixels.shape == (3, 64, 64) and crop.pixels.dtype == torch.uint8


def test_a_crop_depends_on_seed_turn_and_position_alone():
    photos = Photos([blocks(120, 160), blocks(120, 160)])
    reader = Shaken(64, 6, Jitter((400, 100)), seed=0)
    first = reader(photos, 0, 2)
    again = pickle.loads(pickle.dumps(reader))(photos, 0, 2, 99)  # the iteration is no part of it
    assert torch.equal(first.pixels, again.pixels) and torch.equal(first.labels, again.labels)
    for other in (reader(photos, 0, 3), reader(photos, 1, 2), Shaken(64, 6, Jitter((400, 100)), 1)(photos, 0, 2)):
        assert not torch.equal(first.pixels, other.pixels)


def test_a_photo_smaller_than_the_crop_is_padded_and_the_padding_does_not_count():
    labels = blocks(50, 40)
    crop = Shaken(64, 6, Jitter((50, 40), (1.0, 1.0), 1.0, 0.0, False), 0)(Photos([labels]), 0, 0)
    assert crop.size == (50, 40)
    assert np.array_equal(crop.labels[:50, :40], labels)
    assert (crop.labels[50:] == -1).all() and (crop.labels[:, 40:] == -1).all()
    assert not crop.pixels[:, 50:].any() and not crop.pixels[:, :, 40:].any()


def test_flipping_mirrors_both():
    photos = Photos([blocks(64, 64)])
    still = Shaken(64, 6, Jitter((64, 64), (1.0, 1.0), 1.0, 0.0, False), 0)(photos, 0, 0)
    turned = Shaken(64, 6, Jitter((64, 64), (1.0, 1.0), 1.0, 1.0, False), 0)(photos, 0, 0)
    assert torch.equal(still.pixels.flip(2), turned.pixels)
    assert torch.equal(still.labels.flip(1), turned.labels)


def test_crops_that_one_class_fills_are_drawn_again():
    labels = np.zeros((100, 400), np.int32)
    labels[:, 300:] = 1 + np.arange(100) // 10 % 2
    jitter = lambda largest: Jitter((400, 100), (1.0, 1.0), largest, 0.0, False)
    pure = lambda largest: sum(
        int(len(Shaken(100, 3, jitter(largest), 0)(Photos([labels]), 0, turn).labels.unique()) == 1)
        for turn in range(60)
    )
    assert pure(1.0) > 25
    assert pure(0.75) < 6  # ten more draws, of which a third is mixed


def test_the_test_photo_keeps_its_own_labels():
    labels = blocks(50, 75)
    photo = Whole((400, 100), 6)(Photos([labels]), 0)
    assert photo.pixels.shape == (3, 100, 150)
    assert np.array_equal(photo.labels, labels)


def test_label_maps_take_the_label_under_the_centre():
    labels = np.arange(6, dtype=np.int16)[None]
    assert nearest(labels, (1, 3)).tolist() == [[1, 3, 5]]
    assert nearest(labels, (2, 12)).tolist() == [np.repeat(np.arange(6), 2).tolist()] * 2
    assert np.array_equal(Truth(6, (10, 8))(Photos([blocks(50, 40)]), 0), blocks(50, 40)[2::5, 2::5])


class Drawn:
    """A generator that gives these numbers in turn."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)

    def uniform(self, low, high):
        return low + (high - low) * self.numbers.pop(0)

    def integers(self, low, high):
        return int(low + (high - low) * self.numbers.pop(0))


def test_colours_change_as_drawn_and_stay_bytes():
    photo = np.full((2, 2, 3), (200, 100, 50), np.uint8)
    no = 0.9
    assert np.array_equal(distorted(photo, Drawn(no, no, no, no, no)), photo)
    assert distorted(photo, Drawn(0, 1.0, no, no, no, no))[0, 0].tolist() == [232, 132, 82]
    assert distorted(photo, Drawn(no, no, 0, 1.0, no, no))[0, 0].tolist() == [255, 150, 75]
    assert distorted(photo, Drawn(no, 0, no, no, 0, 0.0))[0, 0].tolist() == [100, 50, 25]  # late contrast, halved
    grey = distorted(photo, Drawn(no, no, no, 0, 0.0, no))[0, 0] / 255
    hue, saturation, value = colorsys.rgb_to_hsv(*grey)
    assert (hue, saturation, value) == pytest.approx((1 / 18, 0.375, 200 / 255), abs=0.02)
    turned = distorted(photo, Drawn(no, no, no, no, 0, 0.75))[0, 0] / 255  # 9 of 180 steps
    assert colorsys.rgb_to_hsv(*turned) == pytest.approx((1 / 18 + 1 / 20, 0.75, 200 / 255), abs=0.02)


def test_masks_that_do_not_fit_are_named():
    good = blocks(50, 40)
    with pytest.raises(BrokenImage, match="photo-0: its mask is 40 x 50 pixels, its photo 30 x 30"):
        Whole((400, 100), 6)(Photos([good], size=(30, 30)), 0)
    with pytest.raises(BrokenImage, match="photo-0: its mask holds the label 5; 5 classes are 0 to 4"):
        Shaken(64, 5, PLAIN, 0)(Photos([good]), 0, 0)
    with pytest.raises(BrokenImage, match="a class number per pixel"):
        Truth(6)(Photos([np.zeros((4, 4, 3), np.int32)]), 0)


def test_a_whole_crop_is_not_padded():
    crop = padded(np.ones((8, 8, 3), np.uint8), np.zeros((8, 8), np.int16), 8)
    assert crop.size == (8, 8) and (crop.pixels == 1).all() and not crop.labels.any()
