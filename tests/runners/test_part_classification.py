"""Part classification on crops of birds: what the released view does to training crops, and that the recipes run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from evalkit import catalog
from evalkit.engine.evaluate import Options, Session, evaluate, load
from evalkit.features.view import normalise
from tests.datasets import part_makers as make


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Twelve birds of noise, whose parts have colours of their own."""
    rng = np.random.default_rng(0)
    near = {11: (60, 50), 12: (220, 60), 9: (70, 150), 14: (230, 140)}
    places = {
        image: {part: tuple((np.array(at) + rng.integers(-15, 16, 2)).tolist()) for part, at in near.items()}
        for image in range(1, 13)
    }
    root = make.cub(tmp_path_factory.mktemp("cub"), places, training=range(1, 9))
    for image in places:
        pixels = rng.integers(0, 256, (make.HEIGHT, make.WIDTH, 3), dtype=np.uint8)
        for part, (x, y) in places[image].items():
            pixels[y - 12 : y + 12, x - 12 : x + 12] = np.array([part * 16, 0, 255 - part * 16])
        Image.fromarray(pixels).save(root / f"images/{image:03d}.Bird/Bird_{image:04d}.jpg", quality=95)
    return root


def test_training_crops_lose_their_rim_as_released_and_test_crops_do_not(root, tmp_path):
    encoder, recipe = load("pixels"), catalog.recipe("part-linear-cub-released")
    job = Session(Options(data={"CUB_200_2011": root}, out=None, cache=tmp_path)).job(encoder, recipe)
    size = job.view.size
    for role, resized in (("train", int(size / 0.875)), ("test", size)):
        data, stored = job.dataset(role), job.features(role)
        shrunk = [transforms.Resize(resized, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(size)]
        for row, sample in enumerate(data):
            crop = transforms.Compose(shrunk)(data.image(sample.group).crop(tuple(map(round, sample.box))))
            batch = torch.from_numpy(np.asarray(crop).transpose(2, 0, 1).copy())[None]
            assert torch.allclose(
                stored.get("cls")[row], encoder.encode(normalise(batch, job.view))[0].cls[0], atol=1e-5
            )


@pytest.mark.parametrize(
    "id", ["part-linear-cub", "part-linear-cub-released", "part-attentive-cub", "part-attentive-cub-released"]
)
def test_the_recipes_train_and_score(root, tmp_path, id):
    recipe = catalog.recipe(id)
    quick = {"epochs": 40, "seeds": [0], "batch_size": 8} | ({"norm_batch": 0} if "attentive" in id else {})
    recipe = replace(recipe, config={**recipe.config, **quick})
    record = evaluate("pixels", recipe, data={"CUB_200_2011": root}, cache=tmp_path)
    scores = {score["name"]: score for score in record.scores}
    assert record.status == "done"
    assert scores["top1"]["value"] > 0.6  # chance is 0.25
    assert scores["top1"]["n"] == record.data["test"]["n"] == 16
    assert ("best-on-test" in scores) == ("linear" in id)
    assert ("top1@running-statistics" in scores) == (id == "part-attentive-cub-released")


@pytest.mark.parametrize(("id", "rate"), [("part-linear-cub-released", 0.4), ("part-attentive-cub-released", 0.04)])
def test_released_rates_are_scaled_by_the_nominal_batch(root, tmp_path, id, rate):
    """32 crops make one batch of 32; the script multiplies by the 1024 that were asked for (patch_lincls.py, line 510)."""
    recipe = catalog.recipe(id)
    short = {"epochs": 1, "seeds": [0]} | ({"norm_batch": 0} if "attentive" in id else {})
    record = evaluate("pixels", replace(recipe, config={**recipe.config, **short}), data={"CUB_200_2011": root},
                      cache=tmp_path)  # fmt: skip
    found = record.facts["training" if "attentive" in id else "chosen"]
    assert found["batch"] == 32
    assert found["rate"] == pytest.approx(rate)
