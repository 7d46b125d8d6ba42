"""Oxford-IIIT Pets (Parkhi, Vedaldi, Zisserman, Jawahar, CVPR 2012, "Cats and Dogs"): 37 breeds of cats and dogs.

    images/<breed>_<number>.jpg
    annotations/{trainval,test}.txt     lines "<breed>_<number> <class from 1> <species> <breed within the species>"

The official splits, in the order of the lists: trainval 3,680 photos, test 3,669. A class is a breed, named as in the
file names. Some photos are GIF or PNG in spite of their name; they are decoded as what they are.
Source: robots.ox.ac.uk/~vgg/data/pets, CC BY-SA 4.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from evalkit.datasets.files import Tree, missing
from evalkit.datasets.listing import Listing, Photos
from evalkit.errors import DatasetError
from evalkit.types import Dataset, Sample, SplitSize

ALIASES = {"pets": ("oxford-iiit-pet", "oxford_iiit_pet", "Oxford-IIIT-Pet", "OxfordIIITPet", "oxford_pets", "Pets")}
SPLITS = ("trainval", "test")
LAYOUT = "  <root>/images/<breed>_<number>.jpg\n  <root>/annotations/{trainval,test}.txt"


@dataclass(frozen=True)
class Config:
    """Nothing to choose: the splits and the 37 breeds are official."""


class Photo(NamedTuple):
    """A line of a list: the file's name without ".jpg", the class from 1, the breed that the name begins with."""

    name: str
    number: int
    breed: str


def published(folder: str, config: Config) -> Mapping[str, SplitSize]:
    """See the module."""
    return {"trainval": SplitSize(37, 3_680), "test": SplitSize(37, 3_669)}


def open(root: Path, split: str, config: Config) -> Dataset:
    """The photos of "trainval" or "test". Both lists are read, since they name the classes together.

    Raises MissingFiles, which lists every absent photo of the split; DatasetError for another split, a line that is
    none, a photo in both splits, and classes that are not numbered 1, 2, 3 ... by breed.
    """
    if split not in SPLITS:
        raise DatasetError(f"pets has no split {split!r}; allowed: {', '.join(SPLITS)}")
    tree = _tree(root)
    lists = {name: _photos(tree, name) for name in SPLITS}
    classes = _classes(tree, lists["trainval"] + lists["test"])
    _require_photos(tree, lists[split])
    samples = tuple(Sample(photo.name, photo.name, photo.number - 1) for photo in lists[split])
    return Listing("pets", split, classes, samples, Photos(tree.within("images"), "{}.jpg"))


def verify(root: Path) -> list[str]:
    """Absent or wrong lists, and every listed photo that is absent."""
    problems = []
    for split in SPLITS:
        try:
            open(root, split, Config())
        except DatasetError as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))


def _tree(root: Path) -> Tree:
    tree = Tree.open(root).rooted(["annotations"])
    absent = [name for name in map(_list, SPLITS) if not tree.exists(name)]
    if absent:
        raise missing(str(tree), absent, LAYOUT)
    return tree


def _list(split: str) -> str:
    return f"annotations/{split}.txt"


def _photos(tree: Tree, split: str) -> list[Photo]:
    found = []
    lines = tree.read(_list(split)).decode("utf-8", "replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split()
        breed, underscore, _ = parts[0].rpartition("_")
        if len(parts) != 4 or not all(part.isdecimal() for part in parts[1:]) or not (breed and underscore):
            wanted = "a name like Abyssinian_100 and three numbers"
            raise DatasetError(f"{tree}/{_list(split)}, line {number}: {line!r} is not {wanted}")
        found.append(Photo(parts[0], int(parts[1]), breed))
    return found


def _classes(tree: Tree, photos: list[Photo]) -> tuple[str, ...]:
    """Breeds by number. Raises DatasetError for numbers with gaps, breeds with two numbers, photos named twice."""
    breeds: dict[int, str] = {}
    seen: set[str] = set()
    for photo in photos:
        if breeds.setdefault(photo.number, photo.breed) != photo.breed:
            raise DatasetError(
                f"{tree}/annotations: class {photo.number} is {breeds[photo.number]} and also {photo.breed}"
            )
        if photo.name in seen:
            raise DatasetError(f"{tree}/annotations: {photo.name} is listed twice; a photo belongs to one split")
        seen.add(photo.name)
    if sorted(breeds) != list(range(1, len(breeds) + 1)) or len(set(breeds.values())) < len(breeds):
        raise DatasetError(
            f"{tree}/annotations: the classes are {breeds}; each breed has one number, from 1 and without gaps"
        )
    return tuple(breeds[number] for number in sorted(breeds))


def _require_photos(tree: Tree, photos: Iterable[Photo]) -> None:
    there = set(tree.names(under="images"))
    absent = [path for path in (f"images/{photo.name}.jpg" for photo in photos) if path not in there]
    if absent:
        raise missing(str(tree), absent, LAYOUT)
