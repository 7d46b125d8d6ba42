"""People on the input: what is seen where, and that every place comes back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from evalkit.datasets.coco_pose import SKELETON
from evalkit.probing import placement
from evalkit.types import Figure

BOX = (20.0, 10.0, 68.0, 74.0)  # 48 x 64 onto 24 x 32: half the size
SIZE = (32, 24)


def photo(seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (80, 90, 3), dtype=np.uint8)
    return Image.fromarray(values)


def bilinear(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """The colour at a place between pixel centres; black outside the image, its border carried on to its edge."""
    height, width = image.shape[:2]
    if not (-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5):
        return np.zeros(3)
    left, top = math.floor(x), math.floor(y)
    dx, dy = x - left, y - top
    at = lambda c, r: image[min(max(r, 0), height - 1), min(max(c, 0), width - 1)].astype(float)
    upper = at(left, top) * (1 - dx) + at(left + 1, top) * dx
    lower = at(left, top + 1) * (1 - dx) + at(left + 1, top + 1) * dx
    return upper * (1 - dy) + lower * dy


@pytest.mark.parametrize(("turn", "flipped"), [(0.0, False), (0.0, True), (0.5, False), (-1.2, True)])
def test_the_input_is_the_photo_sampled_where_places_come_back_to(turn: float, flipped: bool):
    back = placement.onto(BOX, SIZE, turn=turn, flipped=flipped)
    image = photo()
    seen = placement.seen(image, np.zeros((1, 3)), back, SIZE)
    rng, pixels = np.random.default_rng(1), np.asarray(image)
    for row, column in rng.integers(0, [32, 24], (60, 2)):
        place = torch.tensor([[[float(column), float(row)]]])
        x, y = placement.on_photo(place, torch.from_numpy(back)[None])[0, 0].tolist()
        assert seen.pixels[:, row, column].numpy() == pytest.approx(bilinear(pixels, x, y), abs=1.01)


@pytest.mark.parametrize(("turn", "flipped"), [(0.0, False), (0.7, True)])
def test_keypoints_come_back_to_where_they_were(turn: float, flipped: bool):
    keypoints = np.column_stack([np.random.default_rng(0).uniform(0, 80, (17, 2)), np.arange(17) % 3])
    back = placement.onto(BOX, SIZE, turn=turn, flipped=flipped)
    seen = placement.seen(photo(), keypoints, back, SIZE)
    assert seen.labelled.tolist() == [k % 3 > 0 for k in range(17)]
    places = placement.on_photo(seen.points[None], seen.back[None])[0]
    assert places.numpy() == pytest.approx(keypoints[:, :2], abs=1e-4)


def test_the_corners_of_the_box_are_those_of_the_input():
    back = placement.onto(BOX, SIZE)
    corners = torch.tensor([[[-0.5, -0.5], [23.5, 31.5]]])
    assert placement.on_photo(corners, torch.from_numpy(back)[None])[0].tolist() == [[19.5, 9.5], [67.5, 73.5]]


def test_a_mirrored_input_is_the_input_mirrored():
    keypoints = np.array([[30.0, 40.0, 2]])
    plain = placement.seen(photo(), keypoints, placement.onto(BOX, SIZE), SIZE)
    mirrored = placement.seen(photo(), keypoints, placement.onto(BOX, SIZE, flipped=True), SIZE)
    assert bool((mirrored.pixels.flip(-1) == plain.pixels).all())
    assert float(mirrored.points[0, 0]) == pytest.approx(23 - float(plain.points[0, 0]))


def test_cells_cover_the_input():
    ends = torch.tensor([[-0.5, -0.5], [23.5, 31.5], [11.5, 15.5]])
    assert placement.in_cells(ends, SIZE, (8, 12)).tolist() == [[-0.5, -0.5], [11.5, 7.5], [5.5, 3.5]]
    assert placement.in_cells(placement.in_cells(ends, SIZE, (8, 12)), (8, 12), SIZE).tolist() == ends.tolist()


class People:
    """One photo, one person."""

    skeleton = SKELETON

    def __init__(self) -> None:
        places = np.column_stack([np.linspace(22, 66, 17), np.linspace(12, 70, 17), np.full(17, 2.0)])
        self.one = Figure(1, places, BOX, 900.0)

    def __getitem__(self, index: int):
        from evalkit.types import Sample

        return Sample(str(index), "a", 0, BOX)

    def figure(self, index: int) -> Figure:
        return self.one

    def image(self, group: str) -> Image.Image:
        return photo()


def test_a_turn_of_a_sample_is_the_same_whoever_asks_and_another_turn_is_another():
    reader = placement.Shaken(SIZE, placement.Jitter(), seed=3)
    first, again, other = (reader(People(), 5, turn) for turn in (1, 1, 2))
    assert bool((first.pixels == again.pixels).all()) and bool((first.points == again.points).all())
    assert not bool((first.back == other.back).all())


def test_flipping_gives_left_the_places_of_right():
    reader = placement.Shaken(SIZE, placement.Jitter(flip=1, half_body=0, scale=0, turn=0), seed=0)
    seen, plain = reader(People(), 0, 0), placement.Still(SIZE)(People(), 0)[0]
    for k, other in enumerate(SKELETON.mirrored):
        assert float(seen.points[k, 0]) == pytest.approx(23 - float(plain.points[other, 0]), abs=1e-4)
        assert SKELETON.names[k].split("_")[-1] == SKELETON.names[other].split("_")[-1]


def test_scale_and_turn_stay_in_their_bounds():
    jitter = placement.Jitter(flip=0, half_body=0, scale=0.5, turn=40, turned=1)
    one, rng = People().one, np.random.default_rng(0)
    scales, turns = [], []
    for _ in range(300):
        back, flipped = placement.shaken(one, BOX, SKELETON, jitter, SIZE, rng=rng)
        assert not flipped
        scales.append(math.sqrt(abs(np.linalg.det(back[:, :2])) / 4))
        turns.append(math.degrees(math.atan2(back[1, 0], back[0, 0])))
    assert min(scales) == pytest.approx(0.5) and max(scales) == pytest.approx(1.5)
    assert np.median(scales) == pytest.approx(1, abs=0.1)
    assert max(map(abs, turns)) <= 80.0001 and np.std(turns) == pytest.approx(38, abs=6)


def test_half_a_body_is_centred_at_its_mean_and_half_as_large_again():
    keypoints = np.zeros((17, 3))
    keypoints[0], keypoints[5], keypoints[6] = (10, 10, 2), (20, 30, 2), (30, 20, 1)
    keypoints[11], keypoints[13] = (50, 60, 2), (60, 90, 2)
    box = placement.half_body(keypoints, SKELETON.upper, BOX, upper_half=True)
    assert box == pytest.approx((20.5 - 15, 20.5 - 20, 20.5 + 15, 20.5 + 20))  # 20 x 20 at 3 : 4, times 1.5
    # the lower half has two alone: the upper one is taken
    assert placement.half_body(keypoints, SKELETON.upper, BOX, upper_half=False) == box
    keypoints[6, 2] = 0
    assert placement.half_body(keypoints, SKELETON.upper, BOX) == BOX
