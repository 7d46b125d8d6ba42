"""ADE20K's scene parsing, Cityscapes, LIP and VOC: what each stored number stands for, and trees that are incomplete."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_makers import encoded, folder, indexed, plain
from dense_makers import ade20k, cityscapes, grey, lip, stripes, voc

from evalkit.datasets import ade20k as ade
from evalkit.datasets import ade_names
from evalkit.datasets import cityscapes as city
from evalkit.datasets import lip as look
from evalkit.datasets import voc_segmentation as pascal
from evalkit.errors import BrokenImage, DatasetError, MissingFiles, UnknownName


def columns(data: Any, index: int = 0) -> list[int]:
    """The labels along the first row of a sample's map, each run once."""
    found = data.pixels(index)
    assert (found.dtype, found.shape) == (np.int32, (18, 24))
    row = found[0].tolist()
    return [value for place, value in enumerate(row) if place == 0 or row[place - 1] != value]


def test_ade20k_ignores_zero_and_counts_from_one(tmp_path: Path) -> None:
    data: Any = pickle.loads(pickle.dumps(ade.open(ade20k(tmp_path), "training", ade.Config())))
    assert (len(data.classes), data.classes[0], data.classes[149]) == (150, "wall", "flag")
    assert [sample.id for sample in data] == ["ADE_train_1", "ADE_train_2"]
    assert columns(data) == [-1, 0, 149]
    assert [s.id for s in ade.open(tmp_path, "val", ade.Config())] == ["ADE_val_1"]  # type: ignore[attr-defined]


def test_ade20k_with_the_objects_that_have_parts(tmp_path: Path) -> None:
    """Clock is 149 of the 150 and the last of the 59; bed, door and boat have numbers 8, 15 and 77."""
    root = ade20k(tmp_path, ADE_train_1=grey(stripes(values=(1, 8, 15, 77, 149, 150))))
    data = ade.open(root, "training", ade.Config("ade20k-object59"))
    assert len(data.classes) == 59
    found = [data.classes[label] if label >= 0 else "" for label in columns(data)]
    assert found == ["", "bed", "door", "boat", "clock", ""]
    with pytest.raises(UnknownName, match="ade20k-object59"):
        ade.Config("ade20k-objects")


def test_the_lists_of_ade20k_agree() -> None:
    assert ade_names.lists() == ["ade20k-150", "ade20k-object59"]
    scene, objects = ade_names.scene(), ade_names.named("ade20k-object59")
    assert (len(scene), len(set(scene)), len(objects), len(set(objects))) == (150, 150, 59, 59)
    assert set(objects) < set(scene)
    assert ade_names.first("building, edifice") == "building"
    with pytest.raises(UnknownName):
        ade_names.named("ade20k")


def test_cityscapes_maps_label_ids_to_train_ids(tmp_path: Path) -> None:
    data: Any = pickle.loads(pickle.dumps(city.open(cityscapes(tmp_path), "train", city.Config())))
    assert (len(data.classes), data.classes[0], data.classes[18]) == (19, "road", "bicycle")
    assert [sample.id for sample in data] == ["bonn/bonn_1", "ulm/ulm_1"]
    assert columns(data) == [-1, 0, 18, -1]
    every = grey(np.arange(432).reshape(18, 24) % 34)
    root = cityscapes(tmp_path / "every", **{"ulm/ulm_1": every})
    found = city.open(root, "train", city.Config()).pixels(1).ravel()[:34].tolist()  # type: ignore[attr-defined]
    ids = [id for id, label in enumerate(found) if label >= 0]
    assert ids == [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]
    assert [found[id] for id in ids] == list(range(19))


def test_lip_ignores_the_background(tmp_path: Path) -> None:
    data: Any = pickle.loads(pickle.dumps(look.open(lip(tmp_path), "train", look.Config())))
    assert (len(data.classes), data.classes[0], data.classes[18]) == (19, "Hat", "Right-shoe")
    assert [sample.id for sample in data] == ["b_2", "a_1"]
    assert columns(data) == [-1, 0, 18]


@pytest.mark.parametrize("top", ["", "TrainVal_images/TrainVal_images/"])
def test_lip_as_different_zips_unpack_it(tmp_path: Path, top: str) -> None:
    root = lip(tmp_path, top)
    masks = root / "TrainVal_parsing_annotations"
    if top:
        shutil.move(str(masks), root / "x")
        shutil.move(str(root / "x"), masks / "TrainVal_parsing_annotations")
    assert columns(look.open(root, "val", look.Config())) == [-1, 0, 18]
    assert look.verify(root) == []


def test_voc_counts_the_background_and_ignores_the_border(tmp_path: Path) -> None:
    data: Any = pickle.loads(pickle.dumps(pascal.open(voc(tmp_path), "train", pascal.Config())))
    assert (len(data.classes), data.classes[0], data.classes[20]) == (21, "background", "tvmonitor")
    assert [sample.id for sample in data] == ["a", "b"]
    assert columns(data) == [0, 1, 20, -1]
    without = pascal.open(tmp_path, "train", pascal.Config(background=False))
    assert (len(without.classes), without.classes[0]) == (20, "aeroplane")
    assert columns(without) == [-1, 0, 19, -1]


def test_voc_aug_from_either_kind_of_list(tmp_path: Path) -> None:
    """A photo's own mask goes before the further one: b has both."""
    root = voc(tmp_path)
    folder(root, {"SegmentationClassAug/b.png": indexed(stripes(values=(5,)))})
    data: Any = pascal.open(root, "trainaug", pascal.Config())
    assert [sample.id for sample in data] == ["a", "b", "d"]
    assert (columns(data, 1), columns(data, 2)) == ([0, 1, 20, -1], [0, 1, 20, -1])
    folder(root, {"ImageSets/Segmentation/trainaug.txt": b"d\nb\n"})
    assert [s.id for s in pascal.open(root, "trainaug", pascal.Config())] == ["d", "b"]  # type: ignore[attr-defined]
    assert pascal.verify(root) == []


def test_voc_inside_its_development_kit(tmp_path: Path) -> None:
    voc(tmp_path / "VOCdevkit/VOC2012")
    assert len(pascal.open(tmp_path, "val", pascal.Config())) == 1
    assert len(pascal.open(tmp_path / "VOCdevkit", "val", pascal.Config())) == 1


def test_a_name_listed_twice(tmp_path: Path) -> None:
    root = voc(tmp_path)
    (root / "ImageSets/Segmentation/aug.txt").write_text("a\n")
    with pytest.raises(DatasetError, match=r"1 names are listed twice in .*train\.txt, .*aug\.txt: \['a'\]"):
        pascal.open(root, "trainaug", pascal.Config())


EVERY = [(ade, ade20k, "training"), (city, cityscapes, "train"), (look, lip, "train"), (pascal, voc, "train")]
MASKS = {
    ade: "annotations/training/ADE_train_2.png",
    city: "gtFine/train/ulm/ulm_1_gtFine_labelIds.png",
    look: "TrainVal_parsing_annotations/train_segmentations/a_1.png",
    pascal: "SegmentationClass/b.png",
}


@pytest.mark.parametrize(("reader", "make", "split"), EVERY, ids=["ade20k", "cityscapes", "lip", "voc"])
class TestEach:
    """What all of them refuse in the same way."""

    def test_wrong_masks_are_named(self, tmp_path: Path, reader: Any, make: Any, split: str) -> None:
        root = make(tmp_path)
        mask = root / MASKS[reader]
        for content, message in (
            (grey(stripes(values=(0, 200))), "holds the values 200, which are no classes here"),
            (encoded(plain(24, 18)), "mode RGB where an index mask is needed"),
            (grey(stripes(9, 9, (0,))), "is 9 x 9 pixels, but its photo .* is 24 x 18"),
        ):
            mask.write_bytes(content)
            with pytest.raises(BrokenImage, match=message):
                reader.open(root, split, reader.Config()).pixels(1)
            assert any(mask.name in problem for problem in reader.verify(root))

    def test_absent_masks_are_listed(self, tmp_path: Path, reader: Any, make: Any, split: str) -> None:
        root = make(tmp_path)
        (root / MASKS[reader]).unlink()
        with pytest.raises(MissingFiles, match=r"(?s)lacks 1 .*Expected"):
            reader.open(root, split, reader.Config())
        assert any(MASKS[reader] in problem for problem in reader.verify(root))

    def test_other_splits_and_empty_folders(self, tmp_path: Path, reader: Any, make: Any, split: str) -> None:
        root = make(tmp_path / "data")
        with pytest.raises(DatasetError, match="has no split 'test'"):
            reader.open(root, "test", reader.Config())
        (tmp_path / "empty").mkdir()
        with pytest.raises(MissingFiles, match="Expected"):
            reader.open(tmp_path / "empty", split, reader.Config())

    def test_the_digest_follows_the_masks(self, tmp_path: Path, reader: Any, make: Any, split: str) -> None:
        root = make(tmp_path)
        first = reader.open(root, split, reader.Config()).digest
        (root / MASKS[reader]).write_bytes(grey(stripes(values=(0,))))
        assert reader.open(root, split, reader.Config()).digest != first


def test_verify_tells_how_many_photos_are_published(tmp_path: Path) -> None:
    assert ade.verify(ade20k(tmp_path / "a")) == [
        "the split 'training' has 2 photos; 20,210 are published",
        "the split 'validation' has 1 photos; 2,000 are published",
    ]
    assert "2,975 are published" in city.verify(cityscapes(tmp_path / "c"))[0]
    assert look.verify(lip(tmp_path / "l")) == []
    assert pascal.verify(voc(tmp_path / "v")) == []


def test_many_problems_are_counted(tmp_path: Path) -> None:
    from evalkit.datasets import dense

    root = lip(tmp_path, **{name: grey(stripes(values=(99,))) for name in ("a_1", "b_2")})
    problems = dense.problems([lambda: look.open(root, "train", look.Config())] * 2)
    assert len(problems) == 2
    found = [f"problem {number}" for number in range(60)]

    def refuse(text: str) -> Any:
        raise DatasetError(text)

    many = dense.problems([(lambda text=text: refuse(text)) for text in found])  # type: ignore[misc]
    assert many == [*found[:50], "... and 10 more"]
