"""Keypoints as heatmaps and back, and how near a pose is: pure functions on tensors.

What:   a keypoint's target is a Gaussian of height 1 around it; a heatmap's keypoint is its maximum, refined. Cells are
        addressed by their centres: (0, 0) is the centre of the cell at the top left.
Source: Xiao et al., Simple Baselines for Human Pose Estimation and Tracking (ECCV 2018; microsoft/
        human-pose-estimation.pytorch 51a5812, lib/core/inference.py): maximum, then a quarter of a cell towards the
        higher neighbour. DARK: Zhang et al., CVPR 2020 (arXiv:1910.06278), as in ViTAE-Transformer/ViTPose c050ed2,
        mmpose/core/evaluation/top_down_eval.py: blur, logarithm, one Newton step. OKS: cocodataset.org, "Keypoint
        evaluation". PCK: Yang and Ramanan, TPAMI 2013; for LSP a share of the torso (bearpaw/eval_pose 904deed,
        demo_eval_lsp.m:18: right hip to left shoulder).
Ties:   of equal maxima the first in reading order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from evalkit.errors import FeatureError, ProtocolError, UsageError

Decoding = Literal["argmax", "quarter", "dark"]

DARK_KERNEL = 11
"""Cells of DARK's blur, made for targets of sigma 2; OpenCV's rule gives its deviation, 0.3 ((11 - 1) / 2 - 1) + 0.8 = 2."""

DARK_FLOOR = 1e-10
"""Below, a heatmap counts as this before the logarithm."""


class Targets(NamedTuple):
    """Heatmaps to learn, as products: the map of a keypoint is weight x down (a column) x across (a row).

    across: (B, K, w), down: (B, K, h) float32 in [0, 1]. weight: (B, K) float32, 1 where the map counts, else 0.
    """

    across: Tensor
    down: Tensor
    weight: Tensor

    def maps(self) -> Tensor:
        """(B, K, h, w) float32 in [0, 1], zero where a map does not count."""
        return (self.weight[..., None] * self.down)[..., :, None] * self.across[..., None, :]


def targets(points: Tensor, labelled: Tensor, size: tuple[int, int], *, sigma: float) -> Targets:
    """The Gaussians of height 1 around keypoints; one counts where it is labelled and within 3 sigma of the map.

    points: (B, K, 2) x and y in cells; whatever stands where `labelled`, (B, K) bool, is false is not looked at.
    size: (h, w) in cells. sigma: of the Gaussian, in cells. The Gaussian is whole: published code cuts it at 3 sigma.
    Raises UsageError for a size below 1 or a sigma that is not above 0, ProtocolError for labelled points not finite.
    """
    height, width = size
    if height < 1 or width < 1 or not sigma > 0:
        raise UsageError(f"a heatmap of {size} cells and sigma {sigma}: at least 1 x 1, and a sigma above 0")
    if not bool(torch.isfinite(points[labelled]).all()):
        raise ProtocolError("a labelled keypoint is not finite")
    x, y = torch.where(labelled[..., None], points, -torch.inf).float().unbind(-1)
    reach = 3 * sigma
    counts = (x >= -reach) & (x <= width - 1 + reach) & (y >= -reach) & (y <= height - 1 + reach)
    columns = torch.arange(width, device=points.device) - torch.where(counts, x, 0)[..., None]
    rows = torch.arange(height, device=points.device) - torch.where(counts, y, 0)[..., None]
    across, down = (torch.exp(-(line**2) / (2 * sigma**2)) for line in (columns, rows))
    return Targets(across, down, counts.float())


def decode(heatmaps: Tensor, how: Decoding = "quarter") -> tuple[Tensor, Tensor]:
    """(B, K, 2) float32 x and y in cells of each map's keypoint, and (B, K) float32 its height.

    heatmaps: (B, K, h, w) float. how: "argmax" the cell of the maximum; "quarter" moved a quarter of a cell towards the
    higher of two neighbours, on both axes, unless the maximum lies in the first two or the last row or column (as the
    published code has it); "dark" see the module, likewise away from the border. Heights are those of the map as given.
    Raises FeatureError for maps that are not finite, UsageError for another word or shape.
    """
    if heatmaps.ndim != 4 or 0 in heatmaps.shape[1:]:
        raise UsageError(f"heatmaps of shape {tuple(heatmaps.shape)}; they are (B, K, h, w), none of K, h, w 0")
    if how not in ("argmax", "quarter", "dark"):
        raise UsageError(f"decoding is {how!r}; it can be argmax, quarter or dark")
    if not bool(torch.isfinite(heatmaps).all()):
        raise FeatureError("heatmaps are not finite: the layer diverged; lower the rate")
    width = heatmaps.shape[3]
    peak, place = heatmaps.float().flatten(2).max(-1)
    x, y = place % width, place // width
    points = torch.stack([x, y], dim=-1).float()
    if how == "quarter":
        points += _quarter(heatmaps.float(), x, y)
    elif how == "dark":
        points += _newton(heatmaps.float(), x, y)
    return points, peak


def _quarter(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    height, width = maps.shape[2:]
    inside = (x > 1) & (x < width - 1) & (y > 1) & (y < height - 1)
    across = _at(maps, x + 1, y) - _at(maps, x - 1, y)
    down = _at(maps, x, y + 1) - _at(maps, x, y - 1)
    return torch.where(inside[..., None], 0.25 * torch.stack([across, down], dim=-1).sign(), 0)


def _newton(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """One step to the top of the parabola through the logarithm of the blurred map, differences two cells apart."""
    height, width = maps.shape[2:]
    peaks = maps.flatten(2).amax(-1)[..., None, None]
    blurred = _blurred(maps)
    top = blurred.flatten(2).amax(-1)[..., None, None]
    log = (blurred * (peaks / top)).clamp_min(DARK_FLOOR).double().log()

    def f(right: int, lower: int) -> Tensor:
        return _at(log, x + right, y + lower)

    dx, dy = (f(1, 0) - f(-1, 0)) / 2, (f(0, 1) - f(0, -1)) / 2
    dxx, dyy = (f(2, 0) - 2 * f(0, 0) + f(-2, 0)) / 4, (f(0, 2) - 2 * f(0, 0) + f(0, -2)) / 4
    dxy = (f(1, 1) - f(1, -1) - f(-1, 1) + f(-1, -1)) / 4
    scale = dxx * dyy - dxy**2
    step = -torch.stack([dyy * dx - dxy * dy, dxx * dy - dxy * dx], dim=-1) / scale[..., None]
    inside = (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2) & (scale != 0)
    return torch.where(inside[..., None], step, 0).float()


def _blurred(maps: Tensor) -> Tensor:
    half = DARK_KERNEL // 2
    sigma = 0.3 * (half - 1) + 0.8
    line = torch.exp(-(torch.arange(-half, half + 1, dtype=maps.dtype, device=maps.device) ** 2) / (2 * sigma**2))
    line = line / line.sum()
    flat = maps.flatten(0, 1)[:, None]
    rows = F.conv2d(flat, line.view(1, 1, -1, 1), padding=(half, 0))
    return F.conv2d(rows, line.view(1, 1, 1, -1), padding=(0, half)).view_as(maps)


def _at(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(B, K) values at cells; those outside are taken at the border."""
    height, width = maps.shape[2:]
    index = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    return maps.flatten(2).gather(-1, index[..., None])[..., 0]


def oks(predicted: Tensor, truth: Tensor, areas: Tensor, sigmas: Sequence[float]) -> Tensor:
    """(N,) float64 object keypoint similarity in [0, 1] of each pose with its person; NaN where nothing is labelled.

    predicted: (N, K, 2) pixels. truth: (N, K, 3) x, y, visibility (above 0 is labelled). areas: (N,) square pixels.
    sigmas: (K,) of the keypoints, as COCO publishes them. The mean over labelled keypoints of
    exp(-d^2 / (2 area (2 sigma)^2)). Raises UsageError where shapes do not belong together.
    """
    if predicted.shape != (*truth.shape[:2], 2) or truth.shape[2:] != (3,) or len(sigmas) != truth.shape[1]:
        raise UsageError(
            f"poses {tuple(predicted.shape)}, people {tuple(truth.shape)}, {len(sigmas)} sigmas do not fit"
        )
    variance = (2 * torch.tensor(list(sigmas), dtype=torch.float64)) ** 2
    squared = ((predicted.double() - truth[..., :2].double()) ** 2).sum(-1)
    error = squared / variance / (areas.double()[:, None] + math.ulp(1.0)) / 2
    labelled = truth[..., 2] > 0
    return torch.where(labelled, torch.exp(-error), 0).sum(1) / labelled.sum(1)


def lengths(truth: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """(N,) float64 pixels between two keypoints of each person: the first of the pairs of which both are labelled and
    apart; NaN where there is none. truth: (N, K, 3) x, y, visibility."""
    found = torch.full((len(truth),), torch.nan, dtype=torch.float64)
    for one, other in reversed(pairs):
        both = (truth[:, one, 2] > 0) & (truth[:, other, 2] > 0)
        length = (truth[:, one, :2] - truth[:, other, :2]).double().norm(dim=-1)
        found = torch.where(both & (length > 0), length, found)
    return found


def pck(predicted: Tensor, truth: Tensor, reference: Tensor, *, share: float = 0.2) -> Tensor:
    """(N, K) float64: 1 where a keypoint lies within share x reference of its place (the distance itself counts), 0
    where not, NaN where it is not labelled or the person has no reference.

    predicted: (N, K, 2) pixels. truth: (N, K, 3) x, y, visibility. reference: (N,) pixels, NaN for none.
    """
    distance = (predicted.double() - truth[..., :2].double()).norm(dim=-1)
    judged = (truth[..., 2] > 0) & ~reference.isnan()[:, None]
    right = (distance <= share * reference[:, None]).double()
    return torch.where(judged, right, torch.nan)
