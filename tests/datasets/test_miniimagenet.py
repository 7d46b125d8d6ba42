"""miniImageNet by its three lists."""

from __future__ import annotations

import pytest

from evalkit.datasets import miniimagenet
from evalkit.errors import DatasetError, MissingFiles
from tests.datasets import dataset_makers as make


def made(tmp_path, **lists):
    return make.miniimagenet(tmp_path / "mini", **lists)


def test_each_split_has_its_own_classes_in_the_order_of_its_list(tmp_path):
    root = made(tmp_path, test="filename,label\nb2.jpg,n02\na1.jpg,n01\nb1.jpg,n02\n")
    found = miniimagenet.open(root, "test", miniimagenet.Config())
    assert found.classes == ("n01", "n02")
    assert [(s.id, s.group, s.label) for s in found.samples] == [
        ("b2.jpg", "b2.jpg", 1), ("a1.jpg", "a1.jpg", 0), ("b1.jpg", "b1.jpg", 1),
    ]  # fmt: skip
    assert found.image("a1.jpg").mode == "RGB"
    assert miniimagenet.verify(root) == []
    assert miniimagenet.open(root, "val", miniimagenet.Config()).classes == ("n05", "n06")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na1.jpg,n01\n", "first line is 'file,label'"),
        ("filename,label\na1.jpg\n", "line 2: 'a1.jpg'"),
        ("filename,label\na1.jpg,n01\na1.jpg,n01\n", "listed twice"),
        ("filename,label\n", "no samples"),
        ("", "first line is ''"),
    ],
)
def test_lists_that_are_none_are_refused(tmp_path, text, message):
    root = made(tmp_path, test=text)
    with pytest.raises(DatasetError, match=message):
        miniimagenet.open(root, "test", miniimagenet.Config())
    assert len(miniimagenet.verify(root)) == 1


def test_absent_images_and_lists_are_named(tmp_path):
    root = made(tmp_path)
    (root / "val.csv").unlink()
    (root / "images/n0700000001.jpg").unlink()
    with pytest.raises(MissingFiles, match=r"n0700000001\.jpg"):
        miniimagenet.open(root, "test", miniimagenet.Config())
    with pytest.raises(MissingFiles, match=r"val\.csv"):
        miniimagenet.open(root, "val", miniimagenet.Config())
    assert len(miniimagenet.verify(root)) == 2
