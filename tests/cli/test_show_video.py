"""`evalkit show video` on the shipped clips."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evalkit.cli.main import main


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["evalkit", "show", "video", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return code, *capsys.readouterr()

    return run


def test_a_strip_of_the_first_clip(show) -> None:
    code, out, err = show("pixels", "--frames", 4, "--columns", 2)
    assert code == 0, err
    assert out.startswith("video.png: pixels · mini-video · pasture, J&F ")
    assert "over frames 2 to 11 of 12" in out
    with Image.open("video.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 100


def test_a_film_of_the_other(show) -> None:
    code, out, err = show("pixels", "--clip", "luggage", "--out", "films/l.gif")
    assert code == 0, err
    assert "luggage" in out
    with Image.open("films/l.gif") as film:
        assert film.n_frames == 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--clip", "pastor"), "no clip named 'pastor'. Did you mean pasture?"),
        (("--recipe", "knn-cifar10"), "is a recipe of the runner knn; videos are of: mini-video, video-davis2016"),
        (("--out", "film.avi"), "ends in .mp4, .gif (film) or .png (strip)"),
        (("--recipe", "video-davis2017"), "--data davis2017=PATH"),
    ],
)
def test_what_cannot_be_shown(show, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVALKIT_DATA", raising=False)
    code, _, err = show("pixels", *words)
    assert code == 1
    assert message in err
