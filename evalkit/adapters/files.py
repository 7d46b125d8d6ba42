"""Opening a checkpoint file that may come from anywhere: what kind it is, its digest, and its content as a dictionary.

`.safetensors` (https://github.com/huggingface/safetensors, "Format"): 8 bytes little-endian length, a JSON header of
{name: {dtype, shape, data_offsets}}, then the data. Everything the header says is checked against the file before
anything is allocated. Pickled PyTorch files: see `pickles.py`. The kind is read from the content, never from the
suffix.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from safetensors.torch import load_file

from evalkit.adapters import pickles, strangers
from evalkit.errors import CheckpointError, DigestMismatch, NotARegularFile, UnsafeFile
from evalkit.files import open_regular

HEADER_LIMIT = 8 << 20
"""Bytes of a safetensors header. Its own library would read 100 MB, gigabytes once parsed."""

MOST = 20_000
"""Tensors in one file: a ViT-g of 40 blocks with its average and both heads has 2,000. Every family compares each of them."""

BITS = {
    **dict.fromkeys(("F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 8),
}


@dataclass(frozen=True)
class RawCheckpoint:
    """A file as it was found. state: nested dictionaries down to tensors (CPU, mapped from the file where the format
    lets that). container: "safetensors", "torch-zip" or "torch-legacy". sha256: of the whole file, in hexadecimal."""

    state: Mapping[str, Any]
    container: str
    sha256: str
    path: Path


def read(path: str | Path, *, sha256: str = "") -> RawCheckpoint:
    """Opens one checkpoint file. sha256: what the digest has to be, checked before the content is looked at.

    Raises CheckpointError where there is no file, or it is no checkpoint, truncated or damaged; UnsafeFile where it
    would run code or lies about its size; DigestMismatch where it is another file than the one named. Each is one
    line without control characters, whatever the file put into it.
    """
    path = Path(path)
    try:
        return _read(path, sha256.lower())
    except CheckpointError as error:
        raise type(error)("".join(c if c.isprintable() else "?" for c in str(error))) from None


def _read(path: Path, sha256: str) -> RawCheckpoint:
    """Without a digest to compare, the content is checked first: a damaged file of a terabyte is not hashed."""
    kind = _kind(path)
    if sha256 and (digest := _digest(path)) != sha256:
        raise DigestMismatch(f"{path} is not the file that the manifest names: sha256 {digest}, expected {sha256}")
    readers = {"safetensors": _read_safetensors, "torch-zip": pickles.load_zip, "torch-legacy": pickles.load_legacy}
    _refuse_stranger(path, strangers.named)
    try:
        state = readers[kind](path)
    except UnsafeFile:
        raise
    except CheckpointError:
        _refuse_stranger(path, strangers.text)
        raise
    return RawCheckpoint(state=state, container=kind, sha256=sha256 or _digest(path), path=path)


def _refuse_stranger(path: Path, named: Callable[[bytes], str]) -> None:
    with open_regular(path) as file:
        what = named(file.read(512))
    if what:
        raise CheckpointError(f"{path} is no checkpoint: it is {what}")


def _kind(path: Path) -> str:
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder; a checkpoint is one file (.safetensors, .pth, .pt, .bin, .tar)")
        with open_regular(path) as file:
            head = file.read(512)
    except NotARegularFile:
        raise CheckpointError(f"{path} is a pipe, a socket or a device; a checkpoint is a file") from None
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint file at {path}") from None
    except ValueError:
        raise CheckpointError(f"there is no checkpoint file at {path}: it has a zero byte in its name") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if not head:
        raise CheckpointError(f"{path} is empty")
    if head.startswith(b"PK\x03\x04"):
        return "torch-zip"
    if head[8:9] == b"{" and not strangers.text(head):
        return "safetensors"
    if head[257:262] == b"ustar":
        raise CheckpointError(f"{path} is a tar archive (torch before 0.2): load and save it again with a newer torch")
    if head.startswith(b"\x1f\x8b"):
        raise CheckpointError(f"{path} is compressed with gzip: unpack it first")
    return "torch-legacy"


def _digest(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    _check_safetensors(path)
    try:
        return load_file(path)
    except Exception as error:  # noqa: BLE001 - the bytes come from outside: whatever the reader trips over, they are at fault
        raise CheckpointError(f"{path} is damaged: {str(error)[:200]}") from None


def _check_safetensors(path: Path) -> None:
    size = path.stat().st_size
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > HEADER_LIMIT and length > size:
            raise UnsafeFile(f"{path} lies about its size: its header claims {length:,} bytes, the file has {size:,}")
        if length > HEADER_LIMIT:
            raise UnsafeFile(f"{path} has a header of {length:,} bytes, more than {HEADER_LIMIT >> 20} MB")
        if size < 8 + length:
            raise CheckpointError(
                f"{path} is truncated, or no checkpoint: {size:,} bytes, its header alone says {length:,}"
            )
        header = _parse(file.read(length), path)
    if len(header) > MOST:
        raise UnsafeFile(f"{path} has a header of {len(header):,} tensors; a network has no more than {MOST:,}")
    end = max((_check_entry(name, entry, path) for name, entry in header.items() if name != "__metadata__"), default=0)
    if end > size - 8 - length:
        raise CheckpointError(f"{path} is truncated: {size:,} bytes, its header describes {end + 8 + length:,}")


def _parse(header: bytes, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(header, object_pairs_hook=_table)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no checkpoint, or damaged: its header is no JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: its header is no table of tensors")
    return content


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError where a key stands twice: readers differ in which of them counts."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands twice")
    return table


def _check_entry(name: str, entry: Any, path: Path) -> int:
    """The end of one tensor's data, after its shape and offsets are found to agree."""
    try:
        bits, shape, (begin, end) = (BITS[entry["dtype"]], entry["shape"], entry["data_offsets"])
        plain = all(type(n) is int and 0 <= n < 1 << 48 for n in [*shape, begin, end]) and len(shape) <= 8
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path} is damaged: entry {name[:80]!r} of its header is {brief(entry)}") from None
    if not plain or math.prod(shape) * bits // 8 != end - begin:
        raise UnsafeFile(
            f"{path} lies about its size: {name[:80]!r} has shape {brief(shape)} in bytes {brief(begin)} to {brief(end)}"
        )
    return int(end)
