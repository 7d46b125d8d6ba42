"""The clips that ship: made again by their script, in the layout of DAVIS-2017, attributed, and hard enough."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from evalkit import datasets
from evalkit.datasets.davis import Config, open

MINI = Path(__file__).resolve().parents[2] / "mini"
VIDEO = MINI / "video"
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside pycocotools


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_video", MINI / "make_video.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_video"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def clips() -> dict[str, np.ndarray]:
    data = open(VIDEO, "val", Config())
    return {data[i].id: np.stack([data.truth(i, n) for n in range(len(data.frames(i)))]) for i in range(len(data))}


def test_it_is_complete_and_small(clips: dict[str, np.ndarray]) -> None:
    assert datasets.verify("davis", VIDEO) == []
    assert {name: maps.shape for name, maps in clips.items()} == {"pasture": (12, 128, 192), "luggage": (12, 128, 192)}
    assert sum(path.stat().st_size for path in VIDEO.rglob("*") if path.is_file()) < 1_000_000


@pytest.mark.parametrize("number", [0, 4, 11])
def test_made_again_the_masks_are_the_same(script: ModuleType, clips: dict[str, np.ndarray], number: int) -> None:
    coco = script.document()
    data = open(VIDEO, "val", Config())
    for index, clip in enumerate(script.CLIPS):
        colours, labels = script.render(clip, [script.cutting(layer, coco) for layer in clip.layers], number)
        np.testing.assert_array_equal(labels, clips[clip.name][number])
        shown = np.asarray(data.frame(index, number), np.int64)
        assert np.abs(shown - colours).mean() < 4  # JPEG


def test_objects_hide_each_other_and_one_leaves_and_returns(clips: dict[str, np.ndarray]) -> None:
    for maps in clips.values():
        assert set(np.unique(maps)) == {0, 1, 2, 3}
    gull = (clips["pasture"] == 3).sum(axis=(1, 2))
    assert gull[0] > 200
    assert 0 in gull[2:9]
    assert gull[-1] > 200
    for maps in clips.values():  # the back object loses pixels to a front one, then gets them back
        back = (maps == 1).sum(axis=(1, 2))
        assert back.min() < 0.75 * min(back[0], back[-1])


def test_only_test_photos_under_the_attribution_licence(script: ModuleType) -> None:
    document = json.loads((MINI / "coco/annotations/instances_val2017.json").read_text())
    rows = {image["file_name"]: image for image in document["images"]}
    used = {layer.photo for clip in script.CLIPS for layer in clip.layers}
    text = (VIDEO / "ATTRIBUTION.md").read_text()
    assert text == script.attribution(document)
    for photo in used:
        assert rows[photo]["license"] == 4
        assert (MINI / "coco/val2017" / photo).exists()
        assert f"| {photo} | " in text
        assert rows[photo]["flickr_url"] in text


def test_other_photos_and_objects_are_refused(script: ModuleType) -> None:
    coco = script.document()
    layer = script.CLIPS[0].layers[1]
    with pytest.raises(ValueError, match=r"is not of 000000500663\.jpg"):
        script.cutting(dataclasses.replace(layer, photo="000000500663.jpg"), coco)
    for image in coco["images"]:
        image["license"] = 5
    with pytest.raises(ValueError, match=r"licence id 5, not 4 \(Attribution\)"):
        script.cutting(layer, coco)
