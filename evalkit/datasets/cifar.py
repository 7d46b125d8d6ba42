"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"), 32 x 32 colour.

Either the official "python version", unpacked:

    cifar-10-batches-py/{data_batch_1 ... data_batch_5, test_batch, batches.meta}
    cifar-100-python/{train, test, meta}

or an export of it in the layout of image_folder, {train,test}/<class>/*.jpg|png; each as a folder or in a .zip. The two
have other pixels where the export is JPEG, so their digests differ and their records do not stand in one column.
The batches are pickles and go through `pickles.loads`, which runs nothing. Source: cs.toronto.edu/~kriz/cifar.html,
which states no licence and asks to cite the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from evalkit.datasets import image_folder, pickles
from evalkit.datasets.files import Tree, missing
from evalkit.datasets.listing import Listing
from evalkit.errors import DatasetError, MissingFiles
from evalkit.types import Dataset, Sample, SplitSize

ALIASES = {
    "cifar10": ("cifar-10-batches-py", "CIFAR10", "cifar-10", "CIFAR-10", "cifar-10-python.tar.gz"),
    "cifar100": ("cifar-100-python", "CIFAR100", "cifar-100", "CIFAR-100", "cifar-100-python.tar.gz"),
}
SPLITS = ("train", "test")
SIDE = 32


@dataclass(frozen=True)
class Config:
    """variant: which of the two data sets; the labels of "cifar100" are its 100 fine classes."""

    variant: Literal["cifar10", "cifar100"] = "cifar10"


@dataclass(frozen=True)
class Official:
    """The names that an official release uses. labels: key of the labels in a batch; names: of their names in
    meta; classes: how many there are.
    """

    folder: str
    meta: str
    batches: Mapping[str, tuple[str, ...]]
    labels: bytes
    names: bytes
    classes: int

    @property
    def files(self) -> tuple[str, ...]:
        """All of them, meta first."""
        return (self.meta, *(name for split in SPLITS for name in self.batches[split]))

    @property
    def layout(self) -> str:
        """For messages."""
        return f"  {self.folder}/{{{', '.join(self.files)}}}\n  or {{train,test}}/<class>/*.jpg"


OFFICIAL = {
    "cifar10": Official(
        "cifar-10-batches-py",
        "batches.meta",
        {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
        b"labels",
        b"label_names",
        10,
    ),
    "cifar100": Official(
        "cifar-100-python", "meta", {"train": ("train",), "test": ("test",)}, b"fine_labels", b"fine_label_names", 100
    ),
}


@dataclass(frozen=True)
class Batches:
    """Pictures of official batches; group "<batch>/<row>". Unpickled batches are kept per process, never pickled."""

    tree: Tree
    kept: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"tree": self.tree, "kept": {}}

    @property
    def root(self) -> str:
        """The folder or zip, and the part inside."""
        return str(self.tree)

    def image(self, group: str) -> Image.Image:
        """The (32, 32) RGB image of a row; a row is the red, then the green, then the blue plane."""
        batch, row = group.rsplit("/", 1)
        if batch not in self.kept:
            self.kept[batch] = _pixels(_batch(self.tree, batch), self.tree.where(batch))
        planes = self.kept[batch][int(row)].reshape(3, SIDE, SIDE)
        return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))

    def digest(self, groups: Sequence[str]) -> tuple[str, str]:
        """As `Tree.digest`, over the batch files of these groups."""
        return self.tree.digest({group.rsplit("/", 1)[0] for group in groups})


def published(folder: str, config: Config) -> Mapping[str, SplitSize]:
    """50,000 and 10,000 photos of either, as the module's source says."""
    return {
        split: SplitSize(OFFICIAL[config.variant].classes, 50_000 if split == "train" else 10_000) for split in SPLITS
    }


def open(root: Path, split: str, config: Config) -> Dataset:
    """One split, "train" or "test", in the order of the batches (or sorted by class for an export).

    Raises MissingFiles where files are absent, DatasetError for another split, a batch that would need code to load, or
    a number of classes that is not the variant's.
    """
    if split not in SPLITS:
        raise DatasetError(f"{config.variant} has no split {split!r}; allowed: {', '.join(SPLITS)}")
    release = OFFICIAL[config.variant]
    tree = _tree(root, release)
    data = _official(tree, split, release) if _is_official(tree, release) else _export(tree, split, release)
    if len(data.classes) != release.classes:
        raise DatasetError(f"{tree} has {len(data.classes)} classes, but {config.variant} has {release.classes}")
    return data


def verify(root: Path) -> list[str]:
    """Problems of both splits, of whichever data set and layout `root` looks like."""
    problems = []
    for split in SPLITS:
        try:
            open(root, split, Config(_variant(root)))
        except DatasetError as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))


def _variant(root: Path) -> Literal["cifar10", "cifar100"]:
    hundred = _tree(root, OFFICIAL["cifar100"])
    looks = _is_official(hundred, OFFICIAL["cifar100"]) or len(hundred.folders("train")) > OFFICIAL["cifar10"].classes
    return "cifar100" if looks else "cifar10"


def _tree(root: Path, release: Official) -> Tree:
    tree = Tree.open(root)
    if tree.exists(release.folder):
        return tree.within(release.folder)
    return tree.rooted((release.meta, *SPLITS))


def _is_official(tree: Tree, release: Official) -> bool:
    return any(tree.exists(name) and not tree.folders(name) for name in release.files)


def _export(tree: Tree, split: str, release: Official) -> Listing:
    if not tree.exists(split):
        there = ", ".join(tree.folders()[:20]) or "no folders"
        raise MissingFiles(f"{tree} has no split {split!r}; there: {there}.\nExpected:\n{release.layout}")
    return image_folder.listing("cifar", tree, split, "train")


def _official(tree: Tree, split: str, release: Official) -> Listing:
    absent = [name for name in release.files if not tree.exists(name)]
    if absent:
        raise missing(str(tree), absent, release.layout)
    classes = _class_names(tree, release)
    pictures = Batches(tree)
    samples: list[Sample] = []
    for name in release.batches[split]:
        batch = _batch(tree, name)
        pictures.kept[name] = _pixels(batch, tree.where(name))
        labels = _labels(batch, release, tree.where(name), len(pictures.kept[name]))
        ids = [f"{name}/{row}" for row in range(len(labels))]
        samples += [Sample(id, id, label) for id, label in zip(ids, labels, strict=True)]
    return Listing("cifar", split, classes, tuple(samples), pictures, {"layout": "official batches"})


def _batch(tree: Tree, name: str) -> Mapping[bytes, Any]:
    value = pickles.loads(tree.read(name), tree.where(name))
    if not isinstance(value, dict):
        raise DatasetError(f"{tree.where(name)} holds a {type(value).__name__}, not the table of a CIFAR file")
    # Python 2 wrote these keys as bytes; files that were written again by Python 3 hold text.
    return {key.encode() if isinstance(key, str) else key: item for key, item in value.items()}


def _class_names(tree: Tree, release: Official) -> tuple[str, ...]:
    names = _batch(tree, release.meta).get(release.names)
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise DatasetError(f"{tree}/{release.meta} lacks the list {release.names.decode()!r}")
    return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names)


def _pixels(batch: Mapping[bytes, Any], name: str) -> np.ndarray:
    """(N, 3072) uint8. Raises DatasetError where the batch holds anything else."""
    data = batch.get(b"data")
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3 * SIDE * SIDE:
        found = f"an array of shape {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DatasetError(f"{name}: 'data' is {found}, not rows of {3 * SIDE * SIDE} bytes")
    return data


def _labels(batch: Mapping[bytes, Any], release: Official, name: str, rows: int) -> list[int]:
    labels = batch.get(release.labels)
    if not isinstance(labels, list) or len(labels) != rows:
        raise DatasetError(f"{name}: {release.labels.decode()!r} is no list of {rows} labels")
    if not all(isinstance(label, int) and 0 <= label < release.classes for label in labels):
        raise DatasetError(f"{name}: {release.labels.decode()!r} holds labels outside 0 ... {release.classes - 1}")
    return labels
