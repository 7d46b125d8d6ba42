"""Square crops around keypoints: which keypoints have one, how large it is, and what was left out, counted.

    d        distance from a keypoint to the nearest other chosen keypoint, in pixels
    crop     a square of side d, centred at the keypoint, in whole pixels

Source: Zhu et al., Understanding Self-Supervised Pretraining with Part-Aware Representation Learning (arXiv:2301.11915),
part retrieval. The paper and the released code (JiePKU/understand-ssl-part-aware ffea818, retrieval-classification/
moco/loader.py:163-173, 217-220, 249-281) differ; `Rule` has both. Keypoints at the very same place are not "other"
keypoints to each other, as in the code. Nothing is known of keypoints that are not visible, so they take no part at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from evalkit.datasets import images
from evalkit.datasets.files import Tree
from evalkit.errors import BrokenImage, DatasetError
from evalkit.types import Box

HEAD = 1 << 16
"""Bytes of a photo that are read for its size; nearly every header is shorter."""


@dataclass(frozen=True)
class Rule:
    """How crops are cut. The defaults are the paper's; values in brackets are what the released code does.

    distance: "image": to the nearest other keypoint of the image, whoever it belongs to. ["annotation-id": to the nearest
    by (x, y, id of the person's annotation), so that another person is as far away as the two ids are apart, which is
    the same person in effect, but not always; moco/loader.py:265-273. Where an image has one person they are the same.]
    side: "d" [or "d/2": twice round(d / 4), halves to even; moco/loader.py:173, 218]. limits: d must lie strictly between
    these pixels, None for any [(40, 2000), stated there as 20 < d / 2 < 1000]. outside: keypoints beyond the border of
    their image are left out and counted (ours) ["keep"]. border: crops that reach over the border of the image are kept,
    filled as the recipe's view says [black], or with "drop" left out and counted.
    """

    distance: Literal["image", "annotation-id"] = "image"
    side: Literal["d", "d/2"] = "d"
    limits: Annotated[tuple[float, float], Field(description="pixels")] | None = None
    outside: Literal["skip", "keep"] = "skip"
    border: Literal["keep", "drop"] = "keep"


class Point(NamedTuple):
    """A visible chosen keypoint. x, y: pixels. label: place among the chosen parts. owner: id of the person or bird."""

    x: float
    y: float
    label: int
    owner: int


class Crop(NamedTuple):
    """A keypoint and its square, corners in whole pixels of the image."""

    point: Point
    box: Box


def crops(points: Sequence[Point], rule: Rule, size: tuple[int, int] | None) -> tuple[list[Crop], Counter[str]]:
    """The crops of one image, in the order of its keypoints, and how many keypoints were left out for which reason.

    points: the visible chosen keypoints of one image. size: (width, height) in pixels, None where it is not known; then
    nothing lies outside. Reasons: "outside the image", "alone" (of its owner's chosen keypoints only one is visible),
    "same place" (as all others), "limits", "border".
    """
    skipped: Counter[str] = Counter()
    left = list(points)
    if rule.outside == "skip" and size is not None:
        # the border itself is inside: data sets do not say whether they count from 0 or from 1
        left = [point for point in points if 0 <= point.x <= size[0] and 0 <= point.y <= size[1]]
        skipped["outside the image"] = len(points) - len(left)
    owned = Counter(point.owner for point in left)
    kept = [point for point in left if owned[point.owner] > 1]
    skipped["alone"] = len(left) - len(kept)
    found = []
    for point, distance in zip(kept, nearest(kept, rule).tolist(), strict=True):
        reason, box = _judged(point, distance, rule, size)
        if reason:
            skipped[reason] += 1
        else:
            found.append(Crop(point, box))
    return found, +skipped


def nearest(points: Sequence[Point], rule: Rule) -> npt.NDArray[np.float64]:
    """(N,) distance of each keypoint to the nearest at another place, by the rule; infinite where there is none."""
    places = np.array([(point.x, point.y, point.owner) for point in points], dtype=np.float64).reshape(-1, 3)
    if rule.distance == "image":
        places = places[:, :2]
    between = np.sqrt(((places[:, None] - places[None]) ** 2).sum(axis=2))
    between[between == 0] = np.inf
    least: npt.NDArray[np.float64] = between.min(axis=1, initial=np.inf)
    return least


def square(x: float, y: float, side: int) -> Box:
    """The box of `side` whole pixels around a place; its upper left corner rounds to the nearest, halves to even."""
    left, top = round(x - side / 2), round(y - side / 2)
    return (float(left), float(top), float(left + side), float(top + side))


def chosen(parts: Sequence[str | int], names: Sequence[str], what: str) -> tuple[int, ...]:
    """Where the parts asked for stand among the names, from 0. parts: names, or numbers from 1 as the data sets count.

    Raises DatasetError for a part that does not exist, with all names, for one asked for twice, and for fewer than two:
    a keypoint's crop is measured by another one.
    """
    found = []
    for part in parts:
        if part in names:
            found.append(list(names).index(str(part)))
        elif isinstance(part, int) and not isinstance(part, bool) and 1 <= part <= len(names):
            found.append(part - 1)
        else:
            listed = ", ".join(f"{number} {name}" for number, name in enumerate(names, start=1))
            raise DatasetError(f"{what} has no part {part!r}; its {len(names)} parts are: {listed}")
    if len(set(found)) < len(found):
        raise DatasetError(f"the parts {list(parts)} of {what} name one part twice")
    if len(found) < 2:
        raise DatasetError(f"the parts {list(parts)} of {what} are too few: a crop's size is the distance between two")
    return tuple(found)


def sizes(tree: Tree, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(width, height) as stored of each image file, from its header; files that cannot be read are left out, since
    decoding will say so."""
    found = {}
    for name in names:
        try:
            found[name] = _size(tree, name)
        except BrokenImage:
            continue
    return found


def facts(rule: Rule, skipped: Counter[str], crops: int) -> dict[str, Any]:
    """What the record says of a split: keypoints left out, by reason. Raises DatasetError where no crop is left."""
    if not crops:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(skipped.items())) or "there are none"
        raise DatasetError(f"no crop is left of this split; keypoints left out: {reasons}")
    return {"keypoints_left_out": dict(sorted(skipped.items())), "distance": rule.distance, "side": rule.side}


def _size(tree: Tree, name: str) -> tuple[int, int]:
    try:
        return images.size(tree.read(name, HEAD), tree.where(name))
    except BrokenImage:
        return images.size(tree.read(name), tree.where(name))


def _judged(point: Point, distance: float, rule: Rule, size: tuple[int, int] | None) -> tuple[str, Box]:
    nothing = (0.0, 0.0, 0.0, 0.0)
    if not np.isfinite(distance):
        return "same place", nothing
    if rule.limits is not None and not rule.limits[0] < distance < rule.limits[1]:
        return "limits", nothing
    side = max(1, round(distance) if rule.side == "d" else 2 * round(distance / 4))
    box = square(point.x, point.y, side)
    crosses = size is not None and (box[0] < 0 or box[1] < 0 or box[2] > size[0] or box[3] > size[1])
    return ("border" if crosses and rule.border == "drop" else ""), box
