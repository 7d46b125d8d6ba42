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
from evalkit.errors import DatasetError
from evalkit.types import Dataset, Sample

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
    """The names that an official release uses. labels: key of the labels in a batch; classes: of their names in meta."""

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
            self.kept[batch] = _pixels(_batch(self.tree, batch), f"{self.tree}/{batch}")
        planes = self.kept[batch][int(row)].reshape(3, SIDE, SIDE)
        return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))

    def digest(self, groups: Sequence[str]) -> tuple[str, str]:
        """As `Tree.digest`, over the batch files of these groups."""
        return self.tree.digest({group.rsplit("/", 1)[0] for group in groups})


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
    """Problems of whichever of the two data sets and layouts `root` looks like."""
    by_variant = {}
    for variant, release in OFFICIAL.items():
        if not _tree(root, release).exists(release.meta) and not _exported_classes(root, release):
            continue
        by_variant[variant] = [problem for split in SPLITS for problem in _problems(root, split, Config(variant))]  # type: ignore[arg-type]
    if by_variant:
        return min(by_variant.values(), key=len)
    layouts = "\n".join(release.layout for release in OFFICIAL.values())
    return [f"{root} holds neither CIFAR-10 nor CIFAR-100.\nExpected:\n{layouts}"]


def _tree(root: Path, release: Official) -> Tree:
    tree = Tree.open(root)
    if tree.exists(release.folder):
        return tree.within(release.folder)
    return tree.rooted((release.meta, *SPLITS))
