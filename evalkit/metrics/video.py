"""Region similarity J and boundary accuracy F of segmented videos, from label maps in memory.

What:   J of an object in a frame is the Jaccard index of its pixels. F is the harmonic mean of boundary precision and
        recall: a boundary pixel counts as found where the other boundary has a pixel within a disk of radius
        ceil(0.008 x diagonal), 8 px at 480 x 854. A video's first and last frames are left out, an object's value is
        its mean over the other frames, and a data set's value is the mean over objects, not over videos.
Source: Perazzi et al., CVPR 2016, section 5 (J, F, mean, recall, decay); Pont-Tuset et al., arXiv:1704.00675 (several
        objects). Details as davisvideochallenge/davis2017-evaluation ac7c43f has them: davis2017/metrics.py:7-111 and
        114-171, evaluation.py:25-41 and 82-90, utils.py:133-163, davis.py:90-96. One of its details is left behind:
        decay there keeps frame numbers in 8 bits and is wrong past 255 frames.
How:    all work of an object happens inside the rectangle that holds its predicted and its true pixels. A boundary is
        where a pixel differs from its right, lower or lower right neighbour: a morphological gradient over 2 x 2. To see
        which of its pixels lie near the other one, that is grown by the disk, as one whole number with a bit per pixel: a
        shift moves all pixels at once, "or" unites them, and counting bits counts pixels.
Expect: the official scorer's numbers to the last bits of float64, at some 10 times its speed (bench/video_score.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from evalkit.errors import ProtocolError
from evalkit.metrics import bootstrap
from evalkit.types import Score

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

VOID = 255
"""The label of pixels where nothing counts."""

BOUND = 0.008
"""How far a boundary may be off, as a share of the diagonal (davis2017-evaluation ac7c43f, metrics.py:41)."""

BINS = 4
"""Decay compares the first quarter of the frames with the last (davis2017-evaluation ac7c43f, utils.py:151)."""

CORNER = np.ones((2, 2), np.uint8)
"""A pixel and its right, lower and lower right neighbours, when anchored at (0, 0)."""


class Statistic(NamedTuple):
    """What is told of an object's frames. mean and recall (share of frames above 0.5) in [0, 1]; decay in [-1, 1]: mean
    of the first quarter minus mean of the last, 0 is no loss."""

    mean: float
    recall: float
    decay: float


@dataclass(frozen=True, eq=False)
class ClipScore:
    """J and F of one video: (objects, frames) float64 in [0, 1], objects by id from 1, scored frames in order."""

    j: Floats
    f: Floats

    @property
    def per_object(self) -> Floats:
        """(objects,) float64: J&F, half of mean J plus mean F."""
        both: Floats = (self.j.mean(axis=1) + self.f.mean(axis=1)) / 2
        return both


def evaluate(
    predicted: npt.NDArray[Any],
    truth: npt.NDArray[Any],
    *,
    objects: int | None = None,
    void: Literal["background", "ignored"] = "background",
    ends: bool = False,
    bound: float = BOUND,
) -> ClipScore:
    """Score one video.

    predicted: (T, H, W) uint8 ids, 0 background; an object that is missing from it is an empty prediction.
    truth: (T, H, W) uint8 ids, VOID where nothing counts; ids above `objects` (they enter later) are background.
    objects: how many there are; None takes the largest id of the first true frame. void: what becomes of VOID pixels:
    "background", as the semi-supervised task has it, or "ignored", as the unsupervised one. ends: score the first
    and last frame too. bound: in (0, 1) a share of the diagonal, from 1 a radius in pixels.
    Raises ProtocolError for arrays that are not (T, H, W) uint8 or differ in shape, for no frame to score, for ids of
    the first frame with gaps, for no object, and for predicted ids above the number of objects in a scored frame.
    """
    _check_arrays(predicted, truth, ends)
    count = _objects(truth[0]) if objects is None else objects
    if count < 1:
        raise ProtocolError("the first true frame holds no object, so there is nothing to score")
    scored = slice(None) if ends else slice(1, -1)
    predicted, truth = predicted[scored], truth[scored]
    _check_ids(predicted, truth, count, void, first=0 if ends else 1)
    reach = radius(truth.shape[1:], bound)
    values = np.empty((2, count, len(truth)))
    room = np.empty(
        (3, *truth.shape[1:]), np.uint8
    )  # taken once: fresh pages for every mask cost more than the work on it
    for number, (guess, true) in enumerate(zip(predicted, truth, strict=True)):
        if void == "ignored":
            guess = np.where(true == VOID, np.uint8(0), guess)
        values[:, :, number] = _frame(guess, true, count, reach, room)
    return ClipScore(values[0], values[1])


def statistics(values: npt.ArrayLike) -> Statistic:
    """Mean, recall and decay of one object. values: (frames,) float, in order. Raises ProtocolError for no frame.

    Quarters share the frame between them, as in the official code (utils.py:151-161).
    """
    row = np.asarray(values, dtype=np.float64)
    if row.ndim != 1 or not row.size:
        raise ProtocolError(f"statistics are of one value per frame, shape (frames,); what came has shape {row.shape}")
    edges = np.round(np.linspace(1, row.size, BINS + 1) + 1e-10).astype(int) - 1
    first, last = row[edges[0] : edges[1] + 1], row[edges[-2] : edges[-1] + 1]
    return Statistic(float(row.mean()), float((row > 0.5).mean()), float(first.mean() - last.mean()))


def scores(clips: Sequence[ClipScore], *, seed: int = 0) -> list[Score]:
    """What the official scorer prints, with intervals: J&F, J, J-recall, J-decay, F, F-recall, F-decay.

    Units are objects (n), outcomes one per object in the order of the clips; the objects of a video are resampled
    together, so a video weighs as many objects as it has, in the value and in every resample. No clip gives NaN with
    n = 0. seed: of the bootstrap. Decays may be negative.
    """
    videos = [number for number, clip in enumerate(clips) for _ in clip.j]
    columns = {"J&F": [value for clip in clips for value in clip.per_object]}
    for letter in ("J", "F"):
        rows = [statistics(row) for clip in clips for row in (clip.j if letter == "J" else clip.f)]
        columns[letter] = [row.mean for row in rows]
        columns[f"{letter}-recall"] = [row.recall for row in rows]
        columns[f"{letter}-decay"] = [row.decay for row in rows]
    return [_score(name, outcomes, videos, seed) for name, outcomes in columns.items()]


def _score(name: str, outcomes: list[float], videos: list[int], seed: int) -> Score:
    if not name.endswith("decay"):
        return bootstrap.score(name, outcomes, videos, seed=seed)
    # a decay is a difference of fractions: 0 is no bound of it
    return replace(bootstrap.score(name, outcomes, videos, unit="difference", seed=seed), unit="fraction")


def radius(shape: tuple[int, ...], bound: float = BOUND) -> int:
    """Pixels that a boundary may be off in a frame of shape (H, W): ceil(bound x diagonal), or `bound` itself from 1.

    Raises ProtocolError for a bound of 0 or less.
    """
    if not bound > 0:
        raise ProtocolError(f"the bound of a boundary is {bound}; it must be above 0, as {BOUND}")
    return int(bound) if bound >= 1 else math.ceil(bound * math.sqrt(shape[0] ** 2 + shape[1] ** 2))


def boundary(mask: Bytes) -> Bytes:
    """(H, W) uint8, above 0 where a pixel of a two-valued mask differs from its right, lower or lower right neighbour.

    Neighbours outside the frame do not count, so a mask that fills the frame has no boundary.
    """
    return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, CORNER, anchor=(0, 0)), dtype=np.uint8)


def _frame(predicted: Bytes, truth: Bytes, objects: int, reach: int, room: Bytes) -> list[tuple[float, ...]]:
    """((J of each object), (F of each object)). room: (3, H, W) to work in."""
    pairs = [
        _object(_mask(predicted, k, room[0]), _mask(truth, k, room[1]), reach, room[2]) for k in range(1, objects + 1)
    ]
    return list(zip(*pairs, strict=True))


def _mask(labels: Bytes, label: int, room: Bytes) -> Bytes:
    """(H, W) uint8, in `room`: 255 where the label is, else 0. OpenCV's comparison is several times as fast as numpy's."""
    cv2.compare(labels, label, cv2.CMP_EQ, room)  # type: ignore[call-overload]
    return room


def _object(predicted: Bytes, truth: Bytes, reach: int, room: Bytes) -> tuple[float, float]:
    """J and F of one object in one frame, from masks of 0 and 255."""
    either = cv2.bitwise_or(predicted, truth, room)
    x, y, width, height = cv2.boundingRect(either)
    if not width:
        return 1.0, 1.0
    # One pixel around the object: its boundary runs outside it on the upper and left sides.
    inside = slice(max(y - 1, 0), y + height + 1), slice(max(x - 1, 0), x + width + 1)
    predicted, truth = predicted[inside], truth[inside]
    j = cv2.countNonZero(predicted & truth) / cv2.countNonZero(either[inside])
    return j, _boundary_f(boundary(predicted), boundary(truth), reach)


def _boundary_f(predicted: Bytes, truth: Bytes, reach: int) -> float:
    """F of two boundaries. One without any pixel has nothing to be wrong about and nothing to find."""
    row = predicted.shape[1] + reach  # bits of a row: what grows over its ends stays out of the next one
    found, wanted = _bits(predicted, row), _bits(truth, row)
    if not found or not wanted:
        return 1.0 if found == wanted else 0.0
    precision = (found & _grown(wanted, row, reach)).bit_count() / found.bit_count()
    recall = (wanted & _grown(found, row, reach)).bit_count() / wanted.bit_count()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _bits(pixels: Bytes, row: int) -> int:
    """A bit for each pixel that is not 0, at y * row + x."""
    height, width = pixels.shape
    laid = np.zeros((height, row), np.uint8)
    laid[:, :width] = pixels
    return int.from_bytes(np.packbits(laid, bitorder="little").tobytes(), "little")


def _grown(bits: int, row: int, reach: int) -> int:
    """Pixels within a disk around those given, some of them outside the frame: united are rows of the disk, from its ends
    to its middle, each at least as wide as the one before."""
    united, wide, half = 0, bits, 0
    for away in range(reach, -1, -1):
        while half < (wanted := math.isqrt(reach * reach - away * away)):
            step = min(wanted - half, 2 * half + 1)  # farther than that, gaps would stay
            wide |= wide << step | wide >> step
            half += step
        united |= wide << away * row | wide >> away * row
    return united


def _objects(first: npt.NDArray[Any]) -> int:
    ids = np.unique(first[first != VOID])
    ids = ids[ids > 0]
    if ids.size and ids[-1] != ids.size:
        missing = sorted(set(range(1, int(ids[-1]))) - set(ids.tolist()))
        raise ProtocolError(
            f"the first true frame numbers its objects {ids.tolist()}; {missing} are missing, and an object that is "
            "nowhere would score 1. Number the objects 1, 2, 3 ..."
        )
    return int(ids.size)


def _check_arrays(predicted: npt.NDArray[Any], truth: npt.NDArray[Any], ends: bool) -> None:
    for name, maps in (("predicted", predicted), ("true", truth)):
        if maps.ndim != 3 or maps.dtype != np.uint8:
            raise ProtocolError(f"{name} label maps are (T, H, W) uint8; what came is {maps.shape} {maps.dtype}")
    if predicted.shape != truth.shape:
        raise ProtocolError(
            f"predicted label maps have (T, H, W) = {predicted.shape}, the true ones {truth.shape}; both must have the "
            "original size and the same frames"
        )
    needed = 1 if ends else 3
    if len(truth) < needed or not truth[0].size:
        raise ProtocolError(
            f"{len(truth)} frames of {truth.shape[1:]} leave nothing to score; at least {needed} are needed"
            + ("" if ends else ", as the first and the last do not count")
        )


def _check_ids(predicted: Bytes, truth: Bytes, objects: int, void: str, *, first: int) -> None:
    if void not in ("background", "ignored"):
        raise ProtocolError(f"void pixels can be 'background' or 'ignored', not {void!r}")
    extra = [number for number, guess in enumerate(predicted) if guess.max() > objects]
    if not extra:
        return
    ids = np.unique(predicted[extra])
    raise ProtocolError(
        f"predicted ids {ids[ids > objects].tolist()} in {len(extra)} frames, the first is frame {extra[0] + first}; "
        f"the video has {objects} objects, so ids go from 0 to {objects}"
    )
