"""`evalkit show segmentation`: the picture of a record, and what it says where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from evalkit import catalog
from evalkit.cli.main import app
from evalkit.engine.evaluate import evaluate

RECIPE = """
version = 1
title = "stripes"
runner = "segmentation"
headline = "mIoU"
[source]
paper = "none"
[dataset]
name = "masked_folder"
folder = "masked"
[config]
crop = 32
train_scale = [64, 32]
test_scale = [64, 32]
stride = 16
steps = 2
batch = 2
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    for split in ("train", "test"):
        for number in range(3):
            labels = np.random.default_rng(number).integers(0, 2, (4, 6)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
            for folder, pixels in (("images", np.stack([labels * 200] * 3, -1)), ("masks", labels)):
                (tmp_path / "masked" / folder / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(tmp_path / "masked" / folder / split / f"{number}.png")
    (tmp_path / "masked/classes.txt").write_text("dark\nbright\n")
    (tmp_path / "stripes.toml").write_text(RECIPE)
    return tmp_path


def show(place, *more):
    given = ["show", "segmentation", "pixels", "--recipe", str(place / "stripes.toml"), "--data", f"masked={place / 'masked'}",
             "--runs", str(place / "runs"), "--out", str(place / "picture.png"), *more]  # fmt: skip
    return CliRunner().invoke(app, given)


@pytest.mark.parametrize(
    ("more", "names"), [(["--worst"], 3), (["--best", "--images", "1"], 1), (["--images", "2"], 2)]
)
def test_the_head_of_the_record_is_drawn(place, more, names):
    evaluate(
        "pixels", catalog.recipe(str(place / "stripes.toml")), data={"masked": place / "masked"}, out=place / "runs"
    )
    result = show(place, *more)
    assert result.exit_code == 0, result.output
    assert result.output.count(".png,") + 1 == names
    with Image.open(place / "picture.png") as picture:
        assert picture.width > 800


def test_what_is_missing_is_said(place):
    result = show(place)
    assert result.exit_code != 0
    said = str(result.exception or result.output)
    assert "no record of pixels" in said and "evalkit eval" in said
    both = show(place, "--worst", "--best")
    assert "one at a time" in str(both.exception or both.output)
