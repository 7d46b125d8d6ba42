"""Opening a file: its kind, its digest, its content. What is refused: `hostile.py`."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from evalkit.adapters import files
from evalkit.errors import CheckpointError, DigestMismatch, EvalkitError


@pytest.fixture
def tensors(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4).half()}, path)
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


def test_the_digest_of_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="is a pipe"):
        files.read(tmp_path / "x.pth", sha256="0" * 64)


def test_no_file(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint file at"):
        files.read(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="zero byte in its name"):
        files.read("a\0b.pth")


def test_metadata_and_empty_tensors_are_no_reason_to_refuse(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(0, 3), "b": torch.tensor(2.0)}, path, metadata={"a": "b\n" * 10})
    state = files.read(path).state
    assert (tuple(state["a"].shape), float(state["b"])) == ((0, 3), 2.0)


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

    monkeypatch.setattr(files, "open_regular", refuse)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        files.read(tensors)
