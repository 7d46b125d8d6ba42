"""`show prompt` and `show similarity`: pictures that say what was asked, and clear answers to what cannot be drawn."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evalkit.cli.main import main
from evalkit.reporting.figures import canvas, similarity
from evalkit.reporting.figures.prompt import Prompted, draw
from tests.datasets import dataset_makers as make


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 30:] = (250, 200, 10)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def said(capsys, monkeypatch, tmp_path):
    """Run `evalkit show`: exit code, what was said, what was complained of."""
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["evalkit", "show", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), " ".join(out.split()), " ".join(err.split())

    return run


def outlined(first: int) -> dict:
    """The document of `coco`, each box outlined by itself."""
    document = make.coco_document(first=first)
    for row in document["annotations"]:
        x, y, w, h = row["bbox"]
        row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return document


def test_the_mask_is_what_looks_like_the_prompt(photo, tmp_path, said):
    out = tmp_path / "drawn" / "p.png"
    code, text, _ = said(
        "prompt", "pixels", str(photo), "--at", "45,20", "--size", "64", "--threshold", "0.9", "--out", str(out)
    )
    assert code == 0 and "50.0 % of the image are above 0.9" in text
    assert width(out) > 1000


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("60,0", "lies outside"), ("0,40", "x is 0 to 59, y is 0 to 39"), ("-1,5", "lies outside"),
        ("5", "it is X,Y in whole pixels"), ("a,b", "it is X,Y in whole pixels"),
    ],
)  # fmt: skip
def test_a_prompt_that_cannot_be(photo, at, message, tmp_path, said):
    code, _, error = said("prompt", "pixels", str(photo), f"--at={at}", "--out", str(tmp_path / "p.png"))
    assert code == 1 and message in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.png", "--at", "1,1"], "cannot be read"),
        (["x", "--at", "1,1", "--recipe", "mini-knn-ccp-items"], "prompts are of:"),
        (["x", "--at", "1,1", "--recipe", "mini-prompt-coco"], "x"),
        (["x", "--at", "1,1", "--out", "p.jpg"], "ends in .png"),
    ],
)
def test_what_cannot_be_drawn(words, message, said):
    code, _, error = said("prompt", "pixels", *words)
    assert code == 1 and message in error


def test_where_the_truth_is_known_object_and_background_are_told(tmp_path, said):
    root, out = make.coco(tmp_path / "coco", outlined(1), outlined(5)), tmp_path / "p.png"
    from evalkit.datasets import coco_instances

    data = coco_instances.open(root, "val", coco_instances.Config())
    masks = [one.mask for one in data.objects(0)]
    covered = np.any(masks, axis=0)
    for wanted, text in ((covered, "the prompt lies on: "), (~covered, "the prompt lies on the background")):
        y, x = map(int, np.argwhere(wanted)[0])
        code, told, _ = said(
            "prompt", "pixels", data[0].id, f"--at={x},{y}", "--recipe", "prompt-coco", "--data", f"coco={root}",
            "--out", str(out),
        )  # fmt: skip
        assert code == 0 and text in told
        assert ("IoU" in told) == (wanted is covered)


def test_mask_and_iou_of_a_prompt():
    cosines = np.array([[1.0, 0.2], [0.3, 0.25]], np.float32)
    truth = np.zeros((5, 4), bool)
    truth[:, :2] = True
    found = Prompted(Image.new("RGB", (4, 5)), (0, 0), cosines, 0.25, (0, 0), truth)
    assert found.mask.tolist() == [[True, True, False, False]] * 2 + [[True, True, False, False]] * 3
    assert found.iou == 1.0
    higher = Prompted(Image.new("RGB", (4, 5)), (0, 0), cosines, 0.3, (0, 0), truth)
    assert higher.mask.sum() == 4 and higher.iou == 4 / 10  # 0.3 as float32 does not exceed itself


def width(path: Path) -> int:
    with Image.open(path) as image:
        return image.width


def colours(image):
    return {colour for _, colour in image.getcolors(image.width * image.height)}


def test_the_pictures_show_prompt_mask_and_object():
    truth = np.zeros((30, 40), bool)
    truth[10:20, 10:30] = True
    drawn = draw(
        Prompted(Image.new("RGB", (40, 30)), (20, 15), np.eye(4, dtype=np.float32), 0.5, (1, 2), truth, "a", "b")
    )
    assert {canvas.VERMILION, canvas.ORANGE, canvas.BLUE} <= colours(drawn)
    without = draw(Prompted(Image.new("RGB", (40, 30)), (20, 15), np.eye(4, dtype=np.float32), 0.5, (1, 2)))
    assert canvas.ORANGE not in colours(without)


def test_similarity_is_drawn_for_every_scope(tmp_path, said):
    out = tmp_path / "s.png"
    code, text, _ = said("similarity", "pixels", "--limit", "4", "--out", str(out))
    assert code == 0 and "category: overlap 0." in text and "instance: overlap" in text
    assert width(out) > 1000
    code, _, error = said("similarity", "pixels", "--recipe", "mini-prompt-coco")
    assert code == 1 and "similarities are of:" in error


def test_densities_have_area_one():
    counts = np.array([[0, 3, 1, 0], [0, 0, 0, 0]])
    found = similarity.densities(counts)
    assert (found * 0.5).sum(axis=1).tolist() == [1, 0]
