"""Folders of classes, as they come and as they should not."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from dataset_makers import class_tree, encoded, folder, plain, zipped

from evalkit.datasets.image_folder import Config, open, verify
from evalkit.errors import BrokenImage, DatasetError, MissingFiles


@pytest.mark.parametrize("kind", ["folder", "zip", "zip with a top folder", "folder with a top folder"])
def test_classes_and_samples(tmp_path: Path, kind: str) -> None:
    files = class_tree(("dog", "cat"), images=2, top="pets/" if "top" in kind else "")
    root = zipped(tmp_path / "x.zip", files) if "zip" in kind else folder(tmp_path / "x", files)
    data = pickle.loads(pickle.dumps(open(root, "test", Config())))
    assert data.classes == ("cat", "dog")
    assert [(sample.id, sample.group, sample.label) for sample in data] == [
        (name, name, label) for label, name in ((0, "cat/0.png"), (0, "cat/1.png"), (1, "dog/0.png"), (1, "dog/1.png"))
    ]
    assert data.image("dog/1.png").getpixel((0, 0)) == (5, 0, 0)
    assert data.describe()["samples"] == 4


def test_suffixes_in_capitals_and_folders_below_a_class_count(tmp_path: Path) -> None:
    root = folder(tmp_path, {**class_tree(), "train/cat/images/n01.JPEG": encoded(plain(), "JPEG")})
    assert "cat/images/n01.JPEG" in [sample.id for sample in open(root, "train", Config())]


def test_all_empty_class_folders_are_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "x", {**class_tree(), "train/emu/notes.txt": b"none yet"})
    (root / "train" / "cow").mkdir()
    with pytest.raises(DatasetError, match=r"2 class folders .*: cow, emu"):
        open(root, "train", Config())
    with pytest.raises(DatasetError, match=r"1 class folders .*: cow"):
        open(zipped(tmp_path / "x.zip", class_tree(), folders=["train/cow"]), "train", Config())


def test_a_text_file_named_jpg_is_found_when_decoded(tmp_path: Path) -> None:
    data = open(folder(tmp_path, {**class_tree(), "train/cat/a.jpg": b"words"}), "train", Config())
    with pytest.raises(BrokenImage, match=r"a\.jpg"):
        data.image("cat/a.jpg")


def test_a_class_that_train_lacks_is_an_error(tmp_path: Path) -> None:
    root = folder(tmp_path, {**class_tree(), "test/emu/1.png": b"", "test/ape/1.png": b""})
    with pytest.raises(DatasetError, match="2 classes that 'train' lacks: ape, emu"):
        open(root, "test", Config())
    assert len(verify(root)) == 1


def test_a_class_that_only_train_has_keeps_its_label(tmp_path: Path) -> None:
    data = open(folder(tmp_path, {**class_tree(), "train/bee/1.png": encoded(plain())}), "test", Config())
    assert data.classes == ("bee", "cat", "dog")
    assert {sample.label for sample in data} == {1, 2}
    assert data.describe()["classes_without_samples"] == ["bee"]


def test_an_absent_split_says_what_is_there(tmp_path: Path) -> None:
    root = folder(tmp_path, class_tree())
    with pytest.raises(MissingFiles, match=r"no split 'val'; there: test, train"):
        open(root, "val", Config())
    with pytest.raises(MissingFiles, match="no split 'training'"):
        open(root, "test", Config(labels_from="training"))
    assert "no split 'train'" in verify(root / "test")[0]


def test_images_outside_every_class_are_not_lost_silently(tmp_path: Path) -> None:
    root = folder(tmp_path, {**class_tree(), "test/ILSVRC2012_val_1.JPEG": b"1"})
    with pytest.raises(DatasetError, match=r"1 images of the split 'test' lie in no class folder.*val_1"):
        open(root, "test", Config())


def test_the_digest_sees_a_changed_image_and_a_moved_one(tmp_path: Path) -> None:
    files = class_tree()
    first = open(folder(tmp_path / "a", files), "train", Config()).digest
    assert open(folder(tmp_path / "b", files), "train", Config()).digest == first
    files["train/cat/0.png"] = encoded(plain(colour=(9, 9, 9)))
    assert open(folder(tmp_path / "c", files), "train", Config()).digest != first
    (tmp_path / "a/train/cat/0.png").rename(tmp_path / "a/train/dog/9.png")
    assert open(tmp_path / "a", "train", Config()).digest != first


def test_a_complete_tree_has_no_problems(tmp_path: Path) -> None:
    assert verify(folder(tmp_path, class_tree())) == []
