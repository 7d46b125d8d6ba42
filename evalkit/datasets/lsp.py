"""Crops around joints of people in Leeds Sports Pose (Johnson and Everingham, BMVC 2010) or LSP Extended (CVPR 2011).

    joints.mat, images/*.jpg        as `joints` reads them; <root> is a folder or a .zip, which may hold a single top folder

One sample per crop: its joint is visible, at least two of the person's chosen joints are, and `crops.Rule` says how large
it is. Each photo has one annotated person. Ids are "<photo>/<part>"; samples are in the order of photos and parts. The
splits of LSP are the first 1,000 people, "train", and the rest, "test"; all of LSP Extended is "train"; "all" is all.

Source: sam.johnson.io/research/lsp.html and lspet.html. No published number belongs to these crops.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from evalkit.datasets import crops, images
from evalkit.datasets.files import Tree
from evalkit.datasets.joints import JOINTS, NAMES, Joints, joints
from evalkit.datasets.listing import Listing, Photos
from evalkit.errors import DatasetError
from evalkit.types import Dataset, Sample

ALIASES = {
    "lsp": ("LSP", "lsp_dataset", "lsp_dataset_original"),
    "lsp_extended": ("lspet", "lspet_dataset", "hr-lspet", "LSPET"),
}
TRAIN = 1000
"""People of LSP's training split (its README)."""


@dataclass(frozen=True)
class Config(crops.Rule):
    """parts: by name, or by number from 1; the top of the head, the right wrist and the left ankle stand where the
    part-aware study has nose, right wrist and left ankle (ours). The rest: `crops.Rule`."""

    parts: tuple[str | int, ...] = ("head_top", "right_wrist", "left_ankle")


def open(root: Path, split: str, config: Config) -> Dataset:
    """The crops of "train", "test" or "all".

    Raises MissingFiles, which lists every absent photo; DatasetError for another split, a part that does not exist,
    whatever `joints.joints` refuses, or no crop at all.
    """
    parts = crops.chosen(config.parts, NAMES, "a person in LSP")
    tree = Tree.open(root).rooted([JOINTS])
    found = joints(tree)
    people = _split(found, split)
    within = tree.within("images")
    needs_sizes = config.outside == "skip" or config.border == "drop"
    sizes = crops.sizes(within, [found.photos[person] for person in people]) if needs_sizes else {}
    samples: list[Sample] = []
    skipped: Counter[str] = Counter()
    for person in people:
        photo = found.photos[person]
        rows = [(label, *found.keypoints[person, part].tolist()) for label, part in enumerate(parts)]
        points = [crops.Point(x, y, label, person) for label, x, y, visible in rows if visible]
        kept, left_out = crops.crops(points, config, sizes.get(photo))
        skipped += left_out
        for point, box in kept:
            samples.append(Sample(f"{Path(photo).stem}/{NAMES[parts[point.label]]}", photo, point.label, box))
    names = tuple(NAMES[part] for part in parts)
    return Listing("lsp", split, names, tuple(samples), Photos(within), crops.facts(config, skipped, len(samples)))


def verify(root: Path) -> list[str]:
    """Absent or unusable joints, absent photos, and files that are no images."""
    tree = Tree.open(root).rooted([JOINTS])
    try:
        found = joints(tree)
    except DatasetError as error:
        return [str(error)]
    problems = []
    for photo in found.photos:
        try:
            images.size(tree.read(f"images/{photo}"), f"{tree}/images/{photo}")
        except DatasetError as error:
            problems.append(str(error))
    return problems


def _split(found: Joints, split: str) -> range:
    everyone = range(len(found))
    ranges = {"train": everyone, "all": everyone}
    if not found.extended:
        ranges |= {"train": everyone[:TRAIN], "test": everyone[TRAIN:]}
    if split not in ranges:
        which = "LSP Extended, which is all for training," if found.extended else "LSP"
        raise DatasetError(f"{which} has no split {split!r}; allowed: {', '.join(sorted(ranges))}")
    return ranges[split]
