"""iNaturalist 2018 and 2019 in the official layout, and what can be wrong with it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from dataset_makers import folder, inaturalist, inaturalist_document

from evalkit import datasets
from evalkit.datasets.inaturalist import Config, open, verify
from evalkit.errors import CatalogError, DatasetError, MissingFiles
from evalkit.types import DatasetRef


@pytest.mark.parametrize("year", [2018, 2019])
def test_labels_follow_the_ids_of_the_categories(tmp_path: Path, year: int) -> None:
    root = inaturalist(tmp_path, year)
    data = pickle.loads(pickle.dumps(open(root, "train", Config(year))))  # type: ignore[arg-type]
    assert data.classes == ("species 0", "species 1", "species 2")
    assert [(s.id, s.label) for s in data][:3] == [
        (f"train_val{year}/Plantae/{label}/{1000 + row}.jpg", label) for row, label in enumerate((2, 1, 0))
    ]
    assert data.image(data[0].group).size == (24, 18)
    assert [s.label for s in open(root, "val", Config(year))] == [2, 1, 0, 2, 1, 0]  # type: ignore[arg-type]
    assert verify(root) == []
    assert data.describe()["year"] == year


def test_both_years_may_lie_in_one_folder(tmp_path: Path) -> None:
    inaturalist(tmp_path / "inaturalist", 2018)
    inaturalist(tmp_path / "inaturalist", 2019)
    for folder_name, year in (("inaturalist18", 2018), ("inaturalist19", 2019)):
        ref = DatasetRef("inaturalist", folder_name, test="val", config={"year": year})
        found = datasets.open_dataset(ref, "test", datasets.locate(ref, tmp_path, {}, tmp_path))
        assert {s.group.split("/")[0] for s in map(found.__getitem__, range(len(found)))} == {f"train_val{year}"}
    assert verify(tmp_path / "inaturalist") == []


def test_real_names_in_the_training_file_alone_are_taken(tmp_path: Path) -> None:
    document = inaturalist_document("train")
    for row in document["categories"]:
        row["name"] = f"Quercus {row['id']}"
    assert open(inaturalist(tmp_path, train=document), "val", Config()).classes[0] == "Quercus 0"


def test_absent_photos_and_files_are_named(tmp_path: Path) -> None:
    root = inaturalist(tmp_path)
    (root / "train_val2018/Aves/2/1003.jpg").unlink()
    with pytest.raises(MissingFiles, match=r"1 of the files.*train_val2018/Aves/2/1003.jpg"):
        open(root, "val", Config())
    assert len(open(root, "train", Config())) == 6
    with pytest.raises(MissingFiles, match=r"train2019.json, val2019.json"):
        open(root, "train", Config(2019))
    assert len(verify(root)) == 1
    (root / "val2018.json").unlink()
    assert "val2018.json" in verify(root)[0]
    assert "train2018.json, val2018.json" in verify(folder(tmp_path / "empty", {"a": b""}))[0]


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in inaturalist_document("train").items() if key not in keys}


def changed(part: str, row: int, **values: Any) -> dict[str, Any]:
    document = inaturalist_document("train")
    document[part][row] |= values
    return document


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (without("annotations"), "lacks the table 'annotations'"),
        (without("categories"), "lacks the table 'categories'"),
        (changed("images", 0, file_name=None), r"an entry of 'images' lacks one of id \(int\), file_name"),
        (changed("annotations", 0, category_id=7), "has category 7, which is not listed"),
        (changed("annotations", 0, image_id=1000), "image 1000 has several annotations"),
        (changed("images", 0, id=77), r"image 77 \(train_val2018/Plantae/2/1000.jpg\) has no annotation"),
        (changed("images", 0, file_name="train_val2018/Plantae/1/1001.jpg"), "1 photos are listed more than once"),
        (changed("categories", 0, id=1), "a category's id occurs more than once"),
        (changed("categories", 0, id=9), "lists other categories than val2018.json"),
    ],
)
def test_a_training_file_that_cannot_be(tmp_path: Path, document: dict[str, Any], said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        open(inaturalist(tmp_path, train=document), "train", Config())
    assert verify(tmp_path)


def test_what_is_no_json(tmp_path: Path) -> None:
    root = inaturalist(tmp_path)
    (root / "train2018.json").write_text("[1, 2")
    with pytest.raises(DatasetError, match="is no JSON"):
        open(root, "val", Config())
    (root / "train2018.json").write_text("[1, 2]")
    with pytest.raises(DatasetError, match="lacks the table"):
        open(root, "val", Config())


def test_other_splits_and_years_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no split 'test' with labels"):
        open(inaturalist(tmp_path), "test", Config())
    with pytest.raises(CatalogError, match="2018"):
        datasets.configure(DatasetRef("inaturalist", "x", config={"year": 2021}))
