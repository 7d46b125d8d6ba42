"""`evalkit data verify`: where data lie, and what is said of both splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from evalkit.cli.data import app
from evalkit.errors import MissingFiles, UsageError

RECIPE = """version = 1
title = "t"
runner = "segmentation"
headline = "mIoU"
needs = ["patches", "blocks"]
[source]
paper = "none"
note = "a test"
[dataset]
name = "masked_folder"
folder = "mine"
train = "train"
test = "val"
[dataset.config]
classes = {classes}
"""


def masks(root: Path, coin: int) -> Path:
    for split in ("train", "val"):
        for kind, ending in (("images", "jpg"), ("masks", "png")):
            folder = root / "mine" / kind / split
            folder.mkdir(parents=True)
            pixels = np.zeros((8, 8), np.uint8)
            pixels[:4] = coin
            Image.fromarray(pixels).save(folder / f"a.{ending}")
    return root


def images(root: Path) -> Path:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(root / split / name / "a.jfif", "JPEG")
    (root / "train/cat/notes.txt").write_text("x")
    return root


def said(*words: str) -> str:
    found = CliRunner().invoke(app, ["verify", *words])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.output


@pytest.mark.parametrize("form", ["image_folder={}", "{}"])
def test_a_path_is_given_as_everywhere_or_alone(tmp_path: Path, form: str) -> None:
    text = said("image_folder", "--data", form.format(images(tmp_path)))
    assert "complete as image_folder" in text and "image_folder (train): passed over beside the images: 1 .txt" in text


def test_the_path_of_another_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--data names cifar10, but image_folder was asked for"):
        said("image_folder", "--data", f"cifar10={images(tmp_path)}")


def test_a_recipe_file_has_its_own_options_and_a_class_that_nothing_carries_is_named(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE.format(classes='["background", "coin", "never"]'))
    text = said(str(recipe), "--data-root", str(masks(tmp_path, coin=1)))
    assert "complete" in text and text.count("no labelled pixel is never") == 2


def test_masks_of_0_and_255_are_a_problem(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE.format(classes='["background", "coin"]'))
    with pytest.raises(MissingFiles, match=r"no labelled pixel is coin"):
        said(str(recipe), "--data-root", str(masks(tmp_path, coin=255)))
