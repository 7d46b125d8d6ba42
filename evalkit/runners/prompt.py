"""Zero-shot segmentation from one patch: what looks like the patch that a person points at.

What:   cosine between the prompt's token and all patch tokens of the image; the mask is where it exceeds a threshold T.
        IoU with the object that the prompt lies on, mean over objects. All thresholds, all prompts and all objects of an
        image come from one matrix product: similarities are sorted into the intervals between thresholds, and the pixels
        of object and image in each interval are added up from above.
Source: MMC Table 1 (arXiv:2308.11448): COCO, 480 x 480, T = 0.1, 0.2, 0.3, 0.4 and the best of 0 ... 0.9. No code is
        public, and the paper says neither which patch is the prompt, nor which objects count, nor how IoU is averaged. It
        contradicts itself twice: its text varies T from 0 to 0.3, its table from 0.1 to 0.4, so all five are scored; a
        patch belongs to the object where its similarity is "higher than" T, and a sentence later where its distance is
        "within T": the mask is where the cosine is higher than T, as in the paper's Figure 2.
Chosen: the prompt is the patch that holds the object's deepest pixel; every object that is no crowd counts; masks are
        compared at the image's own pixels, each taking its patch's similarity ("nearest") or, as an option, one
        interpolated between patches. `patch/` scores compare patches with the patches of which the object covers more
        than half; an object that covers no patch so is left out there and counted in the facts.
T:      "train": chosen on images of the training split. "optimal": chosen on the scored objects, as the paper's "Opt.".
        Both have the best mean IoU (`probing.selection`: a mean of IoU is smooth, so it is its own loss); equally good
        ones: the lowest.
Expect: a network whose tokens are all alike scores the mean share of the image that objects have (fact "whole_image").
        The paper's untrained ViT-B has 16.8 %; over all single objects of COCO it is 3 to 5 %, so the paper's objects
        were others: its numbers are no target for the defaults.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from evalkit.errors import ProtocolError, UsageError
from evalkit.metrics import bootstrap
from evalkit.metrics.similarity import cosines, normalise
from evalkit.probing import dense, selection
from evalkit.probing.outlines import Merge, Outliner, Outlines
from evalkit.types import Job, Role, Score

Threshold = Annotated[float, Field(ge=-1, le=1)]
TENTHS = tuple(number / 10 for number in range(10))
LEVELS = ("", "patch/")
"""Prefixes of scores: at pixel and at patch resolution."""

CHUNK = 1 << 24
"""Interpolated similarities held at once."""


LABELS_APART = True
"""Labels of one split are never held against those of the other, so the splits may have other classes."""


@dataclass(frozen=True)
class Config:
    """thresholds: each scored separately; MMC's 0, 0.1, 0.2, 0.3, 0.4. candidates: of which "train" and "optimal" are chosen;
    MMC's 0 ... 0.9. prompt: "deepest" patch (ours), "random": `prompts` patches of which the object covers more than
    half, "all" of those; IoU is then the mean over an object's prompts. objects: "each" (ours), those of one "category" in
    an image together, or the "largest" of an image. upsampling: of the similarity map to the image's pixels. train_images:
    so many, evenly spread, choose "train" (ours)."""

    thresholds: tuple[Threshold, ...] = (0.0, 0.1, 0.2, 0.3, 0.4)
    candidates: tuple[Threshold, ...] = TENTHS
    prompt: Literal["deepest", "random", "all"] = "deepest"
    prompts: Annotated[int, Field(ge=1)] = 5
    objects: Merge = "each"
    upsampling: Literal["nearest", "bilinear"] = "nearest"
    train_images: Annotated[int, Field(ge=1)] = 1000

    def __post_init__(self) -> None:
        if len(set(self.thresholds)) < len(self.thresholds):
            raise UsageError(f"thresholds is {list(self.thresholds)}; each may be named once")
        if not self.candidates:
            raise UsageError("candidates is empty; at least one threshold is needed to choose from")

    @property
    def cuts(self) -> tuple[float, ...]:
        """All thresholds, rising."""
        return tuple(sorted({*self.thresholds, *self.candidates}))


def segment(tokens: Tensor, prompts: Tensor, thresholds: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Similarity maps and masks of some prompts of one image; a pure function.

    tokens: (h, w, D), any float dtype and norm. prompts: (P,) int64 flat indices of patches, row by row.
    Returns cosines (P, h, w) float32 in [-1, 1], and masks (T, P, h, w) bool, True where the cosine exceeds the threshold.
    Raises FeatureError for tokens that are not finite, ProtocolError for a prompt outside the grid.
    """
    cosines = similarity(tokens, prompts)
    cuts = torch.tensor(list(thresholds), dtype=torch.float32, device=cosines.device)
    return cosines, cosines > cuts.view(-1, 1, 1, 1)


def similarity(tokens: Tensor, prompts: Tensor) -> Tensor:
    """(P, h, w) cosines of prompts to all patches; arguments and errors as `segment`."""
    height, width, dim = tokens.shape
    if prompts.numel() and not 0 <= int(prompts.min()) <= int(prompts.max()) < height * width:
        raise ProtocolError(f"a prompt lies outside the grid of {height} x {width} patches: {prompts.tolist()}")
    rows = normalise(tokens.reshape(-1, dim), "patch tokens")
    return cosines(rows[prompts], rows).view(len(prompts), height, width)


def above(similarities: Tensor, weights: Tensor, cuts: Sequence[float]) -> Tensor:
    """(P, T) int64: the weight of places whose similarity exceeds each threshold.

    similarities: (P, N) float32. weights: (P, N) or (N,) int64, pixels at each place. cuts: rising. One pass, however
    many thresholds there are.
    """
    edges = torch.tensor(list(cuts), dtype=torch.float32, device=similarities.device)
    step = torch.bucketize(similarities, edges)  # how many thresholds the similarity exceeds
    held = weights.new_zeros(len(similarities), len(cuts) + 1)
    held.scatter_add_(1, step, weights.expand_as(step))
    return held.flip(1).cumsum(1).flip(1)[:, 1:]


def iou(inside: Tensor, predicted: Tensor, area: Tensor) -> Tensor:
    """(P, T) float64 in [0, 1] from pixels (P, T) in the intersection and in the mask, and the objects' areas (P,)."""
    return inside.double() / (predicted + area[:, None] - inside).double()


def at_patches(cosines: Tensor, owner: Tensor, found: Outlines, cuts: Sequence[float]) -> Tensor:
    """(P, T) float64: IoU counted in patches; NaN for an object that covers more than half of no patch.

    cosines: (P, h, w). owner: (P,) the object of each prompt. found: the image's O objects.
    """
    flat = cosines.flatten(1)
    cover = torch.from_numpy(2 * found.cover > found.cells).to(flat.device).long()[owner]
    result = iou(above(flat, cover, cuts), above(flat, cover.new_ones(flat.shape[1]), cuts), cover.sum(1))
    return result.masked_fill((cover.sum(1) == 0)[:, None], torch.nan)


def at_pixels(cosines: Tensor, owner: Tensor, found: Outlines, cuts: Sequence[float]) -> Tensor:
    """(P, T) float64: IoU counted in the image's pixels, each with the similarity of its patch. Arguments as above."""
    flat = cosines.flatten(1)
    cover, cells, area = (torch.from_numpy(a).to(flat.device) for a in (found.cover, found.cells, found.area))
    return iou(above(flat, cover[owner], cuts), above(flat, cells, cuts), area[owner])


def at_interpolated(cosines: Tensor, owner: Tensor, found: Outlines, cuts: Sequence[float]) -> Tensor:
    """(P, T) float64: IoU counted in the image's pixels, with similarities interpolated bilinearly between the centres of
    patches. Arguments as above; the outlines hold masks."""
    width, height = found.size
    pieces = []
    step = max(1, CHUNK // (width * height))
    for some in (slice(first, first + step) for first in range(0, len(owner), step)):
        maps = F.interpolate(cosines[some].unsqueeze(1), (height, width), mode="bilinear", align_corners=False).flatten(
            1
        )
        masks = torch.stack([torch.from_numpy(found.mask(int(number))) for number in owner[some]])
        weights = masks.to(maps.device).flatten(1).long()
        pieces.append(
            iou(above(maps, weights, cuts), above(maps, weights.new_ones(maps.shape[1]), cuts), weights.sum(1))
        )
    return torch.cat(pieces)


def choose(found: Outlines, rule: str, most: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Prompts (P,) and the object of each (P,), objects in order; rule, most: `Config.prompt` and `prompts`.

    An object that covers more than half of no patch has its deepest patch for a prompt under every rule.
    """
    prompts, owner = [], []
    for number, (cover, deepest) in enumerate(zip(found.cover, found.deepest, strict=True)):
        own = np.flatnonzero(2 * cover > found.cells)
        if rule == "deepest" or not len(own):
            own = np.array([deepest])
        elif rule == "random" and len(own) > most:
            own = own[torch.randperm(len(own), generator=rng)[:most].sort().values.numpy()]
        prompts.append(own)
        owner.append(np.full(len(own), number))
    return torch.from_numpy(np.concatenate(prompts)), torch.from_numpy(np.concatenate(owner))


@dataclass(frozen=True)
class _Table:
    """Outcomes of a split. pixel, patch: (n, T) IoU per object, patch NaN where it has none. labels, groups: (n,).
    share: (n,) of the image. tiny: (n,) smaller than a patch."""

    pixel: npt.NDArray[np.float64]
    patch: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]
    share: npt.NDArray[np.float64]
    tiny: npt.NDArray[np.bool_]

    def of(self, level: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """IoU and groups of the objects that have one at this level."""
        values = self.patch if level else self.pixel
        kept = ~np.isnan(values[:, 0])
        return values[kept], self.groups[kept]


def run(job: Job) -> Iterator[Score]:
    """Yield "IoU@T=train" (headline), "IoU@T=optimal" (best-on-test), "IoU@T=0.1" ..., the same with `patch/` and, at
    pixel resolution, with `category/`: mean over categories of the mean over their objects; then "IoU/<category>" at the
    threshold chosen in training.

    Values are fractions; n is the number of objects (of images for `category/`), intervals over images. Facts: the
    thresholds chosen, objects smaller than a patch, objects without a patch, and the IoU of a mask that is the whole
    image. Raises ProtocolError where a split has no outlined object.
    """
    config: Config = job.config
    dense.demand(job, "objects", "segmentation from a prompt", "train", "test")
    train = _measured(job, "train", dense.spread(len(job.dataset("train")), config.train_images))
    test = _measured(job, "test", None)
    named = {f"{cut:g}": cut for cut in config.thresholds}
    facts, choices = {}, {}
    candidates = sorted(config.candidates)
    for level in LEVELS:
        found = {name: _best(table, level, config) for name, table in (("train", train), ("optimal", test))}
        chosen = {name: candidates[choice.index] for name, choice in found.items()}
        facts[level + "IoU"] = chosen
        for name, choice in found.items():
            choices[f"{level}IoU@T={name}"] = selection.fact("T", candidates, chosen[name], choice)
        yield from _scores(job, test, level, chosen | named)
        if not level:
            yield from _of_categories(job, test, chosen | named)
    job.fact("thresholds", facts)
    job.fact("choices", choices)
    job.fact(
        "objects",
        {"scored": len(test.labels), "smaller_than_a_patch": int(test.tiny.sum()),
         "without_a_patch": int(np.isnan(test.patch[:, 0]).sum()), "whole_image": float(test.share.mean()),
         "chose_the_threshold": len(train.labels)},
    )  # fmt: skip


def _scores(job: Job, test: _Table, level: str, cuts: dict[str, float]) -> Iterator[Score]:
    values, groups = test.of(level)
    for name, cut in cuts.items():
        column = values[:, job.config.cuts.index(cut)]
        yield bootstrap.score(f"{level}IoU@T={name}", column, groups, note=_note(name), seed=job.seed)


def _of_categories(job: Job, test: _Table, cuts: dict[str, float]) -> Iterator[Score]:
    """Categories weigh alike; images are the units, so that what is kept stays small."""
    names = job.dataset("test").classes
    images, rows = np.unique(test.groups, return_inverse=True)
    counts = np.zeros((len(images), len(names)))
    np.add.at(counts, (rows, test.labels), 1)
    for name, cut in cuts.items():
        sums = np.zeros_like(counts)
        np.add.at(sums, (rows, test.labels), test.pixel[:, job.config.cuts.index(cut)])
        yield bootstrap.ratios(f"category/IoU@T={name}", sums, counts, images, note=_note(name), seed=job.seed)
    column = test.pixel[:, job.config.cuts.index(cuts["train"])]
    for label in np.unique(test.labels):
        mine = test.labels == label
        yield bootstrap.score(f"IoU/{names[label]}", column[mine], test.groups[mine], seed=job.seed)


def _note(name: str) -> str:
    return "best-on-test" if name == "optimal" else ""


def _best(table: _Table, level: str, config: Config) -> selection.Choice:
    """Of the candidates, rising; the lowest where no object has a value at this level."""
    values, _ = table.of(level)
    columns = [config.cuts.index(cut) for cut in sorted(config.candidates)]
    return selection.choose(torch.from_numpy(values[:, columns]).T)


def _measured(job: Job, role: Role, positions: list[int] | None) -> _Table:
    config: Config = job.config
    dataset, parts = job.dataset(role), []
    reader = partial(Outliner, merge=config.objects, masks=config.upsampling == "bilinear")
    images = dense.with_tokens(job, role, reader, positions=positions)
    total = len(dataset) if positions is None else len(positions)
    numbers: dict[str, int] = {}
    for position, found, tokens in job.track(images, f"prompts, {role}", total=total):
        if len(found.labels):
            sample = dataset[position]
            group = numbers.setdefault(sample.group, len(numbers))
            parts.append(_of_image(config, tokens.to(job.device), found, rng=job.rng("prompt", sample.id), group=group))
    if not parts:
        raise ProtocolError(f"the split {dataset.split} of {dataset.name} has no outlined object")
    return _Table(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _of_image(config: Config, tokens: Tensor, found: Outlines, *, rng: torch.Generator, group: int) -> dict[str, Any]:
    prompts, owner = choose(found, config.prompt, config.prompts, rng)
    cosines = similarity(tokens, prompts.to(tokens.device))
    finely = at_interpolated if config.upsampling == "bilinear" else at_pixels
    per_prompt = [count(cosines, owner.to(tokens.device), found, config.cuts) for count in (finely, at_patches)]
    pixel, patch = (_means(values.cpu(), owner, len(found.labels)).numpy() for values in per_prompt)
    whole = int(found.cells.sum())
    return {
        "pixel": pixel, "patch": patch, "labels": found.labels, "groups": np.full(len(found.labels), group),
        "share": found.area / whole, "tiny": found.area * len(found.cells) < whole,
    }  # fmt: skip


def _means(values: Tensor, owner: Tensor, objects: int) -> Tensor:
    """(O, T): mean over the prompts of each object."""
    sums = values.new_zeros(objects, values.shape[1]).index_add(0, owner, values)
    return sums / torch.bincount(owner, minlength=objects)[:, None]
