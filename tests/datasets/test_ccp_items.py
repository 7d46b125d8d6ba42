"""Segments of a small Clothing Co-Parsing folder, and masks that cannot be used."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dataset_makers import ccp, ccp_mask, encoded, plain
from scipy.io import savemat

from evalkit.datasets.ccp_items import Config, open, verify
from evalkit.errors import BrokenImage, DatasetError, MissingFiles

RANGES = {"train": (1, 3), "test": (4, 5)}
FEW = Config(ranges=RANGES, min_train=2, min_test=1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    masks = {f"{number:04d}": ccp_mask(hat=number != 3) for number in range(1, 6)}
    return ccp(tmp_path / "ccp", masks)


def test_one_sample_per_photo_and_label(root: Path) -> None:
    data = pickle.loads(pickle.dumps(open(root, "train", FEW)))
    assert data.classes == ("hat", "shoes")
    assert [(s.id, s.group, s.label) for s in data] == [
        ("0001/hat", "0001", 0),
        ("0001/shoes", "0001", 1),
        ("0002/hat", "0002", 0),
        ("0002/shoes", "0002", 1),
        ("0003/shoes", "0003", 1),
    ]
    assert data.image("0003").size == (100, 120)


def test_boxes_are_squares_around_the_centre(root: Path) -> None:
    data = open(root, "train", FEW)
    assert data[0].box == (10, 15, 50, 55)  # 40 x 30 at (10, 20)
    assert data[1].box == (0, 55, 94, 149)  # both shoes, 94 x 24 at (0, 90), below the photo


def test_small_and_thin_segments_are_left_out(root: Path) -> None:
    assert open(root, "train", Config(RANGES, min_pixels=1153, min_train=1, min_test=1)).classes == ("hat",)
    assert open(root, "train", Config(RANGES, min_pixels=1152, min_train=1, min_test=1)).classes == ("hat", "shoes")
    assert open(root, "train", Config(RANGES, min_side=25, min_train=1, min_test=1)).classes == ("hat",)
    thin = open(root, "train", Config(RANGES, min_pixels=360, min_side=4, min_train=1, min_test=1))
    assert thin.classes == ("hat", "shoes", "belt")


def test_the_classes_depend_on_both_ranges(root: Path) -> None:
    assert open(root, "test", Config(RANGES, min_train=3, min_test=1)).classes == ("shoes",)
    with pytest.raises(DatasetError, match="no label has 2 train and 3 test"):
        open(root, "test", Config(RANGES, min_train=2, min_test=3))


def test_a_further_range_has_the_same_classes(root: Path) -> None:
    config = Config({"train": (1, 2), "test": (4, 4), "extra": (5, 5)}, min_train=2, min_test=1)
    data = open(root, "extra", config)
    assert (data.classes, [sample.group for sample in data]) == (("hat", "shoes"), ["0005", "0005"])


@pytest.mark.parametrize(
    ("ranges", "split", "message"),
    [
        (RANGES, "val", "no split 'val'"),
        ({"train": (1, 3)}, "train", "no split 'test'"),
        ({"train": (1, 3), "test": (3, 5)}, "train", "photo 3 is in the ranges of both 'train' and 'test'"),
        ({"train": (3, 1), "test": (4, 5)}, "train", "is none"),
        ({"train": (0, 1), "test": (4, 5)}, "train", "photos are 1 to 9999"),
        ({"train": (1, 10**9), "test": (4, 5)}, "train", "photos are 1 to 9999"),
    ],
)
def test_wrong_splits_and_ranges(root: Path, ranges: dict[str, tuple[int, int]], split: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        open(root, split, Config(ranges))


def test_everything_absent_is_listed(root: Path) -> None:
    for name in ("photos/0002.jpg", "annotations/pixel-level/0004.mat"):
        (root / name).unlink()
    with pytest.raises(MissingFiles, match=r"(?s)lacks 2 .*pixel-level/0004\.mat, photos/0002\.jpg.*Expected"):
        open(root, "train", FEW)
    assert "photos/0002.jpg" in verify(root)[0]
    with pytest.raises(MissingFiles, match=r"lacks 5 .*0006\.jpg.*0007\.mat, photos/0002\.jpg"):
        open(root, "train", Config({"train": (1, 3), "test": (6, 7)}))


def test_an_absent_label_list(root: Path) -> None:
    (root / "label_list.mat").unlink()
    with pytest.raises(MissingFiles, match="label_list"):
        open(root, "train", FEW)
    assert "label_list" in verify(root)[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"other": np.zeros((3, 3), np.uint8)}, "no array 'groundtruth'"),
        ({"groundtruth": np.full((3, 3), 9, np.uint8)}, "labels beyond the 4 names"),
        ({"groundtruth": np.zeros((3, 3))}, "no label map"),
        ({"groundtruth": {"a": 1}}, "no label map"),
        (b"MATLAB 5.0 but cut", "no readable .mat"),
    ],
)
def test_masks_that_are_none(root: Path, content: dict[str, object] | bytes, message: str) -> None:
    path = root / "annotations/pixel-level/0002.mat"
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        savemat(path, content)
    with pytest.raises(DatasetError, match=message):
        open(root, "train", FEW)


def test_a_label_list_that_is_none(root: Path) -> None:
    savemat(root / "label_list.mat", {"label_list": np.arange(4)})
    assert "no list of names" in verify(root)[0]
    cells = np.empty((1, 2), object)
    cells[0, :] = ["hat", "shoes"]
    savemat(root / "label_list.mat", {"label_list": cells})
    assert "not 'null'" in verify(root)[0]


def test_a_photo_of_another_size_than_its_mask(root: Path) -> None:
    (root / "photos/0001.jpg").write_bytes(encoded(plain(9, 9), "JPEG"))
    with pytest.raises(BrokenImage, match=r"annotation is for \(100, 120\)"):
        open(root, "train", FEW).image("0001")
    assert verify(root) == ["photo 0001 is (9, 9) pixels, but its mask is (100, 120)"]


def test_a_complete_folder_has_no_problems(root: Path) -> None:
    assert verify(root) == []


def test_only_the_labels_asked_for(root: Path) -> None:
    chosen = replace(FEW, labels=("shoes",))
    assert [(s.id, s.label) for s in open(root, "train", chosen)] == [(f"{n:04d}/shoes", 0) for n in (1, 2, 3)]
    with pytest.raises(DatasetError, match="has no label 'ear'; there are: hat, shoes, belt"):
        open(root, "train", replace(chosen, labels=("shoes", "ear")))
