"""Scores, and what a runner is given to make them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from evalkit.types.data import Augmentation, Batch, Dataset, Features
from evalkit.types.encoders import Encoder, Tokens
from evalkit.types.words import Part, Read, Role

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor


IntervalMethod = Literal["bootstrap", "clopper-pearson", "none"]
"""How an interval was found, see `evalkit.metrics.intervals`; "none": there is none, its bounds are NaN."""


@dataclass(frozen=True, eq=False)
class Score:
    """A name, a value, the sample count behind it and its 95 % confidence interval.

    value, low, high: in `unit` ("fraction" in [0, 1] is printed as a percentage). n: units behind the value; 0 means
    that value is NaN. outcomes: (n,) float32, one per unit, whose mean (or the runner's statistic) is the value.
    groups: (n,) int64, units with the same number are resampled together. labels: (n,) int64, the class of each unit: a
    headline with them is also told class by class, as "NAME/CLASS". note: "" for what may stand in a table, "best-on-test"
    and the like for extras that test data helped to choose. interval: how low and high were found.
    """

    name: str
    value: float
    n: int
    low: float
    high: float
    unit: str = "fraction"
    note: str = ""
    interval: IntervalMethod = "bootstrap"
    outcomes: np.ndarray | None = None
    groups: np.ndarray | None = None
    labels: np.ndarray | None = None


class Checkpoint(Protocol):
    """State of unfinished training; atomic, keyed by the job."""

    def load(self) -> dict[str, Any] | None: ...
    def save(self, state: dict[str, Any]) -> None: ...
    def clear(self) -> None: ...


class Job(Protocol):
    """What a runner is given. It opens no file and knows no model by name."""

    encoder: Encoder
    config: Any
    """The runner's own `Config`, resolved from the recipe."""
    device: torch.device
    seed: int
    checkpoint: Checkpoint

    def dataset(self, role: Role) -> Dataset: ...

    def features(
        self,
        role: Role,
        *,
        blocks: Sequence[int] = (-1,),
        norm: bool = True,
        parts: Sequence[Part] = ("cls",),
        positions: Sequence[int] | None = None,
    ) -> Features:
        """Stored features of the train or test split under the recipe's view. positions: of these samples only, in the
        order of the split."""
        ...

    def stream(
        self, role: Role, augmentation: Augmentation, *, epochs: int, batch_size: int, first_epoch: int = 0
    ) -> Iterator[Batch]:
        """Augmented batches, shuffled; epoch e is the same whichever epoch the stream began with."""
        ...

    def read(
        self, role: Role, reader: Callable[..., Read], items: Iterable[tuple[int, ...]], *, ahead: bool = True
    ) -> Iterator[tuple[tuple[int, ...], Read]]:
        """(item, reader(dataset, *item)) of each item in order, computed ahead in decoding workers; with ahead False in
        the thread that asks, when it asks: for threads that work side by side, where no process must be forked.

        The first number of an item is the position of a sample; others are the reader's own (a frame, a turn that
        seeds an augmentation). reader: a function of a module, or an object, that can be pickled. A sample whose image
        is broken is left out and put on record with --skip-broken, else BrokenImage is raised."""
        ...

    def encode(self, images: Tensor, blocks: Sequence[int] = (-1,), norm: bool = True) -> tuple[Tokens, ...]:
        """The encoder's tokens of a batch, in the arithmetic that stored features are computed in."""
        ...

    def rng(self, *names: str | int) -> torch.Generator:
        """A CPU generator seeded by the job's seed and these names; never the global one."""
        ...

    def track(self, steps: Iterable[Any], what: str, total: int | None = None) -> Iterable[Any]:
        """The same items, with progress shown."""
        ...

    def fact(self, name: str, value: Any) -> None:
        """A plain fact for the record (the chosen rate, how sizes were rounded)."""
        ...

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Tensors to lie beside the record (trained heads)."""
        ...

    def deliver(self, name: str, labels: np.ndarray) -> None:
        """A label map (H, W) uint8 for other tools, "<clip>/<frame>": written where somebody asked for it, else dropped."""
        ...


class Progress(Protocol):
    """Where long work says how far it is."""

    def track(self, steps: Iterable[Any], what: str, total: int | None = None) -> Iterable[Any]: ...
    def status(self, what: str) -> AbstractContextManager[None]: ...
