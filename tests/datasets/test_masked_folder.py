"""A folder of photos and index masks, and every mistake that such a folder invites."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from dataset_makers import encoded, folder, indexed, photos, plain, zipped
from dense_makers import grey, masked_folder, stripes
from PIL import Image

from evalkit.datasets.masked_folder import Config, open, verify
from evalkit.errors import BrokenImage, CatalogError, DatasetError, MissingFiles


def pixels(root: Path, mask: bytes, **options: object) -> np.ndarray:
    """What the mask of photo a is read as."""
    (root / "masks/train/a.png").write_bytes(mask)
    return open(root, "train", Config(**options)).pixels(0)  # type: ignore[arg-type,attr-defined]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return masked_folder(tmp_path / "data")


def test_every_pixel_gets_its_class(root: Path) -> None:
    data = pickle.loads(pickle.dumps(open(root, "train", Config())))
    assert data.classes == ("sky", "ground")
    assert [(s.id, s.group, s.label, s.box) for s in data] == [
        ("a.jpg", "a.jpg", -1, None),
        ("b.jpg", "b.jpg", -1, None),
    ]
    found = data.pixels(0)
    assert (found.dtype, found.shape) == (np.int32, (18, 24))
    assert found[0].tolist() == [0] * 8 + [1] * 8 + [-1] * 8
    assert data.image("a.jpg").size == (24, 18)


def test_the_order_of_rows_is_from_top_to_bottom(root: Path) -> None:
    mask = np.zeros((18, 24), np.uint8)
    mask[:3, 20:] = 1
    assert np.array_equal(pixels(root, grey(mask)), mask)


@pytest.mark.parametrize("form", ["palette", "four bit", "sixteen bit", "one bit", "tiff"])
def test_all_files_of_one_channel_hold_numbers(root: Path, form: str) -> None:
    mask = stripes(values=(0, 1))
    stored = {
        "palette": indexed(mask),
        "four bit": encoded(Image.fromarray(mask.astype(np.uint8)).convert("P", colors=2), bits=4),
        "sixteen bit": encoded(Image.fromarray(mask.astype(np.uint16))),
        "one bit": encoded(Image.fromarray(mask.astype(bool))),
        "tiff": encoded(Image.fromarray(mask.astype(np.uint8)), "TIFF"),
    }[form]
    assert np.array_equal(pixels(root, stored), mask)


def test_sixteen_bit_masks_reach_classes_beyond_255(root: Path) -> None:
    names = tuple(f"class {number}" for number in range(400))
    mask = np.full((18, 24), 399, np.uint16)
    mask[0, 0] = 255
    found = pixels(root, encoded(Image.fromarray(mask)), classes=names)
    assert (found[0, 0], found[1, 1]) == (-1, 399)


def test_zero_may_count_as_nothing(root: Path) -> None:
    mask = stripes(values=(0, 1, 2, 255))
    found = pixels(root, grey(mask), zero_ignored=True)
    assert found[0, ::6].tolist() == [-1, 0, 1, -1]
    with pytest.raises(BrokenImage, match=r"holds the values 3, which are no classes here; allowed: 0 \.\.\. 2, 255"):
        pixels(root, grey(stripes(values=(0, 3))), zero_ignored=True)


def test_ignored_values_are_chosen(root: Path) -> None:
    assert pixels(root, grey(stripes(values=(0, 9))), ignored=(9,))[0, -1] == -1
    with pytest.raises(BrokenImage, match=r"holds the values 255, .* allowed: 0 \.\.\. 1, 9"):
        pixels(root, grey(stripes(values=(0, 255))), ignored=(9,))


def test_a_label_above_the_classes_is_named(root: Path) -> None:
    with pytest.raises(BrokenImage, match=r"a\.png: holds the values 2, 77, which are no classes.*0 \.\.\. 1, 255"):
        pixels(root, grey(stripes(values=(0, 77, 2))))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (encoded(plain(24, 18)), r"a\.png: is a picture of mode RGB where an index mask is needed.*it has 1 colour"),
        (encoded(Image.new("RGB", (24, 18), (3, 3, 3))), "three colour channels are equal, so save one of them"),
        (encoded(Image.new("RGBA", (24, 18), (1, 2, 3, 4))), "mode RGBA where an index mask is needed"),
        (encoded(Image.new("LA", (24, 18))), "mode LA where an index mask is needed"),
        (encoded(Image.new("L", (24, 18)), "JPEG"), "a JPEG cannot be a mask"),
        (grey(stripes(24, 18)), "is 18 x 24 pixels, but its photo a.jpg is 24 x 18"),
        (b"", "the file is empty"),
        (b"GIF but not really", "is no image"),
    ],
    ids=["rgb", "grey rgb", "rgba", "two channels", "jpeg", "turned", "empty", "text"],
)
def test_masks_that_are_none(root: Path, mask: bytes, message: str) -> None:
    with pytest.raises(BrokenImage, match=message):
        pixels(root, mask)
    assert len(verify(root)) == 1


def test_the_mask_is_of_the_upright_photo(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    plain(18, 24).save(buffer, "JPEG", exif=exif)
    (root / "images/train/a.jpg").write_bytes(buffer.getvalue())
    data = open(root, "train", Config())
    assert data.image("a.jpg").size == (24, 18)
    assert data.pixels(0).shape == (18, 24)  # type: ignore[attr-defined]


@pytest.mark.parametrize("turned", [True, False])
def test_a_png_photo_is_measured_upright(root: Path, turned: bool) -> None:
    (root / "images/train/a.jpg").unlink()
    exif = Image.Exif()
    exif[0x0112] = 8
    photo = encoded(plain(18, 24), exif=exif) if turned else encoded(plain(24, 18))
    folder(root, {"images/train/a.png": photo})
    assert open(root, "train", Config()).pixels(0).shape == (18, 24)  # type: ignore[attr-defined]


def test_photos_without_mask_and_masks_without_photo(root: Path) -> None:
    (root / "masks/train/b.png").unlink()
    with pytest.raises(MissingFiles, match=r"(?s)lacks 1 .*masks/train/b\.\*.*Expected"):
        open(root, "train", Config())
    folder(root, {"masks/train/b.png": grey(stripes()), "masks/train/z.png": grey(stripes())})
    with pytest.raises(DatasetError, match=r"1 masks have no photo in images/train: z\.png"):
        open(root, "train", Config())
    assert "z.png" in verify(root)[0]


def test_two_photos_of_one_name(root: Path) -> None:
    folder(root, {"images/train/a.png": encoded(plain(24, 18))})
    with pytest.raises(DatasetError, match=r"a\.jpg and a\.png have the same name"):
        open(root, "train", Config())


def test_classes_from_the_file_or_the_options(root: Path) -> None:
    assert open(root, "train", Config(classes=("x", "y", "z"))).classes == ("x", "y", "z")
    (root / "classes.txt").write_text("sky\nsky\n")
    with pytest.raises(DatasetError, match="none of them twice"):
        open(root, "train", Config())
    (root / "classes.txt").unlink()
    with pytest.raises(MissingFiles, match=r"has no classes\.txt"):
        open(root, "train", Config())
    assert len(verify(root)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": "images/{split}", "mask_ending": ""}, "masks need their own folder"),
        ({"classes": ("a", "a")}, "a name occurs twice"),
        ({"ignored": (-1,)}, "numbers from 0 to 65535"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        Config(**options)  # type: ignore[arg-type]


def test_other_folders_and_endings_in_a_zip(tmp_path: Path) -> None:
    files = photos("top/val/x/1_photo.jpg", "top/val/x/2_photo.jpg")
    files |= {f"top/val/x/{number}_ids.png": grey(stripes()) for number in (1, 2)}
    path = zipped(tmp_path / "data.zip", files)
    config = Config("{split}", "{split}", "_photo.jpg", "_ids.png", classes=("sky", "ground"))
    data = open(path, "val", config)
    assert [sample.id for sample in data] == ["x/1_photo.jpg", "x/2_photo.jpg"]  # type: ignore[attr-defined]
    assert data.pixels(1)[0, -1] == -1  # type: ignore[attr-defined]


def test_an_absent_split_and_an_empty_one(root: Path) -> None:
    with pytest.raises(MissingFiles, match="has no images/val, where the split 'val' lies"):
        open(root, "val", Config())
    for name in ("images/val", "masks/val"):
        (root / name).mkdir()
    with pytest.raises(DatasetError, match="holds no samples"):
        open(root, "val", Config())


def test_the_digest_follows_masks_and_what_they_mean(root: Path) -> None:
    first = open(root, "train", Config()).digest
    assert open(root, "train", Config(zero_ignored=True)).digest != first
    (root / "masks/train/a.png").write_bytes(grey(stripes(values=(1, 0))))
    assert open(root, "train", Config()).digest != first


def test_verify_checks_every_mask(root: Path) -> None:
    assert verify(root) == []
    for split, name in (("train", "b"), ("test", "d")):
        (root / f"masks/{split}/{name}.png").write_bytes(grey(stripes(values=(0, 5))))
    assert [problem.split(":")[0][-11:] for problem in verify(root)] == ["/test/d.png", "train/b.png"]
    assert "has no images" in verify(root / "masks")[0]


def test_a_limit_keeps_the_masks(root: Path) -> None:
    from evalkit.datasets.subset import Subset

    data = Subset(open(root, "train", Config()), 1)
    assert data.pixels(0).shape == (18, 24)
    assert "classes_without_samples" not in data.describe()
