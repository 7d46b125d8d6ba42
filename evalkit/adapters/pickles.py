"""PyTorch's pickled checkpoints, opened without running any code that they bring.

A pickle is a small program; the restricted reader `torch.load(weights_only=True)` builds dictionaries and tensors and
calls little else. That little is enough to fill the memory, to hang or to crash the process, so the instructions are
run on stand-ins first (`instructions.py`), and the zip or the storages around them must be as PyTorch writes them,
every checksum included. So a hostile file ends in one message that says what it wanted, and never in an allocation or
a call.

Formats: the zip of torch >= 1.6, mapped into memory, and the older run of pickles followed by raw storages.
"""

from __future__ import annotations

import argparse
import io
import re
import stat
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np
import torch

from evalkit.adapters.instructions import PATHS, Machine, Storage
from evalkit.errors import CheckpointError, UnsafeFile
from evalkit.files import open_regular

MAGIC = 0x1950A86A20F9469CFC6C
"""First value of the older format (torch/serialization.py)."""

PROTOCOL = 1001
"""Its second value."""

LIMIT = 16 << 20
"""Bytes that a pickle, or the directory of a zip, may have; real ones with optimiser state stay under one megabyte."""

_NUMBERS = ["bool", "float16", "float32", "float64", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))]
_SCALAR = np.float64(0).__reduce__()[0]
"""What numpy scalars call to be rebuilt; its module was renamed between numpy 1 and 2, files have either name."""


def _path_text(*parts: str) -> str:
    """What a path object is read as."""
    return "/".join(parts).replace("//", "/")


SAFE: list[Any] = [
    argparse.Namespace,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in _NUMBERS),
    *((_path_text, name) for name in PATHS),
]
"""Allowed beside what torch allows: the arguments of a training script, paths among them (as texts), and numpy scalars (a
best loss, say)."""

_RECORD = re.compile(
    r"([^/]+)/(data\.pkl|byteorder|version|\.format_version|\.storage_alignment|\.data/\w+|data/(\w+))", re.A
)
"""The entries that torch.save writes, all in one folder; a storage's key is the last group."""


def load_zip(path: Path) -> Mapping[str, Any]:
    """The dictionary in a file of `torch.save` since torch 1.6; its tensors are mapped from the file, on the CPU.

    Raises UnsafeFile where it would need code, or lies about sizes; CheckpointError where it is damaged or no
    dictionary.
    """
    try:
        _check_zip(path)
    except CheckpointError as error:
        raise type(error)(f"{path} {error}") from None
    return _load(path, mapped=True)


def load_legacy(path: Path) -> Mapping[str, Any]:
    """The dictionary in a file of `torch.save` before torch 1.6, or with `_use_new_zipfile_serialization=False`.

    Raises as `load_zip`.
    """
    try:
        with open_regular(path) as file:
            _check_legacy(file, path.stat().st_size)
    except CheckpointError as error:
        raise type(error)(f"{path} {error}") from None
    return _load(path, mapped=False)


def _check_legacy(file: BinaryIO, size: int) -> None:
    machine, values = Machine(size), []
    for number in range(5):  # magic number, protocol, system, the object, the keys of the storages in their order
        window = io.BytesIO(file.read(LIMIT))
        values.append(machine.run(window))
        file.seek(window.tell() - len(window.getvalue()), io.SEEK_CUR)
        if number == 0 and values[0] != MAGIC:
            raise CheckpointError("is a plain pickle, not a file of torch.save: save the state dict with torch.save")
    _, protocol, system, content, keys = values
    if protocol != PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("is damaged, or was written by a machine whose numbers begin with the high byte")
    machine.check_nesting(content)
    _check_storages(file, size, keys, machine.storages)


def _check_storages(file: BinaryIO, size: int, keys: Any, declared: Mapping[str, Storage]) -> None:
    """Each declared storage follows once, as its number of values (8 bytes) and the values. One that did not would
    hold whatever was in the memory before."""
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(declared):
        raise UnsafeFile("lies about its size: the storages that follow are not those that its tensors use")
    for storage in map(declared.__getitem__, keys):
        head = file.read(8)
        end = file.seek(storage.count * storage.item, io.SEEK_CUR)
        if end > size or len(head) < 8:
            raise CheckpointError(f"is truncated: {size:,} bytes, its storages need {end:,} or more")
        if int.from_bytes(head, "little") != storage.count:
            raise UnsafeFile(f"lies about its size: a storage has not the {storage.count:,} values that it declares")


def _check_zip(path: Path) -> None:
    size = path.stat().st_size
    _check_end(path, size)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(entries, size)
            for entry in entries:
                _check_sum(archive, entry)
            content = archive.read(next(e for e in entries if e.filename.endswith("/data.pkl")))
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(f"is truncated or damaged: {str(error)[:200]}") from None
    named = {match[3]: e.file_size for e in entries if (match := _RECORD.fullmatch(e.filename)) and match[3]}
    machine = Machine(size, named)
    machine.check_nesting(machine.run(io.BytesIO(content)))


def _check_end(path: Path, size: int) -> None:
    """The end of the file says where the directory is; two readers must not find two directories.

    Layout (PKWARE APPNOTE 4.3): the directory, [64-bit end record of 56 bytes, its locator of 20], end record of 22.
    """
    with open_regular(path) as file:
        file.seek(max(size - 98, 0))
        tail = file.read().rjust(98, b"\0")
    if tail[76:80] != b"PK\x05\x06" or tail[96:] != b"\0\0":
        raise CheckpointError("is truncated or damaged: it does not end with the end of a zip archive")
    length, begin = struct.unpack("<LL", tail[88:96])
    end = size - 22
    if tail[56:60] == b"PK\x06\x07":
        end = size - 98
        where, (length, begin) = struct.unpack("<Q", tail[64:72])[0], struct.unpack("<QQ", tail[40:56])
        if tail[:4] != b"PK\x06\x06" or where != end:
            raise UnsafeFile("lies about where the directory of its entries is")
    if begin + length != end:
        raise UnsafeFile("lies about where the directory of its entries is")
    if length > LIMIT // 2:
        raise UnsafeFile(f"has a directory of {length:,} bytes, more than {LIMIT >> 21} MB")


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    names = [entry.orig_filename for entry in entries]
    outside = [n for n in names if n.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", n) or ":" in n]
    if outside:
        raise UnsafeFile(f"has an entry that points outside of the archive: {outside[0][:80]!r}")
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise UnsafeFile("is a TorchScript archive: it holds code, which evalkit never runs. Save its state dict")
    if sum(name.endswith("/data.pkl") for name in names) != 1:
        raise CheckpointError("is a zip archive, but not one that torch.save wrote (no single data.pkl in it)")
    if len({name.casefold() for name in names}) != len(names):
        raise UnsafeFile("holds two entries of one name: which of them counts is not defined")
    strange = [n for n in names if not (_RECORD.fullmatch(n) and n.split("/")[0] == names[0].split("/")[0])]
    if strange:
        raise UnsafeFile(f"has an entry that torch.save never writes: {strange[0][:80]!r}")
    _check_sizes(entries, size)


def _check_sizes(entries: list[zipfile.ZipInfo], size: int) -> None:
    if any(entry.flag_bits & 0x41 or stat.S_ISLNK(entry.external_attr >> 16) for entry in entries):
        raise UnsafeFile("has encrypted entries or links: torch.save never writes them")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UnsafeFile("has compressed entries: torch.save never writes them, they may unpack to any size")
    if any(e.file_size != e.compress_size for e in entries) or sum(e.file_size for e in entries) > size:
        raise UnsafeFile("lies about its size: its entries claim more bytes than the file has")
    if any(entry.file_size > LIMIT for entry in entries if not _RECORD.fullmatch(entry.filename)[3]):  # type: ignore[index]
        raise UnsafeFile(f"has a pickle larger than {LIMIT >> 20} MB: save its state dict alone")


def _check_sum(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Reads the whole entry, which compares its CRC-32 and its name in both places. Raises BadZipFile."""
    with archive.open(entry) as record:
        while record.read(1 << 20):
            pass


def _load(path: Path, *, mapped: bool) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals(SAFE), warnings.catch_warnings(), open_regular(path) as file:
            warnings.simplefilter("ignore")
            # By its name, torch would take any file called .safetensors for one; only a name can be mapped.
            mapped = mapped and path.suffix != ".safetensors"
            content = torch.load(path if mapped else file, weights_only=True, map_location="cpu", mmap=mapped)
    except UnpicklingError as error:
        raise UnsafeFile(
            f"{path} needs more than weights to load; evalkit never runs code from it: {_first(error)}"
        ) from None
    except Exception as error:  # noqa: BLE001 - the bytes come from outside: whatever torch trips over, the file is at fault
        raise CheckpointError(f"{path} is truncated or damaged: {type(error).__name__}: {_first(error)}") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a dictionary of tensors")
    return content


def _first(error: Exception) -> str:
    """What happened, without torch's advice to load the file with full trust."""
    text = re.sub(r"\s+", " ", str(error))
    told = re.search(r"Unsupported \w+.*|Trying to .*|Can only .*", text)
    return re.split(r" Please | In PyTorch ", told.group() if told else text)[0][:200]
