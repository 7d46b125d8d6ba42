"""Waiting for events, never for time: what a test waits for happens, or the process that should do it has ended."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

HANG = 1800.0
"""Seconds after which something that never comes is given up, so that a broken change does not stop a machine for ever. No test
may need it to pass, or expect it to pass by: on a machine that is ten times too slow everything still comes first."""


def until(
    happened: Callable[[], T], what: str, process: subprocess.Popen[str] | subprocess.Popen[bytes] | None = None
) -> T:
    """The first true value of a function; looked at once more after `process` has ended.

    Raises AssertionError, naming what did not come, where the process ended without it.
    """
    given_up = time.monotonic() + HANG
    while True:
        ended = process is not None and process.poll() is not None
        if value := happened():
            return value
        if ended or time.monotonic() > given_up:
            raise AssertionError(f"{what} did not come" + (", the process has ended" if ended else ""))
        time.sleep(0.02)
