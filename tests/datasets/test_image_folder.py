"""Folders of classes, as they come and as they should not."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from dataset_makers import class_tree, encoded, folder, plain, zipped

from evalkit import datasets
from evalkit.datasets.image_folder import LISTS, Config, class_list, class_lists, open, verify
from evalkit.errors import BrokenImage, DatasetError, MissingFiles, UnknownName
from evalkit.types import DatasetRef


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


def subset_tree(*folders: str) -> dict[str, bytes]:
    names = [f"{split}/{name}/{row}.png" for split in ("train", "val") for name in folders for row in range(2)]
    return {name: encoded(plain(colour=(index % 256, index // 256, 0))) for index, name in enumerate(names)}


def test_lists_of_classes_have_a_source_and_as_many_classes_as_their_name_says() -> None:
    assert class_lists() == ["imagenet10", "imagenet100"]
    for name in class_lists():
        found = class_list(name)
        assert len(found) == len(set(found)) == int(name.removeprefix("imagenet"))
        assert all(len(wnid) == 9 and wnid[0] == "n" and wnid[1:].isdecimal() for wnid in found)
        assert "Source: " in (LISTS / f"{name}.txt").read_text("utf-8")
    assert class_list("imagenet100")[0] == "n01558993" and "n02056570" in class_list("imagenet10")


def test_a_list_takes_its_classes_out_of_the_whole_set(tmp_path: Path) -> None:
    ten = class_list("imagenet10")
    whole = folder(tmp_path / "imagenet", subset_tree(*ten, "n00000001", "n09999999"))
    alone = folder(tmp_path / "imagenet10", subset_tree(*ten))
    for path in (whole, alone):  # the pictures of the classes are the same in both
        for index, name in enumerate(subset_tree(*ten)):
            (path / name).write_bytes(encoded(plain(colour=(index, 7, 7))))
    config = Config(classes="imagenet10")
    found = open(whole, "val", config)
    assert found.classes == ten
    assert [s.label for s in found] == sorted([*range(10), *range(10)])
    assert {s.id.split("/")[0] for s in found} == set(ten)
    assert found.digest == open(alone, "val", config).digest == open(alone, "val", Config()).digest
    assert found.digest != open(whole, "val", Config()).digest
    assert found.describe()["classes_of"] == "imagenet10"


def test_absent_classes_of_a_list_are_told(tmp_path: Path) -> None:
    ten = class_list("imagenet10")
    root = folder(tmp_path, subset_tree(*ten[2:], "n00000001"))
    with pytest.raises(
        MissingFiles, match=f"'train' lacks 2 of the 10 class folders of imagenet10: {ten[0]}, {ten[1]}"
    ):
        open(root, "train", Config(classes="imagenet10"))
    with pytest.raises(MissingFiles, match="no split 'test'"):
        open(root, "test", Config(classes="imagenet10"))
    with pytest.raises(UnknownName, match="Did you mean imagenet100"):
        Config(classes="imagenet1000")
    with pytest.raises(UnknownName):
        class_list("../cifar")


def test_a_subset_is_looked_for_by_its_name_and_then_in_the_whole_set(tmp_path: Path) -> None:
    ref = DatasetRef("image_folder", "imagenet100", test="val", config={"classes": "imagenet100"})
    (tmp_path / "ILSVRC2012").mkdir()
    assert datasets.locate(ref, tmp_path, {}, tmp_path).name == "ILSVRC2012"
    (tmp_path / "imagenet-100").mkdir()
    assert datasets.locate(ref, tmp_path, {}, tmp_path).name == "imagenet-100"
