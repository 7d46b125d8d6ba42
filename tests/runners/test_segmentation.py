"""Linear segmentation from files to scores: what is certain scores 1, what is blind scores chance, a killed run goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from evalkit import adapters, runners
from evalkit.adapters.fake import colours
from evalkit.engine.evaluate import evaluate
from evalkit.errors import BrokenImage, CatalogError, ProtocolError, UsageError
from evalkit.probing.dense_head import Learner
from evalkit.probing.dense_supply import order
from evalkit.runners import segmentation
from evalkit.types import DatasetRef, Manifest, Recipe, Source

NAMES = ("sky", "sea", "sand", "stone")
SMALL = {
    "crop": 32, "train_scale": [64, 32], "test_scale": [64, 32], "stride": 16, "ratio": [1.0, 1.0], "colours": False,
    "rate": 0.3, "warmup": 0, "steps": 12, "batch": 4, "largest": 1.0,
}  # fmt: skip
CACHED = {"mode": "cached", "rate": 0.3, "warmup": 0, "steps": 12, "batch": 4}


def photo(number, width):
    """Upright stripes as wide as a patch, unlabelled at their borders, where enlarged logits cross."""
    stripes = np.random.default_rng(number).integers(0, 4, width // 8)
    labels = np.repeat(stripes, 8)[None].repeat(32, axis=0).astype(np.uint8)
    picture = colours(4)[labels]
    labels[:, (np.arange(width) + 2) % 8 < 4] = 255
    return picture, labels


@pytest.fixture
def root(tmp_path):
    """Photos of 32 x 64 and 32 x 48 pixels with their masks."""
    place = tmp_path / "masked"
    for split, count in (("train", 6), ("test", 5)):
        for number in range(count):
            picture, labels = photo(100 * (split == "test") + number, 64 - 16 * (number % 2))
            for folder, pixels in (("images", picture), ("masks", labels)):
                (place / folder / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(place / folder / split / f"{number}.png")
    (place / "classes.txt").write_text("\n".join(NAMES))
    return place


def measured(root: Path, config, arch="fake_patch8", view=None, **options):
    recipe = Recipe("seg", 1, "t", "segmentation", "mIoU", Source("none"), DatasetRef("masked_folder", "masked"),
                    config=config, **({} if view is None else {"view": view}))  # fmt: skip
    given = {"data": {"masked": root}, "cache": root.parent / "cache", **options}
    return evaluate(adapters.load(Manifest("fake", "fake", arch)), recipe, **given)


def values(record):
    return {score["name"]: score["value"] for score in record.scores}


@pytest.mark.parametrize("changes", [{}, {"between": 1, "auxiliary": 0.4}], ids=["paper", "released"])
def test_what_is_certain_scores_exactly_one(root, changes):
    record = measured(root, SMALL | changes)
    assert set(values(record)) == {"mIoU", "mAcc", "aAcc", *(f"IoU/{name}" for name in NAMES)}
    for score in record.scores:
        assert (score["value"], score["interval"]) == (1, "none")
        assert 0 < score["n"] <= 5
    assert record.facts["blocks"] == {"asked": [3, 5, 7, 11], "used": [3, 5, 7, 11], "depth": 12}
    assert record.facts["training"] == {"photos": 6, "steps": 12, "batch": 4, "epochs": 8.0}


def test_what_is_certain_scores_one_from_stored_tokens(root):
    from evalkit.types import ViewRef

    view = ViewRef(size=64, fit="squash", interpolation="bilinear")
    for path in (root / "images").rglob("*.png"):  # 64 pixels wide, so that squashing keeps the stripes' borders
        number = int(path.stem) + 100 * (path.parent.name == "test")
        picture, labels = photo(number, 64)
        Image.fromarray(picture).save(path)
        Image.fromarray(labels).save(root / "masks" / path.parent.name / path.name)
    assert values(measured(root, CACHED, view=view))["mIoU"] == 1
    assert "input" not in measured(root, CACHED, view=view).facts


def test_an_encoder_that_sees_nothing_says_the_commonest_class(root):
    found = values(measured(root, SMALL, arch="fake_blind_patch8"))
    labels = [np.asarray(Image.open(path)) for path in sorted((root / "masks/test").iterdir())]
    counted = np.concatenate([one[one < 4] for one in labels])
    shares = np.bincount(counted, minlength=4) / len(counted)
    assert min(abs(found["aAcc"] - shares)) < 1e-9
    assert found["mAcc"] == pytest.approx(0.25)
    assert found["mIoU"] == pytest.approx(found["aAcc"] / 4)


class Killed(Exception):
    pass


@pytest.mark.parametrize("config", [SMALL | {"colours": True, "ratio": [0.5, 2.0], "auxiliary": 0.4}, CACHED])
def test_a_killed_run_goes_on_to_the_same_head(root, monkeypatch, config):
    monkeypatch.setattr(segmentation, "SAVED_EVERY", 0.0)
    straight = measured(root, config, out=root.parent / "a", cache=root.parent / "one")
    steps, step = [], Learner.step

    def dies(self, *given, **named):
        steps.append(1)
        if len(steps) == 6:
            raise Killed
        return step(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", dies)
        with pytest.raises(Killed):
            measured(root, config, out=root.parent / "b", cache=root.parent / "two")
    done = []
    monkeypatch.setattr(Learner, "step", lambda self, *given, **named: (done.append(1), step(self, *given, **named))[1])
    resumed = measured(root, config, out=root.parent / "b", cache=root.parent / "two")
    assert len(done) == 12 - 5
    assert resumed.scores == straight.scores and "resumed" in resumed.facts
    heads = [load_file(next((root.parent / out).rglob("*head*"))) for out in "ab"]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in ("weight", "bias"))


def test_the_seed_decides(root):
    noisy = SMALL | {"steps": 2, "rate": 0.001}
    first, again, other = (measured(root, noisy, seed=seed) for seed in (0, 0, 1))
    assert first.scores == again.scores != other.scores


def test_a_crop_follows_the_patch_and_the_short_side_follows_the_crop(root):
    found = measured(root, SMALL | {"crop": 35, "train_scale": [64, 35], "test_scale": [64, 40]})
    assert found.facts["input"] == {"asked": 35, "crop": 32, "train_scale": (64, 32), "test_scale": (64, 40)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 600}, "stride is 600 and crop 512"),
        ({"blocks": [3, 12]}, r"each in 0 ... 11"),
        ({"blocks": [3, 3]}, "each once"),
        ({"ratio": [2.0, 0.5]}, "smallest and the largest"),
        ({"batch": 0}, "batch"),
    ],
)
def test_values_that_cannot_be_are_refused(changes, message):
    with pytest.raises(CatalogError, match=message):
        runners.configure("segmentation", changes)


def test_data_that_do_not_fit_are_refused_in_words(root):
    with pytest.raises(UsageError, match="less than one patch"):
        measured(root, SMALL | {"crop": 5, "stride": 4})
    mask = root / "masks/train/3.png"
    good = mask.read_bytes()
    Image.fromarray(np.zeros((32, 48), np.uint8) + 9).save(mask)
    with pytest.raises(BrokenImage, match=r"3\.png.*\b9\b"):
        measured(root, SMALL)
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(mask)
    with pytest.raises(BrokenImage, match=r"3\.png"):
        measured(root, SMALL)
    Image.fromarray(np.zeros((30, 48), np.uint8)).save(mask)
    with pytest.raises(BrokenImage, match=r"48 x 30 pixels, but its photo 3\.png is 48 x 32"):
        measured(root, SMALL)
    kept = measured(root, SMALL, skip_broken=True)
    assert values(kept)["mIoU"] == 1 and kept.data["train"]["skipped"] == ["3.png"]
    mask.write_bytes(good)
    for path in (root / "masks/test").iterdir():
        Image.fromarray(np.full(np.asarray(Image.open(path)).shape, 255, np.uint8)).save(path)
    assert {score["n"] for score in measured(root, SMALL).scores} == {0}


def test_data_without_labels_for_pixels_are_refused():
    recipe = Recipe("seg", 1, "t", "segmentation", "mIoU", Source("none"), DatasetRef("fake", "fake"), config=SMALL)
    with pytest.raises(ProtocolError, match="labels for every pixel"):
        evaluate(adapters.load(Manifest("fake", "fake", "fake_patch8")), recipe, data={"fake": Path.cwd()})


def test_every_pass_has_every_photo_once(root):
    class Job:
        def dataset(self, role):
            return range(6)

        def rng(self, *names):
            return torch.Generator().manual_seed(sum(n for n in names if isinstance(n, int)))

    seen = [item for step in range(6) for item in order(Job(), step, 4)]
    assert sorted(seen) == sorted((position, turn) for position in range(6) for turn in range(4))
    assert [turn for _, turn in seen] == sorted(turn for _, turn in seen)
