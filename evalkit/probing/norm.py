"""Batch normalisation in front of linear heads: no learnt scale, statistics of the batch in training, running ones after.

What:   features are centred and divided by their deviation, per dimension. There is one way to train and another to
        apply, so that no test can run on the statistics of its own batch.
Source: He et al., arXiv:2111.06377, appendix A.1 (after Doersch et al., 2015); facebookresearch/mae efb2a80,
        main_linprobe.py: BatchNorm1d(affine=False, eps=1e-6), torch's momentum 0.1. Each of its GPUs normalises its own
        512 images and the running statistics are those of the first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from evalkit.errors import ProtocolError

EPS = 1e-6
MOMENTUM = 0.1


class BatchNorm:
    """Statistics of D features.

    like: any tensor of the dtype and device to work in. images: statistics are taken over so many images of a batch at
    a time, each piece by its own; 0 for the whole batch.
    """

    def __init__(self, dim: int, like: Tensor, images: int = 0) -> None:
        self.images = images
        self.mean = like.new_zeros(dim)
        self.var = like.new_ones(dim)

    def learn(self, features: Tensor) -> Tensor:
        """(B, D) normalised by the statistics of each piece of the batch; the first piece moves the running ones.

        Raises ProtocolError where a piece has fewer than two images: they have no deviation.
        """
        pieces = torch.split(features, self.images or len(features))  # type: ignore[no-untyped-call]
        if len(pieces[-1]) < 2:
            raise ProtocolError("batch normalisation needs at least two images at a time; a batch has one left over")
        first = F.batch_norm(pieces[0], self.mean, self.var, training=True, momentum=MOMENTUM, eps=EPS)
        rest = [F.batch_norm(piece, None, None, training=True, eps=EPS) for piece in pieces[1:]]
        return torch.cat([first, *rest]) if rest else first

    def __call__(self, features: Tensor) -> Tensor:
        """(B, D) normalised by the running statistics, row by row: a row's result does not depend on the others."""
        return F.batch_norm(features, self.mean, self.var, training=False, eps=EPS)
