"""docs/video.md names what there is: its commands, recipes and encoders, and a picture of bearable size."""

from __future__ import annotations

import re
from pathlib import Path

from evalkit import catalog

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs/video.md").read_text("utf-8")


def test_every_recipe_of_the_table_is_there() -> None:
    named = set(re.findall(r"^\| `((?:mini-)?video[\w-]*)`", TEXT, re.MULTILINE))
    there = {name for name in catalog.recipes() if "video" in name}
    assert named <= there
    assert there - named <= {"mini-video", "video-davis2016-dino-released"}


def test_links_and_the_picture() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
    assert (ROOT / "docs/images/video-mini.png").stat().st_size < 300_000
