"""LARS, for stacked heads: each weight matrix's gradient is scaled to a share of the matrix's own length.

Source: You, Gitman, Ginsburg, arXiv:1708.03888, in the form of MoCo v3's and MAE's linear probe (facebookresearch/mae
        efb2a80, util/lars.py): trust 0.001; the scale comes after weight decay and before momentum; biases and other
        vectors are neither scaled nor decayed; a matrix or a gradient of length 0 is not scaled.
"""

from __future__ import annotations

import torch
from torch import Tensor

TRUST = 0.001
"""Length of a gradient after scaling, as a share of the length of its weights (facebookresearch/mae efb2a80)."""


def scaled(gradients: Tensor, weights: Tensor, trust: float = TRUST) -> Tensor:
    """Each row's gradient times trust x |weights| / |gradient|, or as it is where one of the lengths is 0.

    gradients, weights: (H, n) float, the flattened weights of one head per row; gradients with weight decay included.
    A row that is not finite stays in its own row.
    """
    mine, its = weights.norm(dim=1), gradients.norm(dim=1)
    ratio = torch.where((mine > 0) & (its > 0), trust * mine / its, 1.0)
    return gradients * ratio[:, None]
