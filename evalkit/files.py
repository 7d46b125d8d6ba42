"""Files from outside, on the ground floor: only regular files are read, and names are shown so that they stay one line.

    with open_regular(path, limit=1 << 20) as file: ...
    data = read_regular(path, limit=1 << 20)

A FIFO or a socket would wait for ever, a device (or a link to /dev/zero) fill the memory. What a path is, is asked of the
open file (fstat), never of the path before, so nothing can be put in its place in between; the file is opened without
waiting (O_NONBLOCK), which changes nothing for a regular one.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from evalkit.errors import FileTooLarge, NotARegularFile

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

_LONGEST = 1000


def open_regular(path: Path, *, limit: int | None = None) -> BinaryIO:
    """The regular file at `path` (or that a link there leads to), opened for reading bytes, at its beginning.

    limit: bytes that it may have, None for any. Raises NotARegularFile for a FIFO, socket, device or folder, FileTooLarge
    beyond the limit, both naming the file; an OSError passes (no such file, no permission).
    """
    _refuse_kind(path, os.stat(path).st_mode)  # a socket cannot be opened at all, and opening some devices acts on them
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        facts = os.fstat(handle)
        _refuse_kind(path, facts.st_mode)
        if limit is not None and facts.st_size > limit:
            raise FileTooLarge(f"{shown(path)} has {facts.st_size:,} bytes; at most {limit:,} are read")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: Path, *, limit: int | None = None) -> bytes:
    """All bytes of a regular file. Raises as `open_regular`, and FileTooLarge where it grew past the limit meanwhile."""
    with open_regular(path, limit=limit) as file:
        data = file.read(-1 if limit is None else limit + 1)
    if limit is not None and len(data) > limit:
        raise FileTooLarge(f"{shown(path)} has more than {limit:,} bytes, the most that are read")
    return data


def kind(mode: int) -> str:
    """What a file is by the mode that `os.stat` gives: "a FIFO", "a folder" ...; "" for a regular file."""
    if stat.S_ISREG(mode):
        return ""
    return next((name for matches, name in _KINDS if matches(mode)), "no file")


def shown(path: Path | str) -> str:
    """A name as messages and records have it: one line of printable text, always encodable.

    Line breaks, other control characters and bytes that are no UTF-8 are written as escapes ("a\\nb", "caf\\xe9"); names
    that are usual stay as they are. Beyond 1,000 characters the middle is left out.
    """
    text = str(path)
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


def _escaped(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")


def _refuse_kind(path: Path, mode: int) -> None:
    if found := kind(mode):
        raise NotARegularFile(f"{shown(path)} is {found}; only regular files are read")
