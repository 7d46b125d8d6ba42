"""Equal networks have equal files: metadata in one order, and readable as before."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from evalkit.pretrain import tensor_files

PACKAGE = Path(tensor_files.__file__).parents[1]
TENSORS = {"a": torch.arange(6).view(2, 3), "b": torch.ones(5).half(), "c": torch.zeros(())}
METADATA = {"format": "pt", "evalkit": "0", "training": '{"words": "Zoë\\n\\"\\t\\u0001", "n": 1}\n', "other": ""}


def test_equal_content_gives_equal_bytes(tmp_path):
    for number in range(20):  # four keys: the library's own order differs from file to file
        tensor_files.write(tmp_path / f"{number}", TENSORS, METADATA)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_it_reads_as_what_the_library_writes(tmp_path):
    tensor_files.write(tmp_path / "ours", TENSORS, METADATA)
    save_file(TENSORS, tmp_path / "theirs", METADATA)
    assert (tmp_path / "ours").stat().st_size == (tmp_path / "theirs").stat().st_size
    ours, theirs = load_file(tmp_path / "ours"), load_file(tmp_path / "theirs")
    assert ours.keys() == theirs.keys() == TENSORS.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in TENSORS)
    with safe_open(tmp_path / "ours", "pt") as file:
        assert file.metadata() == METADATA


def test_there_is_no_other_writer_of_files_with_metadata():
    """`save` without metadata, or with one key as shards have, has one order by itself."""
    writers = [path.name for path in PACKAGE.rglob("*.py") if "save_file(" in path.read_text("utf-8")]
    assert writers == ["tensor_files.py"]
