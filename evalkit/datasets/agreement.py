"""Both splits of a recipe agree on the classes, by name: the one check where they are opened, for every runner.

Where the test split orders the same names otherwise, or lacks some, its labels are renumbered as the training split has
them. A class that only the test split has is refused: no label of the training split stands for it. Splits that share no
class at all are two tasks by design (miniImageNet's); splits without classes have nothing to agree on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np

from evalkit.datasets.selection import Selection, offers
from evalkit.errors import DatasetError
from evalkit.files import shown
from evalkit.types import Dataset, Outlined, Sample, Segmented

_NAMED = 10


@dataclass(frozen=True, eq=False)
class Renumbered(Selection):
    """The samples of `whole` with labels that count `named`, which holds every class of `whole`; itself a `Dataset`."""

    named: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """As the training split has them."""
        return self.named

    @cached_property
    def indices(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(range(len(self.whole)))

    @cached_property
    def digest(self) -> str:
        """sha256 over the digest of the whole and the classes."""
        return hashlib.sha256(f"{self.whole.digest} {self.named!r}".encode()).hexdigest()

    @cached_property
    def _table(self) -> np.ndarray:
        """(C + 1,) int32: the new label of each old one, and -1 for -1, which is the last."""
        return np.array([*(self.named.index(name) for name in self.whole.classes), -1], np.int32)

    def __getitem__(self, index: int, /) -> Sample:
        sample = self.whole[index]
        return Sample(sample.id, sample.group, int(self._table[sample.label]), sample.box)

    def pixels(self, index: int) -> np.ndarray:
        """As the whole (`Segmented`), renumbered."""
        found: np.ndarray = self._table[super().pixels(index)]
        return found

    def objects(self, index: int) -> tuple[Outlined, ...]:
        """As the whole (`Instances`), renumbered."""
        return tuple(Outlined(o.id, int(self._table[o.label]), o.mask) for o in super().objects(index))

    def describe(self) -> dict[str, Any]:
        """Of the whole, with the classes and what was done."""
        return super().describe() | {
            "classes": list(self.named),
            "classes_go_by": "name, as the training split has them",
        }


def agreed(train: Dataset, test: Dataset) -> Dataset:
    """The test split with the labels of the training split. Raises DatasetError, naming them, for classes that only the
    test split has."""
    own, other = tuple(train.classes), tuple(test.classes)
    if own == other or not other:
        return test
    for split, names in ((train, own), (test, other)):
        if doubled := sorted({shown(name) for name in names if names.count(name) > 1}):
            raise DatasetError(
                f"{split.name}: the split {split.split!r} has two classes of the name {doubled[0]!r}, so its labels cannot "
                "go by name"
            )
    if strange := [shown(name) for name in other if name not in set(own)]:
        more = f" and {len(strange) - _NAMED} more" if len(strange) > _NAMED else ""
        raise DatasetError(
            f"{test.name}: the split {test.split!r} has {len(strange)} classes that {train.split!r} lacks: "
            f"{', '.join(strange[:_NAMED])}{more}; both splits need the same classes, by name"
        )
    return Renumbered(test, own)


def looked_at(train: Dataset, test: Dataset) -> tuple[list[str], list[str]]:
    """(problems, notes) of two opened splits, for `evalkit data verify`: what `agreed` refuses where they share a class at
    all, what is odd of each, and the classes that no labelled pixel carries; every mask may be read for that."""
    problems, found = [], [note for split in (train, test) for note in notes(split.describe())]
    try:
        if set(train.classes) & set(test.classes):
            found += [note for note in notes(agreed(train, test).describe()) if note not in found]
    except DatasetError as error:
        problems.append(str(error))
    for split in (train, test):
        met = _met(split) if offers(split, "pixels") and split.classes else set(range(len(split.classes)))
        lacking = [name for label, name in enumerate(split.classes) if label not in met]
        if lacking:
            text = f"{split.name} ({split.split}): no labelled pixel is {_listed(lacking)}"
            (problems if split is train and len(met) == 1 else found).append(text)
    return problems, found


def _met(data: Dataset) -> set[int]:
    """The classes that a labelled pixel carries; masks that cannot be read are passed over."""
    met: set[int] = set()
    for index in np.random.default_rng(0).permutation(len(data)).tolist():
        try:
            met |= set(np.unique(cast(Segmented, data).pixels(index)).tolist()) - {-1}
        except DatasetError:
            continue
        if len(met) == len(data.classes):
            break
    return met


def notes(facts: Mapping[str, Any]) -> list[str]:
    """What a person should know of a split before its number: a sentence for each fact of `describe` that is odd."""
    what, found = f"{facts.get('dataset')} ({facts.get('split')})", []
    if unseen := facts.get("classes_without_samples"):
        found.append(f"{what}: no sample carries {_listed(unseen)}")
    if passed := facts.get("files_passed_over"):
        found.append(f"{what}: passed over beside the images: {', '.join(f'{n} {end}' for end, n in passed.items())}")
    if facts.get("classes_go_by"):
        found.append(f"{what}: labels go by the names of the classes, which the training split numbers otherwise")
    for why, ids in facts.get("annotations_left_out", {}).items():
        found.append(f"{what}: {len(ids):,} annotations {why}: {_listed(list(map(str, ids)))}")
    return found


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(shown, names[:_NAMED])) + more
