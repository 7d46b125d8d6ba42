"""What no option and no argument of any command takes: one rule for numbers, one for paths, one for texts.

`Strict` is the root's class; it holds every parameter below it to `check`, before a command begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from evalkit.errors import UsageError

LARGEST = 2**31 - 1
"""Of a whole number: beyond it libraries differ in what they do."""

LONGEST, LONGEST_NAME = 4096, 255
"""Bytes of a path, and of one name in it, that file systems take."""

SHOWN = 100
"""Characters of a person's own words that a message repeats."""


class Strict(TyperGroup):
    """A group whose commands, and theirs, refuse what `check` refuses."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        _tighten(self)


def _tighten(command: Any) -> None:
    for param in command.params:
        param.process_value = _checked(param)
    for inner in getattr(command, "commands", {}).values():
        _tighten(inner)


def _checked(param: Any) -> Callable[[Any, Any], Any]:
    convert: Callable[[Any, Any], Any] = param.process_value
    called = max(param.opts, key=len) if param.param_type_name == "option" else str(param.name).upper()
    path = type(getattr(param, "type", None)).__name__.endswith("Path")

    def process(context: Any, value: Any) -> Any:
        """What the command line says, converted, and then held to the rules."""
        found = convert(context, value)
        many = isinstance(value, (list, tuple)) and isinstance(found, (list, tuple)) and len(value) == len(found)
        for said, one in zip(value, found, strict=True) if many else [(value, found)]:
            check(called, said, one, path=path or isinstance(one, Path))
        return found

    return process


def check(called: str, said: Any, value: Any, *, path: bool) -> None:
    """One value of an option or argument. said: as it was written. Raises UsageError with what is allowed."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{called} {said}: it is a number; nan and inf are none")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise UsageError(f"{called} {shown(said)}: it is a whole number of at most {LARGEST}")
    if not isinstance(said, str):
        return
    if path and not said:
        raise UsageError(f"{called} '': it is a path, and an empty one leads nowhere; '.' is this folder")
    if "\0" in said:
        raise UsageError(f"{called} {shown(said)}: no name has a zero byte in it")
    longest = max((len(part.encode(errors="surrogateescape")) for part in said.split("/")), default=0) if path else 0
    if len(said.encode(errors="surrogateescape")) > LONGEST or longest > LONGEST_NAME:
        raise UsageError(
            f"{called} {shown(said)}: {len(said):,} characters; a path has at most {LONGEST} bytes, a name {LONGEST_NAME}"
        )


def shown(text: Any) -> str:
    """A person's own words as a message repeats them: in one line, and not for ever."""
    printable = "".join(c if c.isprintable() else "?" for c in str(text))
    return printable if len(printable) <= SHOWN else f"{printable[: SHOWN // 2]}...{printable[-SHOWN // 4 :]}"
