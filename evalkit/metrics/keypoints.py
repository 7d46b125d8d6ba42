"""COCO's average precision and recall of poses, by pycocotools, with intervals over photos.

What:   poses of a photo are matched to its people by object keypoint similarity at the thresholds 0.5, 0.55 ... 0.95; AP
        is the mean precision at 101 recalls, AR the recall that is reached; the mean over thresholds unless one is named;
        M and L count people of 32^2 to 96^2 square pixels and of more.
Source: cocodataset.org, "Keypoint evaluation"; pycocotools' `COCOeval` gives every value.
How:    an interval asks for the value of thousands of resamples of photos. A photo's matches do not depend on the other
        photos, so they are taken from `COCOeval` once, and a resample is a weight per photo in its last step: equal to
        evaluating the resample anew.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.errors import ProtocolError
from evalkit.metrics.intervals import FEWEST
from evalkit.types import Box

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

AREAS = ("all", "M", "L")
"""pycocotools' area ranges of keypoints, in its order."""

STATISTICS: Mapping[str, tuple[str, str, int | None]] = {
    f"{kind}{suffix}": (kind, area, threshold)
    for kind in ("AP", "AR")
    for suffix, area, threshold in (("", "all", None), ("50", "all", 0), ("75", "all", 5), ("M", "M", None), ("L", "L", None))
}  # fmt: skip
"""Name: (precision or recall, people of which size, number of the threshold or None for all); pycocotools' order."""

RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class Truth:
    """One annotated person. image: number of the photo. keypoints: (K, 3) x, y, visibility. area: of its outline in
    square pixels. box: published. counts: False for whom a pose may be found without being right or wrong."""

    image: int
    keypoints: Floats
    area: float
    box: Box
    counts: bool = True
    crowd: bool = False


@dataclass(frozen=True, eq=False)
class Pose:
    """One found pose. image: number of the photo. keypoints: (K, 2) x and y in pixels. score: higher is surer."""

    image: int
    keypoints: Floats
    score: float


@dataclass(frozen=True, eq=False)
class Table:
    """What became of every pose, for people of one size. Poses stand from the surest down, ties in the order of photos.

    hit, miss: (T, D) right, wrong at each threshold; neither where it does not count. image: (D,) row of the photo.
    people: (I,) of each photo that are to be found.
    """

    hit: Bools
    miss: Bools
    image: npt.NDArray[np.int64]
    people: Floats
    recalls: Floats

    def measured(self, weights: Floats) -> tuple[Floats, Floats]:
        """(T, R) precision and (T,) recall where photo i is there weights[i] times; NaN where nobody is to be found.

        The arithmetic of `COCOeval.accumulate`, with counts that are weighted.
        """
        total = weights @ self.people
        thresholds = len(self.hit)
        if total == 0:
            return np.full((thresholds, len(self.recalls)), np.nan), np.full(thresholds, np.nan)
        each = weights[self.image]
        right, wrong = np.cumsum(self.hit * each, axis=1), np.cumsum(self.miss * each, axis=1)
        recall, precision = right / total, right / (wrong + right + np.spacing(1))
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        best = np.concatenate([best, np.zeros((thresholds, 1))], axis=1)
        found = np.stack([best[t, np.searchsorted(recall[t], self.recalls)] for t in range(thresholds)])
        return found, recall[:, -1] if recall.shape[1] else np.zeros(thresholds)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """values: by the names of `STATISTICS`, fractions, NaN where nobody of that size is there. tables: by size.
    photos: how many there are."""

    values: Mapping[str, float]
    tables: Mapping[str, Table]
    photos: int

    def resampled(self, weights: Floats) -> dict[str, float]:
        """The same statistics where photo i, in the order of the numbers, is there weights[i] times."""
        measured = {area: table.measured(weights) for area, table in self.tables.items()}
        found = {}
        for name, (kind, area, threshold) in STATISTICS.items():
            rows = measured[area][0 if kind == "AP" else 1]
            found[name] = float(np.mean(rows if threshold is None else rows[threshold]))
        return found


def evaluate(people: Sequence[Truth], poses: Sequence[Pose], sigmas: Sequence[float]) -> Evaluation:
    """AP and AR of poses. sigmas: (K,) of the keypoints. Photos are those of the people.

    Raises ProtocolError where there is nobody, a pose in a photo of nobody, keypoints that do not match the sigmas, or
    scores or places that are not finite. At most 20 poses of a photo count, the surest first (COCO's rule).
    """
    _check(people, poses, sigmas)
    with contextlib.redirect_stdout(io.StringIO()):
        found = _judged(people, poses, sigmas)
        found.summarize()
    values = [float(v) if v > -1 else float("nan") for v in found.stats]
    images = {number: row for row, number in enumerate(found.params.imgIds)}
    count = len(images)
    tables = {
        area: _table([e for e in found.evalImgs[i * count : (i + 1) * count] if e], images, found.params)
        for i, area in enumerate(AREAS)
    }
    return Evaluation(dict(zip(STATISTICS, values, strict=True)), tables, count)


def resample(evaluation: Evaluation, *, resamples: int | None = None, seed: int = 0) -> dict[str, Floats]:
    """(resamples,) values of each statistic, photos drawn with replacement; the same photos for every evaluation of as
    many photos. NaN where a resample holds nobody of that size; no value at all for fewer than `FEWEST` photos, of which
    nothing can be told. resamples: 2,000."""
    photos, count = evaluation.photos, RESAMPLES if resamples is None else resamples
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(photos, np.full(photos, 1 / photos), size=count if photos >= FEWEST else 0)
    rows = [evaluation.resampled(weights) for weights in drawn.astype(np.float64)]
    return {name: np.array([row[name] for row in rows]) for name in STATISTICS}


def _judged(people: Sequence[Truth], poses: Sequence[Pose], sigmas: Sequence[float]) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = {
        "images": [{"id": number} for number in sorted({person.image for person in people})],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [_annotation(person, number) for number, person in enumerate(people, start=1)],
    }
    truth.createIndex()
    rows = [
        {
            "image_id": pose.image,
            "category_id": 1,
            "keypoints": np.column_stack([pose.keypoints, np.ones(len(sigmas))]).ravel().tolist(),
            "score": pose.score,
        }
        for pose in poses
    ]
    # an empty list is no result for pycocotools: a COCO without annotations stands for it
    found = truth.loadRes(rows) if rows else _empty(truth)
    judge = COCOeval(truth, found, "keypoints")
    judge.params.kpt_oks_sigmas = np.asarray(sigmas, np.float64)
    judge.evaluate()
    judge.accumulate()
    return judge


def _empty(truth: Any) -> Any:
    from pycocotools.coco import COCO

    found = COCO()
    found.dataset = {**truth.dataset, "annotations": []}
    found.createIndex()
    return found


def _annotation(person: Truth, number: int) -> dict[str, Any]:
    x0, y0, x1, y1 = person.box
    labelled = int((person.keypoints[:, 2] > 0).sum()) if person.counts else 0  # none: pycocotools ignores the person
    return {
        "id": number, "image_id": person.image, "category_id": 1, "area": person.area, "iscrowd": int(person.crowd),
        "bbox": [x0, y0, x1 - x0, y1 - y0], "keypoints": person.keypoints.ravel().tolist(), "num_keypoints": labelled,
    }  # fmt: skip


def _table(images: Sequence[Mapping[str, Any]], rows: Mapping[int, int], params: Any) -> Table:
    people = np.zeros(len(rows))
    for image in images:
        people[rows[image["image_id"]]] = np.count_nonzero(np.asarray(image["gtIgnore"]) == 0)
    scores = np.concatenate([np.zeros(0), *(image["dtScores"] for image in images)])
    order = np.argsort(-scores, kind="mergesort")
    none = np.zeros((len(params.iouThrs), 0))
    matched = np.concatenate([none, *(image["dtMatches"] for image in images)], axis=1)[:, order] > 0
    ignored = np.concatenate([none, *(image["dtIgnore"] for image in images)], axis=1)[:, order] > 0
    photo = [row for image in images for row in [rows[image["image_id"]]] * len(image["dtScores"])]
    where = np.asarray(photo, np.int64)[order]
    return Table(matched & ~ignored, ~matched & ~ignored, where, people, np.asarray(params.recThrs))


def _check(people: Sequence[Truth], poses: Sequence[Pose], sigmas: Sequence[float]) -> None:
    if not any(person.counts for person in people):
        raise ProtocolError("there is nobody whose pose could be found")
    photos = {person.image for person in people}
    if strange := sorted({pose.image for pose in poses} - photos):
        raise ProtocolError(f"{len(strange)} photos have poses and no people, the first is number {strange[0]}")
    lengths = {len(person.keypoints) for person in people} | {len(pose.keypoints) for pose in poses}
    if lengths != {len(sigmas)}:
        raise ProtocolError(f"every person and pose needs {len(sigmas)} keypoints, one per sigma")
    if not all(np.isfinite(pose.score) and np.isfinite(pose.keypoints).all() for pose in poses):
        raise ProtocolError("a pose has a place or a score that is not finite")
