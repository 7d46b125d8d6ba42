"""Files that pose as checkpoints, each made by a small function; what reading one has to say stands beside it.

    FILES[name].write(folder) -> path

A payload that ran would make `folder / SENTINEL`. `python -m tests.adapters.hostile FOLDER` reads what `write_all` wrote
there, file after file in one process of bounded memory, and prints a line of JSON before and after each.
"""

from __future__ import annotations

import argparse
import builtins
import ctypes
import functools
import gzip
import importlib
import io
import json
import operator
import os
import pickle
import resource
import runpy
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import time
import timeit
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

SENTINEL = "sentinel"
ADDRESSES = 4 << 30
"""Bytes of address space that the reading process may have."""


@dataclass(frozen=True)
class Hostile:
    """write: makes the file in a folder. says: regular expression that the message has to match."""

    write: Callable[[Path], Path]
    says: str


FILES: dict[str, Hostile] = {}
CODE = "would run code when loaded: it asks for .*evalkit never runs code"
SIZE = "lies about its size"


def file(name: str, says: str):
    """Registers a function of a folder that returns the file's path, or its bytes."""

    def register(make):
        def write(folder: Path) -> Path:
            content = make(folder)
            if isinstance(content, Path):
                return content
            (folder / "x.pth").write_bytes(content)
            return folder / "x.pth"

        if name in FILES:
            raise ValueError(f"two files are called {name}")
        FILES[name] = Hostile(write, says)
        return make

    return register


def table(says: str, contents: dict[str, bytes], around=lambda content: content, prefix: str = ""):
    """Registers many contents of one kind."""
    for name, content in contents.items():
        file(prefix + name, says)(lambda _, content=content: around(content))


def saved(content: object, container: str) -> bytes:
    """container: "zip", "legacy" or "pickle"."""
    if container == "pickle":
        return pickle.dumps(content, protocol=2)
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(content, out, _use_new_zipfile_serialization=container == "zip")
    return out.getvalue()


def zipped(records: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in records.items():
            archive.writestr(name, content)
    return out.getvalue()


def archive(code: bytes, **storages: bytes) -> bytes:
    """A zip as torch.save writes it around one pickle. storages: {"s0": bytes} is the record x/data/0."""
    records = {"x/data.pkl": code, "x/byteorder": b"little", "x/version": b"3\n"}
    return zipped(records | {f"x/data/{key[1:]}": content for key, content in storages.items()})


# ---------------------------------------------------------------------------------------------------------- calls


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


def calls(folder: Path) -> dict[str, object]:
    """{name: an object whose pickle calls something}, all in the ways that pickle itself writes them."""
    marker = folder / SENTINEL
    code, shell = f"open({str(marker)!r}, 'w').close()", f"touch {marker}"
    run, weights = Call(os.system, shell), torch.zeros(3)
    attributes = OrderedDict(w=weights)
    attributes.__dict__["_metadata"] = Call(eval, code)
    return {
        "os.system": run,
        "os.popen": Call(os.popen, shell),
        "os.mkdir": Call(os.mkdir, str(marker)),
        "subprocess": Call(subprocess.check_output, ["touch", str(marker)]),
        "Popen": Call(subprocess.Popen, ["touch", str(marker)]),
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "compile": Call(eval, Call(compile, code, "x", "eval")),
        "open": Call(builtins.open, str(marker), "w"),
        "import": Call(__import__, "antigravity"),
        "importlib": Call(importlib.import_module, "antigravity"),
        "runpy": Call(runpy.run_path, str(marker)),
        "timeit": Call(timeit.timeit, code, "pass", timeit.default_timer, 1),
        "ctypes": Call(ctypes.CDLL, str(marker)),
        "getattr chain": Call(Call(getattr, Call(__import__, "os"), "system"), shell),
        "partial": Call(functools.partial(os.system, shell)),
        "methodcaller": Call(operator.methodcaller("touch"), marker),
        "attrgetter": Call(Call(operator.attrgetter("system"), Call(__import__, "os")), shell),
        "map": Call(list, Call(map, os.system, [shell])),
        "rmtree": Call(shutil.rmtree, str(marker)),
        "torch.load": Call(torch.load, str(marker), None),
        "torch.jit.load": Call(torch.jit.load, str(marker)),
        "torch.hub.load": Call(torch.hub.load, str(marker), "x"),
        "torch.hub": Call(torch.hub.load_state_dict_from_url, "file:///x"),
        "numpy.load": Call(np.load, str(marker), None, True),
        "pickle.loads": Call(pickle.loads, pickle.dumps(run, protocol=2)),
        "setstate": Late(str(marker)),
        "module": torch.nn.Linear(2, 2),
        "numpy array": np.zeros(3),
        "in a tuple": {"state_dict": {"w": weights}, "epoch": ([1, (2, run)],)},
        "in a list": {"w": weights, "x": [[[run]]]},
        "in an OrderedDict": OrderedDict(w=weights, x=OrderedDict(y=run)),
        "in an attribute": attributes,
        "in a set": {"w": weights, "x": {Call(eval, code)}},
        "in the optimizer": {"teacher": {"w": weights}, "optimizer": {"state": {0: {"step": Call(eval, code)}}}},
        "in a Namespace": {"teacher": {"w": weights}, "args": argparse.Namespace(lr=Call(exec, code))},
        "as a key": {Call(eval, code): weights},
    }


RUNS = ("os.system", "subprocess", "eval", "exec", "compile", "timeit", "getattr chain", "setstate", "in an attribute")
RUNS += ("in a list", "in the optimizer", "in a Namespace", "as a key")
"""Those whose code certainly has run when unpickling ends."""

for _name in calls(Path()):
    for _container in ("zip", "legacy", "pickle"):
        file(f"{_name}, {_container}", CODE)(
            lambda folder, name=_name, container=_container: saved(calls(folder)[name], container)
        )

for _protocol in range(6):
    file(f"os.system, pickle protocol {_protocol}", r"asks for (posix|nt)\.system")(
        lambda folder, protocol=_protocol: pickle.dumps(calls(folder)["os.system"], protocol)
    )
    file(f"os.system, pickle protocol {_protocol} in a zip", r"asks for (posix|nt)\.system")(
        lambda folder, protocol=_protocol: archive(pickle.dumps(calls(folder)["os.system"], protocol))
    )

# --------------------------------------------------------------------------------------- pickles written by hand


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def many(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    return name(module, attribute) + many(*arguments) + b"R"


def weights(value: bytes, key: bytes = text("w")) -> bytes:
    """The pickle of {"w": value}."""
    return b"\x80\x02}" + key + value + b"s."


EMPTY = call("collections", "OrderedDict")
SHELL = f"touch {SENTINEL}"


def storage(count: int, kind: str = "FloatStorage", key: str = "0", rest: bytes = b"") -> bytes:
    return many(text("storage"), name("torch", kind), text(key), text("cpu"), number(count), rest) + b"Q"


def view(offset: int, shape: tuple[int, ...], stride: tuple[int, ...], inside: bytes = storage(4)) -> bytes:
    sizes, steps = many(*map(number, shape)), many(*map(number, stride))
    return call("torch._utils", "_rebuild_tensor_v2", inside, number(offset), sizes, steps, b"\x89", EMPTY)


def legacy(content: bytes, keys: bytes = b"]" + text("0") + b"a", tail: bytes = b"", **system: bool) -> bytes:
    """A file of the older format around one pickle, with a storage of 4 values."""
    heads = [
        pickle.dumps(0x1950A86A20F9469CFC6C, 2),
        pickle.dumps(1001, 2),
        pickle.dumps({"little_endian": True} | system, 2),
    ]
    return b"".join(heads) + content + b"\x80\x02" + keys + b"." + (tail or struct.pack("<q", 4) + bytes(16))


LAUGHS = b"](K\x00K\x00K\x00K\x00K\x00K\x00K\x00K\x00K\x00K\x00e" + b"".join(
    b"q%c](" % level + b"h%c" % level * 10 + b"e" for level in range(1, 9)
)
DOUBLED = b")" + b"q\x00h\x00\x86" * 60

table(
    "more than plain tensors: it asks for torch",
    {
        "call of torch.Tensor": call("torch", "Tensor", number(10**12)),
        "call of a tensor type": call("torch", "FloatTensor", number(1 << 34)),
        "call of UntypedStorage": call("torch.storage", "UntypedStorage", number(1 << 34)),
        "parameter class": name("torch.nn.parameter", "Parameter") + many(number(3)) + b"\x81",
        "tensor from a type": call("torch._tensor", "_rebuild_from_type_v2", name("torch", "Tensor")),
        "tensor without storage": call("torch._utils", "_rebuild_meta_tensor_no_storage", number(1)),
        "tensor with a state": call("torch._utils", "_rebuild_parameter_with_state", number(1)),
        "wrapper of a class": call("torch._utils", "_rebuild_wrapper_subclass", number(1)),
        "tensor from numpy": call("torch._utils", "_rebuild_device_tensor_from_numpy", number(1)),
    },
    lambda value: archive(weights(value)),
)
table(
    "calls .* with arguments that torch.save never writes",
    {
        "doubling by codecs": functools.reduce(
            lambda value, _: call("_codecs", "encode", value, text("hex")),
            range(40),
            call("_codecs", "encode", text("a"), text("latin1")),
        ),
        "another codec": call("_codecs", "encode", text("a" * 99), text("idna")),
        "numpy void of 1.5 GB": call("numpy._core.multiarray", "scalar", call("numpy", "dtype", text("V1500000000"))),
        "numpy object": call("numpy", "dtype", text("O8"), b"\x89", b"\x88"),
        "numpy dtype shared by all": call("numpy", "dtype", text("f8"), b"\x89", b"\x89"),
        "numpy scalar of no value": call(
            "numpy.core.multiarray", "scalar", call("numpy", "dtype", text("f8"), b"\x89", b"\x88")
        ),
        "Size of a list": call("torch", "Size", b"]" + number(1) + b"a"),
        "Size of texts": call("torch", "Size", many(text("a"))),
        "device of a path": call("torch", "device", text("../x")),
        "Namespace with arguments": call("argparse", "Namespace", number(1)),
        "a list for a storage": call(
            "torch._utils", "_rebuild_tensor_v2", b"]", number(0), many(number(1)), many(number(1)), b"\x89", EMPTY
        ),
        "a number for a storage": call("torch._utils", "_rebuild_tensor", number(7), number(0), b")", b")"),
        "a tensor for a storage": call("torch._utils", "_rebuild_tensor", view(0, (4,), (1,)), number(0), b")", b")"),
        "a text for a parameter": call("torch._utils", "_rebuild_parameter", text("w"), b"\x88", EMPTY),
        "hooks": call(
            "torch._utils", "_rebuild_parameter", view(0, (4,), (1,)), b"\x88", EMPTY + text("h") + number(1) + b"s"
        ),
        "no arguments": call("torch._utils", "_rebuild_tensor_v2"),
    },
    lambda value: archive(weights(value), s0=bytes(16)),
)
table(
    "calls what is no function|sets attributes|makes an object of a class|appends to what|sets items of what",
    {
        "call of a number": number(7) + b")R",
        "call of a result": EMPTY + b")R",
        "arguments in a list": name("collections", "OrderedDict") + b"]R",
        "get replaced": EMPTY + b"}" + text("get") + number(1) + b"sb",
        "items replaced": EMPTY + b"}" + text("items") + name("torch", "Size") + b"sb",
        "class replaced": name("argparse", "Namespace") + b")\x81N}" + text("__class__") + number(1) + b"s\x86b",
        "dunder of a Namespace": name("argparse", "Namespace") + b")\x81}" + text("__class__") + number(1) + b"sb",
        "number as an attribute": name("argparse", "Namespace") + b")\x81}" + number(1) + number(1) + b"sb",
        "flags of a numpy dtype": call("numpy", "dtype", text("f8"), b"\x89", b"\x88")
        + many(number(3), text("<"), b"N", b"N", b"N", number(-1), number(-1), number(63))
        + b"b",
        "fields of a numpy dtype": call("numpy", "dtype", text("f8"), b"\x89", b"\x88")
        + many(number(3), text("<"), b"N", many(text("a")), b"}", number(1 << 40), number(8), number(16))
        + b"b",
        "set_ of a tensor": view(0, (4,), (1,))
        + many(storage(4), number(0), many(number(1 << 40)), many(number(1)))
        + b"b",
        "state of a function": name("torch", "Size") + b"}b",
        "new object of a function": name("torch", "Size") + b")\x81",
        "new OrderedDict": name("collections", "OrderedDict") + b")\x81",
        "append to a dict": b"}" + number(1) + b"a",
        "append to a tensor": view(0, (4,), (1,)) + b"(" + number(1) + b"e",
        "item of a list": b"]" + number(1) + number(1) + b"s",
        "item of a Namespace": name("argparse", "Namespace") + b")\x81" + number(1) + number(1) + b"s",
    },
    lambda value: archive(weights(value), s0=bytes(16)),
)
table(
    "from outside of the pickle that is no storage",
    {
        "persistent number": number(7) + b"Q",
        "persistent list": b"]Q",
        "persistent nothing": b")Q",
        "persistent module": many(text("module"), name("torch", "Size"), text("x.py"), text("import os")) + b"Q",
        "persistent with a text for a class": many(text("storage"), text("f4"), text("0"), text("cpu"), number(4))
        + b"Q",
        "persistent with a function for a class": many(
            text("storage"), name("torch", "Size"), text("0"), text("cpu"), number(4)
        )
        + b"Q",
        "persistent with a number for a key": many(
            text("storage"), name("torch", "FloatStorage"), number(0), text("cpu"), number(4)
        )
        + b"Q",
        "persistent with a fractional size": many(
            text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), b"G" + struct.pack(">d", 4)
        )
        + b"Q",
    },
    lambda value: archive(weights(value), s0=bytes(16)),
)
table(
    SIZE,
    {
        "storage of 10**9": storage(10**9),
        "storage of 2**70": storage(1 << 70),
        "storage of -4": storage(-4),
        "storage longer than its record": storage(5),
        "storage shorter than its record": storage(3),
        "storage without a record": storage(4, key="1"),
        "storage with a way out": storage(4, key="../../data.pkl"),
        "storage twice": b"](" + storage(4) + storage(2, "DoubleStorage") + b"e",
        "view beyond its storage": view(0, (5,), (1,)),
        "offset beyond its storage": view(4, (1,), (1,)),
        "negative offset": view(-1, (2,), (1,)),
        "negative size": view(0, (-1,), (1,)),
        "negative step": view(3, (4,), (-1,)),
        "step of 0": view(0, (1 << 40,), (0,)),
        "steps beyond": view(0, (2, 2), (4, 1)),
        "huge size of nothing": view(0, (0, 1 << 47), (1, 1)),
        "size of 2**70": view(0, (1 << 70,), (1,)),
        "product over 2**64": view(0, (1 << 33, 1 << 33), (0, 0)),
        "more sizes than steps": view(0, (2, 2), (1,)),
        "doubling tuple for a size": call(
            "torch._utils", "_rebuild_tensor", storage(4), number(0), many(DOUBLED), many(number(1))
        ),
        "deep tuple for a step": call(
            "torch._utils", "_rebuild_tensor", storage(4), number(0), many(number(1)), many(b")" + b"\x85" * 100_000)
        ),
        "a thousand dimensions": view(0, (1,) * 1000, (1,) * 1000),
    },
    lambda value: archive(weights(value), s0=bytes(16)),
    "zip, ",
)
table(
    SIZE,
    {
        "storage of 10**9": storage(10**9, rest=b"N"),
        "storage of 2**70": storage(1 << 70, rest=b"N"),
        "storage of -4": storage(-4, rest=b"N"),
        "storage shorter than its values": storage(3, rest=b"N"),
        "storage that does not follow": storage(4, key="1", rest=b"N"),
        "one of two storages follows": b"](" + storage(4, rest=b"N") + storage(4, key="1", rest=b"N") + b"e",
        "storage twice": b"](" + storage(4, rest=b"N") + storage(2, "DoubleStorage", rest=b"N") + b"e",
        "view that would enlarge its storage": view(0, (6,), (1,), storage(4, rest=b"N")),
        "step of 0": view(0, (1 << 40,), (0,), storage(4, rest=b"N")),
    },
    lambda value: legacy(weights(value)),
    "legacy, ",
)
table(
    "storage that is a view of another",
    {"storage inside of another": weights(storage(4, rest=many(text("v"), number(0), number(1 << 40))))},
    legacy,
    "legacy, ",
)
table(
    "as a key; allowed are",
    {
        "doubling tuple as a key": weights(number(1), key=DOUBLED),
        "deep tuple as a key": weights(number(1), key=b")" + b"\x85" * 100_000),
        "frozen numbers as a key": weights(number(1), key=many(number(1), number(2))),
        "keys of one hash": b"\x80\x02}("
        + b"".join(number(k * ((1 << 61) - 1)) + b"N" for k in range(1, 20_000))
        + b"u.",
        "doubling tuple in a set": weights(call("__builtin__", "set", b"]" + DOUBLED + b"a")),
        "doubling tuple in a Counter's pairs": weights(call("collections", "OrderedDict", b"](" + DOUBLED + b"N\x86e")),
        "tensor as a key": weights(number(1), key=EMPTY),
    },
    archive,
)
table(
    "is built to exhaust",
    {
        "billion laughs": weights(b"](" + LAUGHS + b"e"),
        "doubling tuple": weights(DOUBLED),
        "deep lists": weights(b"]" * 100_000 + b"a" * 99_999),
        "deep tuples": weights(b")" + b"\x85" * 100_000),
        "deep dictionaries": weights(b"}" + (text("a") + b"}") * 50_000 + b"s" * 50_000),
        "deep Namespaces": weights(
            (name("argparse", "Namespace") + b")\x81}" + text("a")) * 20_000 + b"N" + b"sb" * 20_000
        ),
        "deep attributes": weights((EMPTY + b"}" + text("_metadata")) * 20_000 + b"N" + b"sb" * 20_000),
        "list in itself": weights(b"]q\x00h\x00a"),
        "dictionary in itself": b"\x80\x02}q\x00" + text("w") + b"h\x00s.",
        "tuple in itself": weights(b"]q\x00h\x00\x85a"),
        "Namespace in itself": weights(name("argparse", "Namespace") + b")\x81q\x00}" + text("a") + b"h\x00sb"),
        "OrderedDict of the same pairs": weights(
            b"]("
            + text("a")
            + b"N\x86" * 1
            + (text("a") + b"N\x86") * 9999
            + b"eq\x000]("
            + (name("collections", "OrderedDict") + b"h\x00\x85R") * 1000
            + b"e"
        ).replace(b"eq\x000](", b"eq\x00\x85]("),
        "the same text encoded": weights(
            text("a" * 100_000)
            + b"q\x00\x85]("
            + (name("_codecs", "encode") + b"h\x00" + text("latin1") + b"\x86R") * 1000
            + b"e"
        ),
    },
    archive,
)
table(
    r"has a pickle of more than .* instructions|pickle larger than|remembers a value under",
    {
        "two million instructions": weights(b"](" + b"N" * 2_000_000 + b"e"),
        "half a million texts": weights(b"](" + text("a") * 500_000 + b"e"),
        "17 MB of pickle": weights(text("a" * (17 << 20))),
        "memo at 4 billion": weights(b"Nr\xff\xff\xff\xff"),
    },
    archive,
)
table(
    "truncated, damaged or no checkpoint|takes what it never put",
    {
        "memo of nothing": weights(b"h\x07"),
        "memo of an empty stack": b"\x80\x02q\x00.",
        "stop at once": b"\x80\x02.",
        "empty pickle": b"",
        "no stop": weights(b"N")[:-1],
        "tuple without a mark": weights(b"t"),
        "tuple of too few": b"\x80\x02\x87.",
        "call of nothing": b"\x80\x02R.",
        "item without a value": b"\x80\x02}(Nu.",
        "build of nothing": b"\x80\x02b.",
        "persistent of nothing": b"\x80\x02Q.",
        "text of 4 GB": weights(b"X\xff\xff\xff\xff"),
        "bytes of 2**60": weights(b"\x8e" + struct.pack("<Q", 1 << 60)),
        "bytes of 2**63": weights(b"\x8e" + struct.pack("<Q", 1 << 63)),
        "text of 2**62": weights(b"\x8d" + struct.pack("<Q", 1 << 62)),
        "bytearray of 2**62": weights(b"\x96" + struct.pack("<Q", 1 << 62)),
        "frame of 2**62": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62),
        "integer of 2 GB": weights(b"\x8b\xff\xff\xff\x7f"),
        "integer of -1 bytes": weights(b"\x8b\xff\xff\xff\xff"),
        "integer of 100,000 digits": weights(b"L" + b"9" * 100_000 + b"L\n"),
        "name without an end": b"\x80\x02c" + b"a" * 1_000_000,
        "bytes that are no text": weights(b"X\x02\x00\x00\x00\xff\xfe"),
        "text in another encoding": weights(b"U\x01\xe9"),
        "instruction that does not exist": b"\x80\x02\xff.",
        "odd pairs": weights(call("collections", "OrderedDict", b"]" + text("abc") + b"a")),
    },
    archive,
)
table(
    "it has the pickle instruction",
    {
        "EXT1": weights(b"\x82\x01)R"),
        "EXT2": weights(b"\x83\x01\x00)R"),
        "EXT4": weights(b"\x84\x01\x00\x00\x00)R"),
        "OBJ": weights(b"(" + name("collections", "OrderedDict") + b"o"),
        "NEWOBJ_EX": weights(name("collections", "OrderedDict") + b")}\x92"),
        "PERSID": weights(b"P0\n"),
        "DUP": weights(b"N" + b"2" * 1000),
        "POP": weights(b"NN0"),
        "POP_MARK": weights(b"N(1"),
        "NEXT_BUFFER": weights(b"\x97"),
        "BYTEARRAY8": weights(b"\x96" + struct.pack("<Q", 1) + b"a"),
        "FROZENSET": weights(b"(\x91"),
        "STACK_GLOBAL of an allowed name": weights(b"\x8c\x0bcollections\x8c\x0bOrderedDict\x93)R"),
    },
    archive,
)
table(
    CODE,
    {
        "INST": b"(S'" + SHELL.encode() + b"'\nios\nsystem\n.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + text(SHELL) + b"\x85R.",
        "STACK_GLOBAL with a memo": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93" + text(SHELL) + b"\x85R.",
        "STACK_GLOBAL of two dots": b"\x80\x04\x8c\x05torch\x8c\x0dhub.os.system\x93" + text(SHELL) + b"\x85R.",
        "GLOBAL of two dots": b"\x80\x02" + name("torch.serialization", "os.system") + text(SHELL) + b"\x85R.",
        "method of an allowed class": weights(name("collections", "OrderedDict.update") + b")R"),
        "module of an allowed function": weights(name("torch._utils._rebuild_tensor_v2", "__globals__") + b")R"),
        "class that ends as an allowed one": weights(name("evil.collections", "OrderedDict") + b")R"),
        "name escaped": weights(name("\\x6f\\x73", "system") + many(text(SHELL)) + b"R"),
        "after the weights": weights(view(0, (4,), (1,)))[:-1] + text("x") + call("os", "system", text(SHELL)) + b"s.",
    },
    lambda code: archive(code, s0=bytes(16)),
)
table(
    "no checkpoint: neither",
    {
        "name with a space": weights(name("os system", "") + many(text(SHELL)) + b"R"),
        "name with a zero": weights(name("torch", "Size\0") + b")R"),
        "name of nothing": weights(name("", "") + b")R"),
        "name with a tab": weights(name("os", "\tsystem") + b")R"),
    },
    archive,
)
for _name, _tensor in {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
    "meta": lambda: torch.zeros(9, device="meta"),
    "complex": lambda: torch.zeros(3, dtype=torch.complex64),
    "float8": lambda: torch.zeros(3).to(torch.float8_e4m3fn),
    "untyped": lambda: torch.UntypedStorage(8),
    "parameter with attributes": lambda: setattr(p := torch.nn.Parameter(torch.ones(2)), "note", 1) or p,
}.items():

    @file(f"{_name} tensor", "holds more than plain tensors|asks for torch")
    def _(folder, tensor=_tensor):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return saved({"w": tensor()}, "zip")


for _container in ("zip", "legacy"):
    file(f"expanded tensor, {_container}", SIZE)(
        lambda _, container=_container: saved({"a": [{"w": torch.zeros(1).expand(1 << 40)}]}, container)
    )
    file(f"no dictionary, {_container}", "holds a Tensor; expected a dictionary")(
        lambda _, container=_container: saved(torch.zeros(3), container)
    )

# ------------------------------------------------------------------------------------------------- around a zip

PLAIN = weights(view(0, (4,), (1,)))
"""What would be a harmless checkpoint, with a storage of 16 bytes."""


def harmless(**more: bytes) -> dict[str, bytes]:
    return {"x/data.pkl": PLAIN, "x/version": b"3\n", "x/data/0": bytes(range(16))} | more


def with_entry(name: str, content: bytes = b"x", **about) -> bytes:
    """The harmless checkpoint with one more entry. about: attributes of its ZipInfo."""
    out = io.BytesIO(zipped(harmless()))
    entry = zipfile.ZipInfo(name)
    for key, value in about.items():
        setattr(entry, key, value)
    with zipfile.ZipFile(out, "a") as target, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target.writestr(entry, content)
    return out.getvalue()


table(
    "points outside of the archive",
    {
        f"slip {name}": with_entry(name)
        for name in (
            "x/../../../evil",
            "../../evil",
            "/etc/evil",
            "..\\evil",
            "C:\\evil",
            "x/data/../../evil",
            "\\\\host\\evil",
        )
    },
)
table(
    "an entry that torch.save never writes",
    {
        "python file": with_entry("x/evil.py", b"import os"),
        "nested zip": with_entry("x/inner.zip", zipped(harmless())),
        "second folder": with_entry("y/version", b"3\n"),
        "folder entry": with_entry("x/", b""),
        "pickle of another name": with_entry("x/data.pickle", b"cos\nsystem\n."),
        "capital letters": with_entry("x/data/DATA.PKL"),
        "entry without a folder": with_entry("version", b"3\n"),
    },
)
table(
    "two entries of one name",
    {
        "entry twice": with_entry("x/version", b"4\n"),
        "record twice but for capitals": zipped(harmless(**{"x/data/a": b"1", "x/data/A": b"2"})),
        "pickle in capitals": with_entry("x/DATA.PKL", PLAIN),
    },
)
table(
    "no single data.pkl",
    {
        "no pickle": zipped({"x/version": b"3\n", "x/data/0": bytes(16)}),
        "two pickles": with_entry("x/data.pkl", weights(call("os", "system", text(SHELL)))),
        "two pickles in two folders": with_entry("y/data.pkl", PLAIN),
        "zip of a text": zipped({"readme.txt": b"hello"}),
        "office document": zipped({"[Content_Types].xml": b"<a/>", "word/document.xml": b"<a/>"}),
    },
)
table("TorchScript", {"code folder": with_entry("x/code/x.py"), "constants": with_entry("x/constants.pkl", b"N.")})
table(
    "compressed entries",
    {
        "deflated bomb": zipped(harmless(**{"x/data/9": bytes(8 << 20)}), zipfile.ZIP_DEFLATED),
        "bzip2 bomb": zipped(harmless(**{"x/data/9": bytes(8 << 20)}), zipfile.ZIP_BZIP2),
        "lzma": zipped(harmless(), zipfile.ZIP_LZMA),
        "deflated pickle": zipped({"x/data.pkl": weights(text("a" * (1 << 20)))}, zipfile.ZIP_DEFLATED),
    },
)


@file("numpy archive", "no single data.pkl")
def _(folder):
    np.savez(folder / "x.npz", a=np.zeros(3))
    return folder / "x.npz"


@file("TorchScript archive", "TorchScript")
def _(folder):
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), out)
    return out.getvalue()


def patched(
    pattern: str, values: dict[int, tuple[str, int]], name: bytes = b"x/data/0", content: bytes | None = None
) -> bytes:
    """A zip whose last header of one kind and entry has other values. values: {place in it: (struct code, value)}."""
    data = bytearray(zipped(harmless()) if content is None else content)
    at = len(data)
    while True:
        at = data.rindex(pattern.encode("latin-1"), 0, at)
        head = 46 if pattern == LISTED else 30
        if pattern == ENDING or data[at + head : at + head + len(name)] == name:
            break
    for place, (code, value) in values.items():
        struct.pack_into("<" + code, data, at + place, value)
    return bytes(data)


LISTED, LOCAL, ENDING = "PK\x01\x02", "PK\x03\x04", "PK\x05\x06"

table(
    "encrypted entries or links",
    {
        "symbolic link": with_entry("x/data/1", b"/etc/passwd", external_attr=0o120777 << 16, create_system=3),
        "encrypted pickle": patched(LISTED, {8: ("H", 1)}, b"x/data.pkl"),
        "encrypted storage": patched(LISTED, {8: ("H", 1)}),
    },
)
table(
    "truncated or damaged|lies about",
    {
        "wrong CRC of the pickle": patched(LISTED, {16: ("L", 7)}, b"x/data.pkl"),
        "wrong CRC of a storage": patched(LISTED, {16: ("L", 7)}),
        "value changed": zipped(harmless()).replace(bytes(range(16)), bytes(range(1, 17))),
        "directory with a larger size": patched(LISTED, {20: ("L", 1 << 20), 24: ("L", 1 << 20)}),
        "directory with a smaller size": patched(LISTED, {24: ("L", 8)}),
        "directory with 4 GB": patched(LISTED, {20: ("L", 0xFFFFFFFE), 24: ("L", 0xFFFFFFFE)}, b"x/data.pkl"),
        "directory with 64-bit sizes that are absent": patched(LISTED, {20: ("L", 0xFFFFFFFF), 24: ("L", 0xFFFFFFFF)}),
        "directory with another place": patched(LISTED, {42: ("L", 0)}),
        "directory with a place outside": patched(LISTED, {42: ("L", 1 << 30)}),
        "local header of another name": patched(LOCAL, {30: ("8s", b"x/data/1")}),
        "local header with an absurd name": patched(LOCAL, {26: ("H", 0xFFFF)}),
        "end with another place": patched(ENDING, {16: ("L", 0)}),
        "end with an absurd length": patched(ENDING, {12: ("L", 0xFFFFFFF0)}),
        "end with a comment": patched(ENDING, {20: ("H", 5)}) + b"hello",
        "end in a comment": patched(ENDING, {20: ("H", 22)}) + b"PK\x05\x06" + bytes(18),
        "bytes before": b"PK\x03\x04" + bytes(96) + zipped(harmless()),
        "bytes behind": zipped(harmless()) + bytes(4096),
        "two zips in a row": zipped(harmless()) + zipped({"x/data.pkl": weights(call("os", "system", text(SHELL)))}),
        "head alone": b"PK\x03\x04" + bytes(500),
        "end alone": b"PK\x03\x04" + bytes(500) + b"PK\x05\x06" + bytes(18),
        "empty zip": b"PK\x03\x04" + zipped({}),
    },
)


@file("name with a zero byte", "never writes|two entries|damaged")
def _(folder):
    return zipped(harmless(**{"x/version!": b"x"})).replace(b"x/version!", b"x/version\0")


@file("end record of 64 bits that is another", "lies about where the directory")
def _(folder):
    data = bytearray(saved({"w": torch.zeros(4)}, "zip"))
    at = data.rindex(b"PK\x06\x07")
    struct.pack_into("<Q", data, at + 8, 64)
    return bytes(data)


@file("directory of 64 bits with another length", "lies about where the directory")
def _(folder):
    data = bytearray(saved({"w": torch.zeros(4)}, "zip"))
    at = data.rindex(b"PK\x06\x06")
    struct.pack_into("<Q", data, at + 40, 1 << 62)
    return bytes(data)


@file("200,000 entries", "has a directory of .* bytes, more than")
def _(folder):
    name = b"x/data/%06d"
    local = b"".join(
        struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, 0, 0, 0, 13, 0) + name % i for i in range(200_000)
    )
    listed = b"".join(
        struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, 13, 0, 0, 0, 0, 0, 43 * i) + name % i
        for i in range(200_000)
    )
    return local + listed + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(listed), len(local), 0)


@file("entries that overlap", "lies about its size|damaged")
def _(folder):
    data = zipped({"x/data/0": bytes(4000), "x/data/1": b"", "x/data.pkl": PLAIN})
    at = data.rindex(b"PK\1\2", 0, data.rindex(b"x/data/1"))
    inside = bytearray(data)
    struct.pack_into("<3L", inside, at + 16, 0, 4000, 4000)
    struct.pack_into("<L", inside, at + 42, 0)
    return bytes(inside)


for _share in (0.02, 0.3, 0.6, 0.95, 0.999):
    for _container in ("zip", "legacy"):
        file(f"{_container} cut at {_share}", "truncated|damaged")(
            lambda _, share=_share, container=_container: (lambda data: data[: int(len(data) * share)])(
                saved({"w": torch.randn(500), "v": torch.randn(300)}, container)
            )
        )

# ------------------------------------------------------------------------------------------- the older format

LEGACY = weights(view(0, (4,), (1,), storage(4, rest=b"N")))

table(
    "truncated|damaged",
    {
        "magic number alone": pickle.dumps(0x1950A86A20F9469CFC6C, 2),
        "another protocol": legacy(LEGACY).replace(b"M\xe9\x03", b"M\xea\x03", 1),
        "high byte first": legacy(LEGACY, little_endian=False),
        "no system": legacy(LEGACY).replace(b"}", b"]", 1).replace(b"s.", b".", 1),
        "storage longer than its values": legacy(weights(storage(5, rest=b"N"))),
        "no values": legacy(LEGACY, tail=struct.pack("<q", 4)),
        "no storage": legacy(LEGACY)[: -8 - 16],
    },
    prefix="legacy, ",
)
table(
    SIZE,
    {
        "count of 2**62 values": legacy(LEGACY, tail=struct.pack("<q", 1 << 62) + bytes(16)),
        "count of -1 values": legacy(LEGACY, tail=struct.pack("<q", -1) + bytes(16)),
        "storage listed twice": legacy(
            LEGACY, keys=b"](" + text("0") * 2 + b"e", tail=(struct.pack("<q", 4) + bytes(16)) * 2
        ),
        "storage not listed": legacy(LEGACY, keys=b"]"),
        "storages in no list": legacy(LEGACY, keys=b"}"),
        "storages that are numbers": legacy(LEGACY, keys=b"]" + number(0) + b"a"),
    },
    prefix="legacy, ",
)
table(
    "plain pickle", {"harmless pickle": pickle.dumps({"a": 1}, 2), "another magic number": pickle.dumps(7, 2) + LEGACY}
)


@file("legacy that is a tar of before 1988 too", "tar format")
def _(folder):
    """tarfile takes it for an archive of one empty member; torch looks for one before it looks for pickles."""
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    fields = b"0000644\0" + b"0000000\0" * 2 + b"00000000000\0" * 2 + b"#" * 8
    padding = b"a" * (100 - len(head) - 25)
    data = head + b"\x80\x02}(" + b"X" + struct.pack("<I", 4) + b"text" + b"X"
    data += struct.pack("<I", 512 - len(data) - 4)
    data += b"a" * (100 - len(data)) + fields
    data = data.ljust(512, b"\0")
    total = sum(data[:148]) + 256 + sum(data[156:])
    data = data[:148] + b"%06o\0 " % total + data[156:]
    del padding
    return data + text("little_endian") + b"\x88u." + legacy(LEGACY).split(b"\x88s.", 1)[1]


# ----------------------------------------------------------------------------------------------- safetensors


def tensors(header: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(content) if length is None else length).to_bytes(8, "little") + content + data


def entry(shape: object, begin: object, end: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


FOUR = entry([4], 0, 16)
TWICE = b'{"a":' + json.dumps(FOUR).encode() + b',"a":' + json.dumps(entry([2, 2], 0, 16)).encode() + b"}"

table(
    SIZE,
    {
        "header of 2**40 bytes": tensors(b"{}", length=1 << 40),
        "header of 2**64 - 1 bytes": tensors(b"{}", length=(1 << 64) - 1),
        "shape of 2**40": tensors({"a": entry([1 << 40], 0, 16)}),
        "shape of 2**70": tensors({"a": entry([1 << 70], 0, 1 << 72)}),
        "shape of 2**94 times 0": tensors({"a": entry([1 << 48, 1 << 48, 0], 0, 0), "b": FOUR}),
        "shape of another size": tensors({"a": entry([4], 0, 8)}),
        "shape of -4": tensors({"a": entry([-4], 16, 0)}),
        "shape of two negatives": tensors({"a": entry([-2, -2], 0, 16)}),
        "shape of truths": tensors({"a": entry([True] * 4, 0, 4)}),
        "shape of fractions": tensors({"a": entry([4.0], 0, 16)}),
        "shape of 2,000 dimensions": tensors({"a": entry([1] * 2000, 0, 4)}),
        "shape of NaN": tensors(json.dumps({"a": entry([float("nan")], 0, 16)}).encode()),
        "negative offset": tensors({"a": entry([4], -16, 0)}),
        "offsets that are texts": tensors({"a": entry([4], "0" * 1_000_000, "16")}),
        "offsets in reverse": tensors({"a": entry([4], 16, 0)}),
    },
    prefix="safetensors, ",
)
table(
    "damaged|no checkpoint|truncated",
    {
        "no JSON": tensors(b"{not json"),
        "array": tensors(b"[1, 2]     "),
        "array of arrays": tensors(b"[" * 20000),
        "deep lists": tensors(b'{"a":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}"),
        "less deep lists": tensors(b'{"a":' + b"[" * 900 + b"]" * 900 + b"}"),
        "deep objects": tensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        "NaN for an entry": tensors(b'{"a": NaN}'),
        "NaN for a header": tensors(b"NaN      "),
        "integer of 100,000 digits": tensors(b'{"a":' + b"9" * 100_000 + b"}"),
        "million lists": tensors(b'{"a":[' + b"[]," * 1_000_000 + b"[]]}"),
        "number for an entry": tensors({"a": 3}),
        "entry without offsets": tensors({"a": {"dtype": "F32", "shape": [4]}}),
        "three offsets": tensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8, 16]}}),
        "unknown dtype": tensors({"a": entry([4], 0, 16, "F31")}),
        "complex dtype": tensors({"a": entry([2], 0, 16, "C64")}),
        "list for a dtype": tensors({"a": entry([4], 0, 16, ["F32"])}),
        "number for a shape": tensors({"a": entry(4, 0, 16)}),
        "hole before": tensors({"a": entry([2], 8, 16)}),
        "hole between": tensors({"a": entry([1], 0, 4), "b": entry([2], 8, 16)}),
        "rest behind": tensors({"a": entry([2], 0, 8)}),
        "overlap": tensors({"a": entry([3], 0, 12), "b": entry([3], 4, 16)}),
        "same bytes twice": tensors({"a": FOUR, "b": FOUR}),
        "key twice": tensors(TWICE),
        "metadata a list": tensors({"__metadata__": [1], "a": FOUR}),
        "metadata nested": tensors({"__metadata__": {"a": {"b": "c"}}, "a": FOUR}),
        "metadata a number": tensors({"__metadata__": {"a": 1}, "a": FOUR}),
        "half a letter for a name": tensors(b'{"\\ud800":' + json.dumps(FOUR).encode() + b"}"),
        "name of a line and a colour": tensors({"\n\x1b[31m": {"dtype": "F32"}}),
        "UTF-16": tensors(json.dumps({"a": FOUR}).encode("utf-16-le")),
        "no data": tensors({"a": FOUR}, b""),
        "no header": tensors(b"{", b"", length=0),
    },
    prefix="safetensors, ",
)
table(
    "has a header of 9",
    {
        "header of 9 MB": tensors({"__metadata__": {"a": "b" * 9_000_000}, "a": FOUR}),
        "header of 90,000 empty tensors": tensors(
            {f"a{i}": {**FOUR, "shape": [0], "data_offsets": [0, 0]} for i in range(90_000)}
        ),
    },
    prefix="safetensors, ",
)

for _rest in (4, 9, 60, -1):

    @file(f"safetensors cut at {_rest}", "truncated|damaged")
    def _(folder, rest=_rest):
        save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4).half()}, folder / "x.safetensors")
        return (folder / "x.safetensors").read_bytes()[:rest]


# ------------------------------------------------------------------------------------------ no checkpoint at all

table(
    "no checkpoint",
    {
        "text": b"hello, this is a text\n" * 20,
        "python": b"import torch\nimport numpy\n",
        "cats": b"cats and dogs\nand more\n",
        "a page": b"<html><body>404 not found</body></html>",
        "git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "zeros": bytes(300),
        "ones": b"\xff" * 300,
        "ELF": b"\x7fELF\x02\x01\x01" + bytes(300),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(300),
        "bzip2": b"BZh91AY&SY" + bytes(range(256)),
        "xz": b"\xfd7zXZ\x00" + bytes(300),
        "7z": b"7z\xbc\xaf\x27\x1c" + bytes(300),
        "JSON": b'{"model": [1, 2, 3]}' * 20,
    },
)
table("is empty", {"nothing": b""})
table("gzip", {"gzip": gzip.compress(bytes(10_000)), "gzip of a checkpoint": gzip.compress(zipped(harmless()))})


@file("tar", "tar archive")
def _(folder):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as target:
        for name in ("sys_info", "pickle", "tensors", "../../evil"):
            target.addfile(tarfile.TarInfo(name))
    return out.getvalue()


@file("picture", "no checkpoint")
def _(folder):
    Image.new("RGB", (8, 8)).save(folder / "x.jpg")
    return folder / "x.jpg"


@file("text called safetensors", "no checkpoint")
def _(folder):
    (folder / "x.safetensors").write_bytes(b"hello, this is a text\n" * 20)
    return folder / "x.safetensors"


@file("pipe", "is a pipe, a socket or a device")
def _(folder):
    os.mkfifo(folder / "x.pth")
    return folder / "x.pth"


@file("socket", "is a pipe, a socket or a device")
def _(folder):
    """The name of a socket has at most 108 letters, so it is bound from inside the folder."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind("x.pth")
    finally:
        os.chdir(here)
    return folder / "x.pth"


@file("device without end", "is a pipe, a socket or a device")
def _(folder):
    (folder / "x.pth").symlink_to("/dev/zero")
    return folder / "x.pth"


@file("folder", "is a folder")
def _(folder):
    (folder / "x.pth").mkdir()
    return folder / "x.pth"


@file("dangling link", "there is no checkpoint file at")
def _(folder):
    (folder / "x.pth").symlink_to(folder / "none")
    return folder / "x.pth"


@file("link to itself", "cannot be read")
def _(folder):
    (folder / "x.pth").symlink_to(folder / "x.pth")
    return folder / "x.pth"


@file("name of 300 letters", "cannot be read")
def _(folder):
    return folder / ("x" * 300)


@file("name of two lines", r"no checkpoint")
def _(folder):
    path = folder / "x\n\x1b[31mpth"
    path.write_bytes(b"hello")
    return path


@file("64 GB of nothing", "no checkpoint")
def _(folder):
    with (folder / "x.pth").open("wb") as out:
        out.truncate(64 << 30)
    return folder / "x.pth"


@file("64 GB behind a header", "damaged")
def _(folder):
    with (folder / "x.pth").open("wb") as out:
        out.write(tensors({"a": FOUR}))
        out.truncate(64 << 30)
    return folder / "x.pth"


# ---------------------------------------------------------------------------------------------------- reading


def write_all(folder: Path) -> None:
    """Every file in a folder of its own, numbered as in FILES; `files.json` says where."""
    places = {}
    for index, (name, hostile) in enumerate(FILES.items()):
        own = folder / str(index)
        own.mkdir()
        places[name] = str(hostile.write(own))
    (folder / "files.json").write_text(json.dumps(places))


def read_all(folder: Path) -> None:
    """Reads each, in this process, and says what happened. cpu: seconds of this process. peak: its memory in bytes."""
    from evalkit import records
    from evalkit.adapters import files
    from evalkit.errors import CheckpointError

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    for name, path in json.loads((folder / "files.json").read_text()).items():
        print(json.dumps({"name": name}), flush=True)
        begin = time.process_time()
        try:
            files.read(path)
            ours, kind, says = False, "nothing", "it was read"
        except BaseException as error:  # noqa: BLE001 - also what no test would expect
            ours, kind, says = isinstance(error, CheckpointError), type(error).__name__, str(error)
        cpu, peak = time.process_time() - begin, records.peak_memory()
        print(
            json.dumps({"name": name, "ours": ours, "kind": kind, "says": says, "cpu": cpu, "peak": peak}), flush=True
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    read_all(Path(sys.argv[1]))
