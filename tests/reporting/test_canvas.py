"""The base of pictures: where things stand, which colours they have, and that files are whole."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evalkit.errors import UsageError
from evalkit.reporting.figures import canvas


def red(width: int = 40, height: int = 20) -> Image.Image:
    return Image.new("RGB", (width, height), (255, 0, 0))


def colours(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def seen_by(colour: canvas.Colour, kind: str) -> np.ndarray:
    """A colour as people with protanopia or deuteranopia see it (Viénot, Brettel and Mollon 1999), linear light."""
    light = (np.array(colour) / 255) ** 2.2
    into = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
    lms = into @ light
    if kind == "protan":
        lms[0] = 2.02344 * lms[1] - 2.52581 * lms[2]
    else:
        lms[1] = 0.494207 * lms[0] + 1.24827 * lms[2]
    return np.clip(np.linalg.solve(into, lms), 0, 1) ** (1 / 2.2) * 255


@pytest.mark.parametrize("kind", ["protan", "deutan"])
def test_the_palette_can_be_told_apart(kind: str):
    assert len(set(canvas.PALETTE)) == len(canvas.PALETTE) >= 7
    for one, two in itertools.combinations(canvas.PALETTE, 2):
        assert np.abs(seen_by(one, kind) - seen_by(two, kind)).max() > 25, (one, two)


def test_right_and_wrong_differ_in_more_than_colour():
    assert canvas.RIGHT.dashed != canvas.WRONG.dashed
    assert canvas.RIGHT.mark != canvas.WRONG.mark
    tile = Image.new("RGB", (112, 112), canvas.EMPTY)
    right, wrong = (colours(canvas.framed(tile, frame)) for frame in (canvas.RIGHT, canvas.WRONG))
    lower = slice(-4, None)
    assert (right[lower] == canvas.RIGHT.colour).all()  # unbroken
    runs = [tuple(c) for c, _ in itertools.groupby(wrong[-1].tolist())]
    assert len(runs) >= 5 and set(runs) == {canvas.WRONG.colour, canvas.PAPER}
    assert runs[0] == runs[-1] == canvas.WRONG.colour


def test_a_fitted_image_keeps_its_aspect_and_stands_in_the_middle():
    tile = colours(canvas.fitted(red(40, 20), 60, 60))
    inside = (tile == (255, 0, 0)).all(axis=2)
    assert (inside.sum(axis=0).max(), inside.sum(axis=1).max()) == (30, 60)
    assert inside[15:45].all() and not inside[:15].any() and not inside[45:].any()


@pytest.mark.parametrize("count", [1, 5, 24, 48])
def test_tiles_stand_in_rows(count: int):
    shades = [Image.new("RGB", (9, 9), (i, 0, 200)) for i in range(count)]
    grid = colours(canvas.tiles(shades, [""] * count, columns=6, size=30))
    step = 30 + canvas.GAP
    assert grid.shape[:2] == (-(-count // 6) * step - canvas.GAP, min(count, 6) * step - canvas.GAP)
    for i in range(count):
        row, column = divmod(i, 6)
        assert grid[row * step + 15, column * step + 15].tolist() == [i, 0, 200]


def test_captions_make_room_below_their_tile():
    plain = canvas.tiles([red(), red()], ["", ""], columns=2, size=50)
    said = canvas.tiles([red(), red()], ["one\ntwo", ""], columns=2, size=50)
    assert said.height > plain.height and said.width == plain.width
    assert (colours(said)[:50] == colours(plain)).all()
    below = colours(said)[50:]
    assert (below[:, :50] != 255).any() and (below[:, 58:] == 255).all()


def test_long_texts_are_cut_in_the_middle_to_the_width():
    text = "/a/very/long/path/to/a/picture/000000012345.jpg"
    short = canvas.shortened(text, 100, canvas.font())
    assert canvas.font().getlength(short) <= 100
    head, tail = short.split("…")
    assert text.startswith(head) and text.endswith(tail)
    assert canvas.shortened("short", 100, canvas.font()) == "short"


def test_what_a_grid_refuses():
    with pytest.raises(UsageError, match="0 tiles"):
        canvas.tiles([], [], columns=3)
    with pytest.raises(UsageError, match="belong together"):
        canvas.tiles([red()], ["a", "b"], columns=3)


def test_heat_goes_from_dark_to_bright_and_missing_values_are_grey():
    values = np.array([[-1.0, 0.0], [1.0, np.nan]])
    map_ = colours(canvas.heat(values, (20, 20)))
    light = lambda row, column: map_[row, column].sum()
    assert light(5, 5) < light(5, 15) < light(15, 5)
    assert map_[15, 15].tolist() == list(canvas.EMPTY)
    assert (map_[:10, :10] == map_[0, 0]).all()  # a cell is one block
    beyond = colours(canvas.heat(np.array([[-9.0, 9.0]]), (2, 1)))
    assert (beyond == colours(canvas.heat(np.array([[-1.0, 1.0]]), (2, 1)))).all()
    with pytest.raises(UsageError, match="low < high"):
        canvas.heat(values, (4, 4), low=1, high=1)
    with pytest.raises(UsageError, match="shape"):
        canvas.heat(np.zeros(3), (4, 4))


def test_smooth_heat_mixes_values_and_not_colours():
    smooth = colours(canvas.heat(np.array([[-1.0, 1.0]]), (101, 1), smooth=True))
    middle = colours(canvas.heat(np.array([[0.0]]), (1, 1)))[0, 0]
    assert np.abs(smooth[0, 50] - middle).max() <= 6


def test_overlay_and_contour_touch_the_mask_alone():
    image = Image.new("RGB", (30, 20), (100, 100, 100))
    mask = np.zeros((20, 30), bool)
    mask[5:15, 8:20] = True
    over = colours(canvas.overlay(image, mask, canvas.BLUE, alpha=0.5))
    assert (over[~mask] == 100).all()
    assert (over[mask] == np.round(50 + np.array(canvas.BLUE) / 2)).all()
    line = colours(canvas.contour(image, mask, canvas.ORANGE, width=2))
    assert (line[7:13, 10:18] == 100).all()
    assert (line[5:7, 8:20] == canvas.ORANGE).all()
    assert (line[4, 8:20] == 255).all() and (line[3] == 100).all()
    for draw in (canvas.overlay, canvas.contour):
        with pytest.raises(UsageError, match="mask of shape"):
            draw(image, mask.T, canvas.BLUE)


def test_titles_stand_above_and_may_widen():
    wide = canvas.widened(red(), "a title that needs more room than forty pixels")
    titled = canvas.titled(wide, "a title that needs more room than forty pixels", "note")
    assert titled.width == wide.width > 200 and titled.height > wide.height + 25
    assert (colours(titled)[-20:, :40] == (255, 0, 0)).all()


def test_a_file_is_replaced_whole(tmp_path: Path):
    path = canvas.save(red(), tmp_path / "new/folder/a.png")
    canvas.save(red(7, 7), path)
    with Image.open(path) as image:
        assert image.size == (7, 7)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_names_and_folders_that_cannot_be_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"ends in \.png"):
        canvas.save(red(), tmp_path / "a.jpg")
    (tmp_path / "file").write_text("")
    for check in (canvas.check, lambda path: canvas.save(red(), path)):
        with pytest.raises(UsageError, match="cannot be written"):
            check(tmp_path / "file/a.png")
    assert not list(tmp_path.glob("**/*.part"))
