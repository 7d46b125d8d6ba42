"""Crops around keypoints, against loops that follow the words of the rule."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from evalkit.datasets.crops import Point, Rule, chosen, crops, nearest, square
from evalkit.errors import DatasetError

RELEASED = Rule(distance="annotation-id", side="d/2", limits=(40, 2000), outside="keep")


def points(count: int, owners: int, seed: int) -> list[Point]:
    rng = np.random.default_rng(seed)
    places = rng.integers(0, 400, (count, 2)).astype(float)
    return [Point(x, y, n % 3, int(rng.integers(1, owners + 1)) * 7) for n, (x, y) in enumerate(places.tolist())]


@pytest.mark.parametrize("distance", ["image", "annotation-id"])
def test_distances_against_a_loop(distance: str) -> None:
    given = points(20, 4, seed=1)
    given[3] = given[5]._replace(label=1)
    rule = Rule(distance=distance)  # type: ignore[arg-type]
    for mine, one in zip(nearest(given, rule), given, strict=True):
        found = []
        for other in given:
            between = [one.x - other.x, one.y - other.y] + ([one.owner - other.owner] * (distance != "image"))
            if any(between):
                found.append(math.hypot(*between))
        assert mine == pytest.approx(min(found), abs=1e-12)


def test_the_annotation_id_is_a_third_coordinate() -> None:
    """Two people close in the picture and far in ids do not see each other; close in ids too, they do."""
    a, b = Point(100, 100, 0, 1000), Point(100, 200, 1, 1000)
    for near, expected in ((9000, 100.0), (1030, math.hypot(10, 30))):
        stranger = [Point(110, 100, 0, near), Point(110, 300, 1, near)]
        assert nearest([a, b, *stranger], RELEASED)[0] == pytest.approx(expected)
        assert nearest([a, b, *stranger], Rule())[0] == 10


def test_the_papers_square_and_the_released_one() -> None:
    pair = [Point(150, 100.4, 0, 1), Point(150, 203.9, 1, 1)]  # d = 103.5
    assert crops(pair, Rule(), (300, 300))[0][0].box == (98, 48, 202, 152)  # side 104
    assert crops(pair, RELEASED, (300, 300))[0][0].box == (124, 74, 176, 126)  # half round(25.875)
    for side in (1, 2, 7, 104):
        for x in (0.0, 0.5, 1.5, 2.25, 99.5):
            x0, y0, x1, y1 = square(x, 3, side)
            assert x1 - x0 == y1 - y0 == side
            assert abs((x0 + x1) / 2 - x) <= 0.5


def test_released_limits_are_strict() -> None:
    for d, kept in ((40, 0), (40.001, 2), (1999.999, 2), (2000, 0)):
        found, skipped = crops([Point(0, 0, 0, 1), Point(d, 0, 1, 1)], RELEASED, None)
        assert len(found) == kept
        assert skipped == ({"limits": 2} if not kept else {})
    assert len(crops([Point(0, 0, 0, 1), Point(0.2, 0, 1, 1)], Rule(), None)[0]) == 2


def test_what_is_left_out_is_counted() -> None:
    pair = [Point(50, 50, 0, 1), Point(50, 90, 1, 1)]
    stray = [Point(51, 50, 0, 2)]
    assert crops(pair + stray, Rule(), (100, 100))[1] == Counter(alone=1)
    assert crops(pair + stray, Rule(), (100, 100))[0][0].box == (30, 30, 70, 70)  # who stands alone is not "another"
    beyond = [Point(50, 50, 0, 1), Point(50, 101, 1, 1)]
    assert crops(beyond, Rule(), (100, 100)) == ([], Counter({"outside the image": 1, "alone": 1}))
    assert crops(beyond, Rule(), None)[1] == Counter()
    assert len(crops(beyond, Rule(outside="keep"), (100, 100))[0]) == 2
    same = [Point(50, 50, label, 1) for label in range(3)]
    assert crops(same, Rule(), (100, 100)) == ([], Counter({"same place": 3}))
    assert crops([*same, Point(50, 60, 3, 1)], Rule(), (100, 100))[1] == Counter()
    assert crops([], Rule(), (100, 100)) == ([], Counter())


def test_crops_over_the_border_are_kept_or_dropped() -> None:
    pair = [Point(10, 50, 0, 1), Point(50, 50, 1, 1)]
    assert [c.box[0] for c in crops(pair, Rule(), (100, 100))[0]] == [-10, 30]
    dropped = crops(pair, Rule(border="drop"), (100, 100))
    assert [c.point.label for c in dropped[0]] == [1]
    assert dropped[1] == Counter(border=1)


def test_parts_by_name_and_by_number() -> None:
    names = ("beak", "left eye", "tail")
    assert chosen(["tail", 1], names, "a bird") == (2, 0)
    for parts, said in (
        (["beak", "ear"], "a bird has no part 'ear'; its 3 parts are: 1 beak, 2 left eye, 3 tail"),
        ([0, 1], "no part 0"),
        ([1, 4], "no part 4"),
        (["beak", 1], "name one part twice"),
        (["beak"], "too few"),
    ):
        with pytest.raises(DatasetError, match=said):
            chosen(parts, names, "a bird")
