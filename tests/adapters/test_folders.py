"""Folders of Hugging Face's layout: what is read, how it is digested, and everything hostile refused in one line."""

from __future__ import annotations

import hashlib
import json
import os
import random
from contextlib import suppress

import pytest
import torch
from safetensors.torch import save_file

from evalkit.adapters import folders
from evalkit.errors import CheckpointError, DigestMismatch, EvalkitError, UnsafeFile

CONFIG = {"model_type": "vit", "hidden_size": 8}
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4), "c": torch.zeros(2)}
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def single(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def sharded(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file({"a": TENSORS["a"], "b": TENSORS["b"]}, tmp_path / ONE)
    save_file({"c": TENSORS["c"]}, tmp_path / TWO)
    return index(tmp_path, {"a": ONE, "b": ONE, "c": TWO})


def index(folder, where, **more):
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 48}, "weight_map": where, **more}))
    return folder


def refused(folder, kind=CheckpointError):
    with pytest.raises(kind) as caught:
        folders.read_folder(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600 + len(str(folder))
    return message


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_what_is_read(layout, request):
    folder = request.getfixturevalue(layout)
    raw = folders.read_folder(folder)
    assert raw.container == "safetensors-folder"
    assert raw.path == folder
    assert raw.state["config"] == CONFIG
    assert "preprocessor" not in raw.state
    assert raw.state["model"].keys() == TENSORS.keys()
    assert all(torch.equal(raw.state["model"][key], value) for key, value in TENSORS.items())


@pytest.mark.parametrize(
    ("layout", "read"),
    [("single", ["config.json", "model.safetensors"]), ("sharded", ["config.json", ONE, TWO, INDEX])],
)
def test_the_digest_is_that_of_sha256sum(layout, read, request):
    """Of the lines that it prints for the files read, by name; files beside them do not count."""
    folder = request.getfixturevalue(layout)
    (folder / "README.md").write_text("beside")
    lines = "".join(f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in sorted(read))
    digest = hashlib.sha256(lines.encode()).hexdigest()
    assert folders.read_folder(folder).sha256 == digest
    assert folders.read_folder(folder, sha256=digest.upper()).sha256 == digest
    with pytest.raises(DigestMismatch, match=f"{digest}, expected {'0' * 64}"):
        folders.read_folder(folder, sha256="0" * 64)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_every_file_read_counts_in_the_digest(single, name):
    (single / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    before = folders.read_folder(single)
    assert before.state["preprocessor"]["image_mean"] == [0.5, 0.5, 0.5]
    if name == "model.safetensors":
        save_file(TENSORS | {"b": torch.zeros(4)}, single / name)
    else:
        (single / name).write_text((single / name).read_text() + " ")
    assert folders.read_folder(single).sha256 != before.sha256


def test_links_of_a_download_cache(single, tmp_path):
    """huggingface_hub keeps files under their digest and puts links beside each other."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for name in ("config.json", "model.safetensors"):
        (single / name).rename(blobs / name)
        (single / name).symlink_to(blobs / name)
    assert folders.read_folder(single).state["model"].keys() == TENSORS.keys()


def test_an_empty_folder(tmp_path):
    assert "has no config.json" in refused(tmp_path)


def test_no_weights(single):
    (single / "model.safetensors").unlink()
    assert "no model.safetensors and no model.safetensors.index.json" in refused(single)
    (single / "pytorch_model.bin").write_bytes(b"x")
    assert "pytorch_model.bin is not read: load and save it again" in refused(single)


def test_both_kinds_of_weights(sharded):
    save_file(TENSORS, sharded / "model.safetensors")
    assert "remove the one not meant" in refused(sharded)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no JSON"),
        (b"{not json", "is no JSON"),
        (b"\xff\xfe\x00{", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"a": ' * 100_000, "is no JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "is no JSON"),
        (b'{"a": 1, "a": 2}', "stands twice"),
        (b"[1, 2]", "holds a list"),
        (b'"text"', "holds a str"),
    ],
)
def test_json_that_is_none(single, name, content, says):
    (single / name).write_bytes(content)
    assert says in refused(single)


def test_a_config_of_gigabytes_is_not_read(single):
    with (single / "config.json").open("wb") as file:
        file.truncate(8 << 30)
    assert "more than 1 MB" in refused(single, UnsafeFile)


def test_an_index_of_gigabytes_is_not_read(sharded):
    with (sharded / INDEX).open("wb") as file:
        file.truncate(8 << 30)
    assert "more than 16 MB" in refused(sharded, UnsafeFile)


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "..\\model.safetensors",
        "C:\\model.safetensors",
        "..",
        "",
        ".hidden.safetensors",
        "model.bin",
        "model.safetensors\n",
        "model\x00.safetensors",
        "x" * 5000 + ".safetensors",
        "mödel.safetensors",
    ],
)
def test_paths_that_lead_elsewhere(sharded, name):
    assert "no .safetensors file of this folder" in refused(index(sharded, {"a": ONE, "b": ONE, "c": name}), UnsafeFile)


def test_more_files_than_a_model_has(sharded):
    where = {f"t{i}": f"m{i}.safetensors" for i in range(1001)}
    assert "1,001 files" in refused(index(sharded, where), UnsafeFile)


@pytest.mark.parametrize("where", [None, [], {}, "a", {"a": 3}, {"a": ONE, "b": None}])
def test_an_index_without_a_map(sharded, where):
    assert "has no weight_map" in refused(index(sharded, where))


def test_a_shard_is_missing(sharded):
    (sharded / TWO).unlink()
    assert "there is no checkpoint file" in refused(sharded)


def test_a_tensor_is_not_where_the_index_says(sharded):
    assert "lacks 'd', which the index says" in refused(index(sharded, {"a": ONE, "b": ONE, "c": TWO, "d": TWO}))


def test_a_tensor_that_the_index_does_not_name(sharded):
    assert "holds 'b', of which the index does not know" in refused(index(sharded, {"a": ONE, "c": TWO}))


def test_a_tensor_in_two_files(sharded):
    save_file({"c": TENSORS["c"], "a": TENSORS["a"] + 1}, sharded / TWO)
    assert "holds 'a', of which the index does not know" in refused(sharded)


def test_a_pickle_under_the_name_of_safetensors(single):
    torch.save(TENSORS, single / "model.safetensors")
    assert "no safetensors file but torch-zip" in refused(single)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_in_place_of_a_file(single, name):
    (single / name).unlink()
    (single / name).mkdir()
    assert ("is no file" if name == "config.json" else "is a folder") in refused(single)


def test_a_link_that_leads_into_its_own_folder(single):
    (single / "model.safetensors").unlink()
    (single / "model.safetensors").symlink_to(single)
    assert "is a folder" in refused(single)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_link_in_a_circle(single, name):
    (single / name).unlink()
    (single / name).symlink_to(single / name)
    refused(single)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_is_not_waited_for(single, name):
    (single / name).unlink()
    os.mkfifo(single / name)
    assert ("is no file" if name == "config.json" else "pipe") in refused(single)


def test_a_truncated_shard(sharded):
    path = sharded / ONE
    path.write_bytes(path.read_bytes()[:-8])
    assert "truncated" in refused(sharded)


def test_a_file_that_cannot_be_read(single, monkeypatch):
    """As root every file is readable, so the refusal is made here."""

    def refuse(*_args, **_options):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(os, "open", refuse)
    assert "cannot be read: Permission denied" in refused(single)


@pytest.mark.parametrize("name", ["config.json", INDEX, ONE])
def test_any_bytes_end_in_an_error_of_ours_or_in_tensors(sharded, name):
    """Bytes of real files, changed in places."""
    rng = random.Random(name)
    original = (sharded / name).read_bytes()
    for _ in range(150):
        content = bytearray(original)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        (sharded / name).write_bytes(content)
        with suppress(EvalkitError):
            assert folders.read_folder(sharded).state["model"] is not None
