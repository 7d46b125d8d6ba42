"""Crops around keypoints of people in COCO 2017 (Lin et al. 2014), labelled by the keypoint.

    annotations/person_keypoints_{train,val}2017.json
    {train,val}2017/*.jpg                               <root> is a folder or a .zip, which may hold a single top folder

One sample per crop: its keypoint is labelled and visible (2), its person has at least two such among the chosen parts, and
`crops.Rule` says how large it is. Ids are "<image id>/<annotation id>/<part>"; samples are sorted by photo, then by
annotation id, then in the order of the parts. Crowds take part if they have keypoints, as in the released code.

Source: cocodataset.org. Annotations CC BY 4.0; each photo has its own licence, which the JSON names.
Expect: part-aware study (arXiv:2301.11915), Table 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from evalkit.datasets import coco_json, crops, people
from evalkit.datasets.files import Tree
from evalkit.datasets.listing import Listing, Photos
from evalkit.datasets.people import LAYOUT, NAMES, Person
from evalkit.errors import DatasetError
from evalkit.types import Dataset, Sample, SplitSize

ALIASES = {"coco": ("COCO", "coco2017", "COCO2017", "mscoco", "MSCOCO")}
VISIBLE = 2


@dataclass(frozen=True)
class Config(crops.Rule):
    """parts: by name, or by number from 1; nose, right wrist and left ankle are the study's 1, 11 and 16
    (JiePKU/understand-ssl-part-aware ffea818, retrieval-classification/pr_patch_retrieval.py:248). The rest: `crops.Rule`."""

    parts: tuple[str | int, ...] = ("nose", "right_wrist", "left_ankle")


def published(folder: str, config: Config) -> Mapping[str, SplitSize]:
    """Photos that the annotations list, also those without a crop; the classes are the parts chosen."""
    return {split: SplitSize(None, photos) for split, photos in coco_json.PHOTOS.items()}


def open(root: Path, split: str, config: Config) -> Dataset:
    """The crops of "train" or "val".

    Raises MissingFiles, which lists every photo that is needed and absent; DatasetError for another split, a part that
    does not exist, whatever `people.people` refuses, or no crop at all.
    """
    if split not in coco_json.SPLITS:
        raise DatasetError(f"coco_keypoints has no split {split!r} with keypoints; allowed: train, val")
    year = coco_json.SPLITS[split]
    parts = crops.chosen(config.parts, NAMES, "a person in COCO")
    tree = Tree.open(root).rooted(["annotations"])
    found = people.people(tree, year)
    samples: list[Sample] = []
    skipped: Counter[str] = Counter()
    for photo, persons in groupby(found.persons, key=lambda person: person.photo):
        points = [point for person in persons for point in _points(person, parts)]
        kept, left_out = crops.crops(points, config, found.sizes[photo])
        skipped += left_out
        for point, box in kept:
            name = f"{found.numbers[photo]}/{point.owner}/{NAMES[parts[point.label]]}"
            samples.append(Sample(name, photo, point.label, box))
    samples += [
        Sample(str(item.id), item.photo, 0) for item in found.unusable
    ]  # never seen, since their photos are broken
    samples.sort(key=lambda sample: sample.group)
    coco_json.require_photos(tree, year, {sample.group for sample in samples}, layout=LAYOUT)
    names = tuple(NAMES[part] for part in parts)
    broken = coco_json.broken(found.unusable, people.json_path(year))
    pictures = Photos(tree.within(year), sizes=found.sizes, broken=broken)
    facts = crops.facts(config, skipped, len(samples) - len(found.unusable)) | {"photos": len(found.sizes)}
    if found.unusable:
        facts["annotations_left_out"] = coco_json.left_out(found.unusable)
    return Listing("coco_keypoints", split, names, tuple(samples), pictures, facts)


def verify(root: Path) -> list[str]:
    """Absent or unusable annotation files, and every listed photo that is absent."""
    return people.verified(Tree.open(root).rooted(["annotations"]))


def _points(person: Person, parts: Sequence[int]) -> list[crops.Point]:
    rows = [(label, *person.keypoints[part].tolist()) for label, part in enumerate(parts)]
    return [crops.Point(x, y, label, person.id) for label, x, y, visible in rows if visible == VISIBLE]
