"""What no option and no argument of any command takes: one rule for numbers, one for paths, one for texts.

`Strict` is the root's class; it holds every parameter below it to `check`, before a command begins, and says what is wrong
with a command line in one line, with exit code 2.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
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

    def main(self, *, standalone_mode: bool = True, **options: Any) -> Any:  # type: ignore[override]  # as typer calls it
        """As of any group, but that a wrong command line is one line and no box."""
        if not standalone_mode:
            return super().main(standalone_mode=False, **options)
        try:
            code = super().main(standalone_mode=False, **options)
        except typer.Abort:
            sys.exit("evalkit: given up")
        except Exception as error:
            told = getattr(error, "format_message", None)  # what every fault of a command line has, and nothing else
            if told is None:
                raise
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()  # type: ignore[attr-defined]
            else:
                typer.echo(f"evalkit: {printable(told()).removesuffix('.')}; {_help(error)}", err=True)
            sys.exit(error.exit_code)  # type: ignore[attr-defined]
        sys.exit(code if isinstance(code, int) else 0)


def _help(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'evalkit'} --help says what there is"


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
        try:
            found = convert(context, value)
        except typer.BadParameter as error:
            if type(error) is not typer.BadParameter or not isinstance(value, str):
                raise
            why = error.message.removeprefix("Value error, ")
            raise typer.BadParameter(f"{shown(value)!r}: {why}", ctx=context, param=param) from None
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


def printable(text: str) -> str:
    """Names that come out of files may hold terminal codes, or halves of characters that cannot be written; what a person
    typed is repeated in one line and not at any length."""
    for word in sorted((word for said in sys.argv[1:] for word in _words(said)), key=len, reverse=True):
        text = text.replace(word, shown(word))
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def _words(said: str) -> list[str]:
    """What a message may repeat of one argument, where that is long or has line breaks: as it is, as Python quotes it, and
    as the value after its option's name."""
    if said.isprintable() and len(said) <= SHOWN:
        return []
    return [form for part in {said, said.partition("=")[2]} - {""} for form in (part, repr(part)[1:-1])]
