"""The bundle that ships: complete, small, attributed, and what the readers make of it, counted a second time here."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat

from evalkit import catalog, datasets
from evalkit.types import DatasetRef

MINI = Path(__file__).resolve().parents[2] / "mini"
CCP = DatasetRef("ccp_items", "ccp", shipped=True)
COCO = DatasetRef("coco_objects", "coco", "train", "val", shipped=True, config={"min_train": 6, "min_test": 4})


def test_it_is_complete_and_small() -> None:
    assert datasets.verify("ccp_items", MINI / "ccp") == []
    assert datasets.verify("coco_objects", MINI / "coco") == []
    assert sum(path.stat().st_size for path in MINI.rglob("*")) < 30_000_000
    assert len(list((MINI / "ccp/photos").iterdir())) == 200


def _large_labels(photo: int) -> set[int]:
    """Labels above 0 with 400 pixels and 24 px sides, by comparing the whole mask with each number."""
    mask = loadmat(MINI / f"ccp/annotations/pixel-level/{photo:04d}.mat")["groundtruth"]
    found = set()
    for label in set(np.unique(mask)) - {0}:
        inside = mask == label
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        if inside.sum() >= 400 and np.ptp(rows) >= 23 and np.ptp(columns) >= 23:
            found.add(int(label))
    return found


def test_clothing_counts() -> None:
    photos = {photo: _large_labels(photo) for photo in range(1, 201)}
    train = Counter(label for photo, labels in photos.items() for label in labels if photo <= 130)
    test = Counter(label for photo, labels in photos.items() for label in labels if photo > 130)
    kept = {label for label in train if train[label] >= 20 and test[label] >= 10}
    for role, counts, expected in (("train", train, 745), ("test", test, 401)):
        data = datasets.open_dataset(CCP, role, MINI / "ccp")
        assert len(data) == sum(counts[label] for label in kept) == expected
        assert len(data.classes) == len(kept) == 16
        assert data.image(data[0].group).mode == "RGB"


def test_part_counts() -> None:
    """Part retrieval asks with at least 500 crops."""
    counts = []
    names = [str(cell[0]) for cell in loadmat(MINI / "ccp/label_list.mat")["label_list"].ravel()]
    ref = catalog.recipe("mini-part-retrieval-ccp").dataset
    kept = {names.index(name) for name in ref.config["labels"]}
    for role, photos in (("train", range(1, 131)), ("test", range(131, 201))):
        counts.append(sum(len(_large_labels(photo) & kept) for photo in photos))
        assert len(datasets.open_dataset(ref, role, MINI / "ccp")) == counts[-1]  # type: ignore[arg-type]
    assert counts == [346, 190]


def test_coco_counts() -> None:
    counts = {}
    for split in ("train", "val"):
        document = json.loads((MINI / f"coco/annotations/instances_{split}2017.json").read_text())
        large = (a for a in document["annotations"] if min(a["bbox"][2:]) >= 24 and a["iscrowd"] == 0)
        counts[split] = Counter(a["category_id"] for a in large)
    kept = [number for number, count in counts["train"].items() if count >= 6 and counts["val"][number] >= 4]
    for role, split, expected in (("train", "train", 105), ("test", "val", 88)):
        data = datasets.open_dataset(COCO, role, MINI / "coco")
        assert len(data) == sum(counts[split][number] for number in kept) == expected
        assert len(data.classes) == len(kept) == 8
        assert data.image(data[0].group).mode == "RGB"


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_every_photo_is_attributed_and_may_be_shared(split: str) -> None:
    document = json.loads((MINI / f"coco/annotations/instances_{split}.json").read_text())
    text = (MINI / "coco/ATTRIBUTION.md").read_text()
    rows = dict(re.findall(rf"^\| {split}/(\S+) \| (\S+) \| \[.+\]\(http\S+\) \|$", text, re.MULTILINE))
    assert rows == {image["file_name"]: image["flickr_url"] for image in document["images"]}
    assert {image["license"] for image in document["images"]} <= {4, 5, 7, 8}
    assert {path.name for path in (MINI / "coco" / split).iterdir()} == set(rows)


def test_the_readme_says_these_counts() -> None:
    text = (MINI / "README.md").read_text()
    assert re.search(r"`ccp_items` .*\| 16 \| 745 \| 401 \|", text)
    assert re.search(r"`coco_objects` .*\| 8 \| 105 \| 88 \|", text)
