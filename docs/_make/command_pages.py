"""The page of commands: what `--help` says, command by command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from prose import cell, code, inline, table

from evalkit.cli.main import app


def pages() -> list[tuple[str, str]]:
    """(path, Markdown) of the one page."""
    root = typer.main.get_command(app)
    found = list(walk("evalkit", root))
    rows = [(f"[`{name}`](#{anchor(name)})", inline(command.help.split("\n")[0])) for name, command in found]
    head = (
        "# Commands\n\nMade from the program itself; `--help` after any of them prints the same. An error is one message on "
        "standard error and exit code 1; a wrong option is exit code 2."
    )
    return [
        (
            "commands.md",
            "\n\n".join([head, table(("command", "what it does"), rows), *(section(*one) for one in found)]),
        )
    ]


def anchor(name: str) -> str:
    """The heading's address."""
    return name.replace(" ", "-")


def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Commands that do something, with their whole name."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for part, inner in command.commands.items():
        yield from walk(f"{name} {part}", inner)


def _default(value: Any) -> object:
    """A default worth a word: no flag's False, no None."""
    value = getattr(value, "value", value)
    return "" if value is None or isinstance(value, bool) else value


def section(name: str, command: Any) -> str:
    """One command with its arguments and options."""
    rows = []
    for parameter in command.params:
        if parameter.name == "help" or getattr(parameter, "hidden", False):
            continue
        flags = " ".join((*parameter.opts, *parameter.secondary_opts))
        if parameter.param_type_name == "argument":
            flags = (parameter.metavar or parameter.name or "").upper() + (" ..." if parameter.nargs != 1 else "")
        rows.append((code(flags), cell(getattr(parameter, "help", "") or ""), code(_default(parameter.default))))
    return "\n\n".join(
        [f"## {name} {{ #{anchor(name)} }}", inline(command.help), table(("option", "meaning", "default"), rows)]
    )
