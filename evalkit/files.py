"""Files, on the ground floor: only regular ones are read, names are shown on one line, and what is written is whole or not there.

    with open_regular(path, limit=1 << 20) as file: ...
    data = read_regular(path, limit=1 << 20)
    write_atomically(path, lambda part: part.write_bytes(data))

A FIFO or a socket would wait for ever, a device (or a link to /dev/zero) fill the memory. What a path is, is asked of the
open file (fstat), never of the path before, so nothing can be put in its place in between; the file is opened without
waiting (O_NONBLOCK), which changes nothing for a regular one.

What is written has a temporary name that tells host and process, so that what a killed one left can be told from what a
living one writes: `sweep` removes the first and never the second.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from evalkit.errors import FileTooLarge, NotARegularFile

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

_LONGEST = 1000

WRITTEN_BY_HAND = 1 << 20
"""Bytes of a file that a person writes: recipes, manifests, presets."""


def open_regular(path: Path, *, limit: int | None = None) -> BufferedReader:
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


# ---------------------------------------------------------------- writing

TEMPORARY = ".tmp"
ABANDONED = 3600.0
"""Seconds after which a temporary file of another machine counts as left behind."""

_OWN = secrets.token_hex(4)
"""Tells this process from one that had its number before."""

_COUNT = itertools.count()
_SWEPT: set[Path] = set()
_LEFT = re.compile(r"\..+\.(?P<pid>\d+)\.(?P<token>[0-9a-f]+)(?:-\d+)?" + re.escape(TEMPORARY))
_OLDER = re.compile(
    r"(?:\..+\.(?:json|safetensors|png|mp4|gif)|[0-9a-f]{16}(?:-[0-9a-f]{8})?|corpus-[0-9a-f]{16})?"
    r"\.(?P<pid>\d+)\.(?:part|part\.mp4|part\.gif|probe)"
)
"""Names that earlier versions gave: `.NAME.PID.part`, `.PID.probe`, and `KEY.PID.part` of a training state or corpus."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """`path` is what `write` makes of the temporary path it is given, or is as it was before.

    The file is flushed to the disk before it takes its name, and its mode is what the umask says. Folders are made. What
    killed processes left in the folder is removed at this process's first call for it. Raises what `write` raises, and
    OSError where the folder cannot be written; the temporary file is gone then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent not in _SWEPT:
        _SWEPT.add(path.parent)
        sweep([path.parent])
    part = temporary(path)
    try:
        part.touch(exist_ok=False)
        mode = stat.S_IMODE(part.stat().st_mode)
        write(part)
        part.chmod(mode)  # safetensors writes for the owner alone
        _flush(part)
        part.replace(path)
        _flush(path.parent)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def temporary(path: Path) -> Path:
    """A name beside `path` that no other call of any process gives: `.NAME.HOST.PID.TOKEN-COUNT.tmp`."""
    begin = os.fsdecode(os.fsencode(path.name)[:80])
    return path.with_name(f".{begin}.{_host()}.{os.getpid()}.{_OWN}-{next(_COUNT)}{TEMPORARY}")


def is_temporary(path: Path) -> bool:
    """Whether a file is one that a writer of evalkit has not renamed yet."""
    return bool(_LEFT.fullmatch(path.name) or _OLDER.fullmatch(path.name))


def is_abandoned(path: Path) -> bool:
    """Whether the process that wrote a temporary file is gone: dead on this machine, or silent for an hour elsewhere.

    Raises FileNotFoundError where the file of another machine went away.
    """
    named = _LEFT.fullmatch(path.name)
    if named and f".{_host()}.{named['pid']}." not in path.name:
        return time.time() - path.stat().st_mtime > ABANDONED
    found = named or _OLDER.fullmatch(path.name)
    if found is None:
        return False
    pid = int(found["pid"])
    if pid == os.getpid():
        return named is not None and not named["token"].startswith(_OWN)
    return not _alive(pid)


def sweep(folders: Iterable[Path]) -> list[Path]:
    """Removes what killed processes left in these folders (not below them); what it removed. Never fails."""
    removed = []
    for folder in folders:
        with suppress(OSError):
            for entry in list(os.scandir(folder)):
                path = Path(entry.path)
                with suppress(OSError):
                    if is_temporary(path) and entry.is_file(follow_symlinks=False) and is_abandoned(path):
                        path.unlink()
                        removed.append(path)
    return removed


def sweep_below(root: Path) -> list[Path]:
    """As `sweep`, for a folder and all that lie in it."""
    return sweep([root, *(Path(folder) / name for folder, names, _ in os.walk(root) for name in names)])


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """A folder for work that nothing is kept of, gone at the end; those that killed processes of this purpose left go first."""
    place, begin = Path(tempfile.gettempdir()), f"evalkit-{purpose}-{_host()}-"
    for old in place.glob(f"{glob.escape(begin)}*"):
        pid = old.name.removeprefix(begin).partition("-")[0]
        with suppress(OSError):
            if pid.isdecimal() and not _alive(int(pid)) and old.lstat().st_uid == os.getuid() and not old.is_symlink():
                shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{begin}{os.getpid()}-") as found:
        yield Path(found)


def _host() -> str:
    return socket.gethostname().replace("/", "-")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _flush(path: Path) -> None:
    """Sees to it that a file, or the names in a folder, survive a power failure, where the file system can."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # not every file system lets folders be flushed
            raise
    finally:
        os.close(handle)
