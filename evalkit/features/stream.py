"""Augmented batches for online training: RandomResizedCrop and flip in workers, the same whatever ran before.

What an image becomes depends on (seed, epoch, position) alone, and the order of an epoch on (seed, epoch): epoch e is
the same whichever epoch the stream began with and however many workers decode. The crop is torchvision's: ten draws of
area and aspect, then the largest central crop that the aspect allows; cut out first, resized by Pillow after.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL.Image import Transpose
from torch import Tensor

from evalkit.errors import BrokenImage, EvalkitError, FeatureError, UsageError
from evalkit.features import view as views
from evalkit.features.decoding import Broken, Groups, Loading, Pack, cores, run, sound
from evalkit.types import Augmentation, Batch, Box, Dataset, Progress

if TYPE_CHECKING:
    from PIL.Image import Image

DRAWS = 10
ORDER, CROP = 0, 1
"""What a generator is for: the third word of its seed."""


def stream(
    dataset: Dataset,
    augmentation: Augmentation,
    *,
    epochs: int,
    batch_size: int,
    first_epoch: int = 0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int | None = None,
    progress: Progress | None = None,
    broken: Broken | None = None,
) -> Iterator[Batch]:
    """Batches of the epochs `first_epoch` to `epochs` - 1, each epoch every sample once in a shuffled order.

    Yields images (B, 3, S, S) float32, normalised, on the device and labels (B,) int64; B = batch_size, less in the
    last batch of an epoch. workers: processes, 0 for this one, None for one per core (at most 8). broken: collects images
    that cannot be decoded, which are then left out of their batch; without it they raise BrokenImage. Raises UsageError
    for a seed, count or size that cannot be, FeatureError for an empty dataset or where nothing of an epoch can be decoded.
    """
    if epochs < 0 or first_epoch < 0 or batch_size < 1 or seed < 0:
        raise UsageError(
            f"a stream takes epochs and seed of at least 0 and batches of at least 1; got epochs {epochs}, "
            f"first_epoch {first_epoch}, batch_size {batch_size}, seed {seed}"
        )
    if not len(dataset):
        raise FeatureError(f"{dataset.name} has no samples in split {dataset.split!r}")
    place = torch.device(device)
    loading = Loading(min(cores(), 8) if workers is None else workers, place.type == "cuda", batch_size, ahead=2)
    schedule = Schedule(len(dataset), batch_size, seed)
    jobs = schedule.jobs(range(first_epoch, epochs))
    packs: Iterable[Pack] = run(Augmenter(dataset, augmentation, seed), jobs, loading)
    if progress is not None:
        total = schedule.batches * max(0, epochs - first_epoch)
        packs = progress.track(packs, f"training batches of {dataset.name}", total)
    ready = _ready(packs, dataset, broken or Broken(dataset, skip=False), augmentation, device=place)
    return _numbered(ready, schedule, range(first_epoch, epochs))


@dataclass(frozen=True)
class Schedule:
    """Which samples make which batch."""

    samples: int
    batch: int
    seed: int

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return math.ceil(self.samples / self.batch)

    def order(self, epoch: int) -> list[int]:
        """Positions of one epoch, shuffled by (seed, epoch)."""
        order: list[int] = generator(self.seed, epoch, ORDER).permutation(self.samples).tolist()
        return order

    def jobs(self, epochs: Iterable[int]) -> Iterator[list[tuple[int, int]]]:
        """(epoch, position) of every sample of every batch."""
        for epoch in epochs:
            order = self.order(epoch)
            for start in range(0, self.samples, self.batch):
                yield [(epoch, position) for position in order[start : start + self.batch]]


class Augmenter:
    """The work of the workers: (epoch, position) in, augmented uint8 images out, in the order asked for."""

    def __init__(self, dataset: Dataset, augmentation: Augmentation, seed: int) -> None:
        self.groups = Groups(dataset)
        self.augmentation = augmentation
        self.seed = seed

    def __getitems__(self, jobs: list[tuple[int, int]], /) -> Pack:
        """One batch."""
        size = self.augmentation.size
        kept: list[int] = []
        failures: list[tuple[int, str]] = []
        images = np.empty((len(jobs), 3, size, size), np.uint8)
        for epoch, position in jobs:
            sample = self.groups.dataset[position]
            try:
                image = self.groups.image(sample.group)
                draws = generator(self.seed, epoch, CROP, position)
                images[len(kept)] = augmented(image, sample.box, self.augmentation, draws).numpy()
                kept.append(position)
            except BrokenImage as error:
                failures.append((position, str(error)))
            except EvalkitError as error:
                return Pack((), torch.empty(0), (), 0, (type(error), str(error)))
        return Pack(tuple(kept), torch.from_numpy(images[: len(kept)]), tuple(failures), 0)


def augmented(image: Image, box: Box | None, augmentation: Augmentation, draws: np.random.Generator) -> Tensor:
    """(3, S, S) uint8: the box (or the whole image), a random crop of it at the augmentation's size, perhaps
    mirrored."""
    region = image if box is None else views.cut(image, box)
    left, top, width, height = random_crop(region.size, augmentation, draws)
    side = augmentation.size
    crop = region.crop((left, top, left + width, top + height))
    crop = crop.resize((side, side), views.resampling(augmentation.interpolation))
    if draws.random() < augmentation.flip:
        crop = crop.transpose(Transpose.FLIP_LEFT_RIGHT)
    return views.to_tensor(crop)


def random_crop(
    size: tuple[int, int], augmentation: Augmentation, draws: np.random.Generator
) -> tuple[int, int, int, int]:
    """(left, top, width, height) in pixels inside an image of `size` (width, height).

    Area share uniform in `scale`, aspect log-uniform in `ratio`. Fitting "again": where no draw fits, the largest central
    crop whose aspect lies in `ratio`; "cut": the first draw, cut down to the image.
    """
    width, height = size
    low, high = augmentation.ratio
    for _ in range(DRAWS):
        area = width * height * draws.uniform(*augmentation.scale)
        aspect = math.exp(draws.uniform(math.log(low), math.log(high)))
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if augmentation.fitting == "cut":
            across, down = min(max(across, 1), width), min(max(down, 1), height)
        if 0 < across <= width and 0 < down <= height:
            left, top = int(draws.integers(width - across + 1)), int(draws.integers(height - down + 1))
            return left, top, across, down
    across, down = width, height
    if width / height < low:
        down = max(1, round(width / low))
    elif width / height > high:
        across = max(1, round(height * high))
    return (width - across) // 2, (height - down) // 2, across, down


def generator(*words: int) -> np.random.Generator:
    """A generator seeded by whole numbers of at least 0, independent of any other tuple's."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def _ready(
    packs: Iterable[Pack], dataset: Dataset, broken: Broken, augmentation: Augmentation, *, device: torch.device
) -> Iterator[Batch]:
    """One batch of the schedule after the other, which may be empty; epochs are numbered later."""
    for pack in packs:
        broken.take(sound(pack))
        pixels = pack.images.to(device, non_blocking=True)
        labels = torch.tensor([dataset[position].label for position in pack.positions], dtype=torch.int64).to(device)
        positions = torch.tensor(pack.positions, dtype=torch.int64)
        yield Batch(views.scale(pixels, augmentation.mean, augmentation.std), labels, positions, -1, False)


def _numbered(ready: Iterator[Batch], schedule: Schedule, epochs: range) -> Iterator[Batch]:
    """Batches with their epoch, empty ones left out; one is held back so that the last of an epoch knows it is."""
    for epoch in epochs:
        waiting: Batch | None = None
        for _ in range(schedule.batches):
            batch = next(ready)
            if not len(batch.labels):
                continue
            if waiting is not None:
                yield waiting
            waiting = replace(batch, epoch=epoch)
        if waiting is None:
            raise FeatureError(f"no image of epoch {epoch} can be decoded")
        yield replace(waiting, last_of_epoch=True)
