"""Nothing beside the images is lost without a word: used, an error that names it, or passed over and counted."""

from __future__ import annotations

import os
import pickle
import zipfile
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from dense_makers import ade20k, cityscapes, masked_folder
from PIL import Image

from evalkit.datasets import image_folder
from evalkit.datasets.files import Tree, in_number_order
from evalkit.errors import BrokenImage, DatasetError
from evalkit.types import Dataset


def picture(kind: str = "JPEG") -> bytes:
    out = BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, kind)
    return out.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            (tmp_path / "set" / split / name / "0.jpg").write_bytes(picture())
    return tmp_path / "set"


def opened(root: Path, split: str = "train") -> Dataset:
    return image_folder.open(root, split, image_folder.Config())


@pytest.mark.parametrize(
    ("name", "kind"), [("a.jfif", "JPEG"), ("a.JPE", "JPEG"), ("a.GIF", "GIF"), ("a.jp2", "JPEG2000"), ("a.PNG", "PNG")]
)
def test_every_name_of_a_format_that_is_read_is_used(root: Path, name: str, kind: str) -> None:
    (root / "train/cat" / name).write_bytes(picture(kind))
    data = opened(root)
    assert [s.id for s in map(data.__getitem__, range(3))] == ["cat/0.jpg", f"cat/{name}", "dog/0.jpg"]
    assert data.image(f"cat/{name}").size == (8, 8)


@pytest.mark.parametrize("name", ["a.heic", "a.avif", "without_ending", "a.jpg.1", "a.dat"])
def test_an_image_under_another_ending_is_named_and_refused(root: Path, name: str) -> None:
    (root / "train/cat" / name).write_bytes(picture() if "." not in name or name[-1] in "1t" else b"")
    with pytest.raises(DatasetError, match=f"1 images have endings that are not read: train/cat/{name};"):
        opened(root)
    assert any(name in problem for problem in image_folder.verify(root))


def test_other_files_are_passed_over_and_counted_and_hidden_ones_are_not_there(root: Path) -> None:
    assert "files_passed_over" not in opened(root).describe()
    for name in ("a.txt", "b.txt", "c"):
        (root / "train/cat" / name).write_text("notes")
    for name in ("._0.jpg", ".DS_Store", "Thumbs.db"):
        (root / "train/dog" / name).write_bytes(picture())
    assert opened(root).describe()["files_passed_over"] == {".txt": 2, "no ending": 1}
    assert len(opened(root)) == 2


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_that_is_named_like_an_image_is_a_broken_image(root: Path, packed: bool) -> None:
    (root / "train/cat/q.jpg").mkdir()
    if packed:
        with zipfile.ZipFile(root / "a.zip", "w") as archive:
            for path in root.rglob("*"):
                if path.suffix != ".zip":
                    archive.write(path, path.relative_to(root))
    data = opened(root / "a.zip" if packed else root)
    assert len(data) == 3 and data.digest
    with pytest.raises(BrokenImage, match=r"q\.jpg is a folder; only regular files are read"):
        data.image("cat/q.jpg")


def test_a_class_folder_may_be_named_like_an_image(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "cat").rename(root / split / "cat.jpg")
    assert opened(root).classes == ("cat.jpg", "dog")


@pytest.mark.parametrize("what", ["fifo", "link", "zero"])
def test_what_is_no_regular_file_is_a_broken_image_that_may_be_skipped(root: Path, what: str) -> None:
    path = root / "train/cat/q.jpg"
    os.mkfifo(path) if what == "fifo" else path.symlink_to("gone" if what == "link" else "/dev/zero")
    data = opened(root)
    assert data.digest != opened(root, "val").digest
    reason = {"fifo": "is a FIFO", "link": "is a link to gone, which is not there", "zero": "is a device"}[what]
    with pytest.raises(BrokenImage, match=f"q.jpg {reason}"):
        data.image("cat/q.jpg")


def test_names_that_are_no_utf8_or_have_line_breaks_are_shown_in_one_line(root: Path) -> None:
    for split in ("train", "val"):
        os.rename(root / split / "cat", os.path.join(os.fsencode(root / split), b"caf\xe9\n"))
    data = opened(root)
    assert data.classes == (r"caf\xe9\n", "dog") and data[0].id == r"caf\xe9\n/0.jpg"
    assert data.image(data[0].group).size == (8, 8)
    (next(root.glob("train/caf*")) / "0.jpg").write_bytes(b"")
    with pytest.raises(BrokenImage, match=r"caf\\xe9\\n/0.jpg: cannot be decoded") as found:
        data.image(data[0].group)
    assert "\n" not in str(found.value)


def test_a_zip_entry_that_lies_about_its_size_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train/cat/0.jpg", picture())
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02")
    data[place + 20 : place + 28] = (1 << 30).to_bytes(4, "little") * 2
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"train/cat/0.jpg claims 1,073,741,824 bytes, more than the archive holds"):
        Tree.open(path)


def test_a_zip_that_is_a_fifo_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.zip")
    with pytest.raises(DatasetError, match=r"a\.zip is a FIFO"):
        Tree.open(tmp_path / "a.zip")


def test_numbers_in_names_are_ordered_as_numbers() -> None:
    assert sorted(["10.png", "2.png", "1.png", "b2", "b10", "a"], key=in_number_order) == [
        "1.png", "2.png", "10.png", "a", "b2", "b10",
    ]  # fmt: skip
    padded = ["00001.png", "00010.png", "00002.png", "a/00001.png", "a-b/00001.png"]
    assert sorted(padded, key=in_number_order) == sorted(padded)


LAYOUTS = {
    "masked_folder": (masked_folder, "train", "images/train", ("a.heic", "c")),
    "ade20k": (ade20k, "training", "images/training", ("ADE_train_3.jfif", "ADE_train_3.JPEG", "ADE_train_3.png")),
    "cityscapes": (cityscapes, "train", "leftImg8bit/train/ulm", ("ulm_2_leftImg8bit.jpg", "ulm_2.png")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_masks_use_every_photo_of_a_folder_or_name_it(tmp_path: Path, layout: str) -> None:
    make, split, where, others = LAYOUTS[layout]
    root = make(tmp_path)
    module: Any = import_module(f"evalkit.datasets.{layout}")
    first = module.open(root, split, module.Config())
    assert "files_passed_over" not in first.describe()
    (root / where / "notes.txt").write_text("notes")
    second = pickle.loads(pickle.dumps(module.open(root, split, module.Config())))
    assert second.describe()["files_passed_over"] == {".txt": 1}
    assert second.digest == first.digest
    for name in others:
        (root / where / name).write_bytes(picture("PNG" if name.endswith("png") else "JPEG"))
        with pytest.raises(DatasetError, match=f"1 images have endings that are not read: {where}/{name};"):
            module.open(root, split, module.Config())
        assert [problem for problem in module.verify(root) if name in problem]
        (root / where / name).unlink()


def test_an_ending_that_is_asked_for_says_which_images_are_meant(tmp_path: Path) -> None:
    root = masked_folder(tmp_path)
    (root / "images/train/a_depth.png").write_bytes(picture("PNG"))
    module: Any = import_module("evalkit.datasets.masked_folder")
    assert len(module.open(root, "train", module.Config(photo_ending=".jpg"))) == 2
