"""Pictures of label maps: colours that differ, numbers where regions are, mistakes where they are."""

from __future__ import annotations

import numpy as np
from PIL import Image

from evalkit.reporting.figures import canvas, segmentation
from evalkit.reporting.figures.segmentation import Example, colour, sheet


def example(predicted=None):
    truth = np.full((60, 80), 2, np.int16)
    truth[:, 40:] = 5
    truth[:10] = -1
    photo = Image.fromarray(np.full((60, 80, 3), 128, np.uint8))
    return Example(photo, truth, truth.clip(0) if predicted is None else predicted, "a photo")


def count(image, wanted):
    return int((np.asarray(image) == np.array(wanted)).all(-1).sum())


def test_colours_of_two_hundred_classes_differ():
    assert len({colour(label) for label in range(209)}) == 209


def test_mistakes_alone_are_marked():
    names = [f"class-{n}" for n in range(6)]
    right = sheet([example()], names, title="t", width=160)
    wrong = sheet([example(np.full((60, 80), 2))], names, title="t", width=160)
    mixed = tuple(round(0.2 * 128 + 0.8 * c) for c in canvas.VERMILION)
    assert count(right, mixed) == 0
    area = count(wrong, mixed) / (160 * 120)
    assert abs(area - 5 / 6 / 2) < 0.02  # the right half below the ten rows that do not count


def test_the_legend_has_what_is_there_and_nothing_else(monkeypatch):
    texts, written = [], canvas.written
    monkeypatch.setattr(canvas, "written", lambda text, *given: (texts.append(text), written(text, *given))[1])
    sheet([example()], [f"class-{n}" for n in range(6)], title="t")
    assert [text for text in texts if text.startswith("class")] == ["class-2", "class-5"]


def test_numbers_stand_inside_their_regions():
    mask = np.zeros((40, 40), bool)
    mask[5:15, 5:15] = mask[25:40, 20:40] = True
    mask[0, 39] = True  # too small for a number
    places = segmentation._places(mask)
    assert len(places) == 2
    assert all(mask[y, x] for x, y in places)
