"""Datasets are found by their file name, located by their folder, opened by a recipe's reference."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dataset_makers import class_tree, folder, zipped

from evalkit import datasets
from evalkit.datasets import image_folder
from evalkit.datasets.subset import Subset
from evalkit.errors import BrokenImage, CatalogError, DatasetError, MissingFiles, UnknownName, UsageError
from evalkit.types import DatasetRef

PETS = DatasetRef("image_folder", "pets")


def test_names_are_the_modules_that_define_open() -> None:
    assert datasets.names() == [
        "ade20k",
        "ade20k_parts",
        "cars",
        "ccp_items",
        "ccp_segments",
        "cifar",
        "cityscapes",
        "coco_instances",
        "coco_keypoints",
        "coco_objects",
        "coco_pose",
        "cub_parts",
        "davis",
        "fake",
        "flowers",
        "image_folder",
        "inaturalist",
        "lip",
        "lsp",
        "lsp_pose",
        "masked_folder",
        "miniimagenet",
        "pascal_part",
        "pets",
        "revisited",
        "voc_segmentation",
    ]
    for name in datasets.names():
        reader = datasets.module(name)
        assert callable(reader.open)
        assert callable(reader.verify)
        assert reader.Config()


def test_listing_the_names_imports_nothing_heavy() -> None:
    look = "print({'numpy', 'PIL', 'pydantic'} & {*sys.modules})"
    code = f"import sys; from evalkit import datasets; datasets.names(); {look}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(UnknownName, match="coco_objects"):
        datasets.module("coco_object")
    with pytest.raises(UnknownName):
        datasets.module("files")


def test_locate_takes_overrides_by_folder_then_by_name(tmp_path: Path) -> None:
    for name in ("a", "b", "root/pets"):
        (tmp_path / name).mkdir(parents=True)
    both = {"image_folder": tmp_path / "a", "pets": tmp_path / "b"}
    assert datasets.locate(PETS, tmp_path / "root", both, tmp_path) == tmp_path / "b"
    del both["pets"]
    assert datasets.locate(PETS, tmp_path / "root", both, tmp_path) == tmp_path / "a"
    assert datasets.locate(PETS, tmp_path / "root", {}, tmp_path) == tmp_path / "root" / "pets"


def test_locate_finds_zips_and_aliases(tmp_path: Path) -> None:
    ref = DatasetRef("cifar", "cifar10")
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert datasets.locate(ref, tmp_path, {}, tmp_path).name == "cifar-10-batches-py"
    (tmp_path / "cifar10.zip").write_bytes(b"")
    assert datasets.locate(ref, tmp_path, {}, tmp_path).name == "cifar10.zip"


def test_an_alias_of_cifar100_is_none_of_cifar10(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(MissingFiles):
        datasets.locate(DatasetRef("cifar", "cifar10"), tmp_path, {}, tmp_path)


def test_shipped_data_need_no_root(tmp_path: Path) -> None:
    (tmp_path / "ccp").mkdir()
    ref = DatasetRef("ccp_items", "ccp", shipped=True)
    assert datasets.locate(ref, None, {}, tmp_path) == tmp_path / "ccp"


def test_what_is_nowhere_lists_what_was_tried_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingFiles) as caught:
        datasets.locate(PETS, tmp_path, {}, tmp_path)
    for part in (f"{tmp_path / 'pets'}\n", "pets.zip", "--data-root", "--data pets=PATH"):
        assert part in str(caught.value)
    with pytest.raises(MissingFiles, match="no data root is given"):
        datasets.locate(PETS, None, {}, tmp_path)
    with pytest.raises(MissingFiles, match="typo"):
        datasets.locate(PETS, tmp_path, {"pets": tmp_path / "typo"}, tmp_path)


def test_open_dataset_takes_the_split_of_the_role(tmp_path: Path) -> None:
    root = folder(tmp_path / "x", class_tree(images=3))
    (root / "test").rename(root / "val")
    ref = DatasetRef("image_folder", "x", train="train", test="val")
    assert [datasets.open_dataset(ref, role, root).split for role in ("train", "test")] == ["train", "val"]


def test_options_are_checked() -> None:
    def configured(options: dict[str, Any]) -> Any:
        return datasets.configure(DatasetRef("ccp_items", "ccp", config=options))

    config = configured({"min_train": 3, "ranges": {"train": [1, 2], "test": [3, 4]}})
    assert config.min_train == 3
    assert config.ranges["test"] == (3, 4)
    for options, message in [
        ({"min_trian": 3}, "dataset ccp_items: unknown key 'min_trian'; did you mean 'min_train'"),
        ({"min_train": "3"}, "key 'min_train' is '3'"),
        ({"min_train": 0}, "key 'min_train' is 0: .*greater than or equal to 1"),
        ({"min_train": Path()}, "not JSON serializable"),
        ({"ranges": {"train": [1]}}, "key 'ranges.train"),
    ]:
        with pytest.raises(CatalogError, match=message):
            configured(options)
    with pytest.raises(CatalogError, match="cifar10"):
        datasets.open_dataset(DatasetRef("cifar", "x", config={"variant": "cifar11"}), "train", Path())


def test_verify_turns_errors_into_problems(tmp_path: Path) -> None:
    assert "does not exist" in datasets.verify("coco_objects", tmp_path / "nowhere")[0]


def _pets(root: Path) -> image_folder.Dataset:
    return image_folder.open(folder(root, class_tree("abc", images=4)), "train", image_folder.Config())


def test_a_subset_keeps_every_label_and_the_order(tmp_path: Path) -> None:
    whole = _pets(tmp_path)
    part = Subset(whole, 6)
    ids = [part[row].id for row in range(len(part))]
    assert sorted(part[row].label for row in range(6)) == [0, 0, 1, 1, 2, 2]
    assert ids == sorted(ids, key=[whole[row].id for row in range(12)].index)
    assert part.image(part[0].group).size == (8, 6)
    assert part.digest != whole.digest
    assert json.loads(json.dumps(part.describe()))["limit"] == 6
    assert (part.describe()["samples"], part.describe()["digest"]) == (6, part.digest)
    assert pickle.loads(pickle.dumps(part)).indices == part.indices


def test_a_subset_of_labels_in_turn_meets_every_class() -> None:
    fake = datasets.module("fake")
    whole = fake.open(Path(), "train", fake.Config(classes=4, per_class=8))
    assert {Subset(whole, 8)[row].label for row in range(8)} == {0, 1, 2, 3}


def test_a_subset_of_everything_is_the_whole(tmp_path: Path) -> None:
    whole = _pets(tmp_path)
    assert len(Subset(whole, 99)) == 12
    assert Subset(whole, 12).digest == whole.digest
    with pytest.raises(UsageError, match="at least 1"):
        Subset(whole, 0)


def test_a_listing_names_broken_and_vanished_images(tmp_path: Path) -> None:
    files = {**class_tree(), "train/cat/0.png": b"words"}
    for root in (folder(tmp_path / "x", files), zipped(tmp_path / "x.zip", files)):
        data = image_folder.open(root, "train", image_folder.Config())
        with pytest.raises(BrokenImage, match=r"train/cat/0\.png: is no image"):
            data.image("cat/0.png")
        with pytest.raises(MissingFiles):
            data.image("cat/9.png")


def test_a_damaged_entry_of_a_zip_is_a_broken_image(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", class_tree())
    data = image_folder.open(path, "train", image_folder.Config())
    path.write_bytes(bytes(len(path.read_bytes())))
    with pytest.raises(BrokenImage, match="damaged"):
        data.image("cat/0.png")


def test_a_split_without_samples_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DatasetError, match="no samples"):
        image_folder.open(tmp_path, "train", image_folder.Config())
