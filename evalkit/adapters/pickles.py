"""PyTorch's pickled checkpoints, opened without running any code that they bring.

A pickle is a small program; the restricted reader `torch.load(weights_only=True)` builds dictionaries and tensors and
calls nothing else. Before it runs, the instructions are read here without executing them: every global that the file
names has to stand on a short list, sizes have to fit into the file, and the zip around the pickle must be as PyTorch
writes it. So a hostile file ends in one message that says what it wanted, and never in an allocation or a call.

Formats: the zip of torch >= 1.6, mapped into memory, and the older run of pickles followed by raw storages.
"""

from __future__ import annotations

import argparse
import io
import mmap
import pickletools
import re
import warnings
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from evalkit.errors import CheckpointError, UnsafeFile

MAGIC = 0x1950A86A20F9469CFC6C
"""First value of the older format (torch/serialization.py)."""

LIMIT = 256 << 20
"""Bytes that the pickle of a zip file may have; real ones with optimiser state stay under one megabyte."""

_NUMBERS = ["bool", "float16", "float32", "float64", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))]
_DTYPES = [type(np.dtype(name)) for name in _NUMBERS]
_SCALAR = np.float64(0).__reduce__()[0]
"""What numpy scalars call to be rebuilt; its module was renamed between numpy 1 and 2, files have either name."""

SAFE: list[Any] = [
    argparse.Namespace,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *_DTYPES,
]
"""Allowed beside what torch allows: the arguments of a training script, and numpy scalars (a best loss, say)."""

_TENSORS = {
    "collections.OrderedDict",
    "collections.Counter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    "torch.Size",
    "torch.Tensor",
    "torch.device",
    "_codecs.encode",
    "builtins.set",
    "__builtin__.set",
}
_EXTRA = {
    "argparse.Namespace",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    *(f"numpy.dtypes.{kind.__name__}" for kind in _DTYPES),
}
_STORAGE = re.compile(r"torch\.(cuda\.)?[A-Z][A-Za-z0-9]*(Storage|Tensor)|torch\.storage\.(Untyped|Typed)Storage")
_DTYPE = re.compile(r"torch\.(bool|bfloat16|(float|int|uint|complex)\d+)")

_INTEGERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
_CALLS = {"INST", "OBJ", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX"}
"""Instructions that name or call things and that PyTorch's own files (pickle protocol 2) never use."""


def load_zip(path: Path) -> Mapping[str, Any]:
    """The dictionary in a file of `torch.save` since torch 1.6; its tensors are mapped from the file, on the CPU.

    Raises UnsafeFile where it would need code, or lies about sizes; CheckpointError where it is damaged or no
    dictionary.
    """
    _check_zip(path)
    return _load(path, mapped=True)


def load_legacy(path: Path) -> Mapping[str, Any]:
    """The dictionary in a file of `torch.save` before torch 1.6, or with `_use_new_zipfile_serialization=False`.

    Raises as `load_zip`.
    """
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        first = _scan(stream, path, size)
        if first != MAGIC:
            raise CheckpointError(
                f"{path} is a plain pickle, not a file of torch.save: save the state dict with torch.save"
            )
        for _ in range(4):  # protocol, system, the object, the keys of the storages
            _scan(stream, path, size)
    return _load(path, mapped=False)


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(path, entries)
            content = archive.read(next(e for e in entries if e.filename.endswith("/data.pkl")))
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from None
    _scan(io.BytesIO(content), path, path.stat().st_size)


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    names = [entry.filename for entry in entries]
    outside = [n for n in names if n.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", n) or ":" in n]
    if outside:
        raise UnsafeFile(f"{path} has an entry that points outside of the archive: {outside[0]!r}")
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise UnsafeFile(
            f"{path} is a TorchScript archive: it holds code, which evalkit never runs. Save its state dict"
        )
    if sum(name.endswith("/data.pkl") for name in names) != 1:
        raise CheckpointError(f"{path} is a zip archive, but not one that torch.save wrote (no single data.pkl in it)")
    if len(set(names)) != len(names):
        raise UnsafeFile(f"{path} holds two entries of one name: which of them counts is not defined")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UnsafeFile(f"{path} has compressed entries: torch.save never writes them, they may unpack to any size")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise UnsafeFile(f"{path} lies about its size: its entries claim more bytes than the file has")
    if any(entry.file_size > LIMIT for entry in entries if entry.filename.endswith("/data.pkl")):
        raise UnsafeFile(f"{path}: its pickle is larger than {LIMIT >> 20} MB")


def _scan(stream: IO[bytes] | mmap.mmap, path: Path, size: int) -> Any:
    """Reads one pickle's instructions without executing them; returns the last plain value (the magic number)."""
    number, text = 0, deque[str](maxlen=2)
    try:
        for op, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]
            if isinstance(argument, str):
                text.append(argument)
            if isinstance(argument, int) and op.name not in {"PROTO", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"}:
                number = argument
            if op.name == "GLOBAL":
                _check_global(_dotted(argument), path)
            elif op.name in _CALLS:
                _refuse_call(op.name, argument, text, path)
            elif op.name == "BINPERSID" and not 0 <= number <= size:
                raise UnsafeFile(f"{path} lies about its size: it declares {number:,} values and has {size:,} bytes")
    except (ValueError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path} is truncated, damaged or no checkpoint: {error}") from None
    return number


def _check_global(name: str, path: Path) -> None:
    if not (name in _TENSORS or name in _EXTRA or _STORAGE.fullmatch(name) or _DTYPE.fullmatch(name)):
        _refuse(path, name)


def _dotted(argument: Any) -> str:
    """module.name; what has more than two words is a text, and stays one."""
    words = str(argument).split(" ")
    return ".".join(words) if len(words) == 2 else " ".join(words)


def _refuse_call(op: str, argument: Any, text: deque[str], path: Path) -> NoReturn:
    """Named calls are refused by name; the other ones can only work on what was named before, and that was refused."""
    if op == "STACK_GLOBAL":
        _refuse(path, ".".join(text))
    if op == "INST":
        _refuse(path, _dotted(argument))
    raise CheckpointError(f"{path} is no checkpoint that torch.save wrote: it has the pickle instruction {op}")


def _refuse(path: Path, name: str) -> NoReturn:
    if not re.fullmatch(r"\w+(\.\w+)+", name):  # a text whose first letter happens to be an instruction
        raise CheckpointError(f"{path} is no checkpoint: neither safetensors nor a file of torch.save")
    raise UnsafeFile(
        f"{path} would run code when loaded: it asks for {name[:120]}. evalkit never runs code from a checkpoint; "
        "allowed are tensors, dictionaries, argparse.Namespace and numpy scalars (a state dict saved with torch.save)"
    )


def _load(path: Path, *, mapped: bool) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals(SAFE), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, weights_only=True, map_location="cpu", mmap=mapped)
    except UnpicklingError as error:
        raise UnsafeFile(
            f"{path} needs more than weights to load; evalkit never runs code from it: {_first(error)}"
        ) from None
    except Exception as error:  # noqa: BLE001 - the bytes come from outside: whatever torch trips over, the file is at fault
        raise CheckpointError(f"{path} is truncated or damaged: {type(error).__name__}: {_first(error)}") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a dictionary of tensors")
    _check_tensors(content, path)
    return content


def _first(error: Exception) -> str:
    """What happened, without torch's advice to load the file with full trust."""
    text = re.sub(r"\s+", " ", str(error))
    told = re.search(r"Unsupported \w+.*|Trying to .*|Can only .*", text)
    return (told.group() if told else text).split(" Please ")[0][:200]


def _check_tensors(content: Mapping[str, Any], path: Path) -> None:
    """Refuses views that claim more bytes than the file has (a stride of 0 makes any size out of one number)."""
    size = path.stat().st_size
    for tensor in _tensors(content):
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise UnsafeFile(f"{path} holds a {tensor.layout} tensor on {tensor.device}: only plain ones are weights")
        if tensor.numel() * tensor.element_size() > size:
            raise UnsafeFile(f"{path} lies about its size: a tensor {tuple(tensor.shape)} in {size:,} bytes")


def _tensors(content: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers, which may hold themselves."""
    todo, seen = [content], set[int]()
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, Mapping):
            todo.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            todo.extend(item)
        elif isinstance(item, argparse.Namespace):
            todo.extend(vars(item).values())
