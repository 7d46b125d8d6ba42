"""Files that are no checkpoint, and safetensors whose header is wrong."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from evalkit.adapters import files
from evalkit.errors import CheckpointError, DigestMismatch, EvalkitError, UnsafeFile


@pytest.fixture
def tensors(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4).half()}, path)
    return path


def _write(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def test_safetensors(tensors):
    raw = files.read(str(tensors))
    assert torch.equal(raw.state["a"], torch.arange(6.0).view(2, 3))
    assert raw.state["b"].dtype == torch.float16
    assert (raw.container, raw.path) == ("safetensors", tensors)
    assert raw.sha256 == hashlib.sha256(tensors.read_bytes()).hexdigest()


def test_the_content_decides_not_the_suffix(tensors):
    other = tensors.rename(tensors.with_suffix(".pth"))
    assert files.read(other).container == "safetensors"


def test_the_digest_is_checked_before_the_content(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(b"cos\nsystem\n")
    with pytest.raises(DigestMismatch, match=f"{hashlib.sha256(path.read_bytes()).hexdigest()}, expected {'0' * 64}"):
        files.read(path, sha256="0" * 64)


def test_a_digest_in_capitals_is_the_same(tensors):
    assert files.read(tensors, sha256=files.read(tensors).sha256.upper())


def test_no_file(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint file at"):
        files.read(tmp_path / "none.pth")


def test_a_folder(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder"):
        files.read(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"hello, this is a text\n" * 20, "no checkpoint"),
        (b"import torch\nimport numpy\n", "no checkpoint"),
        (b"cats and dogs\nand more\n", "no checkpoint"),
        (b"<html><body>404 not found</body></html>", "no checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "no checkpoint"),
        (b"\x1f\x8b\x08\x00 and so on", "gzip"),
        (bytes(300), "no checkpoint"),
        (b"\x00" * 257 + b"ustar" + bytes(300), "tar archive"),
        (b"\xff" * 300, "no checkpoint"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_no_checkpoint(tmp_path, content, says, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        files.read(path)


def test_a_picture(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        files.read(tmp_path / "x.jpg")


@pytest.mark.parametrize("rest", [4, 9, 60, -1])
def test_truncated_safetensors(tensors, rest):
    tensors.write_bytes(tensors.read_bytes()[:rest])
    with pytest.raises(CheckpointError, match=r"truncated|damaged"):
        files.read(tensors)


def test_absurd_header_lengths(tmp_path):
    for length in (1 << 40, (1 << 64) - 1):
        with pytest.raises(UnsafeFile, match="lies about its size: its header claims"):
            files.read(_write(tmp_path / "x.safetensors", b"{}", length=length))


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [16, 0]},
        {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]},
        {"dtype": "F32", "shape": [1] * 2000, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [True] * 4, "data_offsets": [0, 4]},
    ],
)
def test_sizes_that_disagree(tmp_path, entry):
    with pytest.raises(UnsafeFile, match="lies about its size"):
        files.read(_write(tmp_path / "x.safetensors", {"a": entry}, bytes(16)))


@pytest.mark.parametrize(
    "header",
    [
        b"{not json",
        b"[1, 2]     ",
        b"[" * 20000,
        {"a": 3},
        {"a": {"dtype": "F32"}},
        {"a": {"dtype": "F31", "shape": [4], "data_offsets": [0, 16]}},
        {"a": {"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}},
        {
            "a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
            "b": {"dtype": "F32", "shape": [3], "data_offsets": [4, 16]},
        },
    ],
)
def test_damaged_headers(tmp_path, header):
    with pytest.raises(CheckpointError, match=r"damaged|no checkpoint"):
        files.read(_write(tmp_path / "x.safetensors", header, bytes(16)))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_bytes_end_in_an_error_of_ours_or_in_tensors(tmp_path, data):
    """Bytes of real files, changed in places: a clear error, or a dictionary; never another exception."""
    kind = data.draw(st.sampled_from(["safetensors", "zip", "legacy"]))
    path = tmp_path / f"fuzz-{kind}"
    if kind == "safetensors":
        save_file({"a": torch.zeros(2, 3), "b": torch.ones(4)}, path)
    else:
        torch.save({"a": torch.zeros(2, 3), "b": [1, "x"]}, path, _use_new_zipfile_serialization=kind == "zip")
    content = bytearray(path.read_bytes())
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)
    ):
        content[place] = value
    path.write_bytes(content)
    with suppress(EvalkitError):
        assert files.read(path).state is not None


def test_unreadable(tensors, monkeypatch):
    """As root every file is readable, so the refusal is made here."""

    def refuse(*_args, **_options):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(type(tensors), "open", refuse)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        files.read(tensors)
