"""The fenced blocks of README.md and docs/, and what can be said of a command without running it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import typer

from evalkit import adapters, catalog, datasets
from evalkit.cli.main import app
from evalkit.pretrain.experiment import names as methods

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))]

RUN = ("sh", "python")
SHOWN = ("text", "console", "toml", "json")
"""Languages of blocks that are not run: what a program says, a session with its output, files. Commands in them are checked."""

OTHERS = {
    "docs/add-a-checkpoint.md": "tests/test_docs.py",
    "docs/add-a-family.md": "tests/test_docs_family.py",
    "docs/pictures.md": "tests/test_docs_pictures.py",
}
"""Pages that a test of their own follows: their blocks are checked here and run there."""


@dataclass(frozen=True)
class Block:
    """One fenced block. needs: what it cannot run without, "" where it can run here. title: the file that it is."""

    page: str
    line: int
    language: str
    needs: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        """Whether it is to be run here."""
        return self.language in RUN and not self.needs and self.page not in OTHERS


def blocks(page: str, text: str | None = None) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = (ROOT / page).read_text("utf-8") if text is None else text
    found = []
    for block in re.finditer(r"^```([^\n`]*)\n(.*?)^```\s*$", text, re.MULTILINE | re.DOTALL):
        language, _, rest = block[1].partition(" ")
        marks = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        if unknown := re.sub(r'\w+="[^"]*"', "", rest).strip() or ", ".join(marks.keys() - {"needs", "title"}):
            raise ValueError(f'{page}: {unknown!r} after ```{language}: marks are needs="..." and title="..."')
        line = text[: block.start()].count("\n") + 1
        found.append(Block(page, line, language, marks.get("needs", ""), marks.get("title", ""), block[2]))
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of a block; comments and continued lines are understood, output is left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "sh":
        wanted = lines
    elif block.language == "console":
        wanted = [line[2:] for line in lines if line.startswith("$ ")]
    else:
        wanted = []
    for line in wanted:
        if words := shlex.split(line, comments=True):
            yield words


def check(block: Block) -> None:
    """Raises ValueError for a block of an unknown language and for a command that the program would refuse."""
    if block.language not in (*RUN, *SHOWN):
        raise ValueError(f"{block}: language {block.language!r}; it is one of {', '.join((*RUN, *SHOWN))}")
    if block.language == "text" and re.search(r"^(\$ )?(evalkit|make) \w", block.text, re.MULTILINE):
        raise ValueError(f"{block}: a command in a block of text: use sh, or console where output follows")
    for words in commands(block):
        try:
            check_command(words)
        except (ValueError, OSError) as error:
            raise ValueError(f"{block}: {shlex.join(words)}: {error}") from None


def check_command(words: list[str]) -> None:
    """Raises ValueError where a command does not exist, or an option, recipe, suite, encoder, data set or method in it."""
    if words[0] == "evalkit":
        _check_evalkit(words[1:])
    elif words[0] == "make":
        known = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        if wrong := [w for w in words[1:] if "=" not in w and w not in known]:
            raise ValueError(f"no target {', '.join(wrong)}; targets: {', '.join(known)}")
    elif words[0] == "pytest":
        if wrong := [w for w in words[1:] if "/" in w and not (ROOT / w).exists()]:
            raise ValueError(f"no such test file: {', '.join(wrong)}")
    elif words[:2] not in ([".", ".venv/bin/activate"], ["pip", "install"]):
        raise ValueError("commands are evalkit, make, pytest, pip install and the activation of .venv")


def _check_evalkit(words: list[str]) -> None:
    command, path = typer.main.get_command(app), []
    while hasattr(command, "commands"):
        if words[:1] == ["--version"]:
            return
        if not words or words[0] not in command.commands:
            raise ValueError(f"no command {words[0] if words else ''!r}; there are {', '.join(command.commands)}")
        path.append(words[0])
        command = command.commands[words.pop(0)]
    try:
        values = command.make_context("evalkit", list(words)).params
    except Exception as error:  # noqa: BLE001 - click's exceptions have no base that typer makes public
        raise ValueError(getattr(error, "message", None) or str(error)) from None
    for name, known in _KNOWN.items():
        given = values.get(name)
        for value in [given] if isinstance(given, str) else given or []:
            _require(name, str(value).removeprefix(catalog.TWIN), known(path))


def _require(what: str, value: str, known: list[str]) -> None:
    """A name is known, or a file, or a placeholder in capitals."""
    if known and value and value not in known and not re.search(r"[./]|^[A-Z*]+$", value):
        raise ValueError(f"{what} {value!r} is not known")


def _names(path: list[str]) -> list[str]:
    """What `name` and `encoder` are of a command."""
    every = [*catalog.manifests(), *catalog.recipes(), *catalog.suites()]
    return {"describe": every, "fetch": catalog.manifests(), "regress": catalog.manifests()}.get(path[0], [])


@cache
def _folders() -> list[str]:
    return [*datasets.names(), *{catalog.recipe(r).dataset.folder for r in catalog.recipes()}]


_KNOWN: dict[str, Callable[[list[str]], list[str]]] = {
    "recipe": lambda path: catalog.recipes(),
    "probe": lambda path: catalog.recipes(),
    "suite": lambda path: catalog.suites(),
    "checkpoint": lambda path: [*catalog.manifests(), "shipped"],
    "encoder": _names,
    "name": _names,
    "family": lambda path: list(adapters.names()),
    "dataset": lambda path: _folders(),
    "method": lambda path: ["list", *methods()],
}
"""By name of a parameter, the values that it may have; files stand for all of them."""


def inline(page: str) -> Iterator[str]:
    """Commands in running text that are whole: no dots, no choices, no capitals in place of a command."""
    text = re.sub(r"^```.*?^```\s*$", "", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for found in re.findall(r"`(evalkit [^`]+)`", text):
        said = " ".join(found.split())
        if not re.search(r"\.\.\.|\||evalkit [A-Z]", said):
            yield said


def check_inline(said: str) -> None:
    """Raises ValueError where command or options do not exist; arguments may be left out."""
    command, words = typer.main.get_command(app), shlex.split(said)[1:]
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    if hasattr(command, "commands"):
        if all(word.isupper() or word == "--help" for word in words):
            return  # a group of commands, or any of them
        raise ValueError(f"no command {words[:1]}; there are {', '.join(command.commands)}")
    known = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)} | {"--help"}
    if wrong := [w for w in words if w.startswith("-") and w.split("=")[0] not in known]:
        raise ValueError(f"no option {', '.join(wrong)}")
