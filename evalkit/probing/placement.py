"""People on the input of a pose probe: where their box lands, how it is shaken in training, and how places come back.

What:   an affine map takes the input onto the photo; the input is sampled bilinearly, without a filter against aliasing,
        and black outside; keypoints go the other way. Every map is between edges (a pixel is one unit wide), so that
        neither flipping nor heatmaps of another size shift anything; that is what Huang et al. call unbiased (CVPR 2020,
        arXiv:1911.07524), who count from pixel centres to the same end.
Source: ViTAE-Transformer/ViTPose c050ed2, mmpose/datasets/pipelines/top_down_transform.py:12-290 (flip, half body, scale,
        turn, warp), settings of configs/.../coco/ViTPose_base_simple_coco_256x192.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from evalkit.features.view import to_tensor
from evalkit.types import Box, Dataset, Figure, Posed, Skeleton

Floats = npt.NDArray[np.float64]
Size = tuple[int, int]
"""(H, W) in pixels."""


@dataclass(frozen=True)
class Jitter:
    """How a person is shaken in training; the defaults are ViTPose's.

    flip: probability, left and right change names. half_body: probability of looking at the upper or the lower half
    alone (either as often as the other; the released code takes the upper in 69 %), of people with more than 8 labelled
    keypoints. scale: the region times 1 + scale x N(0, 1), cut at +- scale. turn: N(0, 1) x turn degrees, cut at twice
    that, with probability turned.
    """

    flip: float = 0.5
    half_body: float = 0.3
    scale: float = 0.5
    turn: float = 40.0
    turned: float = 0.6


HALF_BODY_KEYPOINTS, HALF_BODY_PADDING = 8, 1.5


class Seen(NamedTuple):
    """A person on the input. pixels: (3, H, W) uint8. points: (K, 2) float32 x and y in pixels of the input, pixel
    centres at whole numbers. labelled: (K,) bool. back: (2, 3) float64 from the input's edges to the photo's."""

    pixels: Tensor
    points: Tensor
    labelled: Tensor
    back: Tensor


@dataclass(frozen=True)
class Still:
    """Reads people as their boxes have them. size: of the input."""

    size: Size

    def __call__(self, dataset: Dataset, first: int, count: int = 1) -> list[Seen]:
        """The samples from `first` on, all of one photo, which is decoded once."""
        posed = cast(Posed, dataset)
        photo = posed.image(posed[first].group)
        found = []
        for index in range(first, first + count):
            back = onto(_box(posed, index), self.size)
            found.append(seen(photo, posed.figure(index).keypoints, back, self.size))
        return found


@dataclass(frozen=True)
class Shaken:
    """Reads people as training shows them: the same turn of the same sample is the same whoever asks."""

    size: Size
    jitter: Jitter
    seed: int

    def __call__(self, dataset: Dataset, index: int, turn: int) -> Seen:
        """The sample as it is in this turn (an epoch)."""
        posed = cast(Posed, dataset)
        rng = np.random.default_rng([self.seed, turn, index])
        figure, skeleton = posed.figure(index), posed.skeleton
        back, flipped = shaken(figure, _box(posed, index), skeleton, self.jitter, self.size, rng=rng)
        keypoints = figure.keypoints[list(skeleton.mirrored)] if flipped else figure.keypoints
        return seen(posed.image(posed[index].group), keypoints, back, self.size)


def onto(box: Box, size: Size, *, turn: float = 0.0, flipped: bool = False) -> Floats:
    """(2, 3) from the edges of an H x W input to those of the photo: the whole input is the box, turned clockwise by
    `turn` radians around its centre, and mirrored before that where flipped."""
    (x0, y0, x1, y1), (height, width) = box, size
    across, down = (x1 - x0) / width * (-1 if flipped else 1), (y1 - y0) / height
    cos, sin = math.cos(turn), math.sin(turn)
    linear = np.array([[cos * across, -sin * down], [sin * across, cos * down]])
    centre = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    return np.column_stack([linear, centre - linear @ [width / 2, height / 2]])


def seen(photo: Image.Image, keypoints: Floats, back: Floats, size: Size) -> Seen:
    """The input that the map shows, and the keypoints (K, 3) on it; those not labelled get a place without meaning."""
    height, width = size
    region = photo.transform(
        (width, height), Image.Transform.AFFINE, data=tuple(back.ravel().tolist()), resample=Image.Resampling.BILINEAR
    )
    linear, shift = back[:, :2], back[:, 2]
    points = np.linalg.solve(linear, (keypoints[:, :2] + 0.5 - shift).T).T - 0.5
    return Seen(
        to_tensor(region),
        torch.from_numpy(points.astype(np.float32)),
        torch.from_numpy(keypoints[:, 2] > 0),
        torch.from_numpy(back),
    )


def on_photo(points: Tensor, back: Tensor) -> Tensor:
    """(B, K, 2) float64 pixels of the photo, centres at whole numbers, of (B, K, 2) pixels of the input. back: (B, 2, 3)."""
    return (points.double() + 0.5) @ back[:, :, :2].transpose(1, 2) + back[:, None, :, 2] - 0.5


def in_cells(points: Tensor, size: Size, cells: Size) -> Tensor:
    """Pixels of an H x W input (..., 2) as cells of a heatmap that covers it, centres at whole numbers in both."""
    step = points.new_tensor([cells[1] / size[1], cells[0] / size[0]])
    return (points + 0.5) * step - 0.5


def shaken(
    figure: Figure, box: Box, skeleton: Skeleton, jitter: Jitter, size: Size, *, rng: np.random.Generator
) -> tuple[Floats, bool]:
    """A map as `onto` gives it, and whether it mirrors."""
    flipped = bool(rng.random() < jitter.flip)
    labelled = figure.keypoints[:, 2] > 0
    if rng.random() < jitter.half_body and labelled.sum() > HALF_BODY_KEYPOINTS:
        box = half_body(figure.keypoints, skeleton.upper, box, upper_half=bool(rng.random() < 0.5))
    grown = float(np.clip(1 + jitter.scale * rng.standard_normal(), 1 - jitter.scale, 1 + jitter.scale))
    turn = float(np.clip(jitter.turn * rng.standard_normal(), -2 * jitter.turn, 2 * jitter.turn))
    turn = turn if rng.random() < jitter.turned else 0.0
    x0, y0, x1, y1 = box
    x, y, half_x, half_y = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2 * grown, (y1 - y0) / 2 * grown
    return onto(
        (x - half_x, y - half_y, x + half_x, y + half_y), size, turn=math.radians(turn), flipped=flipped
    ), flipped


def half_body(keypoints: Floats, upper: Sequence[int], box: Box, *, upper_half: bool = True) -> Box:
    """The region around the labelled keypoints of one half, with the aspect of `box`; the box itself where neither half
    has three. It is centred at their mean and 1.5 times as large as they reach."""
    labelled = keypoints[:, 2] > 0
    is_upper = np.isin(np.arange(len(keypoints)), upper)
    halves = [keypoints[labelled & is_upper, :2], keypoints[labelled & ~is_upper, :2]]
    chosen = next((half for half in (halves if upper_half else halves[::-1]) if len(half) > 2), None)
    if chosen is None:
        return box
    x, y = (chosen.mean(0) + 0.5).tolist()
    width, height = (chosen.max(0) - chosen.min(0)).tolist()
    aspect = (box[2] - box[0]) / (box[3] - box[1])
    width, height = max(width, height * aspect, 1.0), max(height, width / aspect, 1.0)
    half_x, half_y = width * HALF_BODY_PADDING / 2, height * HALF_BODY_PADDING / 2
    return (x - half_x, y - half_y, x + half_x, y + half_y)


def _box(dataset: Posed, index: int) -> Box:
    sample = dataset[index]
    return sample.box or dataset.figure(index).box
