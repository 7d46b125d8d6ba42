"""Label propagation against a restatement of the published procedure, and what it does at its edges."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evalkit.errors import ProtocolError, UsageError
from evalkit.metrics import propagation
from evalkit.metrics.propagation import Rules, Tracker, label_map, nearest_label_map, propagate
from tests.runners import plain_video as plain


def clip(seed=0, frames=11, h=14, w=17, dim=6, labels=3):
    """Features that drift from frame to frame, and a first mask."""
    rng = torch.Generator().manual_seed(seed)
    start = torch.randn(h, w, dim, generator=rng)
    features = torch.stack([start.roll(t // 2, 1) + 0.4 * torch.randn(h, w, dim, generator=rng) for t in range(frames)])
    mask = torch.zeros(h, w, dtype=torch.int64)
    for label in range(1, labels):
        mask[3 * label : 3 * label + 4, 2 * label : 2 * label + 6] = label
    return features, mask


def one_hot(mask):
    return torch.stack([(mask == label).float() for label in range(int(mask.max()) + 1)])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("radius", "circle"), [(4, False), (4, True), (12, False), (1, False), (0, False)])
def test_soft_labels_are_those_of_the_published_procedure(seed, radius, circle):
    features, mask = clip(seed)
    rules = Rules(radius=radius, window="circle" if circle else "square")
    expected = plain.soft_labels(features, one_hot(mask), radius=radius, circle=circle)
    torch.testing.assert_close(propagate(features, mask, rules=rules), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("context", "neighbours", "temperature"), [(1, 5, 0.1), (3, 1, 0.2), (7, 9, 0.05), (20, 2, 1.0)]
)
def test_every_option_is_that_of_the_published_procedure(context, neighbours, temperature):
    features, mask = clip(5)
    rules = Rules(context=context, radius=3, neighbours=neighbours, temperature=temperature)
    how = {"context": context, "radius": 3, "neighbours": neighbours, "temperature": temperature}
    expected = plain.soft_labels(features, one_hot(mask), **how)
    torch.testing.assert_close(propagate(features, mask, rules=rules), expected, rtol=0, atol=2e-6)


def test_no_frame_before_leaves_the_first_one_alone():
    features, mask = clip()
    found = propagate(features, mask, rules=Rules(context=0, radius=4))
    near = plain.neighbourhood(*mask.shape, 4)
    expected = plain.step(features[9], [features[0]], [one_hot(mask)], near)
    torch.testing.assert_close(found[9], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("radius", [2, 12, 0])
def test_small_tiles_change_nothing(monkeypatch, radius):
    features, mask = clip(1)
    whole = propagate(features, mask, rules=Rules(radius=radius))
    propagation._tiles.cache_clear()
    monkeypatch.setattr(propagation, "SIDE", 3)
    monkeypatch.setattr(propagation, "WORK", {"cpu": 4000, "cuda": 4000})
    torch.testing.assert_close(propagate(features, mask, rules=Rules(radius=radius)), whole, rtol=0, atol=1e-6)
    propagation._tiles.cache_clear()


@pytest.mark.parametrize(("h", "w", "radius"), [(60, 104, 12), (5, 3, 12), (61, 2, 1), (60, 104, 0)])
def test_every_patch_is_in_one_tile_and_no_tile_exceeds_the_work(h, w, radius):
    rules = Rules(radius=radius)
    seen = torch.zeros(h, w)
    for tile in propagation._tiles(h, w, rules, torch.device("cpu")):
        seen[tile.inside] += 1
        size = [of.stop - of.start for of in (*tile.inside, *tile.window)]
        assert np.prod(size) * (1 + rules.context) <= propagation.WORK["cpu"]
    assert bool((seen == 1).all())


def test_patches_that_tie_with_the_last_one_taken_are_taken_too():
    """Features of few kinds: cosines are 0 or 1 exactly, so there are many more than five best."""
    rng = torch.Generator().manual_seed(3)
    kinds = torch.randint(4, (9, 8, 10), generator=rng)
    features, mask = torch.eye(4)[kinds], torch.randint(3, (8, 10), generator=rng)
    expected = plain.soft_labels(features, one_hot(mask), radius=3)
    found = propagate(features, mask, rules=Rules(radius=3))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    first = (
        (kinds[0] == kinds[1, 4, 5]) & (torch.arange(8)[:, None] - 4).abs().le(3) & (torch.arange(10) - 5).abs().le(3)
    )
    assert int(first.sum()) > 5
    assert float(found[1, 1, 4, 5]) == pytest.approx(float((mask[first] == 1).float().mean()), abs=1e-6)


def test_a_grid_smaller_than_the_neighbours_asks_all_there_are():
    features, mask = torch.randn(4, 1, 2, 3), torch.tensor([[0, 1]])
    expected = plain.soft_labels(features, one_hot(mask))
    torch.testing.assert_close(propagate(features, mask), expected, rtol=0, atol=1e-6)


def test_one_patch_after_another_is_the_same_as_all_at_once():
    features, mask = clip()
    assert torch.equal(propagate(iter(features), mask), propagate(features, mask))


def test_what_is_given_is_left_as_it_was():
    features, mask = clip()
    before = features.clone(), mask.clone()
    propagate(features, mask)
    assert torch.equal(features, before[0]) and torch.equal(mask, before[1])


def test_soft_labels_sum_to_one_and_half_precision_is_near():
    features, mask = clip(2)
    exact = propagate(features, mask)
    torch.testing.assert_close(exact.sum(1), torch.ones(exact.shape[0], *exact.shape[2:]))
    half = propagate(features, mask, rules=Rules(labels="float16"))
    assert 0 < float((half - exact).abs().max()) < 2e-3


def test_an_object_that_left_stays_a_label():
    features, _ = clip()
    tracker = Tracker(features[0], torch.zeros(14, 17, dtype=torch.int64), Rules(), objects=2)
    assert tracker.step(features[1]).shape == (3, 14, 17)


@pytest.mark.parametrize("patch", [1, 4, 14])
def test_pixels_take_the_label_that_the_published_procedure_gives(patch):
    soft = propagate(*clip(4))
    for labels in soft:
        expected = plain.pixel_scores(labels, patch).max(dim=0).indices
        assert torch.equal(label_map(labels, patch).long(), expected)


def test_a_label_that_is_the_same_everywhere_wins_as_in_the_released_code():
    """Background 1 everywhere: 0 / 0, which the maximum takes. An absent object is 0 everywhere and stays 0."""
    gone = torch.stack([torch.ones(3, 4), torch.zeros(3, 4)])
    assert not label_map(gone, 2).any()
    even = torch.stack([torch.full((3, 4), 0.25), torch.full((3, 4), 0.75)])
    assert torch.equal(label_map(even, 2).long(), plain.pixel_scores(even, 2).max(dim=0).indices)
    full = torch.stack([torch.zeros(3, 4), torch.ones(3, 4)])
    assert bool((label_map(full, 2) == 1).all())
    assert bool((nearest_label_map(full, (6, 8)) == 0).all()), "DINOv3's notebook makes NaN 0"


def test_nearest_labels_are_those_of_the_notebook():
    soft = propagate(*clip(6))[5]
    h, w = soft.shape[1:]
    rows, columns = (torch.arange(33) * h) // 33, (torch.arange(40) * w) // 40
    fine = soft[:, rows][:, :, columns]
    low, high = fine.amin((1, 2), keepdim=True), fine.amax((1, 2), keepdim=True)
    assert torch.equal(nearest_label_map(soft, (33, 40)).long(), ((fine - low) / (high - low)).argmax(0))


@pytest.mark.parametrize(("value", "sentence"), [
    ({"context": -1}, "context is -1; it must be at least 0"), ({"radius": -2}, "radius is -2"),
    ({"neighbours": 0}, "neighbours is 0; it must be at least 1"), ({"temperature": 0.0}, "temperature is 0.0"),
])  # fmt: skip
def test_rules_that_cannot_be_are_refused(value, sentence):
    with pytest.raises(UsageError, match=sentence):
        Rules(**value)


@pytest.mark.parametrize(("features", "mask", "sentence"), [
    (torch.zeros(0, 2, 2, 3), torch.zeros(2, 2, dtype=torch.int64), "without frames"),
    (torch.zeros(2, 2, 2, 3), torch.zeros(2, 3, dtype=torch.int64), r"size of the grid, \(2, 2\); \(2, 3\)"),
    (torch.zeros(2, 2, 2, 3), torch.zeros(2, 2), "whole ids"),
    (torch.zeros(2, 2, 2, 3), torch.full((2, 2), 255), "from 255 to 255"),
    (torch.zeros(2, 2, 3), torch.zeros(2, 2, dtype=torch.int64), r"\(h, w, D\) of a float dtype"),
])  # fmt: skip
def test_input_that_does_not_fit_is_refused(features, mask, sentence):
    with pytest.raises(ProtocolError, match=sentence):
        propagate(features, mask)


def test_frames_of_two_sizes_are_refused():
    with pytest.raises(ProtocolError, match="one size"):
        propagate([torch.zeros(2, 2, 3), torch.zeros(2, 3, 3)], torch.zeros(2, 2, dtype=torch.int64))


def test_the_four_loops_of_the_oracle_are_a_window():
    """The oracle itself: a patch sees exactly those within the radius."""
    near = plain.neighbourhood(5, 6, 2).reshape(5, 6, 5, 6)
    for i, j, p, q in itertools.product(range(5), range(6), range(5), range(6)):
        assert bool(near[i, j, p, q]) == (max(abs(i - p), abs(j - q)) <= 2)


def test_neither_the_order_nor_the_number_of_columns_shows_in_what_is_carried():
    """Sixths of float32 labels often lie halfway between two float32: there the order of a sum decides the last bit."""
    rng, rules = torch.Generator().manual_seed(0), propagation.Rules()
    labels = 0.25 + 0.75 * torch.rand(600, 2, generator=rng)
    values, index = torch.full((2000, 6), 0.5), torch.randint(600, (2000, 6), generator=rng)
    plain = propagation._carried(values, index, labels, 5, rules)
    for _ in range(3):
        shuffled = index[:, torch.randperm(6, generator=rng)]
        assert torch.equal(propagation._carried(values, shuffled, labels, 5, rules), plain)
    wider = F.pad(values, (2, 7), value=-1.0), F.pad(index, (2, 7))
    assert torch.equal(propagation._carried(*wider, labels, 5, rules), plain)
