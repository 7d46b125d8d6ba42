"""What data sets on PASCAL VOC share: the twenty classes, and where a development kit lies."""

from __future__ import annotations

from pathlib import Path

from evalkit.datasets.files import Tree

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""By number from 1 (VOC development kit, VOCinit.m)."""


def kit(root: Path, year: str, marker: str) -> Tree:
    """The folder of a year that holds `marker`: `root` itself, its VOC<year>, or its VOCdevkit/VOC<year>; else `root`."""
    tree = Tree.open(root)
    for folder in ("", f"VOC{year}", f"VOCdevkit/VOC{year}"):
        inner = tree.within(folder) if folder else tree
        if inner.exists(marker):
            return inner
    return tree.rooted([marker])
