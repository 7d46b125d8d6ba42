"""The full release of ADE20K: the list of classes by its rule, label maps by the list, the genuine files by their JSON."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_makers import encoded, folder, plain
from dense_makers import BED, CAR, CAR_DOOR, ade20k_parts, ade_annotation, area, coded
from PIL import Image

from evalkit.datasets import ade20k_lists
from evalkit.datasets import ade20k_parts as reader
from evalkit.datasets.ade20k_parts import Config, open, verify, write_classes
from evalkit.datasets.files import Tree
from evalkit.errors import BrokenImage, DatasetError, MissingFiles, UnknownName

RELEASE = Path(__file__).resolve().parents[3] / "shared/data/ade20k_2021/ADE20K_2021_17_01"
T1 = "images/ADE/training/home/bedroom/T1"
V1 = "images/ADE/validation/home/bedroom/V1"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return ade20k_parts(tmp_path / "ADE20K_2021_17_01")


@pytest.fixture
def table(root: Path, tmp_path: Path) -> str:
    write_classes(root, tmp_path / "list.json")
    return str(tmp_path / "list.json")


def annotate(root: Path, photo: str, *parts: tuple[str, int, str, int], **options: Any) -> None:
    folder(root, {f"{photo}.json": ade_annotation(*parts, **options)})


def generate(root: Path, **options: Any) -> list[tuple[str, int, int]]:
    made = ade20k_lists.generate(Tree.open(root), **options)
    return [(part.title, part.training, part.validation) for part in made.parts]


def test_parts_of_both_splits_are_classes(root: Path, tmp_path: Path) -> None:
    told = write_classes(root, tmp_path / "list.json")
    assert "list.json: 2 parts of 2 objects (the part-aware paper: 209 of 59)" in told
    written = json.loads((tmp_path / "list.json").read_text())
    assert written["rule"] == {
        "release": "ADE20K_2021_17_01",
        "objects": "ade20k-object59",
        "least": 1,
        "training": 2,
        "validation": 1,
        "unplaced": 0,
        "level": 1,
    }
    assert [row["object_number"] for row in written["parts"]] == [165, 401]
    made = ade20k_lists.read(str(tmp_path / "list.json"))
    assert [part.title for part in made.parts] == ["bed headboard", "car wheel"]
    assert made.objects == (("bed", 165), ("car", 401))


def test_photos_are_counted_once_and_least_asks_for_more(root: Path) -> None:
    annotate(root, T1, BED, BED, CAR)
    assert generate(root) == [("bed headboard", 1, 1), ("car wheel", 1, 1)]
    annotate(root, "images/ADE/training/home/bedroom/T2", CAR)
    annotate(root, V1, CAR, BED)
    assert generate(root) == [("bed headboard", 1, 1), ("car wheel", 2, 1)]
    with pytest.raises(DatasetError, match="no part of ade20k-object59 is in 2 photos of both splits"):
        generate(root, least=2)


def test_other_objects_and_parts_of_parts_do_not_count(root: Path) -> None:
    canoe = ("canoe", 7, "hull", 8)
    for photo in (T1, V1):
        annotate(root, photo, canoe, BED)
    assert generate(root) == [("bed headboard", 1, 1)]
    assert generate(root, objects="") == [("canoe hull", 1, 1), ("bed headboard", 1, 1)]
    annotate(root, V1, canoe, BED, level=2)
    with pytest.raises(DatasetError, match="no part of any object"):
        generate(root, objects="")
    with pytest.raises(UnknownName):
        generate(root, objects="ade20k-objekt59")


def test_parts_without_object_are_counted(root: Path) -> None:
    document = json.loads(ade_annotation(BED, CAR))
    document["annotation"]["object"][1]["parts"]["ispartof"] = []
    folder(root, {f"{V1}.json": json.dumps(document).encode()})
    made = ade20k_lists.generate(Tree.open(root))
    assert ([part.title for part in made.parts], made.rule["unplaced"]) == (["car wheel"], 1)


def test_names_in_iso_8859_are_read(root: Path) -> None:
    text = (
        ade_annotation(("bed", 165, "headboard", 1212)).decode().replace('"annotation"', '"caf\u00e9": 1, "annotation"')
    )
    folder(root, {f"{V1}.json": text.encode("iso-8859-1")})
    assert generate(root) == [("bed headboard", 1, 1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no annotation of this release: JSONDecodeError"),
        (b'{"annotation": {"object": [{"id": 0}]}}', "is no annotation of this release: KeyError 'parts'"),
        (b"[]", "is no annotation of this release"),
        (ade_annotation(("cot", 165, "headboard", 1212)), "number 165 is 'cot', elsewhere 'bed'"),
    ],
)
def test_annotations_that_are_none(root: Path, content: bytes, message: str) -> None:
    folder(root, {f"{V1}.json": content})
    with pytest.raises(DatasetError, match=message):
        generate(root)


def test_a_release_without_a_split(root: Path) -> None:
    shutil.rmtree(root / "images/ADE/validation")
    with pytest.raises(MissingFiles, match=r"has no annotations in images/ADE/validation"):
        generate(root)


def test_a_pixel_has_the_pair_of_its_object_and_part(root: Path, table: str) -> None:
    """A headboard counts on the bed only, a wheel on the car only."""
    data: Any = pickle.loads(pickle.dumps(open(root, "training", Config(classes=table))))
    assert data.classes == ("bed headboard", "car wheel")
    assert [sample.id for sample in data] == ["home/bedroom/T1", "home/bedroom/T2"]
    found = data.pixels(0)
    wanted = np.select([area(0, 12, 0, 6), area(12, 24, 6, 12)], [0, 1], -1)
    assert (found.dtype, found.tolist()) == (np.int32, wanted.tolist())
    assert (data.pixels(1) == -1).all()  # no mask of parts: no parts


def test_objects_of_the_list(root: Path, table: str) -> None:
    data: Any = open(root, "validation", Config("objects", table))
    assert data.classes == ("bed", "car")
    assert np.array_equal(data.pixels(0), np.where(area(0, 12), 0, 1))
    folder(root, {f"{V1}_seg.png": coded(np.full((18, 24), 3050))})
    assert (data.pixels(0) == -1).all()


def test_the_number_is_in_red_and_green(root: Path, table: str) -> None:
    """Red is read in tens, as the release's own code does: 401 = 256 + 145."""
    mask = np.zeros((18, 24, 3), np.uint8)
    mask[..., 0], mask[..., 1], mask[..., 2] = 19, 145, 77
    folder(root, {f"{V1}_seg.png": encoded(Image.fromarray(mask))})
    assert (open(root, "validation", Config("objects", table)).pixels(0) == 1).all()  # type: ignore[attr-defined]


def test_without_a_list_the_command_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        MissingFiles, match=r"list of classes 'ade20k-part209' is not there.*evalkit data classes ade20k_parts"
    ):
        open(root, "training", Config())
    with pytest.raises(MissingFiles, match=r"own/list\.json"):
        open(root, "training", Config(classes=str(tmp_path / "own/list.json")))


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": 1, "parts": []}', '{"format": 2, "parts": [{}]}', '{"format": 1}']
)
def test_lists_that_are_none(root: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(DatasetError, match=r"list\.json is no list that `evalkit data classes ade20k_parts` wrote"):
        open(root, "training", Config(classes=str(tmp_path / "list.json")))


def test_a_list_that_cannot_be_written(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="give another place with --out"):
        write_classes(root, tmp_path / "no folder/list.json")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (f"{T1}_seg.png", encoded(Image.new("L", (24, 18))), "has mode L, but this release codes numbers in red"),
        (f"{T1}_seg.png", coded(np.zeros((9, 9))), "mask of parts has another size|is 9 x 9 pixels"),
        (f"{T1}_parts_1.png", coded(np.zeros((9, 9))), r"mask of parts has another size, \(9, 9\)"),
        (f"{T1}_parts_1.png", b"", "the file is empty"),
        (f"{T1}.jpg", encoded(plain(9, 9), "JPEG"), "is 24 x 18 pixels, but its photo home/bedroom/T1 is 9 x 9"),
    ],
)
def test_wrong_masks(root: Path, table: str, file: str, content: bytes, message: str) -> None:
    (root / file).write_bytes(content)
    with pytest.raises(BrokenImage, match=message):
        open(root, "training", Config(classes=table)).pixels(0)  # type: ignore[attr-defined]
    assert len(verify(root)) == 3


def test_absent_masks_and_splits(root: Path, table: str) -> None:
    (root / f"{T1}_seg.png").unlink()
    with pytest.raises(MissingFiles, match=r"(?s)lacks 1 .*T1_seg\.png.*Expected"):
        open(root, "training", Config(classes=table))
    with pytest.raises(DatasetError, match="no split 'test'; allowed: training, validation"):
        open(root, "test", Config(classes=table))
    assert len(verify(root)) == 3


def test_the_digest_follows_masks_and_list(root: Path, table: str, tmp_path: Path) -> None:
    first = open(root, "training", Config(classes=table)).digest
    assert open(root, "training", Config("objects", table)).digest != first
    annotate(root, V1, BED, CAR, CAR_DOOR)
    write_classes(root, tmp_path / "longer.json")
    assert open(root, "training", Config(classes=str(tmp_path / "longer.json"))).digest != first
    folder(root, {f"{T1}_parts_1.png": coded(np.zeros((18, 24)))})
    assert open(root, "training", Config(classes=table)).digest != first


def test_verify_needs_no_list(root: Path) -> None:
    assert verify(root) == [
        "the split 'training' has 2 photos; 25,574 are published",
        "the split 'validation' has 1 photos; 2,000 are published",
    ]


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release's three sample photos, the first of them in the validation split too."""
    if not RELEASE.exists():
        pytest.skip(f"{RELEASE} is absent")
    root = tmp_path_factory.mktemp("release") / "ADE20K_2021_17_01"
    shutil.copytree(RELEASE, root, ignore=shutil.ignore_patterns("instance_*"))
    street = root / "images/ADE/training/urban/street"
    for file in sorted(street.glob("*16869*.*")):
        folder(root, {f"images/ADE/validation/urban/street/{file.name}": file.read_bytes()})
    return root


def test_genuine_lists_and_maps_by_json_and_numbers(genuine: Path, tmp_path: Path) -> None:
    """Pairs from the JSON by a plain loop; pixels of each from the official formula on whole arrays."""
    made = ade20k_lists.generate(Tree.open(genuine), objects="")
    file = genuine / "images/ADE/validation/urban/street/ADE_train_00016869"
    rows = json.loads(file.with_suffix(".json").read_text())["annotation"]["object"]
    names = {row["id"]: row["name"].split(",")[0] for row in rows}
    wanted = {f"{names[r['parts']['ispartof']]} {names[r['id']]}" for r in rows if r["parts"]["part_level"] == 1}
    assert {part.title for part in made.parts} == wanted
    assert (len(wanted), made.rule["training"], made.rule["validation"]) == (10, 3, 1)

    (tmp_path / "all.json").write_text(made.text())
    data: Any = open(genuine, "validation", Config(classes=str(tmp_path / "all.json")))
    objects: Any = open(genuine, "validation", Config("objects", str(tmp_path / "all.json")))
    coded_as = {}
    for ending in ("_seg", "_parts_1"):
        picture = np.asarray(Image.open(f"{file}{ending}.png")).astype(int)
        coded_as[ending] = (picture[:, :, 0] / 10).astype(np.int32) * 256 + picture[:, :, 1]
    found, things = data.pixels(0), objects.pixels(0)
    counted = {name: int((found == label).sum()) for label, name in enumerate(data.classes)}
    for part in made.parts:
        inside = (coded_as["_seg"] == part.object_number) & (coded_as["_parts_1"] == part.part_number)
        assert counted[part.title] == inside.sum()
    assert counted["car wheel"] == 2292  # read off once with a script of its own
    for label, (_, number) in enumerate(made.objects):
        assert np.array_equal(things == label, coded_as["_seg"] == number)
    assert sum(counted.values()) == int((found >= 0).sum())


def test_the_command_writes_and_tells(root: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from evalkit.cli.main import app

    runner = CliRunner()
    out = tmp_path / "told.json"
    ran = runner.invoke(app, ["data", "classes", "ade20k_parts", "--data", str(root), "--out", str(out)])
    assert (ran.exit_code, "2 parts of 2 objects" in ran.output) == (0, True)
    assert ade20k_lists.read(str(out)).objects == (("bed", 165), ("car", 401))
    refused = runner.invoke(app, ["data", "classes", "ade20k", "--data", str(root)])
    assert "ade20k has official classes" in str(refused.exception)
    assert reader.ALIASES


def test_a_photo_of_another_ending_is_named_and_refused(root: Path, table: str) -> None:
    (root / T1).with_suffix(".jpg").rename((root / T1).with_suffix(".jpeg"))
    with pytest.raises(DatasetError, match=rf"1 images have endings that are not read: {T1}\.jpeg;"):
        open(root, "training", Config(classes=table))
    assert [problem for problem in verify(root) if f"{T1}.jpeg" in problem]
