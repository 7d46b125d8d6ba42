"""Instances of a small COCO folder, and JSON files that cannot be used."""

from __future__ import annotations

import copy
import json
import math
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from dataset_makers import coco, coco_document, encoded, plain

from evalkit.datasets.agreement import notes
from evalkit.datasets.coco_objects import Config, open, verify
from evalkit.errors import BrokenImage, DatasetError, MissingFiles

FEW = Config(min_train=2, min_test=2, min_side=20)


def spoiled(**changes: Any) -> dict[str, Any]:
    """A document whose first annotation has these values."""
    document = coco_document()
    document["annotations"][0] |= changes
    return document


def test_instances_become_squares_without_crowds_and_small_ones(tmp_path: Path) -> None:
    data = pickle.loads(pickle.dumps(open(coco(tmp_path), "train", FEW)))
    assert data.classes == ("cat", "dog")
    assert [(s.id, s.group, s.label, s.box) for s in data][:2] == [
        ("10", "000000000001.jpg", 0, (10, 0, 50, 40)),
        ("11", "000000000001.jpg", 1, (60, 5, 90, 35)),
    ]
    assert len(data) == 4
    assert data.image(data[0].group).size == (100, 80)


def test_a_square_may_leave_the_photo(tmp_path: Path) -> None:
    root = coco(tmp_path, spoiled(bbox=[0, 0, 40, 20]))
    assert open(root, "train", FEW)[0].box == (0, -10, 40, 30)


def test_without_squares_the_box_is_kept(tmp_path: Path) -> None:
    config = Config(min_train=2, min_test=2, min_side=20, square=False)
    assert open(coco(tmp_path), "train", config)[0].box == (10, 10, 50, 30)


def test_min_side_and_counts_choose_the_categories(tmp_path: Path) -> None:
    root = coco(tmp_path, coco_document(images=2), coco_document(images=1, first=5))
    assert open(root, "val", Config(min_train=2, min_test=1, min_side=21)).classes == ("dog",)
    with pytest.raises(DatasetError, match="no category has 3 train and 1 val"):
        open(root, "val", Config(min_train=3, min_test=1))
    with pytest.raises(DatasetError, match="no category"):
        open(root, "val", Config(min_train=2, min_test=2))


def test_split_names(tmp_path: Path) -> None:
    root = coco(tmp_path)
    assert [s.id for s in open(root, "val", FEW)] == [s.id for s in open(root, "val2017", FEW)]
    assert open(root, "val", FEW)[0].group == "000000000005.jpg"
    with pytest.raises(DatasetError, match="no split 'test' with instances; allowed: train, val"):
        open(root, "test", FEW)


def test_all_needed_photos_that_are_absent_are_listed(tmp_path: Path) -> None:
    document = coco_document(images=3)
    document["annotations"] = document["annotations"][:8]  # nothing in the third photo
    root = coco(tmp_path, document)
    for path in (root / "train2017").iterdir():
        path.unlink()
    with pytest.raises(MissingFiles) as caught:
        open(root, "train", FEW)
    assert all(f"train2017/{number:012d}.jpg" in str(caught.value) for number in (1, 2))
    assert f"{3:012d}" not in str(caught.value)
    assert f"{3:012d}" in verify(root)[0]


def test_absent_annotations_are_listed_with_the_layout(tmp_path: Path) -> None:
    with pytest.raises(MissingFiles, match=r"(?s)instances_train2017.json, annotations/instances_val2017.*Expected"):
        open(tmp_path, "train", FEW)
    assert len(verify(tmp_path)) == 2


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (spoiled(image_id=99), "its image 99 is not listed"),
        (spoiled(category_id=99), "its category 99 is not listed"),
        (spoiled(id=11), r"1 annotation ids occur more than once: \[11\]"),
        ({**coco_document(), "images": coco_document()["images"] * 2}, "2 image ids occur more than once"),
        ({key: coco_document()[key] for key in ("images", "annotations")}, "holds no instances: it lacks categories"),
        (spoiled(id=[1]), r"lacks one of id \(int\)"),
        (spoiled(bbox="all"), r"bbox \(list\)"),
        ({**coco_document(), "annotations": [{"id": 1, "image_id": 1, "caption": "a cat"}]}, "lacks one of id"),
    ],
)
def test_unusable_annotations(tmp_path: Path, document: dict[str, Any], message: str) -> None:
    root = coco(tmp_path, document)
    with pytest.raises(DatasetError, match=message):
        open(root, "train", FEW)
    assert len(verify(root)) == 1


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([10, 10, -4, 20], "annotation 10: its box .* negative side"),
        ([10, 10, math.nan, 20], "annotation 10: .*not four finite numbers"),
        ([10, 10, 20], "annotation 10: .*not four finite numbers"),
        ([70, 10, 40, 20], "annotation 10: .*leaves the 100 x 80 photo"),
        ([-5, 10, 40, 20], "annotation 10: .*leaves the 100 x 80 photo"),
    ],
)
def test_the_photo_of_a_box_that_cannot_be_is_broken(tmp_path: Path, box: list[float], message: str) -> None:
    root = coco(tmp_path, spoiled(bbox=box, id=10) | {"images": coco_document(images=3)["images"]})
    one = Config(min_train=1, min_test=1, min_side=20)
    data = pickle.loads(pickle.dumps(open(root, "train", one)))
    assert (
        [s.id for s in data] == [s.id for s in open(coco(tmp_path / "whole"), "train", one)] == ["10", "11", "20", "21"]
    )
    with pytest.raises(BrokenImage, match=rf"000000000001\.jpg: in annotations/instances_train2017\.json, {message}"):
        data.image(data[0].group)
    assert data.image(data[2].group).size == (100, 80)
    reason = "that cannot be used, so that their photos are broken"
    assert data.describe()["annotations_left_out"] == {reason: [10]}
    assert any(reason in note for note in notes(data.describe()))
    assert len(verify(root)) == 1 and re.search(message, verify(root)[0])
    assert "annotations_left_out" not in open(root, "val", one).describe()


@pytest.mark.parametrize(
    "region", [None, [], [[1, 2, 3, 4]], [[1, 2, 3, 4, 1e9, 6]], {"size": [80, 100], "counts": [7]}]
)
def test_outlines_are_not_read(tmp_path: Path, region: object) -> None:
    whole = open(coco(tmp_path / "a"), "train", FEW)
    data = open(coco(tmp_path / "b", spoiled(segmentation=region)), "train", FEW)
    assert data.digest == whole.digest
    assert data.image(data[0].group).size == (100, 80)


def test_a_box_may_be_a_pixel_too_large(tmp_path: Path) -> None:
    assert open(coco(tmp_path, spoiled(bbox=[59.5, 10, 41, 20])), "train", FEW)[0].box is not None


def test_what_is_no_json(tmp_path: Path) -> None:
    root = coco(tmp_path)
    (root / "annotations/instances_val2017.json").write_text("{")
    with pytest.raises(DatasetError, match=r"instances_val2017\.json is no JSON"):
        open(root, "train", FEW)


def test_keypoint_files_hold_instances_too(tmp_path: Path) -> None:
    document = coco_document()
    for row in document["annotations"]:
        row["keypoints"] = [0] * 51
    assert len(open(coco(tmp_path, copy.deepcopy(document)), "train", FEW)) == 4


def test_a_photo_of_another_size_than_its_annotation_is_broken(tmp_path: Path) -> None:
    root = coco(tmp_path)
    (root / "train2017/000000000001.jpg").write_bytes(encoded(plain(50, 40), "JPEG"))
    with pytest.raises(BrokenImage, match=r"is \(50, 40\) pixels, but its annotation is for \(100, 80\)"):
        open(root, "train", FEW).image("000000000001.jpg")


def test_the_digest_sees_boxes_and_pixels(tmp_path: Path) -> None:
    first = open(coco(tmp_path / "a"), "train", FEW).digest
    assert open(coco(tmp_path / "b"), "train", FEW).digest == first
    assert open(coco(tmp_path / "c", spoiled(bbox=[10, 10, 41, 20])), "train", FEW).digest != first
    (tmp_path / "b/train2017/000000000001.jpg").write_bytes(encoded(plain(100, 80, (1, 2, 3)), "JPEG"))
    assert open(tmp_path / "b", "train", FEW).digest != first


def test_a_complete_folder_has_no_problems(tmp_path: Path) -> None:
    assert verify(coco(tmp_path)) == []
    assert json.loads((tmp_path / "annotations/instances_val2017.json").read_text())["images"]


@pytest.mark.parametrize(("limit", "ids"), [(None, 4), (2.0, 4), (1.99, 2), (1.0, 2)])
def test_max_aspect_keeps_boxes_that_are_square_enough(tmp_path: Path, limit: float | None, ids: int) -> None:
    """Each photo has a box of 40 x 20 and one of 30 x 30; sides are compared before the box becomes a square."""
    config = Config(min_train=2, min_test=2, min_side=20, max_aspect=limit)
    found = open(coco(tmp_path), "train", config)
    assert len(found) == ids
    assert found.classes == (("cat", "dog") if ids == 4 else ("dog",))
