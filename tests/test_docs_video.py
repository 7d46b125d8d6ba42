"""docs/video.md names what there is: its commands, recipes and encoders, and a picture of bearable size."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from evalkit import catalog
from evalkit.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs/video.md").read_text("utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_can_be_read(line: str) -> None:
    command, words = typer.main.get_command(app), shlex.split(line)[1:]
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    values = command.make_context("evalkit", words).params
    named = values.get("recipe") or []
    for recipe in [named] if isinstance(named, str) else named:
        assert recipe in catalog.recipes()
    given = values.get("checkpoint") or []
    for encoder in [given] if isinstance(given, str) else given:
        assert encoder in catalog.manifests()


def test_every_recipe_of_the_table_is_there() -> None:
    named = set(re.findall(r"^\| `((?:mini-)?video[\w-]*)`", TEXT, re.MULTILINE))
    there = {name for name in catalog.recipes() if "video" in name}
    assert named <= there
    assert there - named <= {"mini-video", "video-davis2016-dino-released"}


def test_links_and_the_picture() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
    assert (ROOT / "docs/images/video-mini.png").stat().st_size < 300_000
