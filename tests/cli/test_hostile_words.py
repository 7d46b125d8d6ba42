"""Whatever is typed, a command answers in one line and without a traceback: every option and argument of every command."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer

from evalkit.cli.main import app, main
from evalkit.cli.strict import LARGEST

NAME = "x" * 5000
NEEDED = {"IMAGE": "a.jpg", "ONE": "micro-mgc", "OTHER": "random"}
"""A harmless word for each argument that a command asks for; others get `nobody`."""


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))
    if not getattr(command, "commands", {}):
        yield path, command


ALL = dict(commands(typer.main.get_command(app)))


def kinds(command: Any) -> dict[str, str]:
    """By parameter: its type in Python's words."""
    hints = get_type_hints(inspect.unwrap(command.callback))
    return {param.name: str(hints[param.name]) for param in command.params if param.name in hints}


def hostile(kind: str) -> list[str]:
    """Values that no parameter of this type may take."""
    if "Path" in kind:
        return ["", NAME, "a\0b"]
    if "float" in kind:
        return ["nan", "inf", "-inf", "1e999", "", "x"]
    if "int" in kind:
        return ["nan", "1e3", "", str(LARGEST + 1), "9" * 5000]
    return [NAME, "a\0b"] if "str" in kind else []


def cases() -> Iterator[Any]:
    for path, command in ALL.items():
        for name, kind in kinds(command).items():
            for value in hostile(kind):
                yield pytest.param(path, name, value, id=f"{' '.join(path)} {name}={value[:8]!r}")


def words(path: tuple[str, ...], name: str, value: str) -> list[str]:
    """The command line: required arguments and options, the one that is tried with this value."""
    arguments, options = [], []
    for param in ALL[path].params:
        if param.param_type_name == "argument":
            if param.name == name or param.required:
                arguments.append(value if param.name == name else NEEDED.get(str(param.name).upper(), "nobody"))
        elif param.name == name or param.required:
            options.append(f"{max(param.opts, key=len)}={value if param.name == name else '1,1'}")
    return [*path, *options, "--", *arguments]


def run(line: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["evalkit", *line])
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return 0


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "400")


@pytest.mark.parametrize(("path", "name", "value"), list(cases()))
def test_every_parameter_refuses_what_it_cannot_be(
    path: tuple[str, ...], name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words(path, name, value), monkeypatch) != 0
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert not said.out
    ours = [line for line in said.err.splitlines() if line.startswith("evalkit: ")]
    assert len(ours) == 1 or "Error" in said.err  # typer's own box, for what does not convert
    assert "x" * 200 not in said.err and "9" * 200 not in said.err
