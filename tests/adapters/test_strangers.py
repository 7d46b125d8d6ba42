"""What is no checkpoint is called what it is, by inspect and eval alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evalkit import adapters
from evalkit.adapters import strangers
from evalkit.errors import CheckpointError

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "a" + "\nsize 86000000\n"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
        (b"\n  <HTML>\n<head>", "a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"),
        (LFS.encode(), "a Git LFS pointer"),
        (b'{"error": "not found"}', "JSON"),
        (b"        [1, 2]", "JSON"),
        (b'{"a": 1, {"b": 2}}', "JSON"),
        (b'1234567 {"a": 1}', "a text file"),
        ("Größe: 86 MB\n".encode(), "a text file"),
        (b"\x93NUMPY\x01\x00v\x00", "an array of numpy"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "a picture"),
        (b"\x7fELF\x02\x01\x01", "a program"),
    ],
)
def test_it_is_called_what_it_is(content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "dino.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"dino.pth is no checkpoint: it is {what}"):
        adapters.read(tmp_path / "dino.pth")


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("new", [True, False])
def test_a_file_of_torch_is_no_stranger(new: bool, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"w": torch.ones(2)}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    assert not strangers.named(path.read_bytes()[:512])


def test_a_character_that_is_cut_in_two_is_text_still() -> None:
    assert strangers.text(("x" + "ö" * 300).encode()[:512]) == "a text file"
    assert not strangers.text(b"\x80\x02}q\x00." + b"a" * 100)
