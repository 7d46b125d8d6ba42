"""People of Leeds Sports Pose for pose estimation (Johnson and Everingham 2010; the extended training set 2011).

    joints.mat, images/*.jpg        <root> is a folder or a .zip; see `joints` for the two files' differences

One sample per person: photos are scaled so that one person is about 150 pixels long, and nobody else is annotated. There
is no annotated box: the box around the labelled joints takes its place, widened as for COCO. In LSP hidden joints are
labelled too; in LSP Extended they are not. People with fewer than two labelled joints, or all at one place, are counted
in `describe`.

Splits: "train" is the first `train` people, "test" the others. 1,000 is the split of LSP (its README: "the first 1000
images are the training set, the other 1000 the test set"); of LSP Extended, which is a training set, it is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from evalkit.datasets import joints
from evalkit.datasets.figures import FigureListing, region
from evalkit.datasets.files import Tree
from evalkit.datasets.listing import Photos
from evalkit.errors import DatasetError
from evalkit.types import Box, Dataset, Figure, Sample, Skeleton

ALIASES = {"lsp": ("LSP", "lsp_dataset", "lsp_extended", "lspet_dataset", "lspet")}

SKELETON = Skeleton(
    names=joints.NAMES,
    mirrored=(5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 12, 13),
    upper=tuple(range(6, 14)),
    torso=((2, 9), (3, 8)),
    head=((12, 13),),
)
"""torso: right hip to left shoulder (bearpaw/eval_pose 904deed, demo_eval_lsp.m:18), else left hip to right shoulder.
head: neck to head top. OKS has no published sigmas for these joints."""


@dataclass(frozen=True)
class Config:
    """train: people of the training split, see the module. aspect, padding: of a sample's box, as for `coco_pose`."""

    train: Annotated[int, Field(ge=1)] = 1000
    aspect: Annotated[float, Field(gt=0)] = 0.75
    padding: Annotated[float, Field(ge=1)] = 1.25


def open(root: Path, split: str, config: Config) -> Dataset:
    """The people of "train" or "test". Raises DatasetError for another split, whatever `joints.joints` refuses, or where
    nobody is left."""
    if split not in ("train", "test"):
        raise DatasetError(f"lsp_pose has no split {split!r}; allowed: train, test")
    tree = Tree.open(root).rooted([joints.JOINTS])
    found = joints.joints(tree)
    numbers = range(len(found))[: config.train] if split == "train" else range(len(found))[config.train :]
    if not numbers:
        raise DatasetError(f"{tree}: {len(found)} people leave none for {split!r} when {config.train} are for training")
    figures = {number: _figure(found, number) for number in numbers}
    taken = [number for number, figure in figures.items() if figure is not None]
    samples, people = [], []
    for number in taken:
        figure, photo = figures[number], found.photos[number]
        if figure is not None:
            box = region(figure.box, aspect=config.aspect, padding=config.padding)
            samples.append(Sample(Path(photo).stem, photo, 0, box))
            people.append(figure)
    facts = {"extended": found.extended, "left_out": {"fewer than two places": len(numbers) - len(taken)}}
    everybody = {sample.group: (figure,) for sample, figure in zip(samples, people, strict=True)}
    return FigureListing(
        "lsp_pose", split, ("person",), tuple(samples), Photos(tree.within("images")), facts, SKELETON, tuple(people),
        everybody,
    )  # fmt: skip


def verify(root: Path) -> list[str]:
    """An absent or damaged file of joints, and absent photos."""
    try:
        joints.joints(Tree.open(root).rooted([joints.JOINTS]))
    except DatasetError as error:
        return [str(error)]
    return []


def _figure(found: joints.Joints, number: int) -> Figure | None:
    """The person, None without two labelled places. The area is that of the box, for want of an outline."""
    values = np.array(found.keypoints[number])
    # LSP saw where hidden joints are; in LSP Extended their places mean nothing
    values[:, 2] = np.where(values[:, 2] > 0, 2, 0 if found.extended else 1)
    box = _around(values[values[:, 2] > 0, :2])
    if box is None:
        return None
    return Figure(number + 1, values, box, (box[2] - box[0]) * (box[3] - box[1]))


def _around(places: npt.NDArray[np.float64] | Sequence[Sequence[float]]) -> Box | None:
    """The box of the pixels that hold these places, None unless two of them differ."""
    points = np.asarray(places, np.float64).reshape(-1, 2)
    if len(np.unique(points, axis=0)) < 2:
        return None
    (x0, y0), (x1, y1) = points.min(0).tolist(), points.max(0).tolist()
    return (x0, y0, x1 + 1, y1 + 1)
