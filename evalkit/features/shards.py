"""One file of the feature store: safetensors with its own checksum inside, written under a temporary name and renamed.

The header's one metadata entry, "evalkit", is JSON: entry key, number, the samples covered [first, stop), the rows
held, the positions skipped, and `sha256`: of the whole file with these 64 digits as zeros. So a flipped byte anywhere
shows, and a shard and its checksum appear in one rename. Nothing here needs torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evalkit.errors import NotARegularFile, StoreError
from evalkit.files import open_regular, write_atomically

ZEROS = "0" * 64
HEADER_LIMIT = 1 << 24
ADVICE = "Set EVALKIT_CACHE to a folder that can be written"


@dataclass(frozen=True)
class Facts:
    """What a shard says of itself. key: the entry's digest. first, stop: positions in the dataset, stop exclusive.
    skipped: positions between them that could not be decoded. sha256: see the module."""

    key: str
    number: int
    first: int
    stop: int
    rows: int
    skipped: tuple[int, ...] = ()
    sha256: str = ZEROS

    def metadata(self) -> dict[str, str]:
        """The header entry, one string, so that its bytes have one order."""
        return {"evalkit": json.dumps(asdict(self), sort_keys=True)}


class Damaged(Exception):
    """Why a shard cannot be used; caught by the store, which names the file."""


def name(number: int) -> str:
    """File name of a shard, counted from 0."""
    return f"shard-{number:05d}.safetensors"


def seal(blob: bytes) -> tuple[bytearray, str]:
    """The bytes of a serialised shard with its checksum put in, and the checksum; `blob` carries zeros there."""
    digest = hashlib.sha256(blob).hexdigest()
    at = blob.index(ZEROS.encode())
    sealed = bytearray(blob)
    sealed[at : at + 64] = digest.encode()
    return sealed, digest


def check(path: Path) -> Facts:
    """The facts of a sound shard, after reading every byte.

    Raises Damaged with the reason; FileNotFoundError if there is no such file.
    """
    try:
        return _check(path)
    except NotADirectoryError as error:
        raise FileNotFoundError(path) from error
    except FileNotFoundError:
        raise
    except NotARegularFile as error:
        raise Damaged(str(error)) from error
    except OSError as error:
        raise Damaged(f"it cannot be read ({error.strerror})") from error


def _check(path: Path) -> Facts:
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size < 16:
            raise Damaged("it is cut short")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            facts, header = _facts(view)
            if _checksum(view, header, facts.sha256) != facts.sha256:
                raise Damaged("its checksum does not match its content")
    return facts


def _facts(view: mmap.mmap) -> tuple[Facts, bytes]:
    size = int.from_bytes(view[:8], "little")
    if size > min(HEADER_LIMIT, len(view) - 8):
        raise Damaged("its header is cut short")
    header = view[8 : 8 + size]
    try:
        said: dict[str, Any] = json.loads(json.loads(header)["__metadata__"]["evalkit"])
        return Facts(**{**said, "skipped": tuple(said["skipped"])}), header
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged("its header cannot be read") from error


def _checksum(view: mmap.mmap, header: bytes, digest: str) -> str:
    at = 8 + header.find(digest.encode())
    whole = hashlib.sha256(view[:at])
    whole.update(ZEROS.encode())
    with memoryview(view) as everything, everything[at + 64 :] as rest:
        whole.update(rest)
    return whole.hexdigest()


def write(path: Path, data: bytes | bytearray) -> None:
    """The file appears whole or not at all (`files.write_atomically`).

    Raises StoreError naming the path and what to do where the folder cannot be written or the disk is full; the
    temporary file is gone then, and other files are as they were.
    """
    with explained(path):
        write_atomically(path, lambda part: part.write_bytes(data))


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns an OSError into a StoreError that names the path and says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            cause, help_ = "the disk is full", f"Free some (evalkit cache prune); finished shards are kept. {ADVICE}"
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            cause, help_ = "the feature store is read-only", ADVICE
        else:
            cause, help_ = error.strerror or str(error), ADVICE
        raise StoreError(f"cannot write {path}: {cause}. {help_} (EVALKIT_CACHE=/path/with/space).") from error
