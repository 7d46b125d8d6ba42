"""Training images: which members are taken, what is packed, what is streamed, what is refused."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from evalkit.errors import PretrainError
from evalkit.pretrain.corpus import Packed, Streamed, open_corpus


def png(value: int, size: tuple[int, int] = (40, 30)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(data, "PNG")
    return data.getvalue()


def zipped(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(name, png(i * 10))
    return path


def opened(tmp_path: Path, *sources: object, size: int = 16, **options: bool | int) -> Packed | Streamed:
    found = open_corpus([str(s) for s in sources], size, tmp_path / "cache", device="cpu", **options)  # type: ignore[arg-type]
    assert isinstance(found, Packed | Streamed)
    return found


def values(corpus: Packed | Streamed) -> list[int]:
    (images,) = corpus.batches([torch.arange(len(corpus))])
    assert images.dtype == torch.uint8 and images.shape[1:] == (3, 16, 16)
    return images[:, 0, 8, 8].tolist()


def test_only_the_members_asked_for_are_taken(tmp_path: Path) -> None:
    source = zipped(tmp_path / "a.zip", ["other/x.png", "other/y.png", "test/z.png"])
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr("notes.txt", b"notes")
    assert values(opened(tmp_path, f"{source}:other/*")) == [0, 10]
    assert values(opened(tmp_path, source)) == [0, 10, 20]


@pytest.mark.parametrize("name", ["train", "train2017", "sub/train"])
def test_where_there_is_a_folder_for_training_only_that_is_taken(tmp_path: Path, name: str) -> None:
    source = zipped(tmp_path / "a.zip", [f"{name}/cat/x.png", f"{name}/y.png", "test/z.png", "val2017/w.png"])
    assert values(opened(tmp_path, source)) == [0, 10]
    with zipfile.ZipFile(source) as archive:
        archive.extractall(tmp_path / "folder")
    assert values(opened(tmp_path, tmp_path / "folder")) == [0, 10]
    assert values(opened(tmp_path, f"{source}:test/*")) == [20]


def test_a_corpus_is_packed_once_and_known_by_its_bytes(tmp_path: Path) -> None:
    source = zipped(tmp_path / "a.zip", ["x.png", "y.png"])
    first = opened(tmp_path, source)
    (file,) = (tmp_path / "cache").iterdir()
    written = file.stat().st_mtime_ns
    assert opened(tmp_path, source).digest == first.digest
    assert file.stat().st_mtime_ns == written
    assert opened(tmp_path, source, size=8).digest != first.digest
    zipped(source, ["y.png", "x.png"])
    assert opened(tmp_path, source).digest != first.digest
    assert values(opened(tmp_path, file)) == values(first)


def test_a_large_photograph_gives_windows(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "large.png").write_bytes(png(7, (80, 64)))
    (folder / "small.png").write_bytes(png(9, (80, 63)))
    assert values(opened(tmp_path, folder, windows=3)) == [7, 7, 7, 9]


def test_streamed_images_equal_packed_ones_in_any_order(tmp_path: Path) -> None:
    source = zipped(tmp_path / "a.zip", [f"{i:02}.png" for i in range(20)])
    packed, streamed = opened(tmp_path, source), opened(tmp_path, source, stream=True)
    order = [torch.randperm(20)[:3] for _ in range(12)]
    for a, b in zip(packed.batches(order), streamed.batches(order), strict=True):
        assert torch.equal(a, b)


def test_a_stream_that_is_left_early_ends(tmp_path: Path) -> None:
    streamed = opened(tmp_path, zipped(tmp_path / "a.zip", ["x.png"]), stream=True)
    batches = streamed.batches(torch.zeros(1000, 1, dtype=torch.long))
    next(batches)
    batches.close()  # type: ignore[attr-defined]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.zip").write_bytes(b"no zip")
    (tmp_path / "packed.safetensors").write_bytes(b"no tensors")
    bad = zipped(tmp_path / "bad.zip", ["x.png"])
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr("torn.png", png(1)[:40])
    for source, message in {
        "none.zip": "no such folder or zip",
        "empty": "no .jpg, .jpeg, .png",
        "broken.zip": r"neither a folder nor a readable \.zip",
        "packed.safetensors": "no packed corpus",
        "bad.zip": "torn.png: is no image",
        "bad.zip:*.gif": r"matches '\*.gif'",
    }.items():
        with pytest.raises(PretrainError, match=message):
            opened(tmp_path, tmp_path / source)
    with pytest.raises(PretrainError, match=r"torn\.png: is no image"):
        list(opened(tmp_path, bad, stream=True).batches([torch.tensor([0]), torch.tensor([1])]))
    with pytest.raises(PretrainError, match="name folders, zips"):
        opened(tmp_path)


def test_a_packed_file_of_another_size_or_beside_others_is_refused(tmp_path: Path) -> None:
    opened(tmp_path, zipped(tmp_path / "a.zip", ["x.png"]))
    (file,) = (tmp_path / "cache").iterdir()
    with pytest.raises(PretrainError, match=r"\(N, 3, 8, 8\) uint8 is needed"):
        opened(tmp_path, file, size=8)
    with pytest.raises(PretrainError, match="only --data"):
        opened(tmp_path, file, tmp_path / "a.zip")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("fifo", r"q\.png is a FIFO; only regular files are read"),
        ("link", r"q\.png is a link to gone, which is not there"),
        ("device", r"q\.png is a device; only regular files are read"),
        ("folder", r"q\.png is a folder; only regular files are read"),
    ],
)
def test_what_is_no_regular_file_is_named_in_one_line(tmp_path: Path, what: str, says: str, stream: bool) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.png").write_bytes(png(number))
    path = source / "q.png"
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to("gone" if what == "link" else "/dev/zero")
    with pytest.raises(PretrainError, match=says) as found:
        opened(tmp_path, source, stream=stream)
    assert "\n" not in str(found.value)
    assert values(opened(tmp_path, f"{source}:[0-9].png", stream=stream)) == [0, 1, 2]


@pytest.mark.parametrize("name", ["a.zip", "a.safetensors"])
def test_a_source_that_is_a_fifo_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(PretrainError, match="is a FIFO"):
        opened(tmp_path, tmp_path / name)


def test_an_image_of_a_kind_that_is_not_read_is_named_where_it_would_be_trained_on(tmp_path: Path) -> None:
    source = zipped(tmp_path / "a.zip", ["train/x.png", "train/y.jfif", "train/notes.txt.png", "test/z.png"])
    assert values(opened(tmp_path, source)) == [20, 0, 10]
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr("test/w.avif", b"")
        archive.writestr("train/notes.txt", b"notes")
    assert len(opened(tmp_path, source)) == 3
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr("train/v.avif", b"")
    with pytest.raises(PretrainError, match=r"1 images have endings that are not read: train/v\.avif; read are"):
        opened(tmp_path, source)
    assert values(opened(tmp_path, f"{source}:train/[xy].*")) == [0, 10]
