"""Files of people's keypoints and joints: what is read of them, and files that cannot be used."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_makers import coco_document, folder
from part_makers import ANKLE, HEIGHT, NOSE, WIDTH, joints_matrix, lsp, people_document, person
from part_makers import people as make_people
from scipy.io import loadmat, savemat

from evalkit.datasets import coco_json, coco_keypoints, coco_pose
from evalkit.datasets.files import Tree
from evalkit.datasets.joints import joints
from evalkit.datasets.people import NAMES, people
from evalkit.errors import BrokenImage, DatasetError, MissingFiles
from evalkit.types import Dataset, Sample

TINY = Path(__file__).resolve().parents[3] / "shared/data/tiny_coco"
EXTENDED = Path(__file__).resolve().parents[3] / "shared/data/lsp_extended"


def read(root: Path, year: str = "train2017"):
    return people(Tree.open(root), year)


def spoiled(tmp_path: Path, **changes: Any) -> Path:
    document = people_document()
    document["annotations"][0] |= changes
    return make_people(tmp_path, document)


def test_people_are_sorted_and_hold_what_the_file_says(tmp_path: Path) -> None:
    rows = [
        person(9, 2, {NOSE: (5, 6)}),
        person(4, 1, {NOSE: (7, 8, 1), ANKLE: (30.5, 40)}, iscrowd=1),
        person(3, 2, {}),
    ]
    found = read(make_people(tmp_path, people_document(rows)))
    assert [(p.photo, p.id) for p in found.persons] == [
        (f"{1:012d}.jpg", 4),
        (f"{2:012d}.jpg", 3),
        (f"{2:012d}.jpg", 9),
    ]
    one = found.persons[0]
    assert one.box == (10, 10, 110, 160)
    assert one.area == 900.5
    assert one.crowd
    assert one.keypoints.shape == (17, 3)
    assert one.keypoints[NOSE].tolist() == [7, 8, 1]
    assert one.keypoints[ANKLE].tolist() == [30.5, 40, 2]
    assert one.keypoints.sum() == 7 + 8 + 1 + 30.5 + 40 + 2
    assert found.sizes == {f"{n:012d}.jpg": (WIDTH, HEIGHT) for n in (1, 2)}
    assert found.numbers == {f"{n:012d}.jpg": n for n in (1, 2)}
    with pytest.raises(ValueError, match="read-only"):
        one.keypoints[0, 0] = 1


CANNOT_BE = [
    ({"keypoints": [0] * 50}, "it has 50 keypoint numbers; 51 are needed"),
    ({"keypoints": [float("nan")] + [0] * 50}, "are not finite numbers"),
    ({"keypoints": ["1"] + [0] * 50}, "are not finite numbers"),
    ({"keypoints": [1, 1, 3] + [0] * 48}, "visibility 3; allowed: 0, 1, 2"),
    ({"area": -1}, "its area -1"),
    ({"bbox": [0, 0, -5, 5]}, "has a negative side"),
    ({"bbox": [0, 0, 5]}, "not four finite numbers"),
    ({"bbox": [0, 0, WIDTH + 5, 5]}, f"leaves the {WIDTH} x {HEIGHT} photo"),
]


@pytest.mark.parametrize(("changes", "said"), CANNOT_BE)
def test_the_photo_of_a_person_who_cannot_be_is_broken(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    root = spoiled(tmp_path, **changes)
    found = read(root)
    (item,) = found.unusable
    assert said in item.why and item.id == 10 and 10 not in [person.id for person in found.persons]
    for layout in (coco_pose, coco_keypoints):
        data = layout.open(root, "train", layout.Config())
        positions = [number for number, sample in enumerate(list_of(data)) if sample.group == item.photo]
        assert positions
        with pytest.raises(BrokenImage, match=r"person_keypoints_train2017\.json, annotation 10: "):
            data.image(item.photo)
        assert data.describe()["annotations_left_out"] == coco_json.left_out([item])
        assert sum("annotation 10: " in line for line in layout.verify(root)) == 1


def list_of(data: Dataset) -> list[Sample]:
    return [data[number] for number in range(len(data))]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_id": 99}, "annotation 10: its image 99 is not listed"),
        ({"category_id": 2}, "annotation 10: its category 2 is not listed"),
        ({"id": 20}, r"1 annotation ids occur more than once: \[20\]"),
    ],
)
def test_an_annotation_of_nothing_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        read(spoiled(tmp_path, **changes))


def test_files_of_another_task_are_told_apart(tmp_path: Path) -> None:
    other = {"images": people_document()["images"], "annotations": []}
    dogs = people_document()
    dogs["categories"][0] |= {"name": "dog", "keypoints": ["snout"]}
    two = people_document()
    two["categories"].append({"id": 2, "name": "twin", "keypoints": list(NAMES)})
    cases = [
        (coco_document(), "an entry of 'annotations' lacks one of .*keypoints"),
        (other, "holds no keypoints of people: it lacks categories"),
        (dogs, "of category 'dog' are not the 17 of a person"),
        (two, "it has 2 categories"),
    ]
    for number, (document, said) in enumerate(cases):
        with pytest.raises(DatasetError, match=said):
            read(make_people(tmp_path / str(number), document))
    broken = folder(tmp_path / "broken", {"annotations/person_keypoints_train2017.json": b"{"})
    with pytest.raises(DatasetError, match="is no JSON"):
        read(broken)
    with pytest.raises(MissingFiles, match=r"(?s)person_keypoints_val2017.json.*Expected"):
        read(broken, "val2017")


def test_a_photo_under_two_ids_is_refused(tmp_path: Path) -> None:
    document = people_document()
    document["images"].append(copy.deepcopy(document["images"][0]) | {"id": 77})
    with pytest.raises(DatasetError, match="1 photos are listed under two image ids"):
        read(make_people(tmp_path, document))


@pytest.mark.skipif(not TINY.exists(), reason="the real COCO files are not beside the checkout")
@pytest.mark.parametrize("year", ["train2017", "val2017"])
def test_genuine_people_against_an_independent_reading(year: str) -> None:
    document = json.loads((TINY / f"annotations/person_keypoints_{year}.json").read_text())
    found = {p.id: p for p in read(TINY, year).persons}
    assert len(found) == len(document["annotations"])
    for row in document["annotations"]:
        assert found[row["id"]].keypoints.ravel().tolist() == row["keypoints"]
        assert (found[row["id"]].keypoints[:, 2] > 0).sum() == row["num_keypoints"]


def test_joints_of_both_layouts_become_the_same(tmp_path: Path) -> None:
    matrix = joints_matrix(3)
    matrix[4, 2, 1] = 0
    hidden = matrix.transpose(1, 0, 2).copy()
    hidden[2] = 1 - hidden[2]
    extended = joints(Tree.open(lsp(tmp_path / "lspet", matrix)))
    original = joints(Tree.open(lsp(tmp_path / "lsp", hidden)))
    assert (extended.extended, original.extended) == (True, False)
    assert extended.photos == ("im00001.jpg", "im00002.jpg", "im00003.jpg")
    assert original.photos == ("im0001.jpg", "im0002.jpg", "im0003.jpg")
    assert np.array_equal(extended.keypoints, original.keypoints)
    assert extended.keypoints.shape == (3, 14, 3)
    assert extended.keypoints[1, 4].tolist() == [*matrix[4, :2, 1], 0]
    assert len(joints(Tree.open(lsp(tmp_path / "one", joints_matrix(1))))) == 1


def test_joints_that_cannot_be_are_refused(tmp_path: Path) -> None:
    wrong, strange = joints_matrix(2), joints_matrix(2)
    wrong[13, 1, 1] = np.nan
    strange[0, 2, 0] = 0.5
    cases = [
        (wrong, "the head_top of person 2 is not finite"),
        (strange, "must be 0 or 1"),
        (np.zeros((4, 5, 6)), r"has the shape \(4, 5, 6\); allowed: \(3, 14, N\) as LSP, \(14, 3, N\)"),
    ]
    for number, (matrix, said) in enumerate(cases):
        with pytest.raises(DatasetError, match=said):
            joints(Tree.open(lsp(tmp_path / str(number), matrix)))
    with pytest.raises(MissingFiles, match=r"(?s)1 of the files.*images/im00003.jpg.*Expected"):
        joints(Tree.open(lsp(tmp_path / "photos", joints_matrix(3), count=2)))
    with pytest.raises(MissingFiles, match=r"joints\.mat"):
        joints(Tree.open(folder(tmp_path / "none", {"images/im0001.jpg": b""})))
    text = folder(tmp_path / "text", {"images/im0001.jpg": b""})
    savemat(text / "joints.mat", {"joints": "no numbers"})
    with pytest.raises(DatasetError, match=r"'joints' holds .* no numbers"):
        joints(Tree.open(text))


@pytest.mark.skipif(not EXTENDED.exists(), reason="the real LSP files are not beside the checkout")
def test_genuine_joints() -> None:
    found = joints(Tree.open(EXTENDED))
    raw = loadmat(EXTENDED / "joints.mat")["joints"]
    assert found.extended
    assert len(found) == 1200
    assert all(np.array_equal(found.keypoints[n], raw[:, :, n]) for n in range(1200))
