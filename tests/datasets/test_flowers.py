"""Oxford Flowers-102 in the official layout, and what can be wrong with it."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from dataset_makers import flowers
from scipy.io import savemat

from evalkit.datasets.flowers import Config, open, verify
from evalkit.errors import DatasetError, MissingFiles


def ids(root: Path, split: str) -> list[tuple[str, int]]:
    return [(sample.id, sample.label) for sample in open(root, split, Config())]


def test_splits_are_those_of_the_file_in_its_order(tmp_path: Path) -> None:
    root = flowers(tmp_path)
    assert ids(root, "train") == [("image_00005", 1), ("image_00001", 0)]
    assert ids(root, "val") == [("image_00006", 1), ("image_00002", 0)]
    assert ids(root, "trainval") == ids(root, "train") + ids(root, "val")
    assert [name[-1] for name, _ in ids(root, "test")] == ["3", "4", "7", "8"]
    data = pickle.loads(pickle.dumps(open(root, "test", Config())))
    assert data.classes == ("1", "2")
    assert data.image("image_00008").size == (24, 18)
    assert verify(root) == []


def test_labels_stored_as_doubles_are_read(tmp_path: Path) -> None:
    root = flowers(tmp_path)
    savemat(root / "imagelabels.mat", {"labels": np.array([[1.0, 1, 1, 1, 3, 3, 3, 3]])})
    data = open(root, "train", Config())
    assert [sample.label for sample in data] == [2, 0]
    assert data.describe()["classes_without_samples"] == ["2"]


def test_absent_images_and_files_are_named(tmp_path: Path) -> None:
    root = flowers(tmp_path)
    (root / "jpg/image_00002.jpg").unlink()
    assert len(ids(root, "train")) == 2
    with pytest.raises(MissingFiles, match=r"1 of the files.*jpg/image_00002.jpg"):
        open(root, "trainval", Config())
    (root / "setid.mat").unlink()
    with pytest.raises(MissingFiles, match=r"lacks 1 of the files that it needs: setid.mat"):
        open(root, "train", Config())
    assert verify(root)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ({"trnid": (5, 9)}, r"trnid: 9 is outside 1 \.\.\. 8"),
        ({"trnid": (5, 0)}, "trnid: 0 is outside"),
        ({"trnid": (5, 3)}, "an image is named twice"),
        ({"trnid": (5, 5)}, "an image is named twice"),
    ],
)
def test_image_numbers_that_cannot_be(tmp_path: Path, sets: dict[str, tuple[int, ...]], said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        open(flowers(tmp_path, **sets), "test", Config())


def test_files_that_are_no_matlab_files(tmp_path: Path) -> None:
    root = flowers(tmp_path)
    savemat(root / "imagelabels.mat", {"names": np.array([1])})
    with pytest.raises(DatasetError, match="no variable 'labels'"):
        open(root, "test", Config())
    savemat(root / "imagelabels.mat", {"labels": np.array([1, 1.5])})
    with pytest.raises(DatasetError, match=r"1\.5 is no whole number"):
        open(root, "test", Config())
    savemat(root / "imagelabels.mat", {"labels": np.array([1, np.inf])})
    with pytest.raises(DatasetError, match="inf is no whole number"):
        open(root, "test", Config())
    (root / "imagelabels.mat").write_bytes(b"words")
    with pytest.raises(DatasetError, match=r"no readable \.mat file"):
        open(root, "test", Config())
    assert "no readable .mat file" in verify(root)[0]


def test_another_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="allowed: train, val, trainval, test"):
        open(flowers(tmp_path), "valid", Config())
