"""Every command of docs/pictures.md is run as it stands, and every picture that the page shows is there."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from evalkit.cli import show
from evalkit.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "pictures.md").read_text("utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
assert COMMANDS, "docs/pictures.md has no command any more"


@pytest.mark.parametrize("line", COMMANDS, ids=[" ".join(line.split()[2:3]) for line in COMMANDS])
def test_the_command_draws(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line)
    out = tmp_path / words[words.index("--out") + 1]
    words[words.index("--out") + 1] = str(out)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    with Image.open(out) as picture:
        assert min(picture.size) > 100


def test_every_picture_is_named_and_there() -> None:
    assert all((ROOT / "docs" / path).exists() for path in re.findall(r"!\[[^]]+\]\(([^)]+)\)", TEXT))
    said = set(re.findall(r"`(?:evalkit show )?([a-z-]+)`", TEXT)) | {line.split()[2] for line in COMMANDS}
    assert {name.replace("_", "-") for name in show.names()} <= said
