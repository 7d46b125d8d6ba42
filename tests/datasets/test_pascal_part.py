"""Parts and objects of Pascal-Part: painting rules on drawn objects, and the genuine annotations read in another way."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_makers import encoded, folder, plain
from dense_makers import annotation, area, car, pascal_part
from scipy.io import loadmat, savemat

from evalkit.datasets import pascal_names
from evalkit.datasets.pascal_part import Config, open, verify
from evalkit.errors import BrokenImage, DatasetError, MissingFiles

EXAMPLES = Path(__file__).resolve().parents[3] / "shared/data/pascal_part/examples"


def maps(root: Path, **options: Any) -> tuple[Any, np.ndarray]:
    """The training split and its first label map."""
    data: Any = open(root, "train", Config(**options))
    return data, data.pixels(0)


def where(data: Any, found: np.ndarray, name: str) -> np.ndarray:
    return found == data.classes.index(name)


def test_there_are_193_parts_of_16_objects() -> None:
    """Per object, counted in part2ind.m by hand."""
    counts = {name: len(parts.split()) for name, parts in pascal_names.PARTS.items()}
    assert list(counts.values()) == [7, 6, 13, 2, 13, 13, 17, 19, 18, 21, 5, 24, 2, 19, 13, 1]
    assert (len(pascal_names.PAIRS), len(set(pascal_names.PAIRS)), len(pascal_names.OBJECTS)) == (193, 193, 16)
    assert [pascal_names.kind(name) for name in ("wheel_12", "cleftside_1", "head")] == ["wheel", "cleftside", "head"]


def test_later_parts_lie_above_earlier_ones(tmp_path: Path) -> None:
    data, found = maps(pascal_part(tmp_path))
    data = pickle.loads(pickle.dumps(data))
    assert (len(data.classes), found.dtype, found.shape) == (193, np.int32, (18, 24))
    assert [sample.id for sample in data] == ["a", "b"]
    wheels = (area(2, 5, 12) | area(13, 20)) & ~area(16, 24)
    assert np.array_equal(where(data, found, "car wheel"), wheels)
    assert np.array_equal(where(data, found, "car backside"), area(4, 14) & ~wheels)
    assert not where(data, found, "car bliplate").any()
    assert np.array_equal(found == -1, ~(wheels | area(4, 14)))


def test_smaller_parts_may_lie_above_larger_ones(tmp_path: Path) -> None:
    data, found = maps(pascal_part(tmp_path), overlap="smaller")
    assert np.array_equal(where(data, found, "car bliplate"), area(8, 11, 6, 9))
    assert np.array_equal(where(data, found, "car backside") & area(13, 14), np.zeros((18, 24), bool) | area(0, 0))


def test_objects_without_parts_hide_others_and_are_no_class(tmp_path: Path) -> None:
    data, found = maps(pascal_part(tmp_path), labels="objects")
    assert (len(data.classes), data.classes[0], data.classes[-1]) == (16, "aeroplane", "tvmonitor")
    assert np.array_equal(where(data, found, "car"), area(2, 16))
    assert np.array_equal(found == -1, ~area(2, 16))


def test_one_object_with_one_part_and_one_with_none(tmp_path: Path) -> None:
    """MATLAB's structs of one element lose a dimension."""
    single = annotation([("tvmonitor", area(0, 8), [("screen", area(2, 6, 3, 9))])])
    bare = annotation([("bottle", area(0, 8), [])])
    data, found = maps(pascal_part(tmp_path, a=single, b=bare))
    assert np.array_equal(where(data, found, "tvmonitor screen"), area(2, 6, 3, 9))
    assert (data.pixels(1) == -1).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (annotation([("car", area(0, 8), [("antenna", area(0, 2))])]), "'antenna' is no part of car"),
        (annotation([("bicycle", area(0, 8), [("leye", area(0, 2))])]), "'leye' is no part of bicycle"),
        (annotation([("tricycle", area(0, 8), [])]), "the object 'tricycle' is none of VOC's"),
        (annotation([("car", area(0, 8), [("door_1", np.ones((3, 4)))])]), "the masks of car have different sizes"),
        (annotation([]), "holds no objects"),
        ({"anno": np.arange(4)}, "holds no objects"),
        ({"anno": np.zeros((0, 0))}, "holds no objects"),
        ({"annotation": 3}, "has no variable 'anno'"),
        (annotation([("car", np.ones(5), [])]), "no .height, width."),
        (annotation([("car", np.ones((7, 5)), [])]), "is 5 x 7 pixels, but its photo a is 24 x 18"),
    ],
)
def test_annotations_that_are_none(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    root = pascal_part(tmp_path, a=content)
    with pytest.raises(BrokenImage, match=message):
        maps(root)
    assert len(verify(root)) == 1


def test_a_damaged_file(tmp_path: Path) -> None:
    root = pascal_part(tmp_path)
    (root / "Annotations_Part/a.mat").write_bytes(b"MATLAB 5.0 but cut")
    with pytest.raises(BrokenImage, match=r"a\.mat is no readable \.mat file"):
        maps(root)


def test_an_object_without_mask(tmp_path: Path) -> None:
    record = np.empty((1, 1), [("class", object)])
    record[0, 0] = ("car",)
    outer = np.empty((1, 1), [("objects", object)])
    outer[0, 0] = (record,)
    with pytest.raises(BrokenImage, match="lacks 'class' or 'mask'"):
        maps(pascal_part(tmp_path, a={"anno": outer}))


def test_absent_files_and_splits(tmp_path: Path) -> None:
    root = pascal_part(tmp_path)
    with pytest.raises(DatasetError, match="no split 'trainval'"):
        open(root, "trainval", Config())
    (root / "Annotations_Part/b.mat").unlink()
    with pytest.raises(MissingFiles, match=r"(?s)lacks 1 .*Annotations_Part/b\.mat.*Expected"):
        maps(root)
    (root / "ImageSets/Main/val.txt").unlink()
    with pytest.raises(MissingFiles, match=r"ImageSets/Main/val\.txt"):
        open(root, "val", Config())
    assert len(verify(root)) == 2


def test_annotations_may_lie_beside_the_development_kit(tmp_path: Path) -> None:
    root = pascal_part(tmp_path / "VOCdevkit/VOC2010")
    (root / "Annotations_Part").rename(tmp_path / "Annotations_Part")
    assert len(open(tmp_path, "train", Config())) == 2
    assert verify(tmp_path) == []


def test_the_digest_follows_annotations_and_options(tmp_path: Path) -> None:
    root = pascal_part(tmp_path)
    first = open(root, "train", Config()).digest
    assert open(root, "train", Config(overlap="smaller")).digest != first
    (root / "Annotations_Part/a.mat").unlink()
    savemat(root / "Annotations_Part/a.mat", annotation([("bottle", area(0, 8), [])]))
    assert open(root, "train", Config()).digest != first
    assert car().keys() == {"anno"}


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The development kit's examples in the layout of VOC 2010."""
    if not EXAMPLES.exists():
        pytest.skip(f"{EXAMPLES} is absent")
    root = tmp_path_factory.mktemp("VOC2010")
    names = sorted(path.stem for path in EXAMPLES.glob("*.mat"))
    files = {f"Annotations_Part/{name}.mat": (EXAMPLES / f"{name}.mat").read_bytes() for name in names}
    files |= {f"JPEGImages/{name}.jpg": (EXAMPLES / f"{name}.jpg").read_bytes() for name in names}
    lists = {"train": names[:-1], "val": names[-1:]}
    return folder(root, files | {f"ImageSets/Main/{split}.txt": "\n".join(of).encode() for split, of in lists.items()})


def test_genuine_annotations_painted_a_second_time(genuine: Path) -> None:
    """Every pixel by going down from the last object and its last part to the first that holds it."""
    data: Any = open(genuine, "train", Config())
    objects: Any = open(genuine, "train", Config("objects"))
    seen: set[str] = set()
    for index in range(len(data)):
        anno = loadmat(genuine / f"Annotations_Part/{data[index].id}.mat")["anno"]["objects"][0, 0][0]
        part, thing = data.pixels(index), objects.pixels(index)
        open_part, open_thing = np.ones(part.shape, bool), np.ones(part.shape, bool)
        for item in anno[::-1]:
            name, mask = item["class"][0], item["mask"] == 1
            wanted = objects.classes.index(name) if name in objects.classes else -1
            assert (thing[mask & open_thing] == wanted).all()
            for piece in item["parts"][0][::-1] if item["parts"].size else ():
                title = f"{name} {''.join(c for c in piece['part_name'][0] if not (c.isdigit() or c == '_'))}"
                inside = (piece["mask"] == 1) & open_part
                assert (part[inside] == data.classes.index(title)).all()
                open_part &= ~inside
                seen.add(title)
            assert (part[mask & open_part] == -1).all()
            open_part &= ~mask
            open_thing &= ~mask
        assert (part[open_part] == -1).all()
        assert (thing[open_thing] == -1).all()
    assert len(seen) > 80
    assert verify(genuine) == []


def test_genuine_number_plates_need_the_smaller_part_above(genuine: Path) -> None:
    """Why `overlap` exists: the annotation names a plate before the side that it is on."""
    plates = ("car bliplate", "bus fliplate")
    for overlap, wanted in (("later", 0), ("smaller", 1062 + 42 + 89 + 572)):
        data: Any = open(genuine, "train", Config(overlap=overlap))
        labels = [data.classes.index(name) for name in plates]
        assert sum(int(np.isin(data.pixels(index), labels).sum()) for index in range(len(data))) == wanted


def test_a_photo_of_another_size(tmp_path: Path) -> None:
    root = pascal_part(tmp_path)
    (root / "JPEGImages/a.jpg").write_bytes(encoded(plain(9, 9), "JPEG"))
    with pytest.raises(BrokenImage, match="is 24 x 18 pixels, but its photo a is 9 x 9"):
        maps(root)
