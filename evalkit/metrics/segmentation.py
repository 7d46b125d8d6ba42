"""mIoU, mean and overall accuracy of segmentations, from areas counted over the whole set.

What:   pixels are counted by true and predicted class over all images, then IoU = intersection / union per class. mIoU is
        the mean over the classes that truth or prediction has a pixel of, mAcc the mean recall of the classes that truth
        has, aAcc the share of right pixels.
Source: Long, Shelhamer, Darrell (arXiv:1411.4038, section 5); classes that are absent are left out as in mmsegmentation
        v0.11 (mmseg/core/evaluation/metrics.py: NaN, then nanmean).
Units:  images. Sums over images are all that these scores need, so an image keeps its `Areas`, (3, C), and not its
        (C, C) confusion; the bootstrap draws images and counts anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evalkit.errors import ProtocolError
from evalkit.metrics import bootstrap
from evalkit.types import Score


def confusion(predicted: Tensor, truth: Tensor, classes: int, *, ignore: int = -1) -> Tensor:
    """(C, C) int64, on the tensors' device: pixels by true class (row) and predicted class (column).

    predicted, truth: any one shape, whole numbers; predicted in [0, C), truth too or `ignore`, whose pixels do not count.
    All of them ignored gives zeros. Raises ProtocolError for shapes that differ and labels outside.
    """
    if predicted.shape != truth.shape:
        raise ProtocolError(f"prediction {tuple(predicted.shape)} and truth {tuple(truth.shape)} differ in shape")
    counted = truth != ignore
    rows, columns = truth[counted].long(), predicted[counted].long()
    for what, labels in (("truth", rows), ("prediction", columns)):
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ProtocolError(
                f"the {what} holds labels {int(labels.min())} to {int(labels.max())}; {classes} classes are 0 to {classes - 1}"
            )
    return torch.bincount(rows * classes + columns, minlength=classes * classes).view(classes, classes)


def areas(confusions: Tensor) -> Tensor:
    """(..., 3, C) int64 of confusions (..., C, C): pixels in the intersection, predicted, and true, per class."""
    right = torch.diagonal(confusions, dim1=-2, dim2=-1)
    return torch.stack([right, confusions.sum(-2), confusions.sum(-1)], dim=-2)


def per_class(confusions: Tensor) -> Tensor:
    """(..., C) float64: IoU in [0, 1], NaN for a class that neither truth nor prediction has."""
    right, predicted, true = areas(confusions).double().unbind(-2)
    return right / (predicted + true - right)


def miou(confusions: Tensor) -> Tensor:
    """(...) float64: mean IoU over the classes that are there; NaN where nothing was counted."""
    return torch.nanmean(per_class(confusions), dim=-1)


def macc(confusions: Tensor) -> Tensor:
    """(...) float64: mean over the classes that truth has of the share of their pixels that is right; NaN for none."""
    right, _, true = areas(confusions).double().unbind(-2)
    return torch.nanmean(right / true, dim=-1)


def aacc(confusions: Tensor) -> Tensor:
    """(...) float64: share of the counted pixels that is right; NaN where nothing was counted."""
    right, _, true = areas(confusions).double().unbind(-2)
    return right.sum(-1) / true.sum(-1)


def matching(confusions: Tensor) -> Tensor:
    """(P,) int64: the true class that each predicted class is renamed to, so that the sum of IoU is largest.

    confusions: (C, P), of the whole set. A predicted class without partner becomes class 0. Renaming what a supervised
    method predicts is wrong; vpariza/open-hummingbird-eval 5e79da2 does it (hbird/utils/eval_metrics.py:143-159).
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and only here needed

    table = confusions.double().cpu()
    union = table.sum(1, keepdim=True) + table.sum(0, keepdim=True) - table
    rows, columns = linear_sum_assignment((table / union.clamp_min(1)).numpy(), maximize=True)
    renamed = torch.zeros(table.shape[1], dtype=torch.int64)
    renamed[torch.from_numpy(columns)] = torch.from_numpy(rows)
    return renamed


def renamed(confusions: Tensor, names: Tensor) -> Tensor:
    """(..., C, C): confusions (..., C, P) whose predicted classes got the names (P,) that `matching` found."""
    empty = confusions.new_zeros(*confusions.shape[:-1], confusions.shape[-2])
    return empty.index_add(-1, names.to(confusions.device), confusions)


def scores(
    counted: Any, classes: Sequence[str], groups: npt.ArrayLike | None = None, *, seed: int = 0, each: bool = True
) -> Iterator[Score]:
    """Yield "mIoU", "mAcc", "aAcc", and with `each` "IoU/<class>" for every class that is there.

    counted: (n, 3, C) areas of n images, array or CPU tensor. groups: (n,) images resampled together. n of a score is the
    number of images with a pixel that counts in it; intervals over images. An image has at most 2^24 pixels, or its
    stored outcomes are rounded.
    """
    right, predicted, true = np.moveaxis(np.asarray(counted, np.float64), 1, 0)
    # an image whose pixels are all ignored has areas of 0 and drops out
    yield bootstrap.ratios("mIoU", right, predicted + true - right, groups, seed=seed)
    yield bootstrap.ratios("mAcc", right, true, groups, seed=seed)
    whole = (right.sum(1, keepdims=True), true.sum(1, keepdims=True))
    yield bootstrap.ratios("aAcc", *whole, groups, seed=seed)
    for label, name in enumerate(classes if each else ()):
        one = slice(label, label + 1)
        score = bootstrap.ratios(
            f"IoU/{name}", right[:, one], (predicted + true - right)[:, one], groups, seed=seed
        )  # fmt: skip
        if score.n:
            yield score
