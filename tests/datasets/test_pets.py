"""Oxford-IIIT Pets in the official layout, and what can be wrong with it."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from dataset_makers import encoded, folder, pets, plain, zipped

from evalkit import datasets
from evalkit.datasets.pets import Config, open, verify
from evalkit.errors import DatasetError, MissingFiles
from evalkit.types import DatasetRef


def test_breeds_are_numbered_as_the_lists_do(tmp_path: Path) -> None:
    root = pets(tmp_path)
    data = pickle.loads(pickle.dumps(open(root, "trainval", Config())))
    assert data.classes == ("Abyssinian", "american_bulldog", "Bengal")
    assert [(s.id, s.label) for s in data] == [
        ("Abyssinian_1", 0), ("Abyssinian_2", 0), ("american_bulldog_1", 1), ("american_bulldog_2", 1),
        ("Bengal_1", 2), ("Bengal_2", 2),
    ]  # fmt: skip
    assert [s.id for s in open(root, "test", Config())][:1] == ["Abyssinian_101"]
    assert data.image("Bengal_2").size == (24, 18)
    assert verify(root) == []


def test_the_order_is_that_of_the_list_and_comments_are_none(tmp_path: Path) -> None:
    root = pets(tmp_path)
    path = root / "annotations/trainval.txt"
    path.write_text("#Image CLASS-ID SPECIES BREED-ID\n\n" + "\n".join(reversed(path.read_text().splitlines())))
    assert [s.label for s in open(root, "trainval", Config())] == [2, 2, 1, 1, 0, 0]


def test_a_gif_that_is_called_jpg_is_decoded(tmp_path: Path) -> None:
    root = pets(tmp_path)
    (root / "images/Bengal_1.jpg").write_bytes(encoded(plain(30, 20), "GIF"))
    assert open(root, "trainval", Config()).image("Bengal_1").size == (30, 20)


def test_a_zip_with_a_top_folder_is_read(tmp_path: Path) -> None:
    root = pets(tmp_path / "x")
    files = {f"pets/{path.relative_to(root)}": path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert len(open(zipped(tmp_path / "pets.zip", files), "test", Config())) == 6


def test_all_absent_photos_of_a_split_are_named(tmp_path: Path) -> None:
    root = pets(tmp_path)
    for name in ("Bengal_1", "Abyssinian_2", "Bengal_101"):
        (root / f"images/{name}.jpg").unlink()
    with pytest.raises(MissingFiles, match=r"2 of the files.*images/Abyssinian_2.jpg, images/Bengal_1.jpg"):
        open(root, "trainval", Config())
    assert len(verify(root)) == 2
    assert [len(open(pets(tmp_path / "whole"), split, Config())) for split in ("trainval", "test")] == [6, 6]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("Bengal_1 3 1 1", "Bengal_1 3 1", "line 5: 'Bengal_1 3 1' is not a name"),
        ("Bengal_1 3 1 1", "Bengal 3 1 1", "is not a name like"),
        ("Bengal_1 3 1 1", "Bengal_1 x 1 1", "and three numbers"),
        ("Bengal_1 3 1 1", "Bengal_1 2 1 1", "class 2 is american_bulldog and also Bengal"),
        ("Bengal_1 3 1 1", "Bengal_101 3 1 1", "Bengal_101 is listed twice"),
        ("Bengal_1 3 1 1", "Bengal_1 4 1 1", "each breed has one number"),
        ("Bengal_1 3 1 1", "Sphynx_1 5 1 1", "without gaps"),
    ],
)
def test_what_a_list_may_not_say(tmp_path: Path, before: str, after: str, said: str) -> None:
    path = pets(tmp_path) / "annotations/trainval.txt"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(DatasetError, match=said):
        open(tmp_path, "trainval", Config())
    assert said.split(":")[0] in verify(tmp_path)[0]


def test_absent_lists_and_other_splits(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no split 'train'; allowed: trainval, test"):
        open(tmp_path, "train", Config())
    with pytest.raises(MissingFiles, match=r"annotations/trainval.txt, annotations/test.txt.*\n.*Expected"):
        open(folder(tmp_path, {"images/a_1.jpg": b""}), "test", Config())


def test_it_is_found_under_its_usual_names(tmp_path: Path) -> None:
    pets(tmp_path / "oxford-iiit-pet")
    ref = DatasetRef("pets", "pets", train="trainval")
    assert len(datasets.open_dataset(ref, "train", datasets.locate(ref, tmp_path, {}, tmp_path))) == 6
