"""Crops for an encoder, and crops that are cut down to the image."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from evalkit.errors import ProtocolError
from evalkit.features.stream import generator, random_crop
from evalkit.probing.crops import crops
from evalkit.types import Augmentation, Preprocessing
from tests.runners.fakes import FakeJob, features

CUT = Augmentation(8, fitting="cut")


def job(size, patch=4):
    found = FakeJob(None, features([0, 1]), features([0, 1]))
    found.encoder.spec.preprocessing = Preprocessing(size=size, mean=(0.1,) * 3, std=(0.2,) * 3)
    found.encoder.spec.patch = patch
    return found


@pytest.mark.parametrize(("own", "asked", "patch", "used"), [(518, "encoder", 14, 224), (64, "encoder", 8, 64),
                                                             (64, 224, 16, 224), (64, 30, 8, 24)])  # fmt: skip
def test_sizes(own, asked, patch, used):
    given = job(own, patch)
    found = crops(given, asked, Augmentation(0, scale=(0.2, 1.0), interpolation="bicubic"))
    assert found == Augmentation(used, (0.2, 1.0), interpolation="bicubic", mean=(0.1,) * 3, std=(0.2,) * 3)
    assert given.facts.get("crop_size", {}).get("used", used) == used
    assert ("crop_size" in given.facts) == (asked == 30)


def test_a_crop_without_a_patch():
    with pytest.raises(ProtocolError, match="hold no patch"):
        crops(job(64, 8), 7, Augmentation(0))


def test_cut_crops_are_one_draw_cut_down_to_the_image():
    """The rule of facebookresearch/mae efb2a80 util/crop.py, with the same draws."""
    for number in range(500):
        found = random_crop((200, 60), CUT, generator(0, number))
        draws = generator(0, number)
        area = 200 * 60 * draws.uniform(0.08, 1)
        aspect = math.exp(draws.uniform(math.log(3 / 4), math.log(4 / 3)))
        width = min(round(math.sqrt(area * aspect)), 200)
        height = min(round(math.sqrt(area / aspect)), 60)
        assert found[2:] == (width, height)
        assert 0 <= found[0] <= 200 - width
        assert 0 <= found[1] <= 60 - height


def test_cutting_down_makes_other_crops_than_drawing_again():
    again, cut = (
        np.array([random_crop((200, 60), kind, generator(0, number))[2:] for number in range(800)])
        for kind in (replace(CUT, fitting="again"), CUT)
    )
    assert (cut[:, 1] == 60).mean() > 0.4 > 0.2 > (again[:, 1] == 60).mean()
    assert random_crop((1, 1), CUT, generator(3)) == (0, 0, 1, 1)
