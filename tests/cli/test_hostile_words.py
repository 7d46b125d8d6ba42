"""Whatever is typed, a command answers in one line and without a traceback: every option and argument of every command."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer

from evalkit.cli import main as entry
from evalkit.cli.strict import LARGEST

NAME = "x" * 5000
NEEDED = {"IMAGE": "a.jpg", "ONE": "micro-mgc", "OTHER": "random"}
"""A harmless word for each argument that a command asks for; others get `nobody`."""


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))
    if not getattr(command, "commands", {}):
        yield path, command


BUILT = typer.main.get_command(entry.app)
ALL = dict(commands(BUILT))


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
        entry.main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return 0


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(entry, "app", BUILT)  # built once: 600 command lines follow


@pytest.mark.parametrize(("path", "name", "value"), list(cases()))
def test_every_parameter_refuses_what_it_cannot_be(
    path: tuple[str, ...], name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words(path, name, value), monkeypatch) != 0
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert not said.out
    assert said.err.startswith("evalkit: ") and said.err.count("\n") == 1
    assert "x" * 200 not in said.err and "9" * 200 not in said.err


SAID = {
    "a mirror that is half an address": (["fetch", "dino-s16", "--mirror", "http://[::1"], "no address"),
    "a mirror whose port is none": (["fetch", "dino-s16", "--mirror", "http://a:port/"], "no address"),
    "a store of nan GB": (["cache", "prune", "--max-gb", "nan"], "--max-gb nan: it is a number"),
    "a store of inf GB": (["cache", "prune", "--max-gb", "inf"], "--max-gb inf: it is a number"),
    "days that are none": (["cache", "prune", "--older-than", "nan"], "--older-than nan: it is a number"),
    "days before now": (["cache", "prune", "--older-than", "-1"], "days and bytes of 0 or more"),
    "an empty path": (["eval", "random", "--suite", "mini", "--out", ""], "--out '': it is a path"),
    "no sample": (["eval", "random", "--suite", "mini", "--limit", "0"], "limit is 0"),
    "samples below none": (["eval", "random", "--suite", "mini", "--limit", "-5"], "limit is -5"),
    "a seed below 0": (["eval", "random", "--suite", "mini", "--seed", "-1"], "seed is -1"),
    "a network of a control": (["eval", "random", "--network", "student", "--suite", "mini"], "leave --network out"),
    "a twin of a control": (
        ["eval", "random:pixels", "--suite", "mini"],
        "pixels has no untrained twin: it is a control",
    ),
    "a twin of nothing": (["eval", "random:", "--suite", "mini"], "there is no encoder"),
    "a name of an encoder of ours": (["eval", "x.toml", "--name", "random", "--suite", "mini"], "choose another name"),
    "a name for two": (["eval", "x.toml", "pixels", "--name", "a", "--suite", "mini"], "--name is for one encoder"),
    "a name that leads out": (["eval", "x.toml", "--name", "../a", "--suite", "mini"], "letters, digits"),
    "a name for the zoo": (["eval", "pixels", "--name", "a", "--suite", "mini"], "pixels has its name"),
    "an encoder in two lines": (["eval", "a\nb", "--suite", "mini"], "named 'a\\nb'"),
    "a file in two lines": (["eval", "a\nb.pth", "--suite", "mini"], "no checkpoint file at a?b.pth"),
    "a demo of inf MB": (["demo", "pixels", "--max-mb", "inf"], "--max-mb inf: it is a number"),
    "a suite's name that is endless": (["table", NAME], "5,000 characters"),
}


@pytest.mark.parametrize("case", SAID)
def test_it_is_said_in_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.toml").write_text('family = "fake"\narch = "fake_patch8"\ncontrol = true\n')
    line, words_of_it = SAID[case]
    assert run(line, monkeypatch) == 1
    said = capsys.readouterr().err
    assert said.startswith("evalkit: ") and words_of_it in said, said
    assert len(said.strip().splitlines()) == 1 and len(said) < 1500
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("line", "words_of_it"),
    [
        (["eval", "pixels", "--limit", "x"], "'--limit': 'x': Input should be a valid integer"),
        (["eval", "pixels", "--device", "tpu"], "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        (
            ["eval", "pixels", "--outt", "x"],
            "No such option: --outt (Possible options: --out, --suite); evalkit eval --help",
        ),
        (["nosuch"], "No such command 'nosuch'; evalkit --help says what there is"),
        (["compare", "a"], "Missing argument 'other'"),
        (["table", "mini", "a\nb"], "unexpected extra argument"),
        (["eval", "--" + NAME], "No such option: --xxx"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_exit_code_2(
    line: list[str], words_of_it: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line, monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.startswith("evalkit: ") and said.count("\n") == 1 and words_of_it in said, said
    assert len(said) < 500


def test_what_a_file_system_refuses_is_a_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "a\nb"))

    monkeypatch.setattr(entry, "app", refused)
    assert run([], monkeypatch) == 1
    assert capsys.readouterr().err == f"evalkit: {tmp_path}/a\nb: Permission denied\n"
