"""Retrieval within one labelled gallery: every row asks for all others, rows of its class are what should be found.

What:   average precision per query by cosine similarity, and its two usual means: over queries ("AP" in the part-aware
        study) and over classes ("mAP" there).
Source: Zhu et al. (arXiv:2301.11915), Table 4; JiePKU/understand-ssl-part-aware ffea818, retrieval-classification/
        pr_patch_retrieval.py:320-394, which counts the query as its own first match (`exclude_self=False`).
How:    `metrics.ranking`, which holds the arithmetic for rankings of any origin; this is what a person calls.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evalkit.errors import ProtocolError
from evalkit.metrics.ranking import leave_one_out


def average_precision(features: Tensor, labels: Tensor, *, exclude_self: bool = True) -> Tensor:
    """AP of every row as a query, exactly, in blocks that hold 2^23 similarities (96 MB) at once.

    features: (N, D), any float dtype, norm and device; a zero row has cosine 0 to all. labels: (N,) int64 from 0, gaps
    allowed, on the same device. exclude_self: leave the query out of its own ranking; False counts it as a hit, as the
    released code does. Equal similarities enter together.
    Returns (N,) float32 in (0, 1]; NaN for a row that has nothing to find. Raises ProtocolError for no rows or labels
    that do not fit, FeatureError for rows that are not finite.
    """
    return leave_one_out(features, labels, itself=not exclude_self).float()


def over_classes(precision: Tensor, labels: Tensor) -> Tensor:
    """One outcome per query whose mean is the mean over classes of the mean AP of their queries.

    precision: (N,) finite. labels: (N,) int64 from 0; classes without a query do not count.
    Returns (N,) float64: v + N / (C n_c) (AP - m_c), with v the mean over the C classes, n_c and m_c size and mean of the
    query's class. These are the statistic's influence values (Efron and Tibshirani 1993, chapter 21): to resample their
    mean is to resample the statistic to first order, class sizes included, and differences of two encoders likewise.
    Raises ProtocolError where there is no query or the shapes differ.
    """
    if precision.ndim != 1 or precision.shape != labels.shape or not len(labels):
        raise ProtocolError(f"each query needs one label: {tuple(precision.shape)} and {tuple(labels.shape)} came")
    _, place, count = torch.unique(labels, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(count), dtype=torch.float64, device=precision.device)
    means = sums.index_add(0, place, precision.double()) / count
    weight = len(labels) / (len(count) * count.double())
    outcomes: Tensor = means.mean() + weight[place] * (precision.double() - means[place])
    return outcomes
