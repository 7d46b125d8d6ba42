"""`evalkit show kmeans | pca | attention | correspondence` on a shipped photo, and what they refuse."""

from __future__ import annotations

import sys

import pytest
from PIL import Image

from evalkit import catalog
from evalkit.cli.main import main

PHOTOS = sorted((catalog.shipped_data() / "coco" / "val2017").glob("*.jpg"))[:2]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["evalkit", "show", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    return 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kmeans", "micro-dino", *PHOTOS], "2 image(s)"),
        (["pca", "micro-dino", *PHOTOS], "2 image(s)"),
        (["attention", "micro-dino", PHOTOS[0]], "3 heads"),
        (["attention", "micro-dino", PHOTOS[0], "--at", "10,20"], "3 heads"),
        (["correspondence", "micro-dino", PHOTOS[0]], "right: within a patch's width"),
        (["correspondence", "micro-dino", *PHOTOS], "matches"),
    ],
)
def test_pictures_are_drawn(arguments, said, tmp_path, monkeypatch, capsys):
    out = tmp_path / "deep" / "picture.png"
    assert run(monkeypatch, *arguments, "--size", "64", "--out", out) == 0
    assert said in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.width > 300 and len(picture.convert("RGB").getcolors(1 << 20) or ()) > 50


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kmeans", "micro-dino", "nowhere.jpg"], "nowhere.jpg: cannot be read"),
        (["kmeans", "micro-dino", __file__], "test_show_maps.py"),
        (["kmeans", "micro-dino", PHOTOS[0], "--clusters", "65"], "65 clusters of"),
        (["pca", "micro-dino", PHOTOS[0], "--size", "4"], "8 to 512"),
        (["attention", "pixels", PHOTOS[0]], "pixels has no attention"),
        (["attention", "micro-dino", PHOTOS[0], "--at", "x"], "it is X,Y"),
        (["attention", "micro-dino", PHOTOS[0], "--at", "9999,1"], "lies outside the image"),
        (["correspondence", "micro-dino", PHOTOS[0], "--out", "picture.jpg"], "written as PNG"),
    ],
)
def test_bad_input_gets_one_clear_message(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments, *([] if "--size" in arguments else ["--size", "64"])) == 1
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and not list(tmp_path.glob("*.png"))


def test_tsne_of_a_recipe(tmp_path, monkeypatch, capsys):
    out = tmp_path / "t.png"
    assert (
        run(
            monkeypatch,
            "tsne",
            "pixels",
            "--recipe",
            "mini-knn-ccp-items",
            "--by",
            "mean",
            "--limit",
            "40",
            "--out",
            out,
        )
        == 0
    )
    assert "40 images" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.width > 800
    few = ("tsne", "pixels", "--recipe", "mini-knn-ccp-items", "--limit", "2", "--out", out)
    assert run(monkeypatch, *few) == 1
    assert "at least three" in capsys.readouterr().err
