"""People as samples: who is taken, in which box, what is counted and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evalkit import datasets
from evalkit.datasets import joints
from evalkit.datasets.figures import region
from evalkit.datasets.subset import Subset
from evalkit.errors import BrokenImage, CatalogError, DatasetError
from evalkit.types import DatasetRef
from tests.datasets import part_makers as parts

TINY = Path("../shared/data/tiny_coco")


def coco(root: Path, split: str = "train", **config: object):
    return datasets.open_dataset(DatasetRef("coco_pose", "coco", split, "val", config=config), "train", root)


def lsp(root: Path, split: str = "train", **config: object):
    return datasets.open_dataset(DatasetRef("lsp_pose", "lsp", split, "test", config=config), "train", root)


@pytest.mark.parametrize(
    ("box", "wanted"),
    [
        ((10, 20, 40, 60), (6.25, 15, 43.75, 65)),  # 30 x 40 has the aspect: only the padding
        ((0, 0, 10, 40), (5 - 18.75, 20 - 25, 5 + 18.75, 20 + 25)),  # widened to 30 x 40
        ((0, 0, 60, 10), (30 - 37.5, 5 - 50, 30 + 37.5, 5 + 50)),  # heightened to 60 x 80
    ],
)
def test_a_region_is_the_box_at_three_to_four_and_a_quarter_larger(box, wanted):
    assert region(box, aspect=0.75, padding=1.25) == pytest.approx(wanted)


def test_crowds_and_people_without_keypoints_are_counted_and_known_but_no_samples(tmp_path: Path):
    places = {0: (100, 50), 5: (120, 90, 1)}
    rows = [
        parts.person(1, 1, places),
        parts.person(2, 1, {}),
        parts.person(3, 1, places, iscrowd=1),
        parts.person(4, 1, places, area=0),
        parts.person(5, 2, {}),
    ]
    found = coco(parts.people(tmp_path, parts.people_document(rows)))
    assert [found[i].id for i in range(len(found))] == ["1"]
    assert found.describe()["left_out"] == {"crowd": 1, "no labelled keypoint": 2, "no area": 1}
    assert [(one.id, one.crowd) for one in found.figures(found[0].group)] == [
        (1, False),
        (2, False),
        (3, True),
        (4, False),
    ]
    assert found.figure(0).keypoints[[0, 5]].tolist() == [[100, 50, 2], [120, 90, 1]]
    assert found[0].box == region((10, 10, 110, 160), aspect=0.75, padding=1.25)


def test_nobody_left_is_refused(tmp_path: Path):
    root = parts.people(tmp_path, parts.people_document([parts.person(1, 1, {})]))
    with pytest.raises(DatasetError, match="no samples"):
        coco(root)


def test_a_person_of_keypoints_that_are_not_finite_breaks_the_photo_and_other_splits_are_refused(tmp_path: Path):
    root = parts.people(tmp_path, parts.people_document([parts.person(1, 1, {0: (float("nan"), 5)})]))
    found = coco(root)
    assert (len(found), found.figure(0).keypoints.any()) == (1, False)
    with pytest.raises(BrokenImage, match="not finite"):
        found.image(found[0].group)
    with pytest.raises(DatasetError, match="allowed: train, val"):
        coco(root, "test")
    with pytest.raises(CatalogError, match="aspect"):
        coco(root, "val", aspect=0)


def test_a_moved_keypoint_is_another_data_set(tmp_path: Path):
    before = coco(parts.people(tmp_path / "a")).digest
    rows = parts.people_document()["annotations"]
    rows[0]["keypoints"][0] += 1
    assert coco(parts.people(tmp_path / "b", parts.people_document(rows))).digest != before
    assert coco(parts.people(tmp_path / "c")).digest == before


def test_the_skeleton_mirrors_names():
    for module in ("coco_pose", "lsp_pose"):
        skeleton = datasets.module(module).SKELETON
        for k, other in enumerate(skeleton.mirrored):
            assert skeleton.mirrored[other] == k
            swapped = skeleton.names[k].replace("left_", "?").replace("right_", "left_").replace("?", "right_")
            assert skeleton.names[other] == swapped
        for one, two in skeleton.torso:
            assert {skeleton.names[one].split("_")[1], skeleton.names[two].split("_")[1]} == {"hip", "shoulder"}
            assert skeleton.names[one].split("_")[0] != skeleton.names[two].split("_")[0]


def test_the_published_sigmas_are_those_of_pycocotools():
    from pycocotools.cocoeval import Params

    assert pytest.approx(Params("keypoints").kpt_oks_sigmas.tolist()) == datasets.module("coco_pose").SIGMAS


def test_a_selection_forwards_people(tmp_path: Path):
    found = coco(parts.people(tmp_path, parts.people_document([parts.person(n, 1, {0: (9, 9)}) for n in range(1, 7)])))
    some = Subset(found, 2)
    assert [some.figure(i).id for i in range(2)] == [int(some[i].id) for i in range(2)]
    assert len(some.figures(some[0].group)) == 6
    assert some.skeleton == found.skeleton


def test_lsp_splits_and_boxes(tmp_path: Path):
    matrix = parts.joints_matrix(5)
    root = parts.lsp(tmp_path / "lsp", matrix)
    train, test = lsp(root, train=3), lsp(root, "test", train=3)
    assert [train[i].id for i in range(len(train))] == ["im00001", "im00002", "im00003"]
    assert [test[i].id for i in range(len(test))] == ["im00004", "im00005"]
    places = matrix[:, :2, 3]
    box = (*places.min(0), *(places.max(0) + 1))
    assert test.figure(0).box == pytest.approx(box)
    assert test[0].box == pytest.approx(region(box, aspect=0.75, padding=1.25))
    assert (train.skeleton.names, len(train.figure(0).keypoints)) == (joints.NAMES, 14)
    with pytest.raises(DatasetError, match="leave none for 'test'"):
        lsp(root, "test", train=5)


def test_hidden_joints_are_labelled_in_lsp_and_not_in_lsp_extended(tmp_path: Path):
    extended = parts.joints_matrix(2)
    extended[:5, 2] = 0
    found = lsp(parts.lsp(tmp_path / "a", extended), train=1).figure(0).keypoints
    assert found[:, 2].tolist() == [0] * 5 + [2] * 9
    original = extended.transpose(1, 0, 2).copy()  # there 1 is hidden
    found = lsp(parts.lsp(tmp_path / "b", original), train=1).figure(0).keypoints
    assert found[:, 2].tolist() == [2] * 5 + [1] * 9


def test_lsp_people_without_two_places_are_counted(tmp_path: Path):
    matrix = parts.joints_matrix(4)
    matrix[1:, 2, 1] = 0  # one joint
    matrix[:, :2, 2] = 50  # all at one place
    found = lsp(parts.lsp(tmp_path / "lsp", matrix), train=3)
    assert [found[i].id for i in range(len(found))] == ["im00001"]
    assert found.describe()["left_out"] == {"fewer than two places": 2}


@pytest.mark.skipif(not TINY.exists(), reason="the shared data are not here")
def test_tiny_coco():
    found = coco(TINY, "val")
    assert len(found) == 46
    assert all((found.figure(i).keypoints[:, 2] > 0).any() for i in range(len(found)))
    assert np.mean([b[2] - b[0] for b in (found[i].box for i in range(len(found)))]) > 0
