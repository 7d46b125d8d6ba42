"""Worker processes that turn samples into uint8 batches: each image is decoded once, however many boxes it carries.

Work goes out in units of consecutive samples that end where an image ends; what comes back is cut again into batches
whose borders depend on sample positions alone, never on workers. uint8 pixels travel (a quarter of float32) through
shared memory. Workers are forked where the system can: they touch Pillow and one torch thread, no accelerator and no
thread pool of the parent.
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from evalkit.errors import BrokenImage, EvalkitError, FeatureError
from evalkit.features import view as views
from evalkit.types import Dataset, Read, View

if TYPE_CHECKING:
    from PIL.Image import Image

AHEAD = 4
"""Units that wait ready per worker; a unit is a quarter of a batch, so a worker runs a batch ahead."""

NAMED = 5
"""Broken images that an error spells out; the rest are counted."""


@dataclass(frozen=True)
class Pack:
    """Decoded samples. positions: in the dataset, ascending, one per image. images: (m, 3, S, S) uint8.
    failures: (position, message) of images that cannot be decoded. stop: position after the last, failed or not."""

    positions: tuple[int, ...]
    images: Tensor
    failures: tuple[tuple[int, str], ...]
    stop: int
    error: tuple[type[EvalkitError], str] | None = None

    def pin_memory(self) -> Pack:
        """The same in page-locked memory, from which copies to a GPU overlap with its work; torch calls this."""
        return replace(self, images=self.images.pin_memory())

    def between(self, start: int, stop: int) -> Pack:
        """The samples at positions from start to stop (exclusive)."""
        inside = [row for row, position in enumerate(self.positions) if start <= position < stop]
        rows = slice(inside[0], inside[-1] + 1) if inside else slice(0, 0)
        failures = tuple(failure for failure in self.failures if start <= failure[0] < stop)
        return Pack(self.positions[rows], self.images[rows], failures, stop)


class Groups:
    """Opens the images of a dataset, keeping the last one: boxes of one image are consecutive."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._held: tuple[str, Image | str] | None = None

    def image(self, group: str) -> Image:
        """The image of a group. Raises BrokenImage, the second time without trying again."""
        if self._held is None or self._held[0] != group:
            self._held = (group, self._open(group))
        found = self._held[1]
        if isinstance(found, str):
            raise BrokenImage(found)
        return found

    def _open(self, group: str) -> Image | str:
        try:
            return self.dataset.image(group)
        except BrokenImage as error:
            return str(error)


class Source(Protocol):
    """What a worker runs: a list of jobs in, one answer out."""

    def __getitems__(self, jobs: list[Any], /) -> Any: ...


class Decoder:
    """The work of extraction's workers: positions in, a `Pack` out. Errors other than BrokenImage travel in the
    pack."""

    def __init__(self, dataset: Dataset, view: View) -> None:
        self.view = view
        self.groups = Groups(dataset)

    def __getitems__(self, positions: list[int], /) -> Pack:
        """Consecutive positions, decoded."""
        size = self.view.size
        kept: list[int] = []
        failures: list[tuple[int, str]] = []
        images = np.empty((len(positions), 3, size, size), np.uint8)
        for position in positions:
            try:
                images[len(kept)] = self._one(position).numpy()
                kept.append(position)
            except BrokenImage as error:
                failures.append((position, str(error)))
            except EvalkitError as error:
                return Pack((), torch.empty(0), (), position, (type(error), str(error)))
        return Pack(tuple(kept), torch.from_numpy(images[: len(kept)]), tuple(failures), positions[-1] + 1)

    def _one(self, position: int) -> Tensor:
        sample = self.groups.dataset[position]
        return views.apply(self.groups.image(sample.group), sample.box, self.view)


@dataclass(frozen=True)
class Loading:
    """How decoding runs. workers: processes, 0 for this one. pin: into page-locked memory. batch: images per batch.
    ahead: answers that wait ready per worker."""

    workers: int
    pin: bool
    batch: int
    ahead: int = AHEAD


def default_workers(device: torch.device, images: int, batch: int) -> int:
    """Processes when nobody chose: on a GPU one per core up to 8; on a CPU, which decoding and forward share, one per
    core up to 4 that run at a lower priority; none for less than two batches, which forking would only delay."""
    if images < 2 * batch:
        return 0
    return min(cores(), 8 if device.type == "cuda" else 4)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decoded(
    dataset: Dataset, view: View, spans: Sequence[tuple[int, int]], *, groups: Sequence[int], loading: Loading
) -> Iterator[Pack]:
    """Batches of the samples in `spans` ([start, stop), ascending), in order; a batch starts where a span starts and
    then every `loading.batch` positions. groups: image number of every sample of the dataset. Broken images are in
    each pack's `failures`. Raises any other EvalkitError of the dataset, and FeatureError where a worker dies."""
    jobs = units(_merged(spans), groups, max(1, loading.batch // 4))
    packs = run(Decoder(dataset, view), jobs, loading)
    held: list[Pack] = []
    for start, stop in batches(spans, loading.batch):
        while not held or held[-1].stop < stop:
            held.append(sound(next(packs)))
        yield _joined([pack.between(start, stop) for pack in held], stop)
        held = [pack for pack in held if pack.stop > stop]


def batches(spans: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of each batch: every span cut from its own start."""
    for first, last in spans:
        for start in range(first, last, size):
            yield start, min(start + size, last)


def units(spans: Iterable[tuple[int, int]], groups: Sequence[int], target: int) -> Iterator[list[int]]:
    """Consecutive positions to decode together: at least `target` and on to the end of the image, but never past eight
    times `target` or the end of the span."""
    for first, last in spans:
        start = first
        while start < last:
            stop = min(start + target, last)
            limit = min(start + 8 * target, last)
            while stop < limit and groups[stop] == groups[stop - 1]:
                stop += 1
            yield list(range(start, stop))
            start = stop


def _merged(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Adjacent spans made one, so that an image across their border is decoded once."""
    held: tuple[int, int] | None = None
    for start, stop in spans:
        if held is not None and held[1] == start:
            held = (held[0], stop)
            continue
        if held is not None:
            yield held
        held = (start, stop)
    if held is not None:
        yield held


def sound(pack: Pack) -> Pack:
    """The pack, unless it carries an error from a worker, which is raised here with its class and message."""
    if pack.error is not None:
        raise revived(*pack.error)
    return pack


def revived(kind: type[EvalkitError], text: str) -> EvalkitError:
    """An error that happened in a worker, with its class and message; constructors with other arguments are passed
    by."""
    error = kind.__new__(kind, text)
    Exception.__init__(error, text)
    return error


def _joined(packs: Sequence[Pack], stop: int) -> Pack:
    packs = [pack for pack in packs if pack.positions or pack.failures]
    if len(packs) == 1:
        return replace(packs[0], stop=stop)
    positions = tuple(position for pack in packs for position in pack.positions)
    failures = tuple(failure for pack in packs for failure in pack.failures)
    return Pack(positions, torch.cat([pack.images for pack in packs]), failures, stop)


def run(source: Source, jobs: Iterable[list[Any]], loading: Loading) -> Iterator[Any]:
    """One answer of `source` per list of jobs, in order, from workers. Raises FeatureError where a worker dies."""
    workers = 0 if multiprocessing.current_process().daemon else min(loading.workers, cores())
    if not workers and not loading.pin:
        yield from map(source.__getitems__, jobs)  # threads that work side by side come here: nothing global is touched
        return
    loader: DataLoader[Any] = DataLoader(
        source,  # type: ignore[arg-type]
        batch_sampler=jobs,
        collate_fn=_same,
        num_workers=workers,
        pin_memory=loading.pin,
        prefetch_factor=loading.ahead if workers else None,
        multiprocessing_context="fork" if workers and "fork" in multiprocessing.get_all_start_methods() else None,
        worker_init_fn=_polite if workers else None,
        generator=torch.Generator(),  # the loader draws a seed; not from the global generator
    )
    try:
        yield from _started(loader)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise FeatureError("a decoding process died, most often for want of memory; use fewer workers, or 0") from error


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    with warnings.catch_warnings():
        # Python 3.12 warns of every fork beside threads; these children never take a lock of the parent's threads
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        return iter(loader)


def _same(answer: Any) -> Any:
    return answer


def _polite(_: int) -> None:
    """Runs in each new worker: the forward's threads go first, decoding takes what they leave."""
    os.nice(5)


@dataclass(frozen=True)
class Answer:
    """What a reader made of one item, or why not; see `read`."""

    item: tuple[int, ...]
    value: Any = None
    broken: str = ""
    error: tuple[type[EvalkitError], str] | None = None


@dataclass(frozen=True)
class Reading:
    """The work of the workers of `read`: one item in, one answer out."""

    dataset: Dataset
    reader: Callable[..., Any]

    def __getitems__(self, items: list[tuple[int, ...]], /) -> Answer:
        """The only item of the list."""
        (item,) = items
        try:
            return Answer(item, self.reader(self.dataset, *item))
        except BrokenImage as error:
            return Answer(item, broken=str(error))
        except EvalkitError as error:
            return Answer(item, error=(type(error), str(error)))


def read(
    dataset: Dataset, reader: Callable[..., Read], items: Iterable[tuple[int, ...]], *, loading: Loading, broken: Broken
) -> Iterator[tuple[tuple[int, ...], Read]]:
    """(item, reader(dataset, *item)) of each item, in order; items that stand on a broken image go to `broken`.

    The first number of an item is the position of a sample. Raises what `broken` raises, any other EvalkitError of the
    reader, and FeatureError where a worker dies.
    """
    for answer in run(Reading(dataset, reader), ([item] for item in items), loading):
        if answer.error is not None:
            raise revived(*answer.error)
        if answer.broken:
            broken.refuse([answer.broken])
            broken.positions.append(answer.item[0])
        else:
            yield answer.item, answer.value


@dataclass
class Broken:
    """Collects images that cannot be decoded, or refuses them. skip: collect."""

    dataset: Dataset
    skip: bool
    positions: list[int] = field(default_factory=list)

    def take(self, pack: Pack) -> tuple[int, ...]:
        """The failed positions of one batch. Raises one BrokenImage for all of them unless they may be skipped."""
        self.refuse([text for _, text in pack.failures])
        positions = tuple(position for position, _ in pack.failures)
        self.positions.extend(positions)
        return positions

    def refuse(self, messages: Sequence[str]) -> None:
        """Raise one BrokenImage for all of these messages, unless there are none or they may be skipped."""
        if messages and not self.skip:
            raise BrokenImage(refusal(self.dataset, messages))


def refusal(dataset: Dataset, messages: Sequence[str]) -> str:
    """The sentence for images that cannot be decoded: what came, and what to do."""
    unique = list(dict.fromkeys(messages))
    shown = "; ".join(unique[:NAMED])
    more = f"; and {len(unique) - NAMED} more in this batch" if len(unique) > NAMED else ""
    return (
        f"{len(unique)} image(s) of {dataset.name} ({dataset.split}) cannot be decoded: {shown}{more}. "
        "Replace them, or pass --skip-broken to leave them out and put that on record."
    )
