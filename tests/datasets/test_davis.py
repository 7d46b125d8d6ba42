"""Clips in the layouts of DAVIS, and frames and masks that cannot be used."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from dataset_makers import davis, davis_mask, encoded, folder, indexed, plain, zipped
from PIL import Image

from evalkit.datasets import indexed as png
from evalkit.datasets.davis import Config, open, verify
from evalkit.datasets.subset import Subset
from evalkit.errors import BrokenImage, DatasetError, MissingFiles

SETS = {"train": ["goat"], "val": ["cows", "bear"]}
OLD = Config(year=2016)
REAL = Path(__file__).resolve().parents[3] / "shared/data/davis16"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return davis(tmp_path / "DAVIS", SETS)


def test_one_sample_per_clip_in_the_order_of_the_list(root: Path) -> None:
    data = pickle.loads(pickle.dumps(open(root, "val", Config())))
    assert [(s.id, s.group, s.label, s.box) for s in data] == [("cows", "cows", -1, None), ("bear", "bear", -1, None)]
    assert data.frames(1) == ("00000", "00001", "00002")
    assert data.frame(1, 2).getpixel((0, 0))[1] > 100 > data.frame(1, 1).getpixel((0, 0))[1]
    assert data.image("bear").tobytes() == data.frame(1, 0).tobytes()
    assert data.describe()["frames"] == data.describe()["annotated_frames"] == 6


def test_ids_are_palette_indices_and_not_colours(root: Path) -> None:
    data = open(root, "train", Config())
    for number in range(3):
        truth = data.truth(0, number)
        assert truth.dtype == np.uint8
        np.testing.assert_array_equal(truth, davis_mask(number))


def test_a_part_of_it_has_frames_too(root: Path) -> None:
    whole = open(root, "val", Config())
    part = Subset(whole, 1)
    np.testing.assert_array_equal(part.truth(0, 1), whole.truth(part.indices[0], 1))
    assert part.frames(0) == whole.frames(part.indices[0])


@pytest.mark.parametrize(
    "mask", [np.where(davis_mask() == 1, 255, 0), davis_mask() == 1, davis_mask() * (davis_mask() < 255)]
)
def test_2016_takes_all_objects_together(tmp_path: Path, mask: np.ndarray) -> None:
    root = davis(tmp_path, {"val": ["bear"]}, year=2016)
    folder(root, {"Annotations/480p/bear/00001.png": encoded(Image.fromarray(mask.astype(np.uint8)))})
    np.testing.assert_array_equal(open(root, "val", OLD).truth(0, 1), mask > 0)


def test_2016_takes_a_grey_mask_that_was_saved_in_colour(tmp_path: Path) -> None:
    root = davis(tmp_path, {"val": ["bear"]}, year=2016)
    grey = Image.fromarray(np.where(davis_mask() == 1, 255, 0).astype(np.uint8))
    folder(root, {"Annotations/480p/bear/00001.png": encoded(grey.convert("RGBA"))})
    np.testing.assert_array_equal(open(root, "val", OLD).truth(0, 1), davis_mask() == 1)


def in_mode(mode: str, labels: np.ndarray) -> Image.Image:
    """The same labels, saved as people have them."""
    grey = Image.fromarray(labels.astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(labels.astype(np.uint16))
    if mode == "1":
        return Image.fromarray(labels > 0)
    alpha = Image.fromarray((np.arange(labels.size) % 256).astype(np.uint8).reshape(labels.shape))
    if mode in ("P", "PA"):
        grey.putpalette(png.palette().tobytes())
        whole = grey.convert(mode)
        if mode == "PA":
            whole.putalpha(alpha)
        return whole
    return Image.merge(mode, [*[grey] * len(mode.rstrip("A")), *[alpha] * mode.endswith("A")])


@pytest.mark.parametrize("year", [2016, 2017])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16"])
def test_a_mask_of_any_mode_is_as_the_grey_one_and_alpha_is_no_label(tmp_path: Path, year: int, mode: str) -> None:
    """PNG has no mode PA, but a TIFF may be called one."""
    root = davis(tmp_path, {"val": ["bear"]}, year=year)
    labels = davis_mask(1) * (davis_mask(1) == 1) if mode == "1" else davis_mask(1)
    image, stored = in_mode(mode, labels), "TIFF" if mode == "PA" else "PNG"
    assert (image.mode, Image.open(io.BytesIO(encoded(image, stored))).mode) == (mode, mode)
    folder(root, {"Annotations/480p/bear/00001.png": encoded(image, stored)})
    data = open(root, "val", Config(year=year))  # type: ignore[arg-type]
    np.testing.assert_array_equal(data.truth(0, 1), labels > 0 if year == 2016 else labels)
    np.testing.assert_array_equal(data.truth(0, 0) > 0, davis_mask() % 255 > 0 if year == 2016 else davis_mask() > 0)


def test_the_transparent_labels_of_a_palette_stay_labels(tmp_path: Path) -> None:
    root = davis(tmp_path, {"val": ["bear"]})
    mask = encoded(in_mode("P", davis_mask(1)), transparency=1)
    folder(root, {"Annotations/480p/bear/00001.png": mask})
    np.testing.assert_array_equal(open(root, "val", Config()).truth(0, 1), davis_mask(1))


def test_a_16_bit_mask_of_0_and_65535_is_the_one_object_of_2016(tmp_path: Path) -> None:
    root = davis(tmp_path, {"val": ["bear"]}, year=2016)
    deep = Image.fromarray(np.where(davis_mask(1) == 1, 65535, 0).astype(np.uint16))
    folder(root, {"Annotations/480p/bear/00001.png": encoded(deep)})
    np.testing.assert_array_equal(open(root, "val", OLD).truth(0, 1), davis_mask(1) == 1)


@pytest.mark.parametrize("split", ["val", "all", "first release"])
def test_frames_follow_each_other_by_number(tmp_path: Path, split: str) -> None:
    root = davis(tmp_path, {"val": ["bear"]})
    for place, name in enumerate(("1", "2", "10")):
        for file in (f"JPEGImages/480p/bear/{place:05d}.jpg", f"Annotations/480p/bear/{place:05d}.png"):
            (root / file).rename((root / file).with_stem(name))
    if split != "val":
        (root / "ImageSets/2017/val.txt").unlink()
    if split == "first release":  # its lists name frames, in any order
        lines = [f"/JPEGImages/480p/bear/{name}.jpg /Annotations/480p/bear/{name}.png\n" for name in ("1", "10", "2")]
        folder(root, {"ImageSets/480p/val.txt": "".join(lines).encode()})
        assert open(root, "val", OLD).frames(0) == ("1", "2", "10")
        return
    data = open(root, split, Config())
    assert data.frames(0) == ("1", "2", "10")
    for number in range(3):
        np.testing.assert_array_equal(data.truth(0, number), davis_mask(number))


def test_a_clip_of_two_frames_is_named_and_broken(root: Path) -> None:
    for file in root.glob("*/480p/goat/00002.*"):
        file.unlink()
    with pytest.raises(BrokenImage, match=r"the clip goat has 2 frame\(s\); at least 3 are needed"):
        open(root, "train", Config()).truth(0, 0)
    assert [problem for problem in verify(root) if "goat has 2 frame(s)" in problem]


@pytest.mark.parametrize("annotated", [1, 2])
def test_a_clip_of_fewer_than_three_masks_is_named_and_broken(tmp_path: Path, annotated: int) -> None:
    root = davis(tmp_path, {"val": ["bear"]}, frames=5)
    for number in range(annotated, 5):
        (root / f"Annotations/480p/bear/{number:05d}.png").unlink()
    with pytest.raises(BrokenImage, match=rf"the clip bear has {annotated} annotated frame\(s\) of 5; at least 3"):
        open(root, "val", Config(sparse=True)).truth(0, 0)
    assert [problem for problem in verify(root) if f"bear has {annotated} annotated frame(s) of 5" in problem]


def test_a_first_mask_of_2016_without_object_is_named_and_broken(tmp_path: Path) -> None:
    root = davis(tmp_path, {"val": ["bear"]}, year=2016)
    folder(root, {"Annotations/480p/bear/00000.png": encoded(Image.new("L", (24, 18)))})
    with pytest.raises(BrokenImage, match=r"bear/00000\.png: is the first mask of its clip and holds no object"):
        open(root, "val", OLD).truth(0, 0)
    assert open(root, "val", OLD).truth(0, 1).any()


def test_a_frame_that_is_there_twice_or_in_an_unread_format_is_named(root: Path) -> None:
    (root / "JPEGImages/480p/goat/00001.png").write_bytes(encoded(plain(24, 18)))
    with pytest.raises(DatasetError, match=r"the clip goat has 1 frames twice: \['00001'\]"):
        open(root, "train", Config())
    (root / "JPEGImages/480p/goat/00001.png").rename(root / "JPEGImages/480p/goat/00003.heic")
    with pytest.raises(DatasetError, match=r"endings that are not read: .*goat/00003.heic"):
        open(root, "train", Config())


def test_the_first_release_lists_frames(tmp_path: Path) -> None:
    root = davis(tmp_path, {"val": ["cows", "bear"]}, year=2016)
    (root / "ImageSets/2016/val.txt").unlink()
    lines = [
        f"/JPEGImages/480p/{c}/{n:05d}.jpg /Annotations/480p/{c}/{n:05d}.png\n"
        for c in ("cows", "bear")
        for n in range(3)
    ]
    folder(root, {"ImageSets/480p/val.txt": "".join(lines).encode()})
    assert [s.id for s in open(root, "val", OLD)] == ["cows", "bear"]


@pytest.mark.parametrize("resolution", ["", "480p", "Full-Resolution"])
def test_any_folder_of_that_layout(tmp_path: Path, resolution: str) -> None:
    root = davis(tmp_path / "own", {"unused": ["b", "a"]}, resolution=resolution)
    (root / "ImageSets/2017/unused.txt").unlink()
    assert [s.id for s in open(root, "all", Config(resolution=resolution or "480p"))] == ["a", "b"]


def test_another_resolution_is_not_taken_instead(tmp_path: Path) -> None:
    root = davis(tmp_path / "own", {"val": ["a"]}, resolution="1080p")
    with pytest.raises(MissingFiles, match=r"JPEGImages/480p/a/\*\.jpg"):
        open(root, "val", Config())


def test_a_zip_with_a_top_folder(root: Path, tmp_path: Path) -> None:
    files = {f"DAVIS/{p.relative_to(root)}": p.read_bytes() for p in root.rglob("*") if p.is_file()}
    data = open(zipped(tmp_path / "davis.zip", files), "val", Config())
    np.testing.assert_array_equal(data.truth(1, 2), davis_mask(2))
    assert verify(tmp_path / "davis.zip") == []


def test_the_digest_follows_masks_later_frames_and_the_year(root: Path) -> None:
    whole = open(root, "val", Config()).digest
    folder(root, {"ImageSets/2016/val.txt": b"cows\nbear\n"})
    assert open(root, "val", OLD).digest != whole
    folder(root, {"Annotations/480p/cows/00002.png": indexed(davis_mask(0))})
    assert open(root, "val", Config()).digest != whole


def test_all_absent_files_are_listed(root: Path) -> None:
    (root / "Annotations/480p/cows/00001.png").unlink()
    (root / "Annotations/480p/bear/00000.png").unlink()
    folder(root, {"ImageSets/2017/val.txt": b"cows\nbear\nzebra\n"})
    with pytest.raises(MissingFiles) as error:
        open(root, "val", Config())
    for name in ("Annotations/480p/cows/00001.png", "Annotations/480p/bear/00000.png", "JPEGImages/480p/zebra/*.jpg"):
        assert name in str(error.value)


def test_masks_may_be_sparse_but_for_the_first(root: Path) -> None:
    folder(root, {"JPEGImages/480p/cows/00003.jpg": encoded(plain(24, 18), "JPEG")})
    data = open(root, "val", Config(sparse=True))
    assert data.truth(0, 0) is not None
    assert data.truth(0, 3) is None
    assert data.describe()["annotated_frames"] == 6
    (root / "Annotations/480p/cows/00000.png").unlink()
    with pytest.raises(MissingFiles, match=r"cows/00000\.png"):
        open(root, "val", Config(sparse=True))


@pytest.mark.parametrize(("text", "message"), [(b"\n", "names no clip"), (b"cows\nbear\ncows\n", "'cows' twice")])
def test_lists_that_cannot_be(root: Path, text: bytes, message: str) -> None:
    folder(root, {"ImageSets/2017/val.txt": text})
    with pytest.raises(DatasetError, match=message):
        open(root, "val", Config())


def test_a_split_without_list_names_those_there_are(root: Path) -> None:
    with pytest.raises(DatasetError, match=r"ImageSets/2017/test-dev.txt. Lists: ImageSets/2017/train.txt, .*'all'"):
        open(root, "test-dev", Config())


WRONG = {
    "colours": (encoded(plain(24, 18)), "mode RGB where an index mask is needed"),
    "16 bit": (encoded(Image.fromarray(np.full((18, 24), 300, np.uint16))), "more than 8 bit, up to 300"),
    "no image": (b"text", "is no image"),
    "other size": (indexed(davis_mask(size=(26, 18))), r"is \(26, 18\) pixels, but its frame is \(24, 18\)"),
    "gaps": (indexed(np.where(davis_mask() == 2, 4, davis_mask())), r"numbered \[1, 4\]; they must be 1 ... 2 without"),
    "void only": (indexed(np.where(davis_mask() == 1, 255, 0)), "year = 2016"),
    "nothing": (indexed(np.zeros((18, 24))), "holds no object"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_first_masks_that_cannot_be_used(root: Path, kind: str) -> None:
    data, message = WRONG[kind]
    folder(root, {"Annotations/480p/goat/00000.png": data})
    with pytest.raises(BrokenImage, match=f"goat/00000.png: .*{message}"):
        open(root, "train", Config()).truth(0, 0)
    if kind not in ("void only", "16 bit"):  # nobody told it the year: either is a mask of 2016
        assert [problem for problem in verify(root) if "goat/00000.png" in problem]


def test_a_later_mask_may_lack_objects(root: Path) -> None:
    folder(root, {"Annotations/480p/goat/00001.png": indexed(np.where(davis_mask() == 2, 2, 0))})
    assert set(np.unique(open(root, "train", Config()).truth(0, 1))) == {0, 2}
    assert verify(root) == []


def test_frames_of_one_clip_have_one_size(root: Path) -> None:
    folder(root, {"JPEGImages/480p/goat/00001.jpg": encoded(plain(30, 18), "JPEG")})
    with pytest.raises(BrokenImage, match=r"is \(30, 18\) pixels, but the first frame of 'goat' is \(24, 18\)"):
        open(root, "train", Config()).frame(0, 1)


def test_verify_finds_masks_of_no_frame(root: Path) -> None:
    folder(root, {"Annotations/480p/goat/00009.png": indexed(davis_mask())})
    assert [p for p in verify(root) if "goat/00009 belongs to no frame" in p]


def test_what_is_written_is_read_and_has_the_colours_of_the_challenge() -> None:
    labels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    np.testing.assert_array_equal(png.decode(png.encode(labels), "x"), labels)
    first = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]  # as in the files of DAVIS-2017
    assert [tuple(c) for c in png.palette()[:5].tolist()] == first
    assert tuple(png.palette()[255]) == (224, 224, 192)


@pytest.mark.skipif(not REAL.exists(), reason="the real sequences of DAVIS-2016 are not on this machine")
def test_real_sequences() -> None:
    assert verify(REAL) == []
    data = open(REAL, "val", OLD)
    assert {s.id: len(data.frames(i)) for i, s in enumerate(data)} == {
        p.name: len(list(p.iterdir())) for p in (REAL / "JPEGImages/480p").iterdir()
    }
    for index, sample in enumerate(data):
        colours = np.array(Image.open(REAL / f"Annotations/480p/{sample.id}/00003.png").convert("RGB"))
        np.testing.assert_array_equal(data.truth(index, 3), colours[..., 0] == 255)
