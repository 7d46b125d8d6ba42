"""Pictures of a report: drawn once, named by their command, missing with a reason, never of another network."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from evalkit import catalog
from evalkit.cli import report, show
from evalkit.errors import Unsupported, UsageError
from evalkit.reporting.site import pictures
from evalkit.reporting.site.board import Encoder

PIXELS = Encoder(
    "pixels (abc)", "pixels", {"id": "pixels", "family": "pixels", "arch": "pixels_patch8_64", "digest": "d"}, True
)


class Pencil:
    """Draws a white picture, and counts."""

    def __init__(self) -> None:
        self.drawn: list[str] = []

    def __call__(self, kind: str, arguments: Mapping[str, Any], path: Path) -> None:
        self.drawn.append(kind)
        if kind == "attention":
            raise Unsupported("pixels has no attention")
        if kind == "video":
            raise UsageError("a clip is gone")
        Image.new("RGB", (60, 20), "white").save(path)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_second_time_nothing_is_drawn_but_what_failed(tmp_path: Path) -> None:
    pencil = Pencil()
    first = list(pictures.make(PIXELS, pencil, tmp_path / "out"))
    assert pencil.drawn == [kind.name for kind in pictures.kinds()] and len(first) >= 10
    assert {p.file for p in first if p.file} == {p.name for p in (tmp_path / "out").iterdir()}
    assert all(p.size == (60, 20) and p.alt.startswith("pixels: ") for p in first if p.file)
    again = Pencil()
    assert list(pictures.make(PIXELS, again, tmp_path / "other")) == first
    assert again.drawn == ["attention", "video"]


def test_what_an_encoder_lacks_is_told_apart_from_what_failed(tmp_path: Path) -> None:
    why = {p.kind: p.why for p in pictures.make(PIXELS, Pencil(), tmp_path) if not p.file}
    assert why == {"attention": "pixels has no attention", "video": f"{pictures.FAILED}: a clip is gone"}


def test_another_network_or_photo_is_drawn_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list(pictures.make(PIXELS, Pencil(), tmp_path))
    other, pencil = Encoder("x", "pixels", {**PIXELS.spec, "digest": "e"}, True), Pencil()
    list(pictures.make(other, pencil, tmp_path))
    assert len(pencil.drawn) == len(pictures.kinds())
    monkeypatch.setattr(pictures, "_state", lambda path: "another photo")
    list(pictures.make(PIXELS, pencil := Pencil(), tmp_path))
    assert len(pencil.drawn) == len(pictures.kinds())


def test_a_deleted_photo_is_said_in_the_place_of_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "shipped_data", lambda: tmp_path / "mini")
    monkeypatch.setattr(pictures, "kinds", lambda kinds=pictures.kinds: kinds()[:1])
    (found,) = pictures.make(PIXELS, report._draw, tmp_path / "out")
    assert found.file == "" and found.why.startswith(pictures.FAILED) and "000000058636.jpg" in found.why


def test_only_the_shipped_network_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    micro = replace(catalog.manifest("micro-dino"), network="teacher")
    spec = {
        "id": "micro-dino",
        "family": micro.family,
        "arch": micro.arch,
        "digest": micro.sha256,
        "network": micro.network,
    }
    monkeypatch.setattr(catalog, "manifest", {"micro-dino": micro, "pixels": catalog.manifest("pixels")}.__getitem__)
    monkeypatch.setattr(catalog, "shipped_encoders", lambda: ["micro-dino", "pixels"])
    assert pictures.is_shipped(Encoder("a", "a", spec, False)) and pictures.is_shipped(PIXELS)
    for other in ({"digest": "0" * 64}, {"network": "student"}, {"id": "dino-s16"}, {"arch": "vit_small_patch16"}):
        assert not pictures.is_shipped(Encoder("a", "a", {**spec, **other}, False))


def test_commands_are_those_of_the_command_line() -> None:
    from typer.main import get_command

    known = get_command(show.app)
    for kind in pictures.kinds():
        words = shlex.split(kind.command("micro-dino"))
        assert words[:2] == ["evalkit", "show"]
        command = known.commands[words[2]]  # type: ignore[attr-defined]
        command.make_context(words[2], words[3:])  # raises for an option that is not there
        assert all((catalog.root() / w).exists() for w in words if w.startswith("mini/"))
