"""docs/add-a-checkpoint.md is followed to the letter: its manifest is written, its commands are run, in its order.

The only liberties: its server is not asked, and its mirror /mnt/weights is a folder of the test.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from pathlib import Path

import pytest

from evalkit import catalog
from evalkit.cli.main import main
from evalkit.types import Manifest, PublishedAs

PAGE = Path(__file__).resolve().parents[1] / "docs" / "add-a-checkpoint.md"
TEXT = PAGE.read_text("utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)


def commands() -> list[list[str]]:
    return [shlex.split(line) for block in blocks("sh") for line in block.splitlines() if line.strip()]


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", words)
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


@pytest.fixture
def weights() -> dict[str, object]:
    """Random weights in DINO's released layout, made by the control of the same architecture."""
    from evalkit import adapters

    return adapters.load(Manifest(id="x", family="random", arch="vit_tiny_patch16", seed=0)).vit.state_dict()


def test_the_example_works_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], weights: dict[str, object]
) -> None:
    import torch

    (tmp_path / "mnt/2024").mkdir(parents=True)
    torch.save(weights, tmp_path / "mnt/2024/my_dino.pth")
    (manifest,) = blocks("toml")
    (tmp_path / "my-dino.toml").write_text(manifest)
    monkeypatch.chdir(tmp_path)
    said = []
    for words in commands():
        if words == ["evalkit", "fetch", "my-dino.toml"]:
            continue  # asks a server that does not exist
        words = [w.replace("file:///mnt/weights", (tmp_path / "mnt").as_uri()) for w in words]
        assert run(words, monkeypatch) == 0, capsys.readouterr().err
        said.append(capsys.readouterr().out)
    assert [words[1] for words in commands()] == ["describe", "fetch", "fetch", "eval"]
    assert "weights: not downloaded" in said[0]
    assert "my-dino: fetched" in said[1] and "recorded at the first download" in said[1]
    assert "1 measured now" in said[2]
    assert len(list((tmp_path / "runs/my-dino").glob("mini-knn-ccp-items.*.json"))) == 1


def test_the_table_of_keys_is_whole() -> None:
    told = set(re.findall(r"`\[?([a-z0-9_]+)\]?`", "".join(re.findall(r"^\| (`.*?) \|", TEXT, re.MULTILINE))))
    fields = {f.name for f in dataclasses.fields(Manifest)}
    assert told <= fields
    assert fields - told == {"id", "title", "shipped", "control", "seed", "published", "training"}
    row = next(line for line in TEXT.splitlines() if line.startswith("| `[published_as]`"))
    assert {f.name for f in dataclasses.fields(PublishedAs)} <= set(re.findall(r"`([a-z_]+)`", row))


def test_what_the_page_quotes_is_what_is_said() -> None:
    source = "".join(p.read_text("utf-8") for p in (Path(catalog.__file__).parent / "download").glob("*.py"))
    for quoted in re.findall(r"^- \*(.*?)\*", TEXT, re.MULTILINE):
        assert quoted in source
