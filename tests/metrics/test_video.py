"""J and F against slow restatements of their definitions, known values on simple shapes, and input that cannot be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.errors import ProtocolError
from evalkit.metrics import video


def slow_boundary(mask):
    """Pixels with a right, lower or lower right neighbour, inside the frame, of the other kind; as a list of places."""
    height, width = mask.shape
    return [
        (y, x)
        for y in range(height)
        for x in range(width)
        if any(
            y + dy < height and x + dx < width and mask[y + dy, x + dx] != mask[y, x]
            for dy, dx in ((0, 1), (1, 0), (1, 1))
        )
        # in the last row and column only the neighbour along the edge is left
    ]


def near(places, others, reach):
    """How many places have another one within the disk."""
    return sum(any((y - b) ** 2 + (x - a) ** 2 <= reach**2 for b, a in others) for y, x in places)


def slow(predicted, truth, objects, ends=False):
    """(objects, frames) J and F, pixel by pixel."""
    reach = math.ceil(0.008 * math.sqrt(truth.shape[1] ** 2 + truth.shape[2] ** 2))
    frames = range(len(truth)) if ends else range(1, len(truth) - 1)
    j, f = np.zeros((objects, len(frames))), np.zeros((objects, len(frames)))
    for k in range(objects):
        for column, number in enumerate(frames):
            guess, true = predicted[number] == k + 1, truth[number] == k + 1
            union = (guess | true).sum()
            j[k, column] = (guess & true).sum() / union if union else 1
            found, wanted = slow_boundary(guess), slow_boundary(true)
            if not found and not wanted:
                f[k, column] = 1
            elif found and wanted:
                precision = near(found, wanted, reach) / len(found)
                recall = near(wanted, found, reach) / len(wanted)
                f[k, column] = 2 * precision * recall / (precision + recall) if precision + recall else 0
    return j, f


def blobs(rng, frames, height, width, objects, disorder):
    """Label maps of moving rectangles, some pixels of them noise, some frames without an object; all in the first."""
    maps = np.zeros((frames, height, width), np.uint8)
    for number in range(frames):
        for k in range(1, objects + 1):
            y, x = rng.integers(0, height), rng.integers(0, width)
            h, w = rng.integers(1, height + 1), rng.integers(1, width + 1)
            if rng.random() < 0.85:
                maps[number, y : y + h, x : x + w] = k
    noise = rng.random(maps.shape) < disorder
    maps[noise] = rng.integers(0, objects + 1, noise.sum())
    maps[0].flat[:objects] = np.arange(1, objects + 1)
    return maps


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 24), st.integers(3, 24), st.integers(1, 3), st.booleans())
def test_it_is_the_definition(seed, height, width, objects, ends):
    rng = np.random.default_rng(seed)
    truth = blobs(rng, 4, height, width, objects, 0.02)
    predicted = np.where(rng.random(truth.shape) < 0.7, truth, blobs(rng, 4, height, width, objects, 0.05))
    found = video.evaluate(predicted, truth, ends=ends)
    j, f = slow(predicted, truth, objects, ends)
    np.testing.assert_allclose(found.j, j, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.f, f, rtol=0, atol=1e-12)


def test_a_wider_disk_is_the_definition_too():
    truth = np.zeros((3, 130, 260), np.uint8)  # radius 3
    truth[:, 20:50, 30:90], truth[:, 100:101, 5:240] = 1, 2
    found = video.evaluate(predicted := np.roll(truth, (3, 2), axis=(1, 2)), truth)
    assert video.radius((130, 260)) == 3
    np.testing.assert_allclose([found.j, found.f], slow(predicted, truth, 2), rtol=0, atol=1e-12)
    assert (found.f < 1).all()
    assert (found.f > 0.9).all()


def clip(*squares, size=20, frames=3):
    """A label map of squares (y, x, side), repeated."""
    labels = np.zeros((size, size), np.uint8)
    for number, (y, x, side) in enumerate(squares, 1):
        labels[y : y + side, x : x + side] = number
    return np.repeat(labels[None], frames, axis=0)


def test_known_values_on_squares():
    truth = clip((4, 4, 8))
    assert video.evaluate(truth, truth).per_object.tolist() == [1.0]
    beside = video.evaluate(clip((4, 8, 8)), truth)  # 4 of 8 columns overlap: 32 of 96 pixels
    assert beside.j.tolist() == [[pytest.approx(1 / 3)]]
    apart = video.evaluate(clip((0, 14, 2)), truth)
    assert (apart.j.item(), apart.f.item()) == (0, 0)


def test_a_boundary_is_one_pixel_towards_the_origin():
    mask = np.zeros((8, 9), np.uint8)
    mask[3:5, 4:7] = 1
    outline = np.zeros_like(mask)
    outline[2:5, 3:7] = 1
    outline[3:4, 4:6] = 0  # equal to all three neighbours
    np.testing.assert_array_equal(video.boundary(mask) > 0, outline > 0)
    assert not video.boundary(np.ones((5, 5), np.uint8)).any()


@pytest.mark.parametrize("reach", [1, 2, 3, 5, 8, 13, 40])
def test_what_grows_by_the_disk_is_what_lies_within_it(reach):
    """No gap, no step over the end of a row, for pixels at the frame's edge too."""
    pixels = np.zeros((23, 31), np.uint8)
    pixels[0, 0] = pixels[22, 30] = pixels[11, 17] = pixels[0, 30] = 255
    y, x = np.mgrid[:23, :31]
    near = np.logical_or.reduce(
        [(y - a) ** 2 + (x - b) ** 2 <= reach**2 for a, b in zip(*pixels.nonzero(), strict=True)]
    )
    row = 31 + reach
    grown = video._grown(video._bits(pixels, row), row, reach)
    assert [[grown >> (a * row + b) & 1 for b in range(31)] for a in range(23)] == near.astype(int).tolist()


def test_boundaries_count_as_found_within_the_disk_alone():
    truth = clip((5, 5, 8), size=24)  # radius 1
    assert video.evaluate(np.roll(truth, 1, axis=2), truth).f.item() == 1.0
    assert video.evaluate(np.roll(truth, 3, axis=2), truth, bound=3).f.item() == 1.0
    assert video.evaluate(np.roll(truth, 3, axis=2), truth, bound=2).f.item() < 0.8
    assert (video.radius((480, 854)), video.radius((480, 854), 5)) == (8, 5)


@pytest.mark.parametrize(
    ("guessed", "true", "j", "f"), [(False, False, 1, 1), (False, True, 0, 0), (True, False, 0, 0), (True, True, 1, 1)]
)
def test_empty_predictions_and_empty_truth(guessed, true, j, f):
    truth, predicted = clip((4, 4, 8)), clip((4, 4, 8))
    truth[1] *= true
    predicted[1] *= guessed
    found = video.evaluate(predicted, truth)
    assert (found.j.item(), found.f.item()) == (j, f)


def test_an_object_that_fills_the_frame_has_no_boundary_to_miss():
    truth = np.ones((3, 6, 6), np.uint8)
    assert video.evaluate(truth, truth).f.item() == 1.0
    part = truth.copy()
    part[1, :, 3:] = 0
    assert (video.evaluate(part, truth).j.item(), video.evaluate(part, truth).f.item()) == (0.5, 0)


def test_objects_that_leave_and_return():
    truth = clip((2, 2, 6), (10, 10, 5), frames=8)
    truth[3:5][truth[3:5] == 2] = 0
    stays = clip((2, 2, 6), (10, 10, 5), frames=8)
    found = video.evaluate(stays, truth)
    assert found.j[1].tolist() == [1, 1, 0, 0, 1, 1]
    assert found.j[0].tolist() == [1] * 6


def test_objects_that_enter_later_are_background():
    truth = clip((2, 2, 6), (10, 10, 5), frames=4)
    truth[0][truth[0] == 2] = 0
    found = video.evaluate(np.where(truth == 2, 0, truth), truth)
    assert found.j.tolist() == [[1, 1]]
    assert video.evaluate(truth, truth, objects=2).j.shape == (2, 2)


def test_the_first_and_the_last_frame_do_not_count():
    truth = clip((4, 4, 8), frames=5)
    wrong = truth.copy()
    wrong[0] = wrong[-1] = 9  # not even as ids
    assert video.evaluate(wrong, truth).per_object.item() == 1.0
    with pytest.raises(ProtocolError, match="the first is frame 0"):
        video.evaluate(wrong, truth, ends=True)


def test_void_pixels():
    truth = clip((4, 4, 8))
    truth[1, 8:10] = video.VOID
    whole = clip((4, 4, 8))
    assert video.evaluate(whole, truth, void="ignored").per_object.item() == 1.0
    as_background = video.evaluate(whole, truth)
    assert as_background.j.item() == 48 / 64
    without = truth.copy()
    without[without == video.VOID] = 0
    assert as_background.f.item() == video.evaluate(whole, without).f.item()


def slow_statistics(row):
    """Frames from 1; the quarters share the frame between them."""
    marks = [math.floor(1 + quarter * (len(row) - 1) / 4 + 0.5 + 1e-10) for quarter in range(5)]
    first, last = row[marks[0] - 1 : marks[1]], row[marks[3] - 1 : marks[4]]
    return np.mean(row), np.mean([value > 0.5 for value in row]), np.mean(first) - np.mean(last)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 6, 7, 48, 88, 255, 256, 257, 300, 1000])
def test_statistics(frames):
    row = np.random.default_rng(frames).random(frames) * np.linspace(1, 0.5, frames)
    np.testing.assert_allclose(video.statistics(row), slow_statistics(list(row)), rtol=0, atol=1e-12)


def test_decay_of_long_clips():
    row = np.repeat([1.0, 0.8, 0.6, 0.4], 100)
    assert video.statistics(row).decay == pytest.approx(0.6, abs=0.01)
    assert video.statistics(row).recall == 0.75


def test_recall_is_above_one_half():
    assert video.statistics([0.5, 0.5, 0.6, 0.2]).recall == 0.25


def test_clips_longer_than_255_frames():
    truth = clip((2, 2, 3), size=8, frames=300)
    predicted = truth.copy()
    predicted[280:] = 0
    found = video.evaluate(predicted, truth)
    assert found.j.shape == (1, 298)
    assert found.j.sum() == 279


def test_scores_are_means_over_objects_with_videos_resampled():
    one = video.ClipScore(np.array([[0.2, 0.4], [0.8, 0.8]]), np.array([[0.6, 0.8], [1.0, 1.0]]))
    other = video.ClipScore(np.array([[0.9, 0.9, 0.3]]), np.array([[0.9, 0.9, 0.3]]))
    found = {score.name: score for score in video.scores([one, other])}
    assert list(found) == ["J&F", "J", "J-recall", "J-decay", "F", "F-recall", "F-decay"]
    assert found["J&F"].outcomes.tolist() == pytest.approx([0.5, 0.9, 0.7])
    assert found["J&F"].groups.tolist() == [0, 0, 1]
    assert found["J&F"].value == pytest.approx(0.7)
    assert found["J"].value == pytest.approx((0.3 + 0.8 + 0.7) / 3)
    assert found["J-recall"].value == pytest.approx((0 + 1 + 2 / 3) / 3)
    assert found["F-decay"].value == pytest.approx((-0.2 + 0 + 0.6) / 3)
    assert (found["J"].n, found["J&F"].n) == (3, 3)
    assert {score.interval for score in found.values()} == {"none"}  # two videos are too few


def test_no_clip_is_no_number():
    for score in video.scores([]):
        assert math.isnan(score.value)
        assert score.n == 0


GOOD = clip((4, 4, 8), (14, 14, 4), frames=4)


@pytest.mark.parametrize(
    ("predicted", "truth", "message"),
    [
        (GOOD[:, :-1], GOOD, r"\(4, 19, 20\), the true ones \(4, 20, 20\)"),
        (GOOD[1:], GOOD, "the same frames"),
        (GOOD.astype(int), GOOD, r"predicted label maps are \(T, H, W\) uint8; what came is \(4, 20, 20\) int64"),
        (GOOD, GOOD[0], r"true label maps are \(T, H, W\) uint8"),
        (GOOD[:2], GOOD[:2], "2 frames of .* leave nothing to score; at least 3"),
        (GOOD[:, :0], GOOD[:, :0], "leave nothing to score"),
        (GOOD * 2, GOOD, r"predicted ids \[4\] in 2 frames, the first is frame 1; the video has 2 objects"),
        (GOOD, GOOD * 2, r"numbers its objects \[2, 4\]; \[1, 3\] are missing"),
        (GOOD * 0, GOOD * 0, "holds no object"),
    ],
)
def test_input_that_cannot_be(predicted, truth, message):
    with pytest.raises(ProtocolError, match=message):
        video.evaluate(predicted, truth)


def test_options_that_cannot_be():
    with pytest.raises(ProtocolError, match="must be above 0"):
        video.evaluate(GOOD, GOOD, bound=0)
    with pytest.raises(ProtocolError, match="'background' or 'ignored', not 'void'"):
        video.evaluate(GOOD, GOOD, void="void")
    with pytest.raises(ProtocolError, match="one value per frame"):
        video.statistics([])
