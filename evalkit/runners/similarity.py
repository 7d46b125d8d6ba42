"""How alike patches of one kind are, and of two: histograms of cosine, the overlap of the two, and both means.

What:   a patch belongs to the category, or object, that has more than half of its pixels; others are left out. Category:
        all pairs of patches of the data set, within and across images, of the same category (intra) and of two (inter).
        `across/`: the pairs of these that lie in two images. `instance/`: pairs
        within one image, of the same object and of two. The overlap O of the two histograms, each of
        area 1, is 0 for an encoder that separates them and 1 for one that does not.
Source: MMC Table 5 and fig. 5 (arXiv:2308.11448). No code is public, and the paper states neither data nor bins nor
        whether pairs lie in one image. Chosen here: COCO's categories, 200 bins of 0.01, all pairs.
Exact:  every pair is counted, block by block, up to `patches` labelled patches; of more, so many are drawn, all of them
        equally likely, and all pairs of those are counted (facts "patches" and "labelled_patches"). Instance pairs are
        never sampled.
Note:   an object has as many pairs as the square of its area, so that with few images a handful of large ones decide: on
        50 photos of COCO an untrained ViT (O 0.74 +- 0.10) cannot be told from a trained one (0.78 +- 0.12).
Expect: O below 1 by as much as the encoder tells categories apart; the paper prints 0.55 (MMC) to 0.76 (MAE).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from evalkit.datasets.selection import offers
from evalkit.errors import ProtocolError
from evalkit.metrics import pairs
from evalkit.metrics.neighbours import normalise
from evalkit.probing import dense, outlines
from evalkit.types import Instances, Job, Score, Segmented

BLOCKS = 64
"""Blocks of consecutive images whose pairs are counted apart, to resample them."""
RESAMPLES = 2000
SCORES = (("overlap", "ratio"), ("intra", "cosine"), ("inter", "cosine"))


@dataclass(frozen=True)
class Config:
    """bins: of equal width from -1 to 1; 200 (ours). patches: labelled patches whose pairs are counted for the categories,
    at most; 65,536 (ours: two billion pairs). instances: also score pairs within objects, where they are outlined."""

    bins: Annotated[int, Field(ge=2)] = 200
    patches: Annotated[int, Field(ge=2)] = 65_536
    instances: bool = True


@dataclass(frozen=True)
class Labeller:
    """Reads the category and the object of every patch of an image; picklable. grid: (h, w) of N patches."""

    grid: tuple[int, int]
    classes: int
    instances: bool

    def __call__(self, dataset: Any, position: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Two (N,): label, and number within the image, each -1 where no more than half of the patch has one."""
        segmented: Segmented = dataset
        counts, cells = outlines.label_counts(segmented.pixels(position), self.grid, self.classes)
        categories = outlines.majority(counts.T, cells)
        if not self.instances:
            return categories, np.full_like(categories, -1)
        instances: Instances = dataset
        found = outlines.outline(instances.objects(position), self.grid, depth=False)
        return categories, outlines.majority(found.cover, found.cells)


@dataclass
class Drawn:
    """Up to `most` rows of a stream, all equally likely, and the same whatever came in which pieces.

    Each row has a random key, those with the lowest keys stay. columns: what is held of each row.
    """

    most: int
    seen: int = 0
    keys: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    columns: dict[str, Tensor] = field(default_factory=dict)

    def add(self, keys: Tensor, **columns: Tensor) -> None:
        """More rows with their keys (n,) float64."""
        self.seen += len(keys)
        self.keys = torch.cat([self.keys, keys])
        self.columns = {name: torch.cat([self.columns.get(name, new[:0]), new]) for name, new in columns.items()}
        if len(self.keys) > 2 * self.most:
            self.cut()

    def cut(self) -> None:
        """Keep no more than asked for, in the order in which they came."""
        if len(self.keys) > self.most:
            kept = self.keys.argsort(stable=True)[: self.most].sort().values
            self.keys = self.keys[kept]
            self.columns = {name: held[kept.to(held.device)] for name, held in self.columns.items()}


@dataclass(frozen=True)
class Counted:
    """What was counted, by scope ("category", "across", "instance"), and n, the images behind it. labelled, taken: patches."""

    spreads: dict[str, pairs.Spread]
    images: dict[str, int]
    labelled: int
    taken: int


def run(job: Job) -> Iterator[Score]:
    """Yield "overlap" (headline, lower is better), "intra", "inter", and the same with `across/` and `instance/`.

    overlap in [0, 1], the others mean cosines; n is the number of images, intervals over images (categories: over at most
    64 blocks of them, since a pair belongs to two). No outcomes per image: an overlap belongs to pairs. The histograms
    are kept as "histograms". Raises ProtocolError where no patch has a label, or all have the same.
    """
    counted = count(job)
    config: Config = job.config
    kept = {}
    pairs_of = {}
    for scope, spread in counted.spreads.items():
        counts, _ = spread.total
        kept[scope] = torch.from_numpy(counts)
        pairs_of[scope] = {"intra": int(counts[0].sum()), "inter": int(counts[1].sum())}
        yield from _scores(job, scope, spread, counted.images[scope])
    job.keep("histograms", kept)
    job.fact("patches", counted.taken)
    job.fact("labelled_patches", counted.labelled)
    job.fact("pairs", pairs_of)
    job.fact("bins", config.bins)
    if config.instances and "instance" not in counted.spreads:
        job.fact("absent", {"instance/overlap": f"{job.dataset('test').name} outlines no objects"})


def count(job: Job) -> Counted:
    """The histograms behind the scores; raises as `run`."""
    config: Config = job.config
    dense.demand(job, "pixels", "similarity of categories", "test")
    dataset = job.dataset("test")
    instances = config.instances and offers(dataset, "objects")
    drawn, per_image = Drawn(config.patches), []
    reader: Callable[[dense.Grid], Labeller] = partial(Labeller, classes=len(dataset.classes), instances=instances)
    images = dense.with_tokens(job, "test", reader)
    for position, (categories, objects), tokens in job.track(images, "similarities", total=len(dataset)):
        rows = normalise(tokens.to(job.device).flatten(0, 1), "patch tokens")
        _draw(job, drawn, position, rows, categories)
        if instances and (objects >= 0).any():
            mine = torch.from_numpy(np.flatnonzero(objects >= 0)).to(rows.device)
            per_image.append(pairs.within(rows[mine], torch.from_numpy(objects).to(rows.device)[mine], config.bins))
    drawn.cut()
    spreads, taken = _of_categories(drawn, config.bins, dataset.name)
    counts = dict.fromkeys(spreads, taken)
    if per_image:
        spreads["instance"] = pairs.Spread(*(np.stack(column) for column in zip(*per_image, strict=True)))
        counts["instance"] = len(per_image)
    return Counted(spreads, counts, drawn.seen, len(drawn.keys))


def _draw(job: Job, drawn: Drawn, position: int, rows: Tensor, categories: npt.NDArray[np.int64]) -> None:
    keys = torch.rand(
        len(categories), generator=job.rng("similarity", job.dataset("test")[position].id), dtype=torch.float64
    )
    mine = torch.from_numpy(np.flatnonzero(categories >= 0))
    labels = torch.from_numpy(categories)[mine]
    drawn.add(keys[mine], rows=rows[mine.to(rows.device)], labels=labels, images=torch.full_like(labels, position))


def _of_categories(drawn: Drawn, bins: int, name: str) -> tuple[dict[str, pairs.Spread], int]:
    """All pairs of the drawn patches and those across images, and how many images they come from."""
    if not drawn.seen:
        raise ProtocolError(f"no patch of {name} lies in a category by more than half: nothing can be compared")
    labels = drawn.columns["labels"]
    if len(torch.unique(labels)) < 2:
        raise ProtocolError(f"all labelled patches of {name} are of the same class: there are no pairs of two")
    found, image = torch.unique(drawn.columns["images"], return_inverse=True)
    blocks = image * min(BLOCKS, len(found)) // len(found)
    rows = drawn.columns["rows"]
    labels, image, blocks = (column.to(rows.device) for column in (labels, image, blocks))
    every = pairs.between_blocks(rows, labels, blocks, bins=bins)
    across = pairs.Spread(every.counts.copy(), every.sums.copy())
    for number in range(len(found)):
        mine = image == number
        block = number * min(BLOCKS, len(found)) // len(found)
        counts, sums = pairs.within(rows[mine], labels[mine], bins)
        across.counts[block, block] -= counts
        across.sums[block, block] -= sums
    return {"category": every, "across": across}, len(found)


def _scores(job: Job, scope: str, spread: pairs.Spread, images: int) -> Iterator[Score]:
    prefix = "" if scope == "category" else f"{scope}/"
    values = _statistics(*spread.total)
    bounds = np.full((2, 3), np.nan)
    if len(spread.counts) > 1:
        drawn = np.concatenate([_statistics(*piece) for piece in spread.resampled(RESAMPLES, job.seed)])
        for column in np.flatnonzero(~np.isnan(values)).tolist():  # a resample may lack pairs of a kind
            bounds[:, column] = np.nanquantile(drawn[:, column], [0.025, 0.975])
    for column, (name, unit) in enumerate(SCORES):
        value, (low, high) = float(values[column]), bounds[:, column].tolist()
        yield Score(f"{prefix}{name}", value, 0 if np.isnan(value) else images, low, high, unit)


def _statistics(counts: Any, sums: Any) -> npt.NDArray[np.float64]:
    """(..., 3): overlap and both means."""
    return np.concatenate([pairs.overlap(counts)[..., None], pairs.means(counts, sums)], axis=-1)
