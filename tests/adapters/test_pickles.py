"""Pickled checkpoints that have to be read, and the second guard behind the first. Hostile ones: `test_hostile.py`."""

from __future__ import annotations

import argparse
import io
import pickle
from collections import Counter, OrderedDict
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalkit.adapters import files, pickles
from evalkit.errors import CheckpointError, UnsafeFile
from tests.adapters.hostile import (
    EMPTY,
    PLAIN,
    SENTINEL,
    archive,
    call,
    calls,
    legacy,
    many,
    name,
    number,
    saved,
    zipped,
)


def _read(folder, content, called="x.pth"):
    path = folder / called
    path.write_bytes(content)
    return files.read(path)


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_torch_refuses_what_the_machine_lets_through(tmp_path, monkeypatch, container):
    """The restricted reader stands behind the machine of stand-ins: with that blind, nothing runs either."""
    for check in ("_check_zip", "_check_legacy"):
        monkeypatch.setattr(pickles, check, lambda *_: None)
    with pytest.raises(UnsafeFile, match="needs more than weights"):
        _read(tmp_path, saved(calls(tmp_path)["os.system"], container))
    assert not (tmp_path / SENTINEL).exists()


def _content():
    tied = torch.rand(3, 4)
    base = torch.arange(24.0)
    return {
        "teacher": OrderedDict(w=torch.arange(4.0), h=torch.ones(2).half(), b=torch.ones(2).bfloat16()),
        "views": [
            tied,
            tied.t(),
            base[4:16:3],
            base.view(2, 3, 4).permute(2, 0, 1),
            base[0],
            torch.zeros(3).expand(1, 3),
        ],
        "empty": {"e": torch.zeros(0), "f": torch.zeros(3, 0), "i": torch.zeros(0, dtype=torch.int64)},
        "kinds": [
            torch.ones(3).to(getattr(torch, kind)) for kind in ("float64", "int8", "uint8", "int16", "int64", "bool")
        ],
        "module": torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict(),
        "args": argparse.Namespace(arch="vit_small", lr=0.1, sizes=(1, 2), device=torch.device("cuda:0")),
        "values": [np.float64(0.5), np.int64(3), np.bool_(True), np.float16(1), np.uint8(7)],
        "plain": [
            None,
            True,
            -5,
            1 << 70,
            1.5,
            "é\n",
            b"\xff\x00",
            {1, 2},
            Counter("aab"),
            torch.Size([2, 3]),
            torch.float16,
        ],
        "optimizer": {
            "state": {0: {"step": 3, "exp_avg": torch.zeros(2)}},
            "param_groups": [{"lr": 0.1, "params": [0]}],
        },
        "parameter": torch.nn.Parameter(torch.ones(2)),
        140234567890123: "an address, as torch 1 had for a key",
    }


def _alike(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.stride(), a.storage_offset()) == (b.dtype, b.stride(), b.storage_offset())
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            _alike(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _alike(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("called", ["x.pth", "x.safetensors", "a checkpoint, the 3rd.tar", "ünï"])
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_training_files_are_read_as_torch_reads_them(tmp_path, container, called):
    """torch itself would take anything called .safetensors for one."""
    before = set(torch.serialization.get_safe_globals())
    content = saved(_content(), container)
    raw = _read(tmp_path, content, called)
    assert raw.container == f"torch-{container}"
    # our own bytes, read as torch reads what it trusts: the restricted reader is the one under test
    _alike(raw.state, torch.load(io.BytesIO(content), weights_only=False))
    assert raw.state["module"]._metadata["1"]["version"] == 2
    assert raw.state["views"][0].data_ptr() == raw.state["views"][1].data_ptr()
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_file_as_torch_names_it(tmp_path):
    """In memory torch calls the archive "archive", in a file by the file's name."""
    torch.save({"w": torch.ones(3)}, tmp_path / "epoch 3 (best).pth")
    assert torch.equal(files.read(tmp_path / "epoch 3 (best).pth").state["w"], torch.ones(3))


def test_numpy_scalars_of_the_older_numpy_are_read(tmp_path):
    content = saved({"best": np.float64(0.5)}, "legacy")
    old = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert old != content
    assert _read(tmp_path, old).state["best"] == 0.5


def _short(text: str) -> bytes:
    return b"U" + bytes([len(text)]) + text.encode()


def test_files_of_python_2_are_read(tmp_path):
    """Texts of bytes, pairs for an OrderedDict, None for hooks: as torch 0.4 wrote them under Python 2."""
    inside = (
        many(_short("storage"), name("torch", "FloatStorage"), _short("0"), _short("cuda:0"), number(4), b"N") + b"Q"
    )
    tensor = call(
        "torch._utils", "_rebuild_tensor_v2", inside, number(0), many(number(4)), many(number(1)), b"\x89", b"N"
    )
    pairs = b"](" + b"](" + _short("w") + tensor + b"e" + b"e"
    values = np.arange(4, dtype="<f4").tobytes()
    content = legacy(
        b"\x80\x02" + call("collections", "OrderedDict", pairs) + b".", b"]" + _short("0") + b"a", number_of(4) + values
    )
    assert torch.equal(_read(tmp_path, content).state["w"], torch.arange(4.0))


def number_of(count: int) -> bytes:
    return count.to_bytes(8, "little")


def test_the_files_that_hostile_ones_differ_from_are_read(tmp_path):
    """Else they might all be refused for one wrong reason."""
    values = np.arange(4, dtype="<f4").tobytes()
    assert torch.equal(_read(tmp_path, archive(PLAIN, s0=values)).state["w"], torch.arange(4.0))
    assert _read(tmp_path, archive(b"\x80\x02" + EMPTY + b".")).state == {}


def test_a_list_of_imagenet_labels_is_read(tmp_path):
    state = _read(tmp_path, saved({"w": torch.ones(1), "labels": [1000] * 1_281_167}, "zip")).state
    assert len(state["labels"]) == 1_281_167


def test_weights_of_the_other_byte_order_are_turned(tmp_path):
    """torch writes the order down; the older format has no such turn, and is refused (`test_hostile.py`)."""
    records = {"x/data.pkl": PLAIN, "x/byteorder": b"big", "x/version": b"3\n"}
    content = zipped(records | {"x/data/0": np.arange(4, dtype=">f4").tobytes()})
    assert torch.equal(_read(tmp_path, content).state["w"], torch.arange(4.0))


def test_the_message_names_what_was_refused(tmp_path):
    with pytest.raises(UnsafeFile, match=r"x\.pth would run code .* asks for \w+\.eval\."):
        _read(tmp_path, saved(calls(tmp_path)["eval"], "zip"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_pickle_ends_in_an_error_of_ours_or_in_a_dictionary(tmp_path, data):
    """Instructions changed, taken out and doubled in places, in a zip whose sums are right."""
    code = bytearray(pickle.dumps({"a": 1}, 2) if data.draw(st.booleans()) else PLAIN)
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(code) - 1), st.integers(0, 255)), max_size=3)):
        code[place] = value
    cut = data.draw(st.integers(0, len(code)))
    code = code[:cut] + code[cut - data.draw(st.integers(0, cut)) :]
    with suppress(CheckpointError):
        assert isinstance(_read(tmp_path, archive(bytes(code), s0=bytes(16))).state, dict)
