"""Crops of birds, of people in COCO and of people in LSP: samples, splits, and files that cannot be used."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from dataset_makers import encoded, plain, zipped
from part_makers import (
    ANKLE,
    BIRD,
    NOSE,
    WRIST,
    cub,
    cub_files,
    joints_matrix,
    lsp,
    people,
    people_document,
    person,
)

from evalkit import datasets
from evalkit.datasets import coco_keypoints, cub_parts
from evalkit.datasets import lsp as lsp_parts
from evalkit.errors import DatasetError, MissingFiles
from evalkit.types import DatasetRef

COCO_REST = coco_keypoints.Config()


def test_people_become_crops(tmp_path: Path) -> None:
    data = pickle.loads(pickle.dumps(coco_keypoints.open(people(tmp_path), "train", COCO_REST)))
    assert data.classes == ("nose", "right_wrist", "left_ankle")
    # nose to wrist: hypot(60, 40) = 72.1; wrist to ankle: hypot(40, 90) = 98.5
    assert [(s.id, s.group, s.label, s.box) for s in data][:3] == [
        ("1/10/nose", "000000000001.jpg", 0, (64, 14, 136, 86)),
        ("1/10/right_wrist", "000000000001.jpg", 1, (124, 54, 196, 126)),
        ("1/10/left_ankle", "000000000001.jpg", 2, (71, 131, 169, 229)),
    ]
    assert len(data) == 6
    assert data.describe()["keypoints_left_out"] == {}
    assert len(coco_keypoints.open(people(tmp_path / "again"), "val", COCO_REST)) == 6


def test_only_visible_keypoints_of_people_with_two_count(tmp_path: Path) -> None:
    rows = [
        person(1, 1, {NOSE: (50, 50), WRIST: (50, 90, 1), ANKLE: (50, 150)}),
        person(2, 1, {NOSE: (60, 50), WRIST: (60, 90, 1)}),
        person(3, 2, {NOSE: (50, 50), ANKLE: (50, 90)}, iscrowd=1),
    ]
    data = coco_keypoints.open(people(tmp_path, people_document(rows)), "train", COCO_REST)
    assert [s.id for s in data] == ["1/1/nose", "1/1/left_ankle", "2/3/nose", "2/3/left_ankle"]
    assert data.describe()["keypoints_left_out"] == {"alone": 1}
    with pytest.raises(DatasetError, match="no crop is left of this split; keypoints left out: alone: 1"):
        coco_keypoints.open(people(tmp_path / "one", people_document(rows[1:2])), "train", COCO_REST)


def test_coco_without_its_files(tmp_path: Path) -> None:
    root = people(tmp_path)
    (root / f"train2017/{1:012d}.jpg").unlink()
    with pytest.raises(MissingFiles, match=f"train2017/{1:012d}.jpg"):
        coco_keypoints.open(root, "train", COCO_REST)
    assert f"{1:012d}" in coco_keypoints.verify(root)[0]
    with pytest.raises(DatasetError, match="no split 'test' with keypoints; allowed: train, val"):
        coco_keypoints.open(root, "test", COCO_REST)
    with pytest.raises(DatasetError, match=r"no part 'tail'; its 17 parts are: 1 nose, .* 17 right_ankle"):
        coco_keypoints.open(root, "val", coco_keypoints.Config(parts=("nose", "tail")))


def test_birds_become_crops_of_both_splits(tmp_path: Path) -> None:
    root = cub(tmp_path)
    train = cub_parts.open(root, "train", cub_parts.Config())
    assert train.classes == ("right eye", "right leg", "left wing", "tail")
    assert [s.id for s in train][:4] == ["1/right eye", "1/right leg", "1/left wing", "1/tail"]
    assert train[0].group == "001.Bird/Bird_0001.jpg"
    d = round(np.hypot(70.5, 49.5))  # right eye to left wing
    assert train[0].box == (80 - d / 2, round(40.5 - d / 2), 80 + d / 2, round(40.5 - d / 2) + d)
    assert [len(cub_parts.open(root, split, cub_parts.Config())) for split in ("train", "test", "all")] == [8, 8, 16]
    by_number = cub_parts.open(root, "all", cub_parts.Config(parts=(11, 12, 9, 14)))
    assert by_number.digest == cub_parts.open(root, "all", cub_parts.Config()).digest
    archive = zipped(tmp_path / "cub.zip", {f"CUB_200_2011/{k}": v for k, v in cub_files({1: BIRD, 2: BIRD}).items()})
    assert len(cub_parts.open(archive, "all", cub_parts.Config())) == 8
    assert cub_parts.verify(root) == cub_parts.verify(archive) == []


def test_places_outside_the_photo_are_left_out_and_counted(tmp_path: Path) -> None:
    root = cub(tmp_path, {1: BIRD, 2: BIRD | {14: (301.0, 10.0)}})
    data = cub_parts.open(root, "all", cub_parts.Config())
    assert len(data) == 7
    assert data.describe()["keypoints_left_out"] == {"outside the image": 1}
    assert len(cub_parts.open(root, "all", cub_parts.Config(outside="keep"))) == 8


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("parts__part_locs", "1 11 nan 3 1\n", "part_locs.txt:1: 'nan' is not finite"),
        ("parts__part_locs", "1 11 2 3 1\n1 11 2 3 1\n", "part_locs.txt:2: the part 11 of image 1 occurs twice"),
        ("parts__part_locs", "1 16 2 3 1\n", "there is no part 16; parts/parts.txt has 1 to 15"),
        ("parts__part_locs", "9 11 2 3 1\n", "the image 9 is not in images.txt"),
        ("parts__part_locs", "1 11 2 3 2\n", "'2' is neither 0 nor 1"),
        ("parts__part_locs", "1 11 2 3\n", "5 fields are needed; what came is '1 11 2 3'"),
        ("parts__part_locs", "1 x 2 3 1\n", "'x' is no whole number"),
        ("parts__part_locs", "1 11 two 3 1\n", "'two' is no number"),
        ("parts__parts", "1 back\n3 belly\n", r"part ids must be 1 to 2; they are \[1, 3\]"),
        ("images", "1 a.jpg\n1 b.jpg\n", "images.txt:2: the image id 1 occurs twice"),
        ("images", "1 a.jpg\n2 a.jpg\n", "a photo is listed under two image ids"),
        ("train_test_split", "1 1\n", r"3 images of images.txt are absent, first \[2, 3, 4\]"),
    ],
)
def test_text_that_is_not_the_layout_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        cub_parts.open(cub(tmp_path, **{name: text.encode()}), "all", cub_parts.Config())


def test_birds_without_files(tmp_path: Path) -> None:
    lacking = cub(tmp_path / "a", train_test_split=None, parts__parts=None)
    with pytest.raises(MissingFiles, match=r"(?s)2 of the files.*parts/parts.txt, train_test_split.txt.*Expected"):
        cub_parts.open(lacking, "all", cub_parts.Config())
    root = cub(tmp_path / "b", bounding_boxes=b"1 5 5 -3 4\n2 0 0 1 1\n3 0 0 1 1\n4 0 0 1 1\n")
    assert "is negative or has no area" in cub_parts.verify(root)[0]
    (root / "images/001.Bird/Bird_0001.jpg").unlink()
    with pytest.raises(MissingFiles, match=r"1 of the files that it needs: images/001.Bird/Bird_0001.jpg"):
        cub_parts.open(root, "train", cub_parts.Config())
    assert len(cub_parts.open(root, "test", cub_parts.Config())) == 8
    with pytest.raises(DatasetError, match="no split 'val'; allowed: train, test, all"):
        cub_parts.open(root, "val", cub_parts.Config())
    with pytest.raises(
        DatasetError, match=r"a bird of CUB-200-2011 has no part 16; its 15 parts are: 1 back, .*15 throat"
    ):
        cub_parts.open(root, "test", cub_parts.Config(parts=(11, 16)))


def test_a_photo_that_is_none_is_left_for_decoding(tmp_path: Path) -> None:
    root = cub(tmp_path)
    (root / "images/001.Bird/Bird_0001.jpg").write_bytes(b"no photo")
    assert len(cub_parts.open(root, "train", cub_parts.Config())) == 8


def test_joints_become_crops(tmp_path: Path) -> None:
    matrix = joints_matrix(3)
    matrix[5, 2, 1] = 0  # the left ankle of the second person is hidden
    matrix[[5, 6], 2, 2] = 0  # of the third nothing but the head is visible
    matrix[6, 0, 0] = -30  # the right wrist of the first lies outside
    root = lsp(tmp_path / "a", matrix)
    data = lsp_parts.open(root, "all", lsp_parts.Config())
    assert [s.id for s in data] == [
        "im00001/head_top", "im00001/left_ankle", "im00002/head_top", "im00002/right_wrist",
    ]  # fmt: skip
    assert data.describe()["keypoints_left_out"] == {"alone": 1, "outside the image": 1}
    assert data.digest == lsp_parts.open(root, "train", lsp_parts.Config()).digest
    with pytest.raises(
        DatasetError, match="LSP Extended, which is all for training, has no split 'test'; allowed: all, t"
    ):
        lsp_parts.open(root, "test", lsp_parts.Config())
    with pytest.raises(DatasetError, match=r"no part 'nose'; its 14 parts are: 1 right_ankle, .* 14 head_top"):
        lsp_parts.open(root, "all", lsp_parts.Config(parts=("nose", "neck")))
    assert lsp_parts.verify(root) == []
    (root / "images/im00002.jpg").write_bytes(b"no photo")
    assert "im00002.jpg: is no image" in lsp_parts.verify(root)[0]


def test_the_border_needs_the_size_of_the_photo(tmp_path: Path) -> None:
    root = cub(tmp_path, {1: {11: (5.0, 100.0), 12: (150.0, 100.0), 14: (150.0, 160.0)}, 2: BIRD})
    kept = cub_parts.open(root, "train", cub_parts.Config(border="keep"))
    dropped = cub_parts.open(root, "train", cub_parts.Config(border="drop"))
    gone = {s.id for s in kept} - {s.id for s in dropped}
    assert "1/right eye" in gone
    assert dropped.describe()["keypoints_left_out"] == {"border": len(gone)}


def test_options_of_a_recipe_reach_the_rule(tmp_path: Path) -> None:
    options = {"parts": [11, "tail"], "side": "d/2", "limits": [40, 2000], "outside": "keep"}
    ref = DatasetRef("cub_parts", "cub", config=options)
    data = datasets.open_dataset(ref, "test", cub(tmp_path))
    assert data.classes == ("right eye", "tail")
    half = round(np.hypot(170, 79.5) / 4)
    assert data[0].box == (80 - half, round(40.5 - half), 80 + half, round(40.5 - half) + 2 * half)


def test_a_wide_header_is_read_whole(tmp_path: Path) -> None:
    root = cub(tmp_path)
    image = encoded(plain(300, 200), "JPEG")
    comment = b"\xff\xfe" + (60_002).to_bytes(2, "big") + b"x" * 60_000
    big = image[:2] + 2 * comment + image[2:]  # segments between the start and the size
    (root / "images/001.Bird/Bird_0001.jpg").write_bytes(big)
    data = cub_parts.open(root, "train", cub_parts.Config(border="drop"))
    assert data.describe()["keypoints_left_out"]
