"""What data sets with a label per pixel share: photos with label maps, read on demand and checked against each other.

maps = IndexMasks(tree, {"a": "masks/a.png"}, {0: -1, 1: 0, 2: 1})      # what a stored value stands for
LabelMaps("mine", "val", ("cat", "dog"), whole(["a"]), Paired(photos, maps)).pixels(0)
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from evalkit.datasets import images
from evalkit.datasets.files import Tree, missing
from evalkit.datasets.listing import Listing, Photos
from evalkit.datasets.selection import offers
from evalkit.errors import BrokenImage, DatasetError, MissingFiles
from evalkit.types import Dataset, Sample

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 50
"""Problems of masks that `problems` lists; the rest are counted."""

_UNKNOWN = -2


class Marks(Protocol):
    """What people drew over the photos."""

    def digest(self, groups: Sequence[str]) -> tuple[str, str]:
        """(sha256 over what belongs to these groups, how it was made)."""
        ...


class Maps(Marks, Protocol):
    """Where the label map of a group comes from."""

    def labels(self, group: str) -> np.ndarray:
        """(H, W) int32: a class each, -1 where nothing counts. Raises BrokenImage."""
        ...

    def where(self, group: str) -> str:
        """What messages call it."""
        ...


@dataclass(frozen=True)
class Paired:
    """Photos and the marks over them: the `Pictures` of a data set whose digest follows both."""

    photos: Photos
    marks: Marks

    @property
    def root(self) -> str:
        """Where the photos lie."""
        return self.photos.root

    def image(self, group: str) -> Image:
        """The decoded photo. Raises BrokenImage."""
        return self.photos.image(group)

    def digest(self, groups: Sequence[str]) -> tuple[str, str]:
        """(sha256 over the photos and the marks of these groups, how it was made)."""
        (photos, how), (marks, drawn) = self.photos.digest(groups), self.marks.digest(groups)
        return hashlib.sha256(f"{photos} {marks}".encode()).hexdigest(), f"{how}; of the annotation: {drawn}"


@dataclass(frozen=True, eq=False)
class LabelMaps(Listing):
    """A `Segmented` data set: one sample per photo, its label map from `maps`."""

    pictures: Paired = field(repr=False)
    maps: Maps = field(repr=False, kw_only=True)

    def pixels(self, index: int) -> np.ndarray:
        """(H, W) int32 of the sample's upright photo: a class each, -1 where nothing counts.

        Raises BrokenImage for a mask that cannot be used: no index mask, a number that is no class, another size.
        """
        group = self.samples[index].group
        found = self.maps.labels(group)
        self.check_size(group, (found.shape[1], found.shape[0]))
        return found

    def check_size(self, group: str, size: tuple[int, int]) -> None:
        """Raise BrokenImage where the upright photo is not (width, height) pixels, as its annotation is."""
        photo = self.pictures.photos.size(group)
        if photo != size:
            raise BrokenImage(
                f"{self.maps.where(group)}: is {size[0]} x {size[1]} pixels, "
                f"but its photo {group} is {photo[0]} x {photo[1]}"
            )


def label_maps(
    name: str,
    split: str,
    classes: Sequence[str],
    groups: Iterable[str],
    *,
    photos: Photos,
    maps: Maps,
    facts: Mapping[str, Any] | None = None,
) -> LabelMaps:
    """The data set of these groups, in this order: each a sample without label, box None. facts: as of a `Listing`."""
    samples = tuple(Sample(group, group, -1) for group in groups)
    return LabelMaps(name, split, tuple(classes), samples, Paired(photos, maps), facts or {}, maps=maps)


@dataclass(frozen=True)
class IndexMasks:
    """Label maps from one index image per group.

    files: the image of each group, relative to the tree. meaning: the class of each stored value, -1 for values that do
    not count; a value that it lacks makes the mask unusable.
    """

    tree: Tree
    files: Mapping[str, str] = field(repr=False)
    meaning: Mapping[int, int] = field(repr=False)

    def where(self, group: str) -> str:
        """The file of a group."""
        return f"{self.tree}/{self.files[group]}"

    def labels(self, group: str) -> np.ndarray:
        """(H, W) int32: a class each, -1 where nothing counts.

        Raises BrokenImage for what is no index mask and for values without meaning, MissingFiles where it has gone.
        """
        where = self.where(group)
        try:
            data = self.tree.read(self.files[group])
        except MissingFiles:
            raise
        except DatasetError as cause:
            raise BrokenImage(str(cause)) from cause
        return meant(images.indices(data, where), self._table, where)

    def digest(self, groups: Sequence[str]) -> tuple[str, str]:
        """Over the files of these groups and what their values mean."""
        content, how = self.tree.digest(self.files[group] for group in groups)
        meaning = sorted(self.meaning.items())
        return hashlib.sha256(f"{content} {meaning}".encode()).hexdigest(), f"{how}, and the meaning of values"

    @cached_property
    def _table(self) -> np.ndarray:
        return table(self.meaning)


def table(meaning: Mapping[int, int]) -> np.ndarray:
    """(V,) int32 for `meant`: the class of each value from 0 to the largest with a meaning."""
    found = np.full(max(meaning) + 1, _UNKNOWN, np.int32)
    found[list(meaning)] = list(meaning.values())
    return found


def meant(values: np.ndarray, table: np.ndarray, where: str) -> np.ndarray:
    """(H, W) int32: the class that each stored value stands for. values: (H, W) whole numbers. table: as `table` has it.

    Raises BrokenImage, naming `where` and the values, where one has no meaning.
    """
    if values.size == 0:
        return np.zeros(values.shape, np.int32)
    if int(values.min()) >= 0 and int(values.max()) < len(table):
        found: np.ndarray = table[values]
        if int(found.min()) > _UNKNOWN:
            return found
    present = np.unique(values)
    known = set(np.flatnonzero(table > _UNKNOWN).tolist())
    strange = [value for value in present.tolist() if value not in known]
    shown = ", ".join(map(str, strange[:10])) + (" ..." if len(strange) > 10 else "")
    raise BrokenImage(
        f"{where}: holds the values {shown}, which are no classes here; allowed: {_ranges(sorted(known))}"
    )


def numbered(count: int, *, first: int = 0, ignored: Iterable[int] = (255,)) -> dict[int, int]:
    """What stored values mean: `first` and the count - 1 after it are the classes 0, 1 ...; ignored ones are -1.

    An ignored value is ignored even where it lies among the classes.
    """
    return {first + label: label for label in range(count)} | dict.fromkeys(ignored, -1)


def require(tree: Tree, paths: Iterable[str], layout: str) -> None:
    """Raise MissingFiles, which lists all of them, where files are absent. Each of their folders is listed once."""
    wanted = list(paths)
    there = {name for folder in {path.rpartition("/")[0] for path in wanted} for name in tree.names(under=folder)}
    absent = sorted(path for path in wanted if path not in there)
    if absent:
        raise missing(str(tree), absent, layout)


def problems(opened: Iterable[Callable[[], Dataset]], official: Mapping[str, int] | None = None) -> list[str]:
    """What `verify` says of data sets with masks: why one cannot be opened, that a split has another number of photos
    than published (`official`), and every mask that cannot be used."""
    found: list[str] = []
    for make in opened:
        try:
            data = make()
        except DatasetError as error:
            found.append(str(error))
            continue
        published = (official or {}).get(data.split, len(data))
        if len(data) != published:
            found.append(f"the split {data.split!r} has {len(data):,} photos; {published:,} are published")
        found += _mask_problems(data)
    unique = list(dict.fromkeys(found))
    more = len(unique) - SHOWN
    return [*unique[:SHOWN], f"... and {more:,} more"] if more > 0 else unique


def _mask_problems(data: Dataset) -> list[str]:
    found: list[str] = []
    for index in range(len(data) if offers(data, "pixels") else 0):
        try:
            data.pixels(index)  # type: ignore[attr-defined]
        except DatasetError as error:
            found.append(str(error))
    return found


def listed(tree: Tree, files: Sequence[str]) -> list[str]:
    """The names in text files, one a line, in their order. Raises MissingFiles, or DatasetError for a doubled name."""
    names = [line.split()[0] for file in files for line in lines(tree, file)]
    doubled = sorted(name for name, times in Counter(names).items() if times > 1)
    if doubled:
        raise DatasetError(f"{tree}: {len(doubled)} names are listed twice in {', '.join(files)}: {doubled[:5]}")
    return names


def lines(tree: Tree, name: str) -> list[str]:
    """The lines of a text file without blanks around them, empty ones left out. Raises MissingFiles."""
    return [line.strip() for line in tree.read(name).decode("utf-8", "replace").splitlines() if line.strip()]


def class_names(path: Path) -> tuple[str, ...]:
    """The names in a list that travels with evalkit, one a line; lines that begin with "#" say where it comes from."""
    rows = (line.strip() for line in path.read_text("utf-8").splitlines())
    return tuple(row for row in rows if row and not row.startswith("#"))


def _ranges(values: Sequence[int]) -> str:
    """[0, 1, 2, 255] as "0 ... 2, 255"."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], value]
        else:
            runs.append([value])
    return ", ".join(" ... ".join(map(str, run)) for run in runs)
