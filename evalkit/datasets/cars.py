"""Stanford Cars (Krause, Stark, Deng, Fei-Fei, 3dRR 2013): 196 makes, models and years.

    cars_train/NNNNN.jpg, cars_test/NNNNN.jpg
    devkit/cars_meta.mat                  `class_names`
    devkit/cars_train_annos.mat           `annotations`: records with `fname` and `class`, from 1 (and a box, not used)
    cars_test_annos_withlabels.mat        the same for the test images; beside the devkit or in it

The official splits, in the order of the annotations: train 8,144 images, test 8,041. Whole images are classified.
devkit/cars_test_annos.mat has no classes: the file with labels was a download of its own.
Source: ai.stanford.edu/~jkrause/cars/car_dataset.html (no longer served), for non-commercial research.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from evalkit.datasets import mat
from evalkit.datasets.files import Tree, missing
from evalkit.datasets.listing import Listing, Photos
from evalkit.errors import DatasetError
from evalkit.types import Dataset, Sample, SplitSize

ALIASES = {"cars": ("stanford_cars", "stanford-cars", "StanfordCars", "Stanford_Cars", "Cars")}
META = "devkit/cars_meta.mat"
LABELLED = "cars_test_annos_withlabels.mat"
ANNOTATIONS = {"train": ("devkit/cars_train_annos.mat",), "test": (LABELLED, f"devkit/{LABELLED}")}
LAYOUT = (
    "  <root>/cars_{train,test}/NNNNN.jpg\n"
    "  <root>/devkit/{cars_meta,cars_train_annos}.mat\n"
    f"  <root>/{LABELLED} or <root>/devkit/{LABELLED}"
)


@dataclass(frozen=True)
class Config:
    """Nothing to choose: the splits and the 196 classes are official."""


def published(folder: str, config: Config) -> Mapping[str, SplitSize]:
    """See the module."""
    return {"train": SplitSize(196, 8_144), "test": SplitSize(196, 8_041)}


def open(root: Path, split: str, config: Config) -> Dataset:
    """The images of "train" or "test", in the order of the annotations.

    Raises MissingFiles, which lists every absent image of the split; DatasetError for another split, damaged .mat files,
    classes without a name, and images that are named twice.
    """
    if split not in ANNOTATIONS:
        raise DatasetError(f"cars has no split {split!r}; allowed: {', '.join(ANNOTATIONS)}")
    tree = Tree.open(root).rooted(["devkit"])
    where = _annotations(tree, split)
    classes = tuple(mat.texts(mat.variable(tree, META, "class_names"), f"{tree}/{META}"))
    records = mat.variable(tree, where, "annotations")
    names = mat.texts(mat.field(records, "fname", f"{tree}/{where}"), f"{tree}/{where}, fname")
    labels = mat.numbers(mat.field(records, "class", f"{tree}/{where}"), f"{tree}/{where}, class", last=len(classes))
    if len(set(names)) < len(names):
        raise DatasetError(f"{tree}/{where}: {len(names) - len(set(names))} images are named more than once")
    folder = f"cars_{split}"
    _require_images(tree, folder, names)
    samples = tuple(Sample(name, name, label - 1) for name, label in zip(names, labels, strict=True))
    return Listing("cars", split, classes, samples, Photos(tree.within(folder)))


def verify(root: Path) -> list[str]:
    """Absent or damaged .mat files, and every annotated image that is absent."""
    problems = []
    for split in ANNOTATIONS:
        try:
            open(root, split, Config())
        except DatasetError as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))


def _annotations(tree: Tree, split: str) -> str:
    """Where the annotations of a split lie; the files without which no split opens are asked for at the same time."""
    found = [name for name in ANNOTATIONS[split] if tree.exists(name)]
    absent = [name for name in (META, *(() if found else ANNOTATIONS[split][:1])) if not tree.exists(name)]
    if absent:
        raise missing(str(tree), absent, LAYOUT)
    return found[0]


def _require_images(tree: Tree, folder: str, names: Iterable[str]) -> None:
    there = set(tree.names(under=folder))
    absent = [path for path in (f"{folder}/{name}" for name in names) if path not in there]
    if absent:
        raise missing(str(tree), absent, LAYOUT)
