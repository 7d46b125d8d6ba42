"""Some samples of a data set, as a data set: what `Subset` and `Labelled` share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evalkit.types import (
    Clips,
    Dataset,
    Figure,
    Instances,
    Judged,
    Judgement,
    Outlined,
    Posed,
    Sample,
    Segmented,
    Skeleton,
)

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


def offers(dataset: Dataset, verb: str) -> bool:
    """Whether a data set, or what it was selected from, has a verb that only some kinds have ("pixels", "objects")."""
    while isinstance(dataset, Selection):
        dataset = dataset.whole
    return hasattr(dataset, verb)


@dataclass(frozen=True, eq=False)
class Selection:
    """The samples of `whole` at `indices`, in its order; itself a `Dataset`, and of every kind that `whole` is.

    What only some data sets have (judgements, masks, frames) is asked of `whole`, which raises AttributeError where it
    has none.
    """

    whole: Dataset

    @property
    def indices(self) -> tuple[int, ...]:
        """Positions in `whole`, ascending."""
        raise NotImplementedError

    @property
    def digest(self) -> str:
        """sha256 over the digest of the whole and what was chosen."""
        raise NotImplementedError

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

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Sample:
        return self.whole[self.indices[index]]

    def image(self, group: str) -> Image:
        """As the whole."""
        return self.whole.image(group)

    @property
    def judgements(self) -> Mapping[str, Judgement]:
        """Of the whole: they name images by id (`Judged`)."""
        whole: Judged = self.whole  # type: ignore[assignment]
        return whole.judgements

    def pixels(self, index: int) -> np.ndarray:
        """As the whole (`Segmented`)."""
        whole: Segmented = self.whole  # type: ignore[assignment]
        return whole.pixels(self.indices[index])

    def objects(self, index: int) -> tuple[Outlined, ...]:
        """As the whole (`Instances`)."""
        whole: Instances = self.whole  # type: ignore[assignment]
        return whole.objects(self.indices[index])

    @property
    def skeleton(self) -> Skeleton:
        """Of the whole (`Posed`)."""
        whole: Posed = self.whole  # type: ignore[assignment]
        return whole.skeleton

    def figure(self, index: int) -> Figure:
        """As the whole (`Posed`)."""
        whole: Posed = self.whole  # type: ignore[assignment]
        return whole.figure(self.indices[index])

    def figures(self, group: str) -> tuple[Figure, ...]:
        """Of the whole: those who were not chosen too (`Posed`)."""
        whole: Posed = self.whole  # type: ignore[assignment]
        return whole.figures(group)

    def frames(self, index: int) -> tuple[str, ...]:
        """As the whole (`Clips`)."""
        whole: Clips = self.whole  # type: ignore[assignment]
        return whole.frames(self.indices[index])

    def frame(self, index: int, number: int) -> Image:
        """As the whole (`Clips`)."""
        whole: Clips = self.whole  # type: ignore[assignment]
        return whole.frame(self.indices[index], number)

    def truth(self, index: int, number: int) -> np.ndarray | None:
        """As the whole (`Clips`)."""
        whole: Clips = self.whole  # type: ignore[assignment]
        return whole.truth(self.indices[index], number)

    def describe(self) -> dict[str, Any]:
        """Of the whole, with the counts of the samples taken."""
        samples = [self[index] for index in range(len(self))]
        seen = {sample.label for sample in samples}
        unseen = [name for label, name in enumerate(self.classes) if label not in seen]
        return {
            **self.whole.describe(),
            "samples": len(samples),
            "images": len({sample.group for sample in samples}),
            **({} if seen == {-1} else {"classes_without_samples": unseen}),
            "digest": self.digest,
        }
