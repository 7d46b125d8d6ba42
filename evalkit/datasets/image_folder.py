"""Folders of images, one folder per class; ImageNet (wnid folders), CIFAR exports and most private data look so.

    <root>/<split>/<class>/**/*.jpg | png | ...        <root> is a folder or a .zip, which may hold a single top folder

Source: the layout of torchvision.datasets.ImageFolder, with its file suffixes and the other names of the same formats;
images under any other ending are an error (`beside`). The licence is that of the images.

Classes are the folders of the split that defines the labels ("train"), sorted by name; a class that only another split
has is an error, since no label belongs to it. A class without images is an error, as is an image outside every class
folder: both would change the number without a word. What is called an image is believed until it is decoded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.datasets import beside, images
from evalkit.datasets.files import Tree
from evalkit.datasets.listing import Listing, Photos
from evalkit.errors import DatasetError, MissingFiles, UnknownName
from evalkit.files import shown
from evalkit.types import Dataset, Sample, SplitSize

_WHOLE = ("imagenet1k", "imagenet-1k", "ImageNet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC")
ALIASES = {
    "imagenet": _WHOLE,
    "imagenet100": ("imagenet-100", "ImageNet100", "imagenet", *_WHOLE),
    "imagenet10": ("imagenet-10", "ImageNet10", "imagenet", *_WHOLE),
}
LISTS = Path(__file__).parent / "lists"
LAYOUT = "  <root>/<split>/<class>/*.jpg, for example train/cat/001.jpg and test/cat/002.jpg"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Config:
    """labels_from: the split whose class folders define the labels; "train" as in torchvision's use of the layout.

    classes: the name of a list of classes in `lists/`, "" for all that there are. Raises UnknownName for another name.
    """

    labels_from: str = "train"
    classes: str = ""

    def __post_init__(self) -> None:
        if self.classes and self.classes not in class_lists():
            raise UnknownName("list of classes", self.classes, class_lists())


def class_lists() -> list[str]:
    """Names of the lists that `classes` may name."""
    return sorted(path.stem for path in LISTS.glob("*.txt"))


def class_list(name: str) -> tuple[str, ...]:
    """The class folders that a list names, sorted. Raises UnknownName."""
    if name not in class_lists():
        raise UnknownName("list of classes", name, class_lists())
    lines = (LISTS / f"{name}.txt").read_text("utf-8").splitlines()
    return tuple(sorted(line.strip() for line in lines if line.strip() and not line.startswith("#")))


PUBLISHED = {
    "imagenet": {"train": SplitSize(1_000, 1_281_167), "val": SplitSize(1_000, 50_000)},
    "imagenet100": {"train": SplitSize(100, 126_689), "val": SplitSize(100, 5_000)},
    "imagenet10": {"train": SplitSize(10, 13_000), "val": SplitSize(10, 500)},
}
"""ILSVRC 2012 (Russakovsky et al., IJCV 2015, Table 2), and what it has of the classes in `lists/`: 126,689 photos of Contrastive
Multiview Coding's hundred, 13,000 of Deep Adaptive Clustering's ten."""


def published(folder: str, config: Config) -> Mapping[str, SplitSize]:
    """Of ImageNet and its subsets, by folder; nothing is published of anybody's own folders."""
    return PUBLISHED.get(folder, {})


def open(root: Path, split: str, config: Config) -> Dataset:
    """The images of one split, sorted by class, then by path; each is its own group, its id the path below the split.

    Raises MissingFiles where the split, or a class of the list, is absent, DatasetError where class folders are empty,
    unknown to the split that defines the labels, or missing altogether.
    """
    tree = Tree.open(root).rooted((split, config.labels_from))
    if not config.classes:
        return listing("image_folder", tree, split, config.labels_from)
    return _subset(tree, split, config)


def _subset(tree: Tree, split: str, config: Config) -> Listing:
    """The classes of a list, whatever other folders there are."""
    _require_split(tree, split)
    classes = class_list(config.classes)
    absent = sorted(set(classes) - set(tree.folders(split)))
    if absent:
        shown = ", ".join(absent[:10]) + (" ..." if len(absent) > 10 else "")
        raise MissingFiles(
            f"{tree}: the split {split!r} lacks {len(absent)} of the {len(classes)} class folders of {config.classes}: "
            f"{shown}.\nExpected:\n{LAYOUT}"
        )
    by_class, facts = _by_class(tree, split, classes)
    samples = _samples(by_class, {folder: label for label, folder in enumerate(classes)})
    facts = {"classes_of": config.classes, **facts}
    return Listing("image_folder", split, classes, samples, Photos(tree.within(split)), facts)


def listing(name: str, tree: Tree, split: str, labels_from: str) -> Listing:
    """As `open`, for a tree whose top folders are the splits. name: the dataset's, for messages and records."""
    _require_split(tree, split)
    _require_split(tree, labels_from)
    classes = tuple(tree.folders(labels_from))
    by_class, facts = _by_class(tree, split, tree.folders(split))
    strange = sorted(set(by_class) - set(classes))
    if strange:
        raise DatasetError(
            f"{tree}: the split {split!r} has {len(strange)} classes that {labels_from!r} lacks: "
            f"{', '.join(map(shown, strange))}"
        )
    samples = _samples(by_class, {folder: label for label, folder in enumerate(classes)})
    facts = {"labels_from": labels_from, **facts}
    return Listing(name, split, tuple(map(shown, classes)), samples, Photos(tree.within(split)), facts)


def _samples(by_class: dict[str, list[str]], labels: dict[str, int]) -> tuple[Sample, ...]:
    return tuple(Sample(shown(path), path, labels[folder]) for folder, paths in by_class.items() for path in paths)


def verify(root: Path) -> list[str]:
    """Problems of every split present: empty classes, classes that the train split lacks, loose images."""
    tree = Tree.open(root).rooted(SPLITS)
    splits = [split for split in SPLITS if tree.exists(split)]
    if not splits:
        return [_absent(tree, "train")]
    problems = []
    for split in splits:
        try:
            listing("image_folder", tree, split, splits[0])
        except DatasetError as error:
            problems.append(str(error))
    return problems


def _require_split(tree: Tree, split: str) -> None:
    if not split or not tree.exists(split):
        raise MissingFiles(_absent(tree, split))


def _absent(tree: Tree, split: str) -> str:
    there = ", ".join(tree.folders()[:20]) or "no folders"
    return f"{tree} has no split {split!r}; there: {there}.\nExpected:\n{LAYOUT}"


def _by_class(tree: Tree, split: str, folders: Collection[str]) -> tuple[dict[str, list[str]], Mapping[str, Any]]:
    """Paths below the split by class folder, both sorted, and the facts of `beside`; images of other folders are left out.

    Raises DatasetError for what would be lost silently.
    """
    found: dict[str, list[str]] = {folder: [] for folder in folders}
    loose: list[str] = []
    names, facts = beside.photos(tree, split)
    for name in names:
        path = name[len(split) + 1 :]
        folder, _, rest = path.partition("/")
        if not rest:  # a class folder may be named like an image
            loose += [path] if path not in found else []
        elif folder in found:
            found[folder].append(path)
    if loose:
        raise DatasetError(
            f"{tree}: {len(loose):,} images of the split {split!r} lie in no class folder, the first is {shown(loose[0])}; "
            f"move each into the folder of its class.\nExpected:\n{LAYOUT}"
        )
    empty = [folder for folder, paths in found.items() if not paths]
    if empty:
        raise DatasetError(
            f"{tree}: {len(empty)} class folders of the split {split!r} hold no image ({', '.join(images.SUFFIXES)}): "
            f"{', '.join(map(shown, empty))}; fill or remove them"
        )
    return found, facts
