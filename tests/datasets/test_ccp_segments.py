"""A label for every pixel of Clothing Co-Parsing, and the masks counted a second time."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from dataset_makers import ccp, ccp_mask, encoded, plain
from scipy.io import loadmat, savemat

from evalkit.datasets.ccp_segments import Config, open, verify
from evalkit.errors import BrokenImage, DatasetError, MissingFiles, UnknownName

RANGES = {"train": (1, 2), "test": (3, 3)}
MINI = Path(__file__).resolve().parents[2] / "mini/ccp"
FULL = Path(__file__).resolve().parents[3] / "shared/data/ccp"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return ccp(tmp_path / "ccp", {f"{number:04d}": ccp_mask(hat=number != 2) for number in (1, 2, 3)})


def test_one_sample_per_photo(root: Path) -> None:
    data = pickle.loads(pickle.dumps(open(root, "train", Config(RANGES))))
    assert data.classes == ("hat", "shoes", "belt")
    assert [(s.id, s.group, s.label) for s in data] == [("0001", "0001", -1), ("0002", "0002", -1)]
    assert data.pixels(0).dtype == np.int32
    assert np.array_equal(data.pixels(0), ccp_mask().astype(int) - 1)
    assert np.array_equal(data.pixels(1), ccp_mask(hat=False).astype(int) - 1)


def test_the_background_may_be_a_class(root: Path) -> None:
    data = open(root, "train", Config(RANGES, background=True))
    assert data.classes == ("null", "hat", "shoes", "belt")
    assert np.array_equal(data.pixels(0), ccp_mask())  # type: ignore[attr-defined]


def test_some_labels_may_count_alone(root: Path) -> None:
    data = open(root, "train", Config(RANGES, labels=("belt", "hat")))
    assert data.classes == ("hat", "belt")
    mask = ccp_mask()
    wanted = np.select([mask == 1, mask == 3], [0, 1], -1)
    assert np.array_equal(data.pixels(0), wanted)  # type: ignore[attr-defined]
    with pytest.raises(UnknownName, match="belt"):
        open(root, "train", Config(RANGES, labels=("belts",)))


def test_wrong_masks(root: Path) -> None:
    mask = root / "annotations/pixel-level/0001.mat"
    savemat(mask, {"groundtruth": np.full((120, 100), 4, np.uint8)})
    with pytest.raises(
        BrokenImage, match=r"0001\.mat: holds the values 4, which are no classes here; allowed: 0 \.\.\. 3"
    ):
        open(root, "train", Config(RANGES)).pixels(0)  # type: ignore[attr-defined]
    mask.write_bytes(b"MATLAB 5.0 but cut")
    with pytest.raises(BrokenImage, match=r"no readable \.mat"):
        open(root, "train", Config(RANGES)).pixels(0)  # type: ignore[attr-defined]
    assert "0001" in verify(root)[0]


def test_a_photo_of_another_size(root: Path) -> None:
    (root / "photos/0001.jpg").write_bytes(encoded(plain(9, 9), "JPEG"))
    with pytest.raises(BrokenImage, match=r"0001\.mat: is 100 x 120 pixels, but its photo 0001 is 9 x 9"):
        open(root, "train", Config(RANGES)).pixels(0)  # type: ignore[attr-defined]


def test_splits_and_absent_files(root: Path) -> None:
    with pytest.raises(DatasetError, match="ccp_segments has no split 'val'"):
        open(root, "val", Config(RANGES))
    with pytest.raises(DatasetError, match="photo 2 is in the ranges of both"):
        open(root, "train", Config({"train": (1, 2), "test": (2, 3)}))
    with pytest.raises(MissingFiles, match=r"lacks 2 .*photos/0004\.jpg, .*0004\.mat"):
        open(root, "train", Config({"train": (1, 4)}))


def test_the_digest_follows_masks_and_classes(root: Path) -> None:
    first = open(root, "train", Config(RANGES)).digest
    assert open(root, "train", Config(RANGES, background=True)).digest != first
    savemat(root / "annotations/pixel-level/0001.mat", {"groundtruth": ccp_mask(shoes=False)})
    assert open(root, "train", Config(RANGES)).digest != first


@pytest.mark.parametrize(
    "root", [MINI, pytest.param(FULL, marks=pytest.mark.skipif(not FULL.exists(), reason="absent"))]
)
def test_the_genuine_masks_counted_a_second_time(root: Path) -> None:
    """Pixels per label over every tenth photo: a dictionary of names against the label file read in another way."""
    config = Config({"all": (1, 200 if root == MINI else 600)})
    data = open(root, "all", config)
    names = [str(cell[0]) for cell in loadmat(root / "label_list.mat")["label_list"][0]]
    assert (len(names), data.classes) == (59, tuple(names[1:]))
    for index in range(0, len(data), 10):
        stored = loadmat(root / f"annotations/pixel-level/{data[index].group}.mat")["groundtruth"]
        found = data.pixels(index)  # type: ignore[attr-defined]
        ours = {data.classes[label]: int((found == label).sum()) for label in np.unique(found) if label >= 0}
        assert ours == {names[value]: int((stored == value).sum()) for value in np.unique(stored) if value > 0}
        assert int((found == -1).sum()) == int((stored == 0).sum())
