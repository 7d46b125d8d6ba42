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
Note:   an object has as many pairs as the square of its area, so that with few images a handful of large ones decide, and
        most of what lies between O and 1 is objects that resemble themselves: docs/pictures.md has the numbers. `each`
        gives large and small the same weight and does not change that on 99 photos of COCO. `instance/` does tell
        encoders apart there. O falls with fewer images, so that intervals over resampled ones lean to the low side, and
        values compare on the same data alone.
Expect: O below 1 by as much as the encoder tells categories apart; the paper prints 0.55 (MMC) to 0.76 (MAE).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from evalkit.metrics import intervals, pairs
from evalkit.metrics.similarity import normalise
from evalkit.probing import dense, outlines
from evalkit.types import Dataset, Instances, Job, Score, Segmented

BLOCKS = 64
"""Blocks of consecutive images whose pairs are counted apart, to resample them."""
RESAMPLES = 2000
SCORES = (("overlap", "ratio"), ("intra", "cosine"), ("inter", "cosine"))


LABELS_APART = True
"""Labels of one split are never held against those of the other, so the splits may have other classes."""


@dataclass(frozen=True)
class Config:
    """bins: of equal width from -1 to 1; 200 (ours). patches: labelled patches whose pairs are counted for the categories,
    at most; 65,536 (ours: two billion pairs). instances: also score pairs within objects, where they are outlined.
    each: patches of a category that count in one image, and of an object, at most, drawn at random; 0 takes all. No
    source has such a limit: it is ours, made so that a large object weighs no more than a small one."""

    bins: Annotated[int, Field(ge=2)] = 200
    patches: Annotated[int, Field(ge=2)] = 65_536
    instances: bool = True
    each: Annotated[int, Field(ge=0)] = 0


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
    64 blocks of them, since a pair belongs to two). No outcomes per image: an overlap belongs to pairs. Kept: the
    histograms as "histograms", and as "resamples" each score on 2,000 resamples, which are of the same images for every
    encoder, so that two can be compared. Raises ProtocolError where no patch has a label, or all have the same.
    """
    counted = count(job)
    config: Config = job.config
    kept = {}
    pairs_of = {}
    resamples: dict[str, Tensor] = {}
    for scope, spread in counted.spreads.items():
        counts, _ = spread.total
        kept[scope] = torch.from_numpy(counts)
        pairs_of[scope] = {"intra": int(counts[0].sum()), "inter": int(counts[1].sum())}
        yield from _scores(job, scope, spread, counted.images[scope], resamples)
    job.keep("histograms", kept)
    job.keep("resamples", {"seed": torch.tensor([job.seed]), **resamples})
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
    drawn, per_image, labelled = Drawn(config.patches), {}, 0
    reader: Callable[[dense.Grid], Labeller] = partial(Labeller, classes=len(dataset.classes), instances=instances)
    images = dense.with_tokens(job, "test", reader)
    for position, (categories, objects), tokens in job.track(images, "similarities", total=len(dataset)):
        rows = normalise(tokens.to(job.device).flatten(0, 1), "patch tokens")
        keys = torch.rand(len(rows), generator=job.rng("similarity", dataset[position].id), dtype=torch.float64)
        labelled += int((categories >= 0).sum())
        mine, labels = lowest(keys, torch.from_numpy(categories), config.each)
        drawn.add(keys[mine], rows=rows[mine.to(rows.device)], labels=labels, images=torch.full_like(labels, position))
        mine, labels = (found.to(rows.device) for found in lowest(keys, torch.from_numpy(objects), config.each))
        if len(mine):
            per_image[position] = pairs.within(rows[mine], labels, config.bins)
    drawn.cut()
    spreads, taken = _of_categories(drawn, config.bins, dataset)
    counts = dict.fromkeys(spreads, taken)
    if per_image:
        spreads["instance"] = _of_images(per_image, config.bins, len(dataset))
        counts["instance"] = len(per_image)
    return Counted(spreads, counts, labelled, len(drawn.keys))


def lowest(keys: Tensor, labels: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Which patches count, rising, and their labels: of each label those with the lowest keys, `most`, or all for 0.

    keys: (N,) all different. labels: (N,) int64, -1 for none.
    """
    there = (labels >= 0).nonzero().squeeze(1)
    if most:
        by_key = there[keys[there].argsort(stable=True)]
        by_label = by_key[labels[by_key].argsort(stable=True)]
        together = labels[by_label]
        rank = torch.arange(len(together)) - torch.searchsorted(together, together)
        there = by_label[rank < most].sort().values
    return there, labels[there]


def _of_images(per_image: Mapping[int, tuple[pairs.Counts, pairs.Floats]], bins: int, images: int) -> pairs.Spread:
    """Each image a unit, those without a labelled patch too."""
    spread = pairs.Spread(np.zeros((images, 2, bins), np.int64), np.zeros((images, 2)))
    for position, (counts, sums) in per_image.items():
        spread.counts[position], spread.sums[position] = counts, sums
    return spread


def _of_categories(drawn: Drawn, bins: int, dataset: Dataset) -> tuple[dict[str, pairs.Spread], int]:
    """All pairs of the drawn patches and those across images, and how many images they come from.

    Blocks are of the data set's images, whether they have a labelled patch or not: which have depends on the grid, and
    resamples must be of the same images for every encoder.
    """
    name = dataset.name
    if not drawn.seen:
        raise ProtocolError(f"no patch of {name} lies in a category by more than half: nothing can be compared")
    labels = drawn.columns["labels"]
    if len(torch.unique(labels)) < 2:
        raise ProtocolError(f"all labelled patches of {name} are of the same class: there are no pairs of two")
    units = min(BLOCKS, len(dataset))
    rows = drawn.columns["rows"]
    labels, image = (column.to(rows.device) for column in (labels, drawn.columns["images"]))
    every = pairs.between_blocks(rows, labels, image * units // len(dataset), bins=bins, count=units)
    across = pairs.Spread(every.counts.copy(), every.sums.copy())
    found = torch.unique(image).tolist()
    for number in found:
        mine = image == number
        block = number * units // len(dataset)
        counts, sums = pairs.within(rows[mine], labels[mine], bins)
        across.counts[block, block] -= counts
        across.sums[block, block] -= sums
    return {"category": every, "across": across}, len(found)


def _scores(job: Job, scope: str, spread: pairs.Spread, images: int, resamples: dict[str, Tensor]) -> Iterator[Score]:
    """The three scores of a scope; adds what each is on resamples, (2000,) float64."""
    prefix = "" if scope == "category" else f"{scope}/"
    values = _statistics(*spread.total)
    drawn = np.full((RESAMPLES, 3), np.nan)  # so that fewer images than an interval needs take no part in paired tests
    if images >= intervals.FEWEST:
        drawn = np.concatenate([_statistics(*piece) for piece in spread.resampled(RESAMPLES, job.seed)])
    for column, (name, unit) in enumerate(SCORES):
        value = float(values[column])
        bounds = intervals.NONE if np.isnan(value) else intervals.of_resamples(drawn[:, column], images)
        resamples[f"{prefix}{name}"] = torch.from_numpy(drawn[:, column].copy())
        n = 0 if np.isnan(value) else images
        yield Score(f"{prefix}{name}", value, n, bounds.low, bounds.high, unit, interval=bounds.method)


def _statistics(counts: Any, sums: Any) -> npt.NDArray[np.float64]:
    """(..., 3): overlap and both means."""
    return np.concatenate([pairs.overlap(counts)[..., None], pairs.means(counts, sums)], axis=-1)
