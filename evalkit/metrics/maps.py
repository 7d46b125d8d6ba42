"""What patch tokens say of an image, as maps: clusters, principal colours, attended patches, matches with another image.

What:   pure functions on the tokens of one or a few images; pictures are made of what they return.
Source: k-means of patch tokens: MMC (arXiv:2308.11448), fig. 6. Principal components as colours: DINOv2
        (arXiv:2304.07193), figs. 1 and 9. Attention above a share of its mass: DINO (arXiv:2104.14294), fig. 3, and
        facebookresearch/dino 7c446df, visualize_attention.py:176-186. Matches between views and between images: MGC
        (arXiv:2407.02014), figs. 6-8; which ones it draws is not said: here patches that choose each other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evalkit.errors import FeatureError, UsageError
from evalkit.metrics.similarity import cosines, normalise

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DULL = 1e-12
"""Variance below which a component says nothing, and gets the middle of the scale."""


class Matches(NamedTuple):
    """Pairs of patches, the most similar first. first, second: (M,) int64, flat numbers; similarity: (M,) float32."""

    first: Tensor
    second: Tensor
    similarity: Tensor


def clusters(tokens: Tensor, *, count: int, seed: int = 0) -> Ints:
    """(N,) the cluster of each token, numbered by size, the largest 0; equal sizes in the order of their first token.

    tokens: (N, D), any float dtype and norm: they are clustered by direction, as cosines see them. Lloyd's k-means of
    scikit-learn, the best of ten starts. Raises UsageError for a count outside [1, N], FeatureError for values that are
    not finite.
    """
    if not 1 <= count <= len(tokens):
        raise UsageError(f"{count} clusters of {len(tokens)} patches; from 1 to as many as there are patches")
    from sklearn.cluster import KMeans

    rows = normalise(tokens, "patch tokens").cpu().double().numpy()
    different = min(count, len(np.unique(rows, axis=0)))  # more clusters than kinds of tokens cannot be told apart
    found = KMeans(different, n_init=10, random_state=seed).fit_predict(rows)
    labels, first, sizes = np.unique(found, return_index=True, return_counts=True)
    order = sorted(range(len(labels)), key=lambda i: (-sizes[i], first[i]))
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels))
    numbered: Ints = rank[found]
    return numbered


def colours(tokens: Tensor, *, components: int = 3) -> Floats:
    """(N, components) in [0, 1]: the first principal components of the tokens, each from its lowest to its highest value.

    tokens: (N, D), all the images that are to share one meaning of colours. Signs: the component's largest weight, by
    absolute value, is positive. A component without variance is 0.5. Raises FeatureError for values that are not finite,
    UsageError where there are fewer tokens or dimensions than components.
    """
    rows = tokens.detach().cpu().double()
    if not bool(torch.isfinite(rows).all()):
        raise FeatureError("patch tokens must be finite")
    if components < 1 or min(rows.shape) < components:
        raise UsageError(f"{components} components of {rows.shape[0]} patches with {rows.shape[1]} numbers each")
    centred = rows - rows.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    axes = axes[:components]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    values = centred @ axes.T
    low, high = values.min(0).values, values.max(0).values
    flat = values.var(0, unbiased=False) < DULL
    scaled = torch.where(flat, 0.5, (values - low) / torch.where(flat, 1.0, high - low))
    return np.asarray(scaled.numpy(), dtype=np.float64)


def attended(weights: Tensor, *, mass: float = 0.6) -> Tensor:
    """(..., N) bool: the fewest patches that hold `mass` of each row's attention, the heaviest first.

    weights: (..., N) at least 0. Equal weights: the earlier patch first. A row without any weight has no patch. Raises
    UsageError for a mass outside (0, 1].
    """
    if not 0 < mass <= 1:
        raise UsageError(f"the share of attention is {mass}; above 0, at most 1")
    share = weights.double() / weights.double().sum(-1, keepdim=True)
    heavy, order = share.sort(dim=-1, descending=True, stable=True)
    before = heavy.cumsum(-1) - heavy
    kept = (before < mass * (1 - 1e-12)) & (heavy > 0)
    return torch.zeros_like(kept).scatter(-1, order, kept)


def matches(first: Tensor, second: Tensor, *, top: int) -> Matches:
    """The `top` most similar pairs of patches that are each other's nearest.

    first, second: (N, D) and (M, D), any float dtype and norm, of one device. Equal cosines: the lower number. Fewer than
    `top` where fewer choose each other. Raises UsageError for a top below 1, FeatureError for values that are not finite.
    """
    if top < 1:
        raise UsageError(f"{top} matches were asked for; at least 1")
    similar = cosines(normalise(first, "patch tokens"), normalise(second, "patch tokens"))
    there, back = _first_best(similar), _first_best(similar.T)
    own = torch.arange(len(first), device=there.device)
    kept = own[back[there] == own]
    similarity = similar[kept, there[kept]]
    order = torch.argsort(similarity, descending=True, stable=True)[:top]
    return Matches(kept[order].cpu(), there[kept][order].cpu(), similarity[order].float().cpu())


def _first_best(similar: Tensor) -> Tensor:
    """(N,) the first column that holds each row's largest value."""
    return (similar == similar.amax(1, keepdim=True)).to(torch.int8).argmax(1)
