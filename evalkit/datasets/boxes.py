"""Arithmetic of regions; boxes are (x0, y0, x1, y1) in pixels, x1 and y1 exclusive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

from evalkit.types import Box

Name = TypeVar("Name", int, str)


def squared(box: Box) -> Box:
    """The square of the longer side around the same centre; it may reach outside the image, where pixels are black."""
    x0, y0, x1, y1 = box
    half = max(x1 - x0, y1 - y0) / 2
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return (x - half, y - half, x + half, y + half)


def frequent(train: Iterable[Name], test: Iterable[Name], *, min_train: int, min_test: int) -> set[Name]:
    """The classes, by number or name, that occur at least `min_train` times in one split and `min_test` times in the other."""
    first, second = Counter(train), Counter(test)
    return {number for number in first if first[number] >= min_train and second[number] >= min_test}
