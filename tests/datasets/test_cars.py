"""Stanford Cars in the official layout, and what can be wrong with it."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from dataset_makers import CARS, cars, cars_annotations, photos
from scipy.io import savemat

from evalkit.datasets.cars import Config, open, verify
from evalkit.errors import DatasetError, MissingFiles


@pytest.mark.parametrize("labels", ["cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat"])
def test_labels_are_those_of_the_annotations(tmp_path: Path, labels: str) -> None:
    root = cars(tmp_path, labels)
    data = pickle.loads(pickle.dumps(open(root, "train", Config())))
    assert data.classes == CARS
    assert [(s.id, s.label, s.box) for s in data][:3] == [
        ("00001.jpg", 0, None), ("00002.jpg", 1, None), ("00003.jpg", 2, None)
    ]  # fmt: skip
    test = open(root, "test", Config())
    assert [s.label for s in test] == [2, 1, 0, 0]
    assert test.image("00001.jpg").tobytes() != data.image("00001.jpg").tobytes()  # two folders, the same names
    assert verify(root) == []


def test_one_annotation_alone_is_read(tmp_path: Path) -> None:
    root = cars(tmp_path)
    savemat(root / "devkit/cars_train_annos.mat", {"annotations": cars_annotations([("00002.jpg", 3)])})
    assert [(s.id, s.label) for s in open(root, "train", Config())] == [("00002.jpg", 2)]


def test_absent_files_are_named(tmp_path: Path) -> None:
    root = cars(tmp_path)
    (root / "cars_test/00004.jpg").unlink()
    with pytest.raises(MissingFiles, match=r"1 of the files.*cars_test/00004.jpg"):
        open(root, "test", Config())
    assert len(open(root, "train", Config())) == 5
    (root / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(MissingFiles, match=r"needs: cars_test_annos_withlabels.mat"):
        open(root, "test", Config())  # devkit/cars_test_annos.mat is there and has no classes
    (root / "devkit/cars_meta.mat").unlink()
    with pytest.raises(MissingFiles, match=r"2 of the files.*devkit/cars_meta.mat, cars_test_annos"):
        open(root, "test", Config())
    assert len(verify(root)) == 2


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        (cars_annotations([("00001.jpg", 4)]), r"class: 4 is outside 1 \.\.\. 3"),
        (cars_annotations([("00001.jpg", 1), ("00001.jpg", 2)]), "1 images are named more than once"),
        (cars_annotations([("00001.jpg", 1)], labelled=False), "has no field 'class'; there are: bbox_x1"),
        (np.array([1, 2]), "has no field 'fname'; there are: none"),
        (cars_annotations([("", 1)]), "is no list of names"),
    ],
)
def test_annotations_that_cannot_be(tmp_path: Path, annotations: np.ndarray, said: str) -> None:
    root = cars(tmp_path)
    savemat(root / "devkit/cars_train_annos.mat", {"annotations": annotations})
    with pytest.raises(DatasetError, match=said):
        open(root, "train", Config())
    assert verify(root)


def test_names_that_lead_out_of_the_folder_are_not_there(tmp_path: Path) -> None:
    root = cars(tmp_path)
    for name, data in photos("cars_secret.jpg").items():
        (root / name).write_bytes(data)
    savemat(root / "devkit/cars_train_annos.mat", {"annotations": cars_annotations([("../cars_secret.jpg", 1)])})
    with pytest.raises(MissingFiles):
        open(root, "train", Config())


def test_another_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="allowed: train, test"):
        open(cars(tmp_path), "val", Config())
