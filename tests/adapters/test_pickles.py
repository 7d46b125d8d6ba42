"""Hostile and damaged pickles: each ends in one clear error, and none of them runs."""

from __future__ import annotations

import argparse
import builtins
import functools
import importlib
import operator
import os
import pickle
import runpy
import shutil
import subprocess
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from evalkit.adapters import files, pickles
from evalkit.errors import CheckpointError, UnsafeFile


class Call:
    """Pickles into a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call

    def __call__(self):
        """Pickle asks only that the function can be called; it calls what this one pickles into."""


class Late:
    """Pickles into an object whose state is set by a method of its own."""

    def __init__(self, marker):
        self.marker = marker

    def __setstate__(self, state):
        Path(state["marker"]).touch()


def _kinds(marker: Path) -> dict[str, object]:
    code, shell = f"open({str(marker)!r}, 'w').close()", f"touch {marker}"
    weights = torch.zeros(3)
    return {
        "os.system": Call(os.system, shell),
        "os.popen": Call(os.popen, shell),
        "os.mkdir": Call(os.mkdir, str(marker)),
        "subprocess": Call(subprocess.check_output, ["touch", str(marker)]),
        "Popen": Call(subprocess.Popen, ["touch", str(marker)]),
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "open": Call(builtins.open, str(marker), "w"),
        "import": Call(__import__, "antigravity"),
        "importlib": Call(importlib.import_module, "antigravity"),
        "runpy": Call(runpy.run_path, str(marker)),
        "getattr chain": Call(Call(getattr, Call(__import__, "os"), "system"), shell),
        "partial": Call(functools.partial(os.system, shell)),
        "methodcaller": Call(operator.methodcaller("touch"), marker),
        "rmtree": Call(shutil.rmtree, str(marker)),
        "torch.load": Call(torch.load, str(marker), None),
        "pickle.loads": Call(pickle.loads, pickle.dumps(Call(os.system, shell), protocol=2)),
        "hub": Call(torch.hub.load_state_dict_from_url, "file:///x"),
        "setstate": Late(str(marker)),
        "module": torch.nn.Linear(2, 2),
        "numpy array": np.zeros(3),
        "in a tuple": {"state_dict": {"w": weights}, "epoch": ([1, (2, Call(os.system, shell))],)},
        "in the optimizer": {"teacher": {"w": weights}, "optimizer": {"state": {0: {"step": Call(eval, code)}}}},
        "in a Namespace": {"teacher": {"w": weights}, "args": argparse.Namespace(lr=Call(exec, code))},
        "as a key": {Call(eval, code): weights},
    }


KINDS = tuple(_kinds(Path("marker")))


def _write(path: Path, content: object, container: str) -> Path:
    if container == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    return path


@pytest.mark.parametrize("container", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_hostile_file_runs(tmp_path, kind, container):
    marker = tmp_path / "marker"
    path = _write(tmp_path / "x.pth", _kinds(marker)[kind], container)
    with pytest.raises(UnsafeFile, match=r"would run code when loaded: it asks for .*evalkit never runs code"):
        files.read(path)
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["os.system", "eval", "exec", "getattr chain", "setstate", "in the optimizer"])
def test_the_hostile_files_do_run_elsewhere(tmp_path, kind):
    """Without this the test above would prove nothing."""
    marker = tmp_path / "marker"
    path = _write(tmp_path / "x.pth", _kinds(marker)[kind], "zip")
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize(
    ("protocol", "name"), [(0, "posix.system"), (1, "posix.system"), (4, "posix.system"), (5, "posix.system")]
)
def test_every_pickle_protocol_is_refused(tmp_path, protocol, name):
    marker = tmp_path / "marker"
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(Call(os.system, f"touch {marker}"), protocol=protocol))
    with pytest.raises(UnsafeFile, match=name):
        files.read(path)
    assert not marker.exists()


def test_torch_refuses_what_the_scan_lets_through(tmp_path, monkeypatch):
    """The restricted reader stands behind the scan: with the scan blind, nothing runs either."""
    monkeypatch.setattr(pickles, "_check_global", lambda name, path: None)
    marker = tmp_path / "marker"
    for container in ("zip", "legacy"):
        path = _write(tmp_path / f"{container}.pth", _kinds(marker)["os.system"], container)
        with pytest.raises(UnsafeFile, match="needs more than weights"):
            files.read(path)
    assert not marker.exists()


def test_the_message_names_what_was_refused_and_gives_no_bad_advice(tmp_path):
    path = _write(tmp_path / "x.pth", Call(eval, "1"), "zip")
    with pytest.raises(UnsafeFile) as caught:
        files.read(path)
    assert "builtin" in str(caught.value)
    assert "eval" in str(caught.value)
    assert "weights_only" not in str(caught.value)


CONTENT = {
    "teacher": OrderedDict(w=torch.arange(4.0), h=torch.ones(2).half(), b=torch.ones(2).bfloat16()),
    "args": argparse.Namespace(arch="vit_small", lr=0.1, sizes=(1, 2)),
    "best": np.float64(0.5),
    "count": np.int64(3),
    "flag": np.bool_(True),
    "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_training_files_are_read(tmp_path, container):
    path = _write(tmp_path / "x.pth", CONTENT, container)
    before = set(torch.serialization.get_safe_globals())
    raw = files.read(path)
    assert raw.container == f"torch-{container}"
    assert torch.equal(raw.state["teacher"]["w"], torch.arange(4.0))
    assert raw.state["teacher"]["b"].dtype == torch.bfloat16
    assert raw.state["args"].arch == "vit_small"
    assert raw.state["best"] == 0.5
    assert raw.state["count"] == 3
    assert torch.equal(raw.state["parameter"], torch.ones(2))
    assert set(torch.serialization.get_safe_globals()) == before


def test_numpy_scalars_of_the_older_numpy_are_read(tmp_path):
    path = _write(tmp_path / "x.pth", CONTENT, "legacy")
    old = path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert old != path.read_bytes()
    path.write_bytes(old)
    assert files.read(path).state["best"] == 0.5


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95, 0.999])
def test_truncated_files(tmp_path, container, share):
    path = _write(tmp_path / "x.pth", {"w": torch.randn(500), "v": torch.randn(300)}, container)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"truncated|damaged"):
        files.read(path)


def _rewrite(path: Path, change) -> Path:
    """The zip again, with `change(name, bytes)` giving (name, bytes) or None."""
    out = path.with_name("changed.pth")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for entry in source.infolist():
            target.writestr(*change(entry.filename, source.read(entry)))
    return out


@pytest.fixture
def small(tmp_path):
    return _write(tmp_path / "x.pth", {"w": torch.zeros(1000)}, "zip")


@pytest.mark.parametrize("name", ["x/../../../evil", "/etc/evil", "..\\evil", "C:\\evil"])
def test_zip_slips(small, name):
    with zipfile.ZipFile(small, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(UnsafeFile, match="outside of the archive"):
        files.read(small)


def test_zip_bombs(small, tmp_path):
    with zipfile.ZipFile(small, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data/9", bytes(1 << 20))
    with pytest.raises(UnsafeFile, match="compressed"):
        files.read(small)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name(small):
    with zipfile.ZipFile(small, "a") as archive:
        archive.writestr("x/version", b"3")
    with pytest.raises(UnsafeFile, match="two entries of one name"):
        files.read(small)


def test_torchscript_is_code(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"")
        archive.writestr("x/code/x.py", b"")
    with pytest.raises(UnsafeFile, match="TorchScript"):
        files.read(path)


def test_a_zip_of_something_else(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with pytest.raises(CheckpointError, match="zip archive, but not one"):
        files.read(tmp_path / "x.npz")


def _claim(name: str, data: bytes) -> tuple[str, bytes]:
    """1000 values become 1,000,000,000 in the declared storage."""
    return name, data.replace(b"M\xe8\x03", b"J\x00\xca\x9a\x3b")


def test_absurd_storages(small, tmp_path):
    with pytest.raises(UnsafeFile, match="declares 1,000,000,000 values"):
        files.read(_rewrite(small, _claim))
    legacy = _write(tmp_path / "y.pth", {"w": torch.zeros(1000)}, "legacy")
    legacy.write_bytes(_claim("", legacy.read_bytes())[1])
    with pytest.raises(UnsafeFile, match="declares 1,000,000,000 values"):
        files.read(legacy)


def test_a_storage_longer_than_its_record(small):
    """1000 values become 1020: no byte outside of the file is read."""
    changed = _rewrite(small, lambda name, data: (name, data.replace(b"M\xe8\x03", b"M\xff\x7f")))
    with pytest.raises((CheckpointError, UnsafeFile)):
        files.read(changed)


def test_a_view_larger_than_the_file(tmp_path):
    path = _write(tmp_path / "x.pth", {"a": [{"w": torch.zeros(1).expand(1 << 40)}]}, "zip")
    with pytest.raises(UnsafeFile, match="lies about its size: a tensor"):
        files.read(path)


def test_sparse_and_meta_tensors(tmp_path):
    for number, tensor in enumerate((torch.zeros(9).to_sparse(), torch.zeros(9, device="meta"))):
        with pytest.raises(UnsafeFile):
            files.read(_write(tmp_path / f"{number}.pth", {"w": tensor}, "zip"))


def test_a_dictionary_that_holds_itself(tmp_path):
    content: dict = {"w": torch.zeros(3)}
    content["self"] = content
    assert "w" in files.read(_write(tmp_path / "x.pth", content, "zip")).state


def test_no_dictionary(tmp_path):
    with pytest.raises(CheckpointError, match="holds a Tensor; expected a dictionary"):
        files.read(_write(tmp_path / "x.pth", torch.zeros(3), "zip"))


def test_a_harmless_pickle_is_still_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="plain pickle"):
        files.read(_write(tmp_path / "x.pkl", {"a": 1}, "pickle"))
