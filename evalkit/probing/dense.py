"""Images of a split beside their patch tokens: what the runners of dense protocols walk over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import cast

import numpy as np
from torch import Tensor

from evalkit.datasets.selection import offers
from evalkit.errors import ProtocolError
from evalkit.files import shown
from evalkit.types import Dataset, Job, Read, Role, Segmented

PIECE = 16
"""Images whose tokens are held at once."""

Grid = tuple[int, int]
"""(h, w): rows and columns of patches."""


def with_tokens(
    job: Job, role: Role, reader: Callable[[Grid], Callable[..., Read]], *, positions: Sequence[int] | None = None
) -> Iterator[tuple[int, Read, Tensor]]:
    """Yield (position, what its reader read, (h, w, D) patch tokens as stored) for every image, in order.

    Tokens are those of the last block after the final norm under the recipe's view. reader: makes the picklable reader of
    one image, called with data set and position, once the grid is known. positions: of these samples only, ascending.
    Images that cannot be read are left out and on record with --skip-broken, else BrokenImage is raised.
    """
    dataset = job.dataset(role)
    if not len(dataset):
        raise ProtocolError(f"the split {dataset.split} of {dataset.name} holds no image")
    wanted = range(len(dataset)) if positions is None else positions
    features = job.features(role, parts=("patches",), positions=positions)
    gone = set(features.skipped)
    kept = [position for position in wanted if dataset[position].id not in gone]
    pieces = features.batches("patches", size=PIECE)
    first = next(pieces)
    grid = (first.shape[1], first.shape[2])
    tokens = zip(kept, (rows for piece in chain([first], pieces) for rows in piece), strict=True)
    for (position, *_), found in job.read(role, reader(grid), ((position,) for position in kept)):
        # annotations that could not be read are missing here, their tokens are passed over
        yield position, found, next(rows for at, rows in tokens if at == position)


def demand(job: Job, verb: str, what: str, *roles: Role) -> None:
    """Raise ProtocolError where a split has no `verb` ("pixels", "objects"); what: the protocol, for the message."""
    for dataset in map(job.dataset, roles):
        if not offers(dataset, verb):
            kind = {"pixels": "labels for every pixel", "objects": "outlined objects"}[verb]
            raise ProtocolError(f"{what} needs {kind}; {dataset.name} ({dataset.split}) has none")


@dataclass(frozen=True)
class Carried:
    """Reads which classes a mask carries, -1 among them where something does not count; picklable."""

    def __call__(self, dataset: Dataset, position: int) -> frozenset[int]:
        """Labels that occur."""
        return frozenset(np.unique(cast(Segmented, dataset).pixels(position)).tolist())


def check_labels(job: Job) -> None:
    """Put the declared classes that no labelled pixel carries on record, by split ("classes_without_pixels").

    Masks are read, in a shuffled order, until every class has been met. Raises ProtocolError where the labelled pixels of
    the training split carry a single class: whatever was learnt of them would be perfect.
    """
    absent: dict[str, list[str]] = {}
    roles: tuple[Role, ...] = ("train", "test")
    for role in roles:
        data = job.dataset(role)
        met = _met(job, role, len(data.classes))
        lacking = [shown(name) for label, name in enumerate(data.classes) if label not in met]
        if role == "train" and len(data.classes) - len(lacking) == 1 < len(data.classes):
            void = "; there are pixels of a value that does not count, in most data sets 255" if -1 in met else ""
            raise ProtocolError(
                f"{data.name} ({data.split}): no labelled pixel is {', '.join(lacking[:10])}, so there is nothing to tell "
                f"apart{void}. Save masks that hold the class numbers 0 to {len(data.classes) - 1}, or declare other classes"
            )
        if lacking:
            absent[data.split] = lacking
    if absent:
        job.fact("classes_without_pixels", absent)


def _met(job: Job, role: Role, classes: int) -> set[int]:
    met: set[int] = set()
    order = np.random.default_rng(0).permutation(len(job.dataset(role))).tolist()
    for _, labels in job.read(role, Carried(), ((position,) for position in order), ahead=False):
        met |= labels
        if len(met - {-1}) == classes:
            break
    return met


def spread(count: int, most: int) -> list[int]:
    """At most so many positions of `count`, evenly spread, the first among them."""
    taken = min(count, most)
    return [index * count // taken for index in range(taken)]
