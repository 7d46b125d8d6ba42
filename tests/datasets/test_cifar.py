"""Official batches, read without running them, and exports as images."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from dataset_makers import cifar10_files, cifar_batch, class_tree, folder, zipped

from evalkit.datasets import pickles
from evalkit.datasets.cifar import Config, open, verify
from evalkit.errors import DatasetError, MissingFiles

FOLDER = "cifar-10-batches-py"


def test_official_batches(tmp_path: Path) -> None:
    root = folder(tmp_path, cifar10_files(rows=10))
    data = open(root, "train", Config())
    assert (len(data), data.classes[3], data[10].id, data[13].label) == (50, "class3", "data_batch_2/0", 3)
    row = pickle.loads((root / FOLDER / "data_batch_2").read_bytes())[b"data"][4]
    found = np.asarray(data.image("data_batch_2/4"))
    assert found.shape == (32, 32, 3)
    assert (found[5, 7] == (row[5 * 32 + 7], row[1024 + 5 * 32 + 7], row[2048 + 5 * 32 + 7])).all()
    assert verify(root) == []


def test_a_copy_carries_no_pixels_and_reads_the_same(tmp_path: Path) -> None:
    data = open(folder(tmp_path, cifar10_files()), "test", Config())
    packed = pickle.dumps(data)
    assert len(packed) < 5_000
    assert np.array_equal(pickle.loads(packed).image("test_batch/3"), data.image("test_batch/3"))


@pytest.mark.parametrize("kind", ["data root", "batches folder", "zip"])
def test_wherever_the_batches_lie(tmp_path: Path, kind: str) -> None:
    files = cifar10_files()
    root = zipped(tmp_path / "x.zip", files) if kind == "zip" else folder(tmp_path / "x", files)
    assert len(open(root / FOLDER if kind == "batches folder" else root, "test", Config())) == 10


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    names = pickle.dumps({b"fine_label_names": [b"n%d" % number for number in range(100)]})
    batches = {name: cifar_batch(200, b"fine_labels", classes=100) for name in ("train", "test")}
    root = folder(tmp_path, {f"cifar-100-python/{n}": d for n, d in {**batches, "meta": names}.items()})
    data = open(root, "test", Config("cifar100"))
    assert (len(data), len(data.classes), data[150].label) == (200, 100, 50)
    assert verify(root) == []


def test_an_export_as_images(tmp_path: Path) -> None:
    classes = [f"c{number}" for number in range(10)]
    root = zipped(tmp_path / "cifar10.zip", class_tree(classes, images=1))
    data = open(root, "test", Config())
    assert (len(data), data.name, data.classes) == (10, "cifar", tuple(classes))
    with pytest.raises(DatasetError, match="10 classes, but cifar100 has 100"):
        open(root, "test", Config("cifar100"))
    assert verify(root) == []


def test_wrong_splits(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no split 'val'; allowed: train, test"):
        open(tmp_path, "val", Config())


def test_all_absent_batches_are_listed(tmp_path: Path) -> None:
    files = cifar10_files()
    root = folder(tmp_path / "x", {f"{FOLDER}/test_batch": files[f"{FOLDER}/test_batch"]})
    with pytest.raises(MissingFiles, match=r"lacks 6 .*meta, data_batch_1, .*data_batch_5"):
        open(root, "test", Config())
    assert len(verify(root)) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFiles, match="cifar-10-batches-py"):
        open(tmp_path / "empty", "test", Config())


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_hostile_batch_does_not_run(tmp_path: Path, protocol: int) -> None:
    bait = tmp_path / "it-ran"
    files = {**cifar10_files(), f"{FOLDER}/test_batch": pickle.dumps(Hostile(bait), protocol)}
    root = folder(tmp_path / "x", files)
    with pytest.raises(DatasetError, match=r"test_batch is refused: it asks for (posix|nt)\.mkdir"):
        open(root, "test", Config())
    assert not bait.exists()
    assert len(verify(root)) == 1
    pickle.loads(files[f"{FOLDER}/test_batch"])  # the bait is real
    assert bait.exists()


@pytest.mark.parametrize(
    "payload", [b"cbuiltins\neval\n(S'1'\ntR.", b"cnumpy\nload\n.", b"cnumpy.core.multiarray\nfromfile\n."]
)
def test_other_names_are_refused(payload: bytes) -> None:
    with pytest.raises(DatasetError, match="refused"):
        pickles.loads(payload, "x")


def test_an_array_is_never_made_at_the_size_that_a_pickle_asks_for() -> None:
    with pytest.raises(DatasetError, match="no readable pickle"):
        pickles.loads(b"cnumpy\nndarray\n((I20\nI30\nltR.", "x")
    huge = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I1000000000000\ntS'b'\ntR."
    assert pickles.loads(huge, "x").size == 0
    with pytest.raises(DatasetError, match="dtype"):
        pickles.loads(pickle.dumps(np.zeros(3)), "x")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_bytes_in_every_protocol(protocol: int, order: Literal["C", "F"]) -> None:
    array = np.arange(12, dtype=np.uint8).reshape(3, 4, order=order)
    if protocol < 3:  # these hold bytes as a call that recodes text, which Python 2 did not need
        with pytest.raises(DatasetError, match=r"_codecs\.encode"):
            pickles.loads(pickle.dumps(array, protocol), "x")
    else:
        assert np.array_equal(pickles.loads(pickle.dumps(array, protocol), "x"), array)


def _python2_batch(rows: int) -> bytes:
    """What Python 2 wrote: text as byte strings, an array by `_reconstruct` and a state of five."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def large(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    pixels = bytes(range(256)) * 12 * rows
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
    dtype = (
        b"cnumpy\ndtype\n("
        + text(b"u1")
        + b"K\x00K\x01tR(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    state = b"(K\x01(K" + bytes([rows]) + b"M\x00\x0ct" + dtype + b"\x89" + large(pixels) + b"tb"
    labels = b"(" + b"".join(b"K" + bytes([row]) for row in range(rows)) + b"l"
    return b"\x80\x02}(" + text(b"data") + array + state + text(b"labels") + labels + b"u."


def test_batches_that_python_2_wrote(tmp_path: Path) -> None:
    root = folder(tmp_path, {**cifar10_files(), f"{FOLDER}/test_batch": _python2_batch(3)})
    data = open(root, "test", Config())
    assert [sample.label for sample in data] == [0, 1, 2]
    assert np.asarray(data.image("test_batch/2"))[0, 5].tolist() == [5, 5, 5]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1, 2], "holds a list"),
        ({b"labels": [0]}, "'data' is NoneType"),
        ({b"data": np.zeros((2, 9), np.uint8), b"labels": [0, 0]}, r"shape \(2, 9\)"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "list of 2 labels"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, r"outside 0 \.\.\. 9"),
    ],
)
def test_batches_of_another_shape(tmp_path: Path, batch: object, message: str) -> None:
    root = folder(tmp_path, {**cifar10_files(), f"{FOLDER}/test_batch": pickle.dumps(batch, 4)})
    with pytest.raises(DatasetError, match=message):
        open(root, "test", Config())


def test_a_truncated_batch(tmp_path: Path) -> None:
    root = folder(tmp_path, {**cifar10_files(), f"{FOLDER}/test_batch": cifar_batch(9)[:500]})
    with pytest.raises(DatasetError, match="test_batch is no readable pickle"):
        open(root, "test", Config())


def test_the_zip_of_the_real_set(shared: Path) -> None:
    data = open(shared / "data" / "cifar10.zip", "test", Config())
    assert (len(data), data.classes[0], data.classes[9]) == (10_000, "airplane", "truck")
    assert data.image(data[-1].group).size == (32, 32)
