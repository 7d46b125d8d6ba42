"""Pictures of a followed clip: what is painted where, and the files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from evalkit.errors import UsageError
from evalkit.reporting.figures import canvas
from evalkit.reporting.figures import video as drawing

GREY = (100, 100, 100)


def clip(frames: int = 5, sparse: bool = False) -> drawing.Followed:
    """Two squares that stand; the prediction loses the second one, half of it in frame 1 and all from frame 2 on."""
    truth = np.zeros((frames, 40, 60), np.uint8)
    truth[:, 5:25, 5:25], truth[:, 10:30, 35:55] = 1, 2
    predicted = truth.copy()
    predicted[1, 10:30, 45:55] = 0
    predicted[2:][predicted[2:] == 2] = 0
    maps = [None if sparse and n == 3 else labels for n, labels in enumerate(truth)]
    images = [Image.new("RGB", (60, 40), GREY)] * frames
    return drawing.Followed([f"{n:05d}" for n in range(frames)], images, predicted, maps, "a title", "a note")


def test_j_of_every_frame_is_the_mean_over_objects() -> None:
    assert clip().j() == [1.0, 0.75, 0.5, 0.5, 0.5]
    assert np.isnan(clip(sparse=True).j()).tolist() == [False, False, False, True, False]


def test_predictions_are_filled_and_the_truth_is_outlined() -> None:
    pixels = np.asarray(drawing.painted(clip(), 2, 120))  # twice as large
    assert pixels.shape == (80, 120, 3)
    mixed = np.round(0.55 * np.array(GREY) + 0.45 * np.array(canvas.PALETTE[0]))
    np.testing.assert_allclose(pixels[15, 15], mixed, atol=1)  # object 1, predicted, away from its number
    assert tuple(pixels[30, 80]) == GREY  # object 2, not predicted
    assert tuple(pixels[40, 70]) == canvas.PALETTE[1]  # but its outline is there
    assert tuple(pixels[70, 5]) == GREY


def test_large_frames_are_reduced_and_small_ones_enlarged_at_most_twice() -> None:
    assert drawing.painted(clip(), 0, 640).size == (120, 80)
    assert drawing.painted(clip(), 0, 30).size == (30, 20)


def test_a_strip_takes_the_first_and_the_last_frame() -> None:
    one, three, many = (drawing.strip(clip(), frames=count, columns=5) for count in (1, 3, 99))
    assert one.width < three.width < many.width
    assert drawing.strip(clip(), frames=3, columns=1).height > three.height


def test_a_film_has_every_frame_in_one_even_size(tmp_path: Path) -> None:
    pictures = drawing.film(clip(sparse=True))
    assert len(pictures) == 5
    (size,) = {picture.size for picture in pictures}
    assert (size[0] % 2, size[1] % 2) == (0, 0)
    with Image.open(drawing.save(pictures, tmp_path / "new folder/a.gif", rate=5)) as stored:
        assert (stored.n_frames, stored.size, stored.info["duration"]) == (5, size, 200)
    film = cv2.VideoCapture(str(drawing.save(pictures, tmp_path / "a.mp4", rate=5)))
    found = []
    while (read := film.read())[0]:
        found.append(read[1][..., ::-1])
    assert len(found) == 5
    assert np.abs(found[2].astype(int) - np.asarray(pictures[2])).mean() < 6  # compressed
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a.gif", "a.mp4"]


def test_the_curve_marks_the_frame_and_leaves_gaps() -> None:
    values = [1.0, 0.5, float("nan"), 0.5, 0.5]
    drawn = [np.asarray(drawing.curve(values, number, 200), int) for number in range(5)]
    marked = [(np.abs(pixels - canvas.VERMILION).sum(-1) == 0).any(axis=0).nonzero()[0] for pixels in drawn]
    assert [len(columns) > 0 for columns in marked] == [True, True, False, True, True]
    assert marked[0].max() < marked[1].min() < marked[3].min()
    blue = (np.abs(drawn[0] - canvas.BLUE).sum(-1) == 0).any(axis=0)
    assert blue[50]
    assert not blue[80:140].any()  # either side of the frame without a value


@pytest.mark.parametrize("name", ["film.avi", "film", "film.jpg"])
def test_other_endings_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"give a name that ends in .mp4, .gif \(film\) or .png \(strip\)"):
        drawing.check(tmp_path / name)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="choose another file with --out"):
        drawing.check(tmp_path / "file/film.gif")
    drawing.check(tmp_path / "film.gif")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
