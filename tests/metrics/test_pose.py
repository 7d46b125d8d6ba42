"""Heatmaps, their decoding, OKS and PCK, each against a plain restatement."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from evalkit.errors import FeatureError, ProtocolError, UsageError
from evalkit.metrics import pose


def gaussian(x: float, y: float, size: tuple[int, int], sigma: float) -> np.ndarray:
    return np.array(
        [[math.exp(-((c - x) ** 2 + (r - y) ** 2) / (2 * sigma**2)) for c in range(size[1])] for r in range(size[0])]
    )


def test_targets_are_gaussians_of_height_one():
    points = torch.tensor([[[3.25, 5.5], [9.0, 0.0]]])
    found = pose.targets(points, torch.ones(1, 2, dtype=torch.bool), (12, 10), sigma=2.0)
    maps = found.maps()
    assert maps.shape == (1, 2, 12, 10)
    for k, (x, y) in enumerate(points[0].tolist()):
        assert maps[0, k].numpy() == pytest.approx(gaussian(x, y, (12, 10), 2.0), abs=1e-6)
    assert float(maps[0, 1, 0, 9]) == 1


def test_a_keypoint_counts_when_labelled_and_within_three_sigma():
    points = torch.tensor([[[-6.0, 3.0], [-6.1, 3.0], [15.0, 3.0], [15.1, 3.0], [float("nan"), 0.0]]])
    labelled = torch.tensor([[True, True, True, True, False]])
    found = pose.targets(points, labelled, (8, 10), sigma=2.0)
    assert found.weight.tolist() == [[1, 0, 1, 0, 0]]
    assert bool(found.maps()[0, [1, 3, 4]].eq(0).all())


def test_what_targets_refuses():
    points, labelled = torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(UsageError, match="at least 1 x 1"):
        pose.targets(points, labelled, (0, 4), sigma=2.0)
    with pytest.raises(UsageError, match="sigma"):
        pose.targets(points, labelled, (4, 4), sigma=0.0)
    with pytest.raises(ProtocolError, match="not finite"):
        pose.targets(points * torch.nan, labelled, (4, 4), sigma=2.0)


def slow_quarter(map_: np.ndarray) -> tuple[float, float]:
    height, width = map_.shape
    best = max(range(map_.size), key=lambda i: (map_.flat[i], -i))
    x, y = best % width, best // width
    if 1 < x < width - 1 and 1 < y < height - 1:
        return (
            x + 0.25 * np.sign(map_[y, x + 1] - map_[y, x - 1]),
            y + 0.25 * np.sign(map_[y + 1, x] - map_[y - 1, x]),
        )
    return float(x), float(y)


def slow_dark(map_: np.ndarray) -> tuple[float, float]:
    height, width = map_.shape
    best = int(map_.argmax())
    x, y = best % width, best // width
    wide = np.pad(map_, 5)
    blurred = cv2.GaussianBlur(wide, (11, 11), 0)[5:-5, 5:-5]
    f = np.log(np.maximum(blurred * (map_.max() / blurred.max()), 1e-10).astype(np.float64))
    if not (1 < x < width - 2 and 1 < y < height - 2):
        return float(x), float(y)
    slope = np.array([(f[y, x + 1] - f[y, x - 1]) / 2, (f[y + 1, x] - f[y - 1, x]) / 2])
    cross = (f[y + 1, x + 1] - f[y - 1, x + 1] - f[y + 1, x - 1] + f[y - 1, x - 1]) / 4
    bend = np.array(
        [
            [(f[y, x + 2] - 2 * f[y, x] + f[y, x - 2]) / 4, cross],
            [cross, (f[y + 2, x] - 2 * f[y, x] + f[y - 2, x]) / 4],
        ]
    )
    return tuple(np.array([x, y]) - np.linalg.solve(bend, slope))


def test_quarter_agrees_with_a_loop_at_borders_and_ties_too():
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 12, (60, 3, 6, 7)).astype(np.float32)  # few values: many ties
    maps[0] = 0
    points, height = pose.decode(torch.from_numpy(maps), "quarter")
    for b in range(60):
        for k in range(3):
            assert points[b, k].tolist() == list(slow_quarter(maps[b, k]))
            assert float(height[b, k]) == maps[b, k].max()


def test_argmax_takes_the_first_in_reading_order():
    maps = torch.zeros(1, 1, 3, 4)
    maps[0, 0, 1, 2] = maps[0, 0, 2, 0] = 5
    assert pose.decode(maps, "argmax")[0].tolist() == [[[2, 1]]]


def test_dark_agrees_with_a_restatement_and_finds_the_middle_of_a_gaussian():
    rng = np.random.default_rng(1)
    spots = rng.uniform(4, 15, (20, 2))
    maps = np.stack([gaussian(x, y, (20, 20), 2.0) for x, y in spots]).astype(np.float32)[None]
    noisy = maps + rng.normal(0, 0.02, maps.shape).astype(np.float32)
    for given in (maps, noisy):
        points, _ = pose.decode(torch.from_numpy(given), "dark")
        slow = [slow_dark(map_) for map_ in given[0]]
        assert points[0].numpy() == pytest.approx(np.array(slow), abs=2e-3)
    assert pose.decode(torch.from_numpy(maps), "dark")[0][0].numpy() == pytest.approx(spots, abs=0.05)


def test_what_decode_refuses():
    with pytest.raises(FeatureError, match="not finite"):
        pose.decode(torch.full((1, 1, 2, 2), torch.nan))
    with pytest.raises(UsageError, match="argmax, quarter or dark"):
        pose.decode(torch.zeros(1, 1, 2, 2), "best")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="heatmaps of shape"):
        pose.decode(torch.zeros(1, 1, 0, 2))


def test_oks_by_hand():
    truth = torch.tensor([[[10.0, 10, 2], [20, 20, 1], [99, 99, 0]], [[0.0, 0, 0]] * 3])
    found = torch.tensor([[[10.0, 10], [23, 24], [0, 0]], [[0.0, 0]] * 3])
    value = pose.oks(found, truth, torch.tensor([400.0, 1.0]), (0.1, 0.2, 0.3))
    # keypoint 1: d = 5, (2 sigma)^2 = 0.16
    assert float(value[0]) == pytest.approx((1 + math.exp(-25 / (2 * 400 * 0.16))) / 2)
    assert bool(value[1].isnan())
    with pytest.raises(UsageError, match="do not fit"):
        pose.oks(found, truth, torch.ones(2), (0.1,))


def test_pck_by_hand():
    truth = torch.tensor([[[0.0, 0, 2], [0, 10, 1], [50, 50, 0]], [[0.0, 0, 2], [5, 5, 0], [1, 1, 2]]])
    length = pose.lengths(truth, ((0, 2), (0, 1)))  # the first pair is not labelled for person 0
    assert length.tolist()[0] == 10
    assert float(length[1]) == pytest.approx(math.sqrt(2))
    found = torch.tensor([[[2.0, 0], [2.01, 10], [0, 0]], [[0.0, 0.3], [0, 0], [9, 9]]])
    right = pose.pck(found, truth, length)
    assert right[0].tolist()[:2] == [1, 0]  # 2 of 10 is within a fifth, 2.01 is not
    assert right[1].tolist()[::2] == [0, 0]
    assert bool(right[0, 2].isnan()) and bool(right[1, 1].isnan())


def test_nobody_without_a_length_is_judged():
    truth = torch.tensor([[[3.0, 3, 2], [3, 3, 2]]])  # both at one place
    length = pose.lengths(truth, ((0, 1),))
    assert bool(length.isnan().all())
    assert bool(pose.pck(truth[..., :2], truth, length).isnan().all())
