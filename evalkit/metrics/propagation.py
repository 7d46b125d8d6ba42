"""Labels of a video's first frame carried to the others by similar patches: no training, nothing but features.

What:   each patch of a frame asks the first frame and the 7 before it for its 5 most similar patches, all of them together,
        within a square of 12 patches around its own place; their soft labels, weighted by exp(cosine / 0.1), are its own.
Source: DINO (arXiv:2104.14294, section 4.2.2; facebookresearch/dino 7c446df, eval_video_segmentation.py:46-83 the queue,
        102-110 min-max, 113-150 the affinity), after Jabri et al. (arXiv:2006.14613). "circle", temperature 0.2 and the
        other way to pixels: facebookresearch/dinov3 6876159, notebooks/segmentation_tracking.ipynb, cells 19, 25, 29, 31.
How:    tiles of some 169 patches are compared with the window around the tile only, so no matrix of all patches by
        all patches is ever held: 24 MB of work at patch 8 of a 480p frame instead of several copies of 1.2 GB. Contexts lie
        column by column: where a tile's window is as high as the frame (patch 14 and 16 of 480p), nothing is copied.
Ties:   patches exactly as similar as the last one taken are taken too, as in the released code. What is equal, `similarity`
        says: patches that a float32 product may confuse are settled exactly. Equal labels of a pixel go to the lowest id.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from evalkit.errors import ProtocolError, UsageError
from evalkit.metrics.similarity import above, near, normalise, of_pairs, tolerance

SIDE = 13
"""Patches along a square tile where memory is a processor's cache: at radius 12, smaller tiles copy more, larger ones compare
more. Of a frame no higher than a tile's window a tile is a strip of whole columns, of about as many patches."""

WORK = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Similarities held at once: 17 MB on a CPU, 270 MB on a GPU."""

SPARE = 3
"""Patches found beyond those taken, so that hardly one must be compared exactly with its whole window."""

LARGEST_ID = 254
"""Objects that a label map of bytes can tell apart; 255 is "void" in DAVIS."""


@dataclass(frozen=True)
class Rules:
    """Who is asked and how answers are weighed; defaults as eval_video_segmentation.py:260-263 and 129 have them.

    context: frames before, beside the first one. radius: of the window, in patches; 0 asks everywhere. window: which
    patches are within the radius: "square" by the larger of the two offsets, "circle" by the Euclidean distance.
    neighbours: patches taken from all contexts together. temperature: divides the cosine. labels: of what soft labels
    that wait in the queue are made. Raises UsageError for values that cannot be.
    """

    context: int = 7
    radius: int = 12
    window: Literal["square", "circle"] = "square"
    neighbours: int = 5
    temperature: float = 0.1
    labels: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        for name, low in (("context", 0), ("radius", 0), ("neighbours", 1)):
            if getattr(self, name) < low:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {low}")
        if not 0 < self.temperature < float("inf"):
            raise UsageError(f"temperature is {self.temperature}; it must be a finite number above 0")


def propagate(features: Tensor | Iterable[Tensor], first_mask: Tensor, *, rules: Rules | None = None) -> Tensor:
    """Soft labels of every frame of a clip; a pure function on tensors of one device.

    features: (T, h, w, D), or one (h, w, D) after another, any float dtype and norm (rows are normalised here; a zero row
    has cosine 0 to all). first_mask: (h, w) ids of the first frame at the size of the grid, 0 background.
    Returns (T, C, h, w) float32, C = 1 + largest id; the first frame's are 0 or 1, a patch's sum to 1.
    Raises ProtocolError where shapes do not fit, ids are below 0 or above 254, or there is no frame.
    """
    frames = iter(features)
    first = next(frames, None)
    if first is None:
        raise ProtocolError("a clip without frames has nothing to propagate")
    tracker = Tracker(first, first_mask, rules or Rules())
    return torch.stack([tracker.soft, *map(tracker.step, frames)])


class Tracker:
    """The state between two frames: normalised features and soft labels of the contexts, and nothing else."""

    def __init__(self, features: Tensor, mask: Tensor, rules: Rules, objects: int | None = None) -> None:
        """features: (h, w, D) of the first frame. mask: (h, w) ids. objects: how many there are, None for the largest
        id. Raises ProtocolError where they do not fit each other."""
        _check_first(features, mask)
        self.rules, self.taken = rules, 0
        height, width, dim = features.shape
        labels = (int(mask.max()) if objects is None else objects) + 1
        self.soft = F.one_hot(mask.to(features.device, torch.int64), labels).permute(2, 0, 1).float()
        kind = torch.float16 if rules.labels == "float16" else torch.float32
        self._features = features.new_zeros((width, 1 + rules.context, height, dim), dtype=torch.float32)
        self._labels = features.new_zeros((width, 1 + rules.context, height, labels), dtype=kind)
        self._features[:, 0] = _unit(features).transpose(0, 1)
        self._labels[:, 0] = self.soft.permute(2, 1, 0)

    def step(self, features: Tensor) -> Tensor:
        """(C, h, w) float32 soft labels of the next frame, from its features (h, w, D). Raises ProtocolError for another
        shape than the first frame's."""
        width, _, height, dim = self._features.shape
        if features.shape != (height, width, dim):
            raise ProtocolError(
                f"a frame has features {tuple(features.shape)}, the first one {(height, width, dim)}; all frames of a clip "
                "have one size"
            )
        current = _unit(features)
        soft = self._asked(current)
        if self.rules.context:
            slot = 1 + self.taken % self.rules.context  # the oldest gives way; the order of contexts changes nothing
            self._features[:, slot], self._labels[:, slot] = current.transpose(0, 1), soft.transpose(0, 1)
        self.taken += 1
        return soft.permute(2, 0, 1)

    def _asked(self, current: Tensor) -> Tensor:
        """(h, w, C) float32."""
        contexts = 1 + min(self.taken, self.rules.context)
        found = current.new_empty((*current.shape[:2], self._labels.shape[-1]))
        for tile in _tiles(*current.shape[:2], self.rules, current.device):
            rows, columns = tile.window
            keys = self._features[columns, :contexts, rows].flatten(0, 2)
            labels = self._labels[columns, :contexts, rows].flatten(0, 2).float()
            queries = current[tile.inside].flatten(0, 1)
            similar = queries @ keys.T
            if tile.outside is not None:
                shape = (len(queries), tile.outside.shape[1], contexts, -1)
                similar.view(shape).masked_fill_(tile.outside[:, :, None], -torch.inf)
            found[tile.inside] = _answers(similar, queries, keys, labels, self.rules).view(
                *current[tile.inside].shape[:2], -1
            )
        return found


def label_map(soft: Tensor, patch: int) -> Tensor:
    """(h * patch, w * patch) uint8 ids of soft labels (C, h, w), as DINO makes them.

    Bilinear to pixels, each label from its least to its largest value stretched to [0, 1], the largest wins. A label that
    is the same everywhere and above 0 wins everywhere: the released code divides 0 by 0 there, and its maximum takes NaN.
    """
    fine = F.interpolate(soft[None], scale_factor=patch, mode="bilinear", align_corners=False)[0].flatten(1)
    low = fine.amin(dim=1, keepdim=True)
    stretched = fine.sub_(low)
    high = stretched.amax(dim=1, keepdim=True)
    stretched.div_(high)  # 0 / 0 is NaN on purpose: argmax takes the first NaN
    empty = (low + high <= 0).flatten()
    stretched[empty] = 0
    return stretched.argmax(dim=0).to(torch.uint8).view(soft.shape[1] * patch, soft.shape[2] * patch)


def nearest_label_map(soft: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) uint8 ids of soft labels (C, h, w), as DINOv3's notebook makes them: nearest to the original size (H, W),
    min-max, where a label that is the same everywhere is 0 everywhere."""
    fine = F.interpolate(soft[None], size=size, mode="nearest")[0].flatten(1)
    low, high = fine.amin(dim=1, keepdim=True), fine.amax(dim=1, keepdim=True)
    return ((fine - low) / (high - low)).nan_to_num(0.0).argmax(dim=0).to(torch.uint8).view(size)


@dataclass(frozen=True, eq=False)
class _Tile:
    """inside: rows and columns of the queries; window: of the keys; outside: (queries, columns of the window, its rows) bool
    of the pairs that are too far apart, None for none."""

    inside: tuple[slice, slice]
    window: tuple[slice, slice]
    outside: Tensor | None


@lru_cache(maxsize=32)
def _tiles(height: int, width: int, rules: Rules, device: torch.device) -> tuple[_Tile, ...]:
    """All queries of a grid, each in one tile; kept, since every frame of a clip needs the same."""
    rows, columns = _sides(height, width, rules, device)
    return tuple(
        _tile(inside, (height, width), rules, device)
        for inside in itertools.product(_pieces(height, rows), _pieces(width, columns))
    )


def _sides(height: int, width: int, rules: Rules, device: torch.device) -> tuple[int, int]:
    """Rows and columns of a tile whose similarities to all contexts keep within `WORK`."""
    radius = rules.radius
    allowed = WORK["cuda" if device.type == "cuda" else "cpu"] // (1 + rules.context)
    rows, columns = height, width
    if device.type != "cuda" and radius:
        rows = height if height <= SIDE + 2 * radius else SIDE
        columns = min(width, max(1, SIDE * SIDE // rows))

    def keys(length: int, side: int) -> int:
        return length if not radius else min(length, side + 2 * radius)

    while rows * columns > 1 and rows * columns * keys(height, rows) * keys(width, columns) > allowed:
        rows, columns = (-(-rows // 2), columns) if rows >= columns else (rows, -(-columns // 2))
    return rows, columns


def _pieces(length: int, side: int) -> Iterator[slice]:
    """As many pieces of at most `side` as there must be, of nearly equal length."""
    count = -(-length // side)
    edges = [length * number // count for number in range(count + 1)]
    return itertools.starmap(slice, itertools.pairwise(edges))


def _tile(inside: tuple[slice, slice], size: tuple[int, int], rules: Rules, device: torch.device) -> _Tile:
    if not rules.radius:
        return _Tile(inside, (slice(0, size[0]), slice(0, size[1])), None)
    window = tuple(
        slice(max(0, one.start - rules.radius), min(length, one.stop + rules.radius))
        for one, length in zip(inside, size, strict=True)
    )
    dy, dx = (
        (torch.arange(q.start, q.stop)[:, None] - torch.arange(k.start, k.stop)).abs()
        for q, k in zip(inside, window, strict=True)
    )
    dy, dx = dy[:, None, None, :], dx[None, :, :, None]
    if rules.window == "square":
        outside = (dy > rules.radius) | (dx > rules.radius)
    else:
        outside = dy * dy + dx * dx > rules.radius * rules.radius
    flat = outside.flatten(0, 1)
    return _Tile(inside, (window[0], window[1]), flat.to(device) if bool(flat.any()) else None)


def _unit(features: Tensor) -> Tensor:
    """(h, w, D) rows of length 1."""
    return normalise(features.flatten(0, 1), "patch tokens").view(features.shape)


def _answers(similar: Tensor, queries: Tensor, keys: Tensor, labels: Tensor, rules: Rules) -> Tensor:
    """(Q, C) float32: labels (N, C) of the most similar, weighted. similar: (Q, N) products of queries (Q, D) and keys
    (N, D), -inf where nobody is asked."""
    wanted = min(rules.neighbours, similar.shape[1])
    values, index = similar.topk(min(wanted + SPARE, similar.shape[1]))
    slack = 2 * tolerance(queries.shape[1])
    bound = values[:, wanted - 1 : wanted] - slack
    open_ = (values[:, -1:] >= bound).any(dim=1).nonzero()[:, 0] if values.shape[1] < similar.shape[1] else index[:0, 0]
    which, place = near(values, bound, slack)
    values[which, place] = of_pairs(queries, lambda rows: keys.index_select(0, rows), which, index[which, place])
    answers = _carried(values, index, labels, wanted, rules)
    if len(open_):
        rows = above(queries[open_], keys, similar[open_], bound[open_])
        most = max(wanted, int((rows > -torch.inf).sum(dim=1).max()))
        answers[open_] = _carried(*rows.topk(most), labels, wanted, rules)
    return answers


def _carried(values: Tensor, index: Tensor, labels: Tensor, wanted: int, rules: Rules) -> Tensor:
    """(Q, C) float32: labels (N, C) at `index` (Q, K), weighted by the `wanted` largest of the values (Q, K) of each row and
    what equals the last of them. Sums go from the largest to the smallest: no order of equals shows, and no width."""
    values, order = values.double().sort(dim=1, descending=True)
    powers = values.masked_fill_(values < values[:, wanted - 1 : wanted], -torch.inf)
    powers = powers.sub_(powers[:, :1].clone()).div_(rules.temperature).exp_()
    shares = (powers / _summed(powers))[..., None] * labels[index.gather(1, order)]
    return _summed(shares.sort(dim=1, descending=True).values)[:, 0].float()


def _summed(falling: Tensor) -> Tensor:
    """Sums over dimension 1, which stays, one after another: `sum` would choose its own order."""
    return falling.cumsum(dim=1)[:, -1:]


def _check_first(features: Tensor, mask: Any) -> None:
    if features.ndim != 3 or 0 in features.shape or not features.is_floating_point():
        raise ProtocolError(
            f"features of a frame are (h, w, D) of a float dtype; {tuple(features.shape)} {features.dtype} came"
        )
    if mask.shape != features.shape[:2] or mask.is_floating_point():
        raise ProtocolError(
            f"the first mask holds whole ids at the size of the grid, {tuple(features.shape[:2])}; "
            f"{tuple(mask.shape)} {mask.dtype} came"
        )
    low, high = int(mask.min()), int(mask.max())
    if low < 0 or high > LARGEST_ID:
        raise ProtocolError(f"the first mask holds ids from {low} to {high}; 0 is background, objects are 1 to 254")
