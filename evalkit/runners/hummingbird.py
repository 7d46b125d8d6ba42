"""Dense nearest-neighbour label transfer: every patch takes the labels of the training patches that look like it.

What:   a memory of training patches, each with its share of pixels per class. A test patch mixes the shares of its k
        nearest neighbours with weights softmax(cosine / T); the mixture is upsampled bilinearly and the largest share is
        the pixel's class. mIoU over the whole set.
Source: Balazevic et al., Towards In-Context Scene Understanding (arXiv:2306.01667); vpariza/open-hummingbird-eval 5e79da2,
        hbird/hbird_eval.py: k = 30, T = 0.02 (576-609), shares of pixels (316-320), sampling of the memory (447-517).
Default: ignored pixels count nowhere; truth at the image's own size; classes keep their names.
Released: `ignored` "first": ignored pixels of the memory are class 0 (310). `at` "input": labels of both splits are resized
        to the input, nearest (transforms.py:231), so that shares count its pixels (`patchify_gt`). `matching`
        "hungarian": predicted classes are renamed to fit the truth best (eval_metrics.py:143-159, hbird_eval.py:253).
        Not taken over: the blue deviation of 0.255, training images in random crops and colours (here each is resized as
        a test image), dropping the last batch of VOC; a class that is nowhere, neither in truth nor predicted, counts as
        0 in the mean there and is left out of it here.
Expect: DINO ViT-B/16 at 512 with 1,024,000 rows 50.8 and ViT-S/16 43.1 mIoU on VOC as released (README, two epochs of
        augmented crops, ScaNN).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from evalkit.errors import ProtocolError
from evalkit.metrics import banks, segmentation
from evalkit.metrics.neighbours import nearest
from evalkit.probing import dense, outlines
from evalkit.types import Job, Score, Segmented

QUERIES = 8192
"""Patches that are looked up together, so that the memory is not prepared for each image."""


@dataclass(frozen=True)
class Config:
    """k: neighbours; 30. temperature: of the softmax over cosines; 0.02. memory: rows at most, the same number from every
    training image, rare classes first as released; 0 keeps every labelled patch. search: "exact"; "faiss", exact too;
    "faiss-ivf", approximate: `probes` lists are read per query. matching, ignored, at: see the module."""

    k: Annotated[int, Field(ge=1)] = 30
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.02
    memory: Annotated[int, Field(ge=0)] = 0
    search: Literal["exact", "faiss", "faiss-ivf"] = "exact"
    probes: Annotated[int, Field(ge=1)] = 32
    matching: Literal["direct", "hungarian"] = "direct"
    ignored: Literal["left-out", "first"] = "left-out"
    at: Literal["image", "input"] = "image"


@dataclass(frozen=True)
class Memory:
    """rows: (M, D) float32 tokens. shares: (M, C) float32, of each patch's pixels, rows summing to 1."""

    rows: Tensor
    shares: Tensor


def transfer(values: Tensor, index: Tensor, shares: Tensor, temperature: float) -> Tensor:
    """(B, C) float32: the neighbours' shares, mixed; a pure function.

    values, index: (B, k) cosines and rows of the memory, as `neighbours.nearest` gives them. shares: (M, C).
    """
    # in float64, so that rounding to float32 hides how kernels differ: equal mixtures stay equal
    weights = torch.softmax(values.double() / temperature, dim=1)
    return torch.einsum("bk,bkc->bc", weights, shares[index].double()).float()


def painted(shares: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) int64: the class with the largest share at every pixel, the lowest of equal ones.

    shares: (h, w, C) at least 0, interpolated bilinearly between the centres of patches (align_corners False).
    """
    best = shares.new_full(size, -1.0)
    found = torch.zeros(size, dtype=torch.int16, device=shares.device)
    # a class that no patch has a share of wins nowhere; one map at a time keeps 150 classes of a large image small
    for label in shares.flatten(0, 1).any(dim=0).nonzero().flatten().tolist():
        layer = F.interpolate(shares[None, None, :, :, label], size, mode="bilinear", align_corners=False)[0, 0]
        found.masked_fill_(layer > best, label)
        torch.maximum(best, layer, out=best)
    return found.long()


def sample(present: Tensor, most: int, rng: torch.Generator) -> Tensor:
    """(K,) int64, rising: which patches of an image a limited memory keeps, K = min(most, patches with a label).

    present: (N, C) bool, classes that a patch has a pixel of. A patch's score is the sum over its classes of the number
    of patches that have it, times a uniform random number; the lowest stay, so that rare classes do.
    """
    there = present.any(dim=1).nonzero().squeeze(1)
    score = (present.float() @ present.sum(dim=0).float())[there] * torch.rand(len(there), generator=rng)
    return there[score.argsort(stable=True)[:most]].sort().values


@dataclass(frozen=True)
class Shares:
    """Reads how many pixels of every class each patch has; picklable. grid: (h, w). first: ignored pixels are class 0.
    side: pixels per patch of labels resized to the input, 0 for the image's own size."""

    grid: tuple[int, int]
    classes: int
    first: bool
    side: int = 0

    def __call__(self, dataset: Segmented, position: int) -> npt.NDArray[np.int32]:
        """(N, C)."""
        pixels = Truth(self.grid, self.side)(dataset, position)
        if self.first:
            pixels = np.maximum(pixels, 0)
        return outlines.label_counts(pixels, self.grid, self.classes)[0].astype(np.int32)


@dataclass(frozen=True)
class Truth:
    """Reads the labels of an image, at its own size or resized (nearest) to the input; picklable. side: pixels per patch,
    0 for the image's own size."""

    grid: tuple[int, int]
    side: int

    def __call__(self, dataset: Segmented, position: int) -> npt.NDArray[np.int32]:
        """(H, W), -1 where nothing counts."""
        pixels = dataset.pixels(position)
        if not self.side:
            return pixels
        rows, columns = (
            (2 * np.arange(parts * self.side) + 1) * length // (2 * parts * self.side)
            for length, parts in zip(pixels.shape, self.grid, strict=True)
        )
        return np.ascontiguousarray(pixels[rows[:, None], columns])


def run(job: Job) -> Iterator[Score]:
    """Yield "mIoU" (headline), "mAcc", "aAcc" and "IoU/<class>" for every class that is there.

    Values are fractions, n is the number of images with a pixel that counts, intervals over images; the renaming of
    `matching` "hungarian" is that of the whole set and held fixed in them. Facts: rows of the memory, how neighbours were
    searched, which classes were renamed. Raises ProtocolError where data have no labelled pixels or the memory holds
    fewer than k patches.
    """
    config: Config = job.config
    dense.demand(job, "pixels", "label transfer", "train", "test")
    dense.check_labels(job)
    memory = remember(job)
    dataset = job.dataset("test")
    groups, counted = _confusions(job, memory)
    names = dataset.classes
    if config.matching == "hungarian":
        table = torch.stack(counted)
        names_of = segmentation.matching(table.sum(0))
        moved = {names[was]: names[now] for was, now in enumerate(names_of.tolist()) if was != now}
        job.fact("renamed", moved)
        counted = list(segmentation.areas(segmentation.renamed(table, names_of)))
    yield from segmentation.scores(torch.stack(counted), names, groups, seed=job.seed)


def remember(job: Job) -> Memory:
    """The memory of the training split, on the job's device; raises as `run`."""
    config: Config = job.config
    dataset = job.dataset("train")
    each = config.memory // max(1, len(dataset)) or 1
    rows, shares = [], []
    side = job.encoder.spec.patch if config.at == "input" else 0
    reader = partial(Shares, classes=len(dataset.classes), first=config.ignored == "first", side=side)
    images = dense.with_tokens(job, "train", reader)
    for position, found, tokens in job.track(images, "memory", total=len(dataset)):
        counts = torch.from_numpy(found)
        kept = counts.any(dim=1).nonzero().squeeze(1)
        if config.memory:
            kept = sample(counts > 0, each, job.rng("hummingbird", dataset[position].id))
        rows.append(tokens.flatten(0, 1)[kept].float())
        shares.append((counts[kept].double() / counts[kept].sum(dim=1, keepdim=True)).float())
    held = sum(map(len, rows))
    job.fact("memory", {"rows": held, "images": len(rows)})
    if held < config.k:
        raise ProtocolError(f"the memory holds {held} labelled patches, fewer than the k = {config.k} neighbours")
    return Memory(torch.cat(rows).to(job.device), torch.cat(shares).to(job.device))


def _confusions(job: Job, memory: Memory) -> tuple[list[int], list[Tensor]]:
    """The group of each test image, and its areas (3, C), or its confusion (C, C) where classes will be renamed."""
    config: Config = job.config
    dataset, classes = job.dataset("test"), memory.shares.shape[1]
    side = job.encoder.spec.patch if config.at == "input" else 0
    images = dense.with_tokens(job, "test", partial(Truth, side=side))
    numbers: dict[str, int] = {}
    groups, counted = [], []
    for position, truth, shares in _mixed(job, memory, job.track(images, "label transfer", total=len(dataset))):
        labels = torch.from_numpy(truth).to(shares.device)
        table = segmentation.confusion(painted(shares, (labels.shape[0], labels.shape[1])), labels, classes).cpu()
        counted.append(table if config.matching == "hungarian" else segmentation.areas(table))
        groups.append(numbers.setdefault(dataset[position].group, len(numbers)))
    return groups, counted


def _mixed(job: Job, memory: Memory, images: Iterable[Any]) -> Iterator[tuple[int, Any, Tensor]]:
    """(position, what was read, (h, w, C) shares) of each image; patches of several are looked up together."""
    search = _search(job, memory)
    held: list[tuple[int, Any, Tensor]] = []
    for image in images:
        held.append(image)
        if sum(tokens.shape[0] * tokens.shape[1] for *_, tokens in held) >= QUERIES:
            yield from _looked_up(job.config, memory, search, held)
            held = []
    if held:
        yield from _looked_up(job.config, memory, search, held)


def _looked_up(
    config: Config, memory: Memory, search: banks.Search, held: list[tuple[int, Any, Tensor]]
) -> Iterator[tuple[int, Any, Tensor]]:
    queries = torch.cat([tokens.flatten(0, 1).float() for *_, tokens in held]).to(memory.rows.device)
    found = search(queries, memory.rows, k=config.k)
    shares = torch.cat([transfer(values, index, memory.shares, config.temperature) for values, index in found])
    start = 0
    for position, read, tokens in held:
        height, width, _ = tokens.shape
        yield position, read, shares[start : start + height * width].view(height, width, -1)
        start += height * width


def _search(job: Job, memory: Memory) -> banks.Search:
    config: Config = job.config
    if config.search == "exact":
        return nearest
    if config.search == "faiss":
        job.fact("search", {"index": "Flat"})
        return banks.flat
    approximate = banks.Inverted(memory.rows, config.probes, job.seed)
    # recall is told of patches of the memory itself, spread evenly: each finds itself and k - 1 others
    some = memory.rows[:: max(1, len(memory.rows) // 1000)]
    job.fact("search", {**approximate.facts, **banks.recall(approximate, some, memory.rows, ks=(config.k,))})
    return approximate
