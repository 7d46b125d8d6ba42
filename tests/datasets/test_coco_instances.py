"""Outlines of small COCO folders against masks drawn by hand, genuine ones against pycocotools' own reading."""

from __future__ import annotations

import contextlib
import io
import json
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_makers import coco, coco_document, encoded, plain
from dense_makers import coco_outlines, runs
from pycocotools import mask as coco_mask

from evalkit.datasets.agreement import agreed, notes
from evalkit.datasets.coco_instances import Config, open, verify
from evalkit.errors import BrokenImage, DatasetError, MissingFiles

SHARED = Path(__file__).resolve().parents[3] / "shared/data"
MINI = Path(__file__).resolve().parents[2] / "mini/coco"


def rectangle(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((80, 100), bool)
    mask[y0:y1, x0:x1] = True
    return mask


CAT, DOG, SECOND, CROWD = (
    rectangle(*corners) for corners in ((10, 10, 50, 30), (30, 5, 70, 35), (20, 40, 60, 50), (0, 20, 40, 60))
)


def spoiled(**changes: Any) -> dict[str, Any]:
    """A document whose first annotation has these values."""
    document = coco_outlines()
    document["annotations"][0] |= changes
    return document


def opened(root: Path, document: dict[str, Any] | None = None, **options: Any) -> Any:
    return open(coco(root, document or coco_outlines(), coco_outlines(first=5)), "train", Config(**options))


def test_objects_are_masks_by_id_without_crowds(tmp_path: Path) -> None:
    data = pickle.loads(pickle.dumps(opened(tmp_path)))
    assert data.classes == ("cat", "dog", "unseen")
    assert [(s.id, s.label, s.box) for s in data] == [
        ("000000000001.jpg", -1, None),
        ("000000000002.jpg", -1, None),
    ]
    found = data.objects(0)
    assert [(item.id, item.label) for item in found] == [("10", 0), ("11", 1), ("12", 0)]
    assert all(item.mask.dtype == bool and item.mask.flags.c_contiguous for item in found)
    for item, wanted in zip(found, (CAT, DOG, SECOND), strict=True):
        assert np.array_equal(item.mask, wanted)
    assert data.describe()["objects"] == 6


def test_overlaps_of_two_categories_count_as_nothing(tmp_path: Path) -> None:
    wanted = np.select([CAT & DOG, CAT | SECOND, DOG], [-1, 0, 1], -1)
    found = opened(tmp_path).pixels(0)
    assert found.dtype == np.int32
    assert np.array_equal(found, wanted)


def test_overlaps_within_a_category_keep_it(tmp_path: Path) -> None:
    document = coco_outlines()
    document["annotations"][1]["category_id"] = 7
    found = opened(tmp_path, document).pixels(0)
    assert np.array_equal(found, np.where(CAT | DOG | SECOND, 0, -1))


def test_the_later_object_may_win(tmp_path: Path) -> None:
    found = opened(tmp_path, overlap="later").pixels(0)
    assert np.array_equal(found, np.select([DOG, CAT | SECOND], [1, 0], -1))


def test_three_in_one_place_count_as_nothing_whatever_their_order(tmp_path: Path) -> None:
    """Cat, dog, cat over the same pixels: the last meets its own category only in part."""
    document = coco_outlines()
    document["annotations"][2]["segmentation"] = {"size": [80, 100], "counts": runs(CAT)}
    assert np.array_equal(opened(tmp_path, document).pixels(0), np.select([CAT & DOG, CAT, DOG], [-1, 0, 1], -1))


def test_the_background_may_be_a_class_and_crowds_then_are_void(tmp_path: Path) -> None:
    data = opened(tmp_path, background=True)
    assert data.classes == ("background", "cat", "dog", "unseen")
    assert [item.label for item in data.objects(0)] == [1, 2, 1]
    wanted = np.select([CAT & DOG, CAT | SECOND, DOG, CROWD], [-1, 1, 2, -1], 0)
    assert np.array_equal(data.pixels(0), wanted)


def numbered(first: int, ids: dict[str, int], order: tuple[str, ...]) -> dict[str, Any]:
    """The usual objects, the categories with these ids and listed in this order."""
    document = coco_outlines(first=first)
    names = {row["id"]: row["name"] for row in document["categories"]}
    rows = [row | {"category_id": ids[names[row["category_id"]]]} for row in document["annotations"]]
    return document | {"annotations": rows, "categories": [{"id": ids[name], "name": name} for name in order]}


IDS, SWAPPED = {"cat": 1, "dog": 3, "unseen": 5}, {"cat": 3, "dog": 1, "unseen": 5}
LISTED = ("cat", "dog", "unseen")


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(
    ("ids", "order"),
    [(IDS, LISTED), (SWAPPED, LISTED), (IDS, ("dog", "unseen", "cat")), (SWAPPED, ("dog", "cat", "unseen"))],
    ids=["same", "other ids", "other order", "both"],
)
def test_labels_go_by_name_whatever_ids_and_order_a_split_has(
    tmp_path: Path, ids: dict[str, int], order: tuple[str, ...], background: bool
) -> None:
    root = coco(tmp_path, numbered(1, IDS, LISTED), numbered(5, ids, order))
    train: Any = open(root, "train", Config(background=background))
    test: Any = agreed(train, open(root, "val", Config(background=background)))
    assert test.classes == train.classes == (("background",) if background else ()) + LISTED
    assert np.array_equal(test.pixels(0), train.pixels(0)) and {0, 1} < set(np.unique(test.pixels(0)).tolist())
    assert [item.label for item in test.objects(0)] == [item.label for item in train.objects(0)]
    assert [train.classes[item.label] for item in test.objects(0)] == ["cat", "dog", "cat"]
    assert any("labels go by the names" in note for note in notes(test.describe())) == (order != LISTED)


def test_a_category_that_only_the_other_split_has_is_refused(tmp_path: Path) -> None:
    other = numbered(5, IDS, LISTED)
    other["categories"][1]["name"] = "wolf"
    root = coco(tmp_path, numbered(1, IDS, LISTED), other)
    with pytest.raises(DatasetError, match="the split 'val' has 1 classes that 'train' lacks: wolf;"):
        agreed(open(root, "train", Config()), open(root, "val", Config()))


def test_run_length_codes_in_all_three_forms(tmp_path: Path) -> None:
    code = coco_mask.encode(np.asfortranarray(SECOND.astype(np.uint8)))
    text = {"size": [80, 100], "counts": code["counts"].decode()}
    assert np.array_equal(opened(tmp_path, spoiled(segmentation=text)).objects(0)[0].mask, SECOND)


@pytest.mark.parametrize("seed", range(20))
def test_compressed_codes_are_counted_as_they_were_made(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((16, 20)) < rng.random(), np.ones((5, 5))).astype(np.uint8) ^ (
        rng.random((80, 100)) < 0.01
    )
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    document = spoiled(segmentation={"size": [80, 100], "counts": code["counts"].decode()})
    assert np.array_equal(opened(tmp_path, document).objects(0)[0].mask, mask)


def test_several_polygons_are_one_object(tmp_path: Path) -> None:
    rings = [[10, 10, 20, 10, 20, 30, 10, 30], [40, 10, 50, 10, 50, 30, 40, 30]]
    found = opened(tmp_path, spoiled(segmentation=rings)).objects(0)[0].mask
    assert np.array_equal(found, rectangle(10, 10, 20, 30) | rectangle(40, 10, 50, 30))


@pytest.mark.parametrize(
    ("region", "why"),
    [
        ([], "whose outline is empty"),
        ([[]], "whose outline is empty"),
        ([[1, 2, 3, 4]], "whose polygons have fewer than three corners"),
    ],
)
def test_an_annotation_that_outlines_nothing_is_left_out_and_counted(tmp_path: Path, region: Any, why: str) -> None:
    data = opened(tmp_path, spoiled(segmentation=region))
    assert data.describe()["annotations_left_out"] == {why: [10]}
    assert "10" not in [item.id for item in data.objects(0)]
    assert any(f"1 annotations {why}: 10" in note for note in notes(data.describe()))
    assert "annotations_left_out" not in opened(tmp_path / "whole", spoiled()).describe()


def test_of_several_polygons_those_of_two_points_are_dropped(tmp_path: Path) -> None:
    ring = [10, 10, 20, 10, 20, 30, 10, 30]
    alone = opened(tmp_path / "a", spoiled(segmentation=[ring])).objects(0)[0].mask
    data = opened(tmp_path / "b", spoiled(segmentation=[[1, 2, 3, 4], ring]))
    assert np.array_equal(data.objects(0)[0].mask, alone)
    assert list(data.describe()["annotations_left_out"].values()) == [[10]]


def test_a_polygon_thinner_than_a_pixel_has_no_pixels(tmp_path: Path) -> None:
    data = opened(tmp_path, spoiled(segmentation=[[10.1, 10.1, 10.2, 10.1, 10.2, 10.2]]))
    assert data.objects(0)[0].mask.sum() == 0
    assert np.array_equal(data.pixels(0), np.select([SECOND, DOG], [0, 1], -1))


def test_photos_with_crowds_alone_or_nothing_are_left_out(tmp_path: Path) -> None:
    document = coco_outlines(images=3)
    document["annotations"] = [document["annotations"][0], document["annotations"][7]]
    assert [sample.id for sample in opened(tmp_path, document)] == ["000000000001.jpg"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentation": {}}, "annotation 10: its run-length code"),
        ({"segmentation": None}, "annotation 10: its segmentation is .*neither polygons nor a run-length code"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "three corners"),
        ({"segmentation": [[1, 2, 3, 4, 5, math.nan]]}, "three corners"),
        ({"segmentation": [[1, 2, 3, 4, 5, "6"]]}, "three corners"),
        ({"segmentation": [[1, 2, 3, 4, 1e9, 6]]}, "a polygon leaves the 100 x 80 photo"),
        ({"segmentation": [[-3, 2, 3, 4, 5, 6]]}, "a polygon leaves"),
        ({"segmentation": {"size": [100, 80], "counts": [8000]}}, r"is for \(height, width\) \[100, 80\]"),
        ({"segmentation": {"size": [80, 100], "counts": [7999]}}, "counts 7,999 pixels, the photo has 8,000"),
        ({"segmentation": {"size": [80, 100], "counts": [8001, -1]}}, "cannot be decoded"),
        ({"segmentation": {"size": [80, 100], "counts": "PP"}}, "counts 0 pixels|cannot be decoded"),
        ({"segmentation": {"size": [80, 100], "counts": "\u1234"}}, "counts 0 pixels|cannot be decoded"),
        ({"segmentation": {"size": [80, 100]}}, "cannot be decoded"),
        ({"bbox": [70, 10, 40, 20]}, "leaves the 100 x 80 photo"),
    ],
)
def test_the_photo_of_an_annotation_that_cannot_be_is_broken(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    data = pickle.loads(pickle.dumps(opened(tmp_path, spoiled(**changes))))
    assert [sample.id for sample in data] == ["000000000001.jpg", "000000000002.jpg"]
    for read in (data.objects, data.pixels, lambda index: data.image(data[index].group)):
        with pytest.raises(
            BrokenImage, match=r"000000000001\.jpg: in annotations/instances_train2017\.json, .*"
        ) as found:
            read(0)
        assert re.search(message, str(found.value)) and "annotation 10: " in str(found.value)
        assert "\n" not in str(found.value)
        read(1)
    facts = data.describe()
    assert facts["annotations_left_out"] == {"that cannot be used, so that their photos are broken": [10]}
    assert any(
        "1 annotations that cannot be used, so that their photos are broken: 10" in note for note in notes(facts)
    )
    assert [problem for problem in verify(tmp_path) if re.search(message, problem)] == verify(tmp_path) != []
    assert data.digest != opened(tmp_path, mended()).digest


def mended() -> dict[str, Any]:
    """Without the annotation that `spoiled` spoils."""
    document = coco_outlines()
    return document | {"annotations": document["annotations"][1:]}


def test_a_photo_whose_only_annotation_cannot_be_is_not_lost(tmp_path: Path) -> None:
    document = spoiled(segmentation=[[1, 2, 3, 4, 1e9, 6]])
    data = opened(tmp_path, document | {"annotations": [document["annotations"][0], document["annotations"][4]]})
    assert [sample.id for sample in data] == ["000000000001.jpg", "000000000002.jpg"]
    with pytest.raises(BrokenImage, match="annotation 10: a polygon leaves"):
        data.objects(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"category_id": 99}, "its category 99 is not listed"), ({"image_id": 99}, "its image 99 is not listed"),
     ({"id": 11}, "occur more than once")],
)  # fmt: skip
def test_unusable_annotations(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        opened(tmp_path, spoiled(**changes))
    assert len(verify(tmp_path)) == 1


def test_boxes_without_outlines_are_refused(tmp_path: Path) -> None:
    data = opened(tmp_path, coco_document())
    assert all("its segmentation is None" in data.pictures.photos.broken[sample.group] for sample in data)
    assert len(verify(tmp_path)) == 1


def test_splits_and_absent_files(tmp_path: Path) -> None:
    data = opened(tmp_path)
    assert [s.id for s in open(tmp_path, "val", Config())] == ["000000000005.jpg", "000000000006.jpg"]  # type: ignore[attr-defined]
    with pytest.raises(DatasetError, match="no split 'test' with instances; allowed: train, val"):
        open(tmp_path, "test", Config())
    (tmp_path / "train2017/000000000002.jpg").unlink()
    with pytest.raises(MissingFiles, match=r"train2017/000000000002\.jpg"):
        open(tmp_path, "train", Config())
    (tmp_path / "annotations/instances_train2017.json").unlink()
    with pytest.raises(MissingFiles, match=r"instances_train2017\.json"):
        open(tmp_path, "train", Config())
    assert len(verify(tmp_path)) == 1
    assert data.split == "train"


def test_a_photo_of_another_size_is_broken(tmp_path: Path) -> None:
    data = opened(tmp_path)
    (tmp_path / "train2017/000000000001.jpg").write_bytes(encoded(plain(50, 40), "JPEG"))
    for read in (data.objects, data.pixels):
        with pytest.raises(BrokenImage, match=r"is 100 x 80 pixels, but its photo 000000000001\.jpg is 50 x 40"):
            read(0)


def test_the_digest_follows_outlines_and_options(tmp_path: Path) -> None:
    first = opened(tmp_path / "a").digest
    assert opened(tmp_path / "b").digest == first
    assert opened(tmp_path / "c", overlap="later").digest != first
    moved = [[10, 10, 50, 10, 50, 31, 10, 31]]
    assert opened(tmp_path / "d", spoiled(segmentation=moved)).digest != first


GENUINE = [(MINI, "train"), (MINI, "val"), (SHARED / "tiny_coco", "train"), (SHARED / "tiny_coco", "val")]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools under numpy 2
@pytest.mark.parametrize(("root", "split"), GENUINE, ids=lambda value: value if isinstance(value, str) else value.name)
def test_genuine_files_as_pycocotools_reads_them(root: Path, split: str) -> None:
    if not root.exists():
        pytest.skip(f"{root} is absent")
    from pycocotools.coco import COCO

    file = root / f"annotations/instances_{split}2017.json"
    with contextlib.redirect_stdout(io.StringIO()):
        official = COCO(str(file))
    data: Any = open(root, split, Config())
    rows = json.loads(file.read_text())["annotations"]
    kept = {row["image_id"] for row in rows if not row["iscrowd"]}
    assert {official.imgs[id]["file_name"] for id in kept} == {sample.id for sample in data}
    assert data.describe()["objects"] == sum(not row["iscrowd"] for row in rows)
    names = [category["name"] for category in official.dataset["categories"]]
    assert (len(names), data.classes) == (80, tuple(names))
    for index in range(0, len(data), 5):
        image = next(row["id"] for row in official.imgs.values() if row["file_name"] == data[index].id)
        wanted = official.loadAnns(sorted(official.getAnnIds(imgIds=[image], iscrowd=False)))
        found = data.objects(index)
        assert [item.id for item in found] == [str(row["id"]) for row in wanted]
        seen = np.zeros((len(names), *found[0].mask.shape), bool)
        for item, row in zip(found, wanted, strict=True):
            assert data.classes[item.label] == official.cats[row["category_id"]]["name"]
            assert np.array_equal(item.mask, official.annToMask(row).astype(bool))
            seen[item.label] |= item.mask
        expected = np.where(seen.sum(0) == 1, seen.argmax(0), -1)
        assert np.array_equal(data.pixels(index), expected)


def test_the_shipped_photos_verify() -> None:
    assert verify(MINI) == []
