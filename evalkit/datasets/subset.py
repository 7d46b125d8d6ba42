"""Some samples of a data set: at most so many, evenly spread, as `--limit` measures on, or those at given positions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from evalkit.errors import UsageError
from evalkit.types import Dataset, Judgement, Sample

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Subset:
    """At most `limit` samples of `whole`, each label in proportion, in the order of `whole`; itself a `Dataset`.

    The choice depends on the labels and their order alone. chosen: positions in `whole`, ascending, where it is not left
    to the limit (see `picked`). Raises UsageError for a limit below 1.
    """

    whole: Dataset
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
    def name(self) -> str:
        """Of the whole."""
        return self.whole.name

    @property
    def split(self) -> str:
        """Of the whole."""
        return self.whole.split

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the whole, so that labels keep their meaning."""
        return self.whole.classes

    @property
    def digest(self) -> str:
        """sha256 over the digest of the whole and the samples taken; that of the whole where all are taken."""
        if len(self) == len(self.whole):
            return self.whole.digest
        return hashlib.sha256(f"{self.whole.digest} {self.indices}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Sample:
        return self.whole[self.indices[index]]

    def image(self, group: str) -> Image:
        """As the whole."""
        return self.whole.image(group)

    @property
    def judgements(self) -> Mapping[str, Judgement]:
        """Of the whole, where it has any: they name images by id. Raises AttributeError where it has none."""
        found: Mapping[str, Judgement] = self.whole.judgements  # type: ignore[attr-defined]
        return found

    def describe(self) -> dict[str, Any]:
        """Of the whole, with the counts of the samples taken."""
        samples = [self[index] for index in range(len(self))]
        seen = {sample.label for sample in samples}
        return {
            **self.whole.describe(),
            "samples": len(samples),
            "images": len({sample.group for sample in samples}),
            "classes_without_samples": [name for label, name in enumerate(self.classes) if label not in seen],
            "digest": self.digest,
            "limit": self.limit,
            "samples_of_whole": len(self.whole),
        }


def picked(whole: Dataset, positions: Iterable[int]) -> Subset:
    """The samples at these positions, in the order of `whole`. Raises UsageError for none."""
    chosen = tuple(sorted(positions))
    return Subset(whole, len(chosen), chosen)
