"""The folder of a download: one process at a time, flushed, and its errors in words."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evalkit.download.wanted import Conduct
from evalkit.errors import FetchError

POLL = 0.2
"""Seconds between two looks at a lock that another process holds."""


@contextlib.contextmanager
def told_in_words(target: Path) -> Iterator[None]:
    """Turns what the disk says into one line."""
    try:
        yield
    except OSError as error:
        where = error.filename or target.parent
        what = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FetchError(
                f"no space left for {target}: {what}. What has arrived is kept; make room, or choose another cache with "
                "EVALKIT_CACHE, and run the same command again"
            ) from None
        raise FetchError(
            f"{where} cannot be written: {what}. Choose another cache with EVALKIT_CACHE or --out"
        ) from None


@contextlib.contextmanager
def alone(folder: Path, conduct: Conduct) -> Iterator[bool]:
    """Holds the folder's lock; yields False where there are no locks (then each process has a part of its own)."""
    try:
        import fcntl
    except ImportError:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(handle, fcntl, conduct)
    finally:
        os.close(handle)


def _lock(handle: int, fcntl: Any, conduct: Conduct) -> bool:
    told = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                conduct.say("another process is fetching this file: waiting for it")
            told = True
            conduct.wait(POLL)
        except OSError:  # a file system without locks
            return False
        else:
            return True


def flush(folder: Path) -> None:
    """Sees to it that a rename in the folder survives a power failure, where the file system can."""
    with contextlib.suppress(OSError):  # not every file system lets folders be flushed
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
