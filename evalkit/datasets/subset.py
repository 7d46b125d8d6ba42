"""Some samples of a data set: at most so many, evenly spread, as `--limit` measures on, or those at given positions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evalkit.datasets.selection import Selection
from evalkit.errors import UsageError
from evalkit.types import Dataset


@dataclass(frozen=True, eq=False)
class Subset(Selection):
    """At most `limit` samples of `whole`, each label in proportion, in the order of `whole`; itself a `Dataset`.

    The choice depends on the labels and their order alone. chosen: positions in `whole`, ascending, where it is not left
    to the limit (see `picked`). Raises UsageError for a limit below 1.
    """

    limit: int
    chosen: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise UsageError(f"limit is {self.limit}: it must be at least 1 sample")

    @cached_property
    def indices(self) -> tuple[int, ...]:
        """Positions in `whole`, ascending."""
        if self.chosen is not None:
            return self.chosen
        count = len(self.whole)
        # By label first: a plain stride over labels in turn (0, 1, 2, 0, ...) could meet one class only.
        order = sorted(range(count), key=lambda index: self.whole[index].label)
        taken = min(self.limit, count)
        return tuple(sorted(order[step * count // taken] for step in range(taken)))

    @property
    def digest(self) -> str:
        """sha256 over the digest of the whole and the samples taken; that of the whole where all are taken."""
        if len(self) == len(self.whole):
            return self.whole.digest
        return hashlib.sha256(f"{self.whole.digest} {self.indices}".encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Of the whole, with the counts of the samples taken."""
        return super().describe() | {"limit": self.limit, "samples_of_whole": len(self.whole)}


def picked(whole: Dataset, positions: Iterable[int]) -> Subset:
    """The samples at these positions, in the order of `whole`. Raises UsageError for none."""
    chosen = tuple(sorted(positions))
    return Subset(whole, len(chosen), chosen)
