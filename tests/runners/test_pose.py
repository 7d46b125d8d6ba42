"""The pose probe where the answer is known: keypoints painted in colours, and an encoder that sees colours."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evalkit import runners
from evalkit.errors import CatalogError, FeatureError, ProtocolError, UsageError
from evalkit.metrics import pose as arithmetic
from evalkit.runners import pose
from evalkit.types import Figure, Preprocessing, Sample, Skeleton, Tokens
from tests.runners.fakes import FakeFeatures, FakeJob, Memory

SKELETON = Skeleton(
    ("left_hip", "right_hip", "neck"), (1, 0, 2), (2,), sigmas=(0.1, 0.1, 0.1), torso=((0, 2), (1, 2)), head=((1, 2),)
)
SIZE = (32, 24)
BOX = (0.0, 0.0, 48.0, 64.0)
SMALL: dict[str, Any] = {
    "mode": "cached", "size": SIZE, "cells": (16, 12), "sigma": 1.0, "rate": 0.02, "batch_size": 8, "epochs": 30,
    "warmup_steps": 4, "drops": (20,), "weight_decay": 0.0, "measures": ("oks", "pck"), "seeds": (0, 1),
    "confident": 0.05, "mirror": False, "flip": 0.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalkit.metrics.keypoints.RESAMPLES", 50)


class Painted:
    """Photos of 48 x 64 with one person: three spots of pure red, green and blue."""

    name, split, classes = "painted", "test", ("person",)

    def __init__(self, people: int = 12, seed: int = 0, skeleton: Skeleton = SKELETON) -> None:
        rng = np.random.default_rng(seed)
        self.skeleton = skeleton
        # far apart, in cells of 8 x 8 pixels (a patch of the input is 4 x 4, half as large)
        self.places = np.stack([rng.permutation(48)[:3] for _ in range(people)])
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        if index >= len(self):
            raise IndexError(index)
        return Sample(f"p{index}", str(index), 0, BOX)

    def figure(self, index: int) -> Figure:
        rows, columns = self.places[index] // 6, self.places[index] % 6
        points = np.column_stack([8 * columns + 3.5, 8 * rows + 3.5, [2, 1, 2]]).astype(float)
        return Figure(index, points, BOX, 3000.0)

    def figures(self, group: str) -> tuple[Figure, ...]:
        return (self.figure(int(group)), Figure(1000 + int(group), np.zeros((3, 3)), BOX, 500.0, crowd=True))

    def image(self, group: str) -> Image.Image:
        pixels = np.zeros((64, 48, 3), np.uint8)
        for channel, place in enumerate(self.places[int(group)]):
            row, column = divmod(int(place), 6)
            pixels[8 * row : 8 * row + 8, 8 * column : 8 * column + 8, channel] = 255
        return Image.fromarray(pixels)


class Colours:
    """Patch tokens are the mean colours of 4 x 4 pixels."""

    def __init__(self, factor: float = 1.0, patch: int = 4) -> None:
        self.factor, self.images = factor, 0
        preprocessing = Preprocessing(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.spec = SimpleNamespace(id="colours", dim=3, patch=patch, preprocessing=preprocessing, offers={"patches"})

    def encode(self, images, blocks=(-1,), norm=True):
        self.images += len(images)
        means = torch.nn.functional.avg_pool2d(images, self.spec.patch)
        return (Tokens(None, means.permute(0, 2, 3, 1) * self.factor),)


@dataclass
class Job(FakeJob):
    people: dict[str, Any] = field(default_factory=dict)

    def dataset(self, role):
        return self.people[role]


def job(test: Any = None, encoder: Any = None, checkpoint: Any = None, **changes: Any) -> Job:
    config = runners.configure("pose", {**SMALL, **changes})
    nothing = FakeFeatures({"cls": torch.zeros(0, 3)}, torch.zeros(0), torch.zeros(0))
    people = {"train": Painted(24, seed=1), "test": test or Painted()}
    made = Job(config, nothing, nothing, people=people, encoder=encoder or Colours())
    made.checkpoint = checkpoint or made.checkpoint
    return made


def scores(made: Job) -> dict[str, Any]:
    return {s.name: s for s in pose.run(made)}


def test_what_can_be_seen_is_found():
    made = job(pck=0.5)  # a cell is 4 pixels, some torsos are 8
    found = scores(made)
    assert found["PCK@0.5"].value == 1.0 and found["PCK@0.5"].n == 36
    assert found["AP"].value > 0.95 and found["AP"].n == 12
    assert found["APM"].n == 12 and np.isnan(found["APL"].value) and found["APL"].n == 0
    assert found["OKS"].value > 0.9
    assert {"PCK@0.5@hip", "PCK@0.5@neck", "PCKh@0.5", "AP50", "AR", "AP@seed=0", "AP@seed=1"} <= set(found)
    assert found["PCK@0.5@seed=1"].value == 1.0
    assert (found["PCK@0.5@hip"].n, found["AP@seed=1"].note) == (24, "seed")
    for score in found.values():
        assert score.n == 0 or score.interval == "none" or score.low - 1e-9 <= score.value <= score.high + 1e-9
    assert made.facts["grid"] == [8, 6] and made.facts["size"] == [32, 24]
    poses = made.kept["poses"]
    truth = torch.stack([torch.from_numpy(Painted().figure(i).keypoints[:, :2]) for i in range(12)])
    assert float((poses["0/keypoints"][..., :2] - truth).norm(dim=-1).max()) < 3
    assert set(made.kept["head"]) == {"0/weight", "0/bias", "1/weight", "1/bias"}


def test_an_encoder_that_sees_nothing_finds_nothing():
    found = scores(job(encoder=Colours(factor=0.0)))
    assert found["PCK@0.2"].value < 0.4
    assert found["AP"].value < 0.2


def test_shaken_boxes_teach_the_same():
    made = job(mode="online", epochs=40, drops=(30,), half_body=0.0, turn=10.0, scale=0.2)
    assert scores(made)["PCK@0.2"].value > 0.9


def test_online_layers_see_the_same_boxes_and_encode_them_once():
    made = job(mode="online", epochs=2, drops=(), mirror=True)
    scores(made)
    assert made.encoder.images == 2 * 24 + 2 * 12  # twice the training people, and at test people and mirror images


def test_cached_people_are_encoded_once(monkeypatch: pytest.MonkeyPatch):
    made = job(epochs=3, drops=())
    first = scores(made)
    assert made.encoder.images == 24 + 12
    monkeypatch.setattr("evalkit.probing.posed.HELD", 0)
    again = job(epochs=3, drops=())
    second = scores(again)
    assert again.encoder.images == 2 * 3 * 24 + 12
    assert again.facts["tokens"].startswith("computed in each epoch")
    for name in ("0/weight", "1/bias"):
        assert bool((made.kept["head"][name] == again.kept["head"][name]).all())
    assert first["OKS"].value == second["OKS"].value


class Killed(Exception):
    pass


@dataclass
class Mortal(Memory):
    after: int = 3
    state: Any = None

    def save(self, state):
        super().save(state)
        self.after -= 1
        if self.after == 0:
            raise Killed


@pytest.mark.parametrize("mode", ["cached", "online"])
def test_a_killed_run_goes_on_with_the_same_result_to_the_bit(mode: str):
    options = {"mode": mode, "epochs": 6, "drops": (4,)}
    whole = job(**options)
    expected = scores(whole)
    memory = Mortal()
    with pytest.raises(Killed):
        scores(job(checkpoint=memory, **options))
    assert memory.state["epochs"] == 3
    resumed = job(checkpoint=memory, **options)
    found = scores(resumed)
    assert all(bool((resumed.kept["head"][k] == v).all()) for k, v in whole.kept["head"].items())
    assert [found[n].value for n in ("AP", "OKS", "PCK@0.2")] == [expected[n].value for n in ("AP", "OKS", "PCK@0.2")]


def test_the_mirror_image_swaps_left_and_right():
    """Average of maps and of the mirror image's, channels swapped: beside a restatement."""
    made = job(epochs=2, drops=(), mirror=True)
    scores(made)
    test, head = made.people["test"], made.kept["head"]
    pixels = torch.stack([_input(test, i) for i in range(12)])

    def maps(images: torch.Tensor) -> torch.Tensor:
        tokens = made.encoder.encode(images.float() / 255)[0].patches
        small = tokens @ head["0/weight"].T + head["0/bias"]
        return torch.nn.functional.interpolate(small.permute(0, 3, 1, 2), size=(16, 12), mode="bilinear")

    mean = (maps(pixels) + maps(pixels.flip(-1)).flip(-1)[:, [1, 0, 2]]) / 2
    cells, height = arithmetic.decode(mean, "quarter")
    kept = made.kept["poses"]["0/keypoints"]
    # the box is 48 x 64 on 12 x 16 cells: 4 pixels a cell
    assert kept[..., :2].numpy() == pytest.approx(((cells + 0.5) * 4 - 0.5).numpy(), abs=1e-3)
    assert kept[..., 2].numpy() == pytest.approx(height.numpy(), abs=1e-5)


def _input(test: Painted, index: int) -> torch.Tensor:
    from evalkit.probing.placement import Still

    return Still(SIZE)(test, index)[0].pixels


def test_everybody_else_in_a_photo_is_neither_right_nor_wrong():
    """With half of the samples left out, the others' photos still hold them."""

    class Half(Painted):
        def figures(self, group: str) -> tuple[Figure, ...]:
            other = replace(self.figure(int(group)), id=500 + int(group))
            return (*super().figures(group), other)

    assert scores(job(test=Half()))["AR"].value == scores(job())["AR"].value


def test_sizes_round_down_to_the_patch():
    made = job(encoder=Colours(patch=5), epochs=1, drops=())
    scores(made)
    assert made.facts["size"] == [30, 20] and made.facts["asked"] == [32, 24]
    with pytest.raises(UsageError, match="less than one patch"):
        scores(job(encoder=Colours(patch=40)))


def test_data_that_lack_what_a_measure_needs_are_refused():
    with pytest.raises(ProtocolError, match="no published sigmas"):
        scores(_same(replace(SKELETON, sigmas=())))
    with pytest.raises(ProtocolError, match="torso"):
        scores(_same(replace(SKELETON, torso=())))
    with pytest.raises(ProtocolError, match="different keypoints"):
        scores(job(test=Painted(skeleton=replace(SKELETON, upper=()))))
    made = job()
    made.people["test"] = SimpleNamespace(name="fake", split="test")
    with pytest.raises(ProtocolError, match="people with keypoints; fake"):
        scores(made)


def _same(skeleton: Skeleton) -> Job:
    made = job()
    made.people = {"train": Painted(24, 1, skeleton), "test": Painted(12, 0, skeleton)}
    return made


def test_tokens_that_are_not_finite_are_refused():
    with pytest.raises(FeatureError, match="not finite"):
        scores(job(encoder=Colours(factor=float("nan"))))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "each once"),
        ({"measures": []}, "measures"),
        ({"measures": ["ap"]}, "measures"),
        ({"cells": [0, 4]}, "cells"),
        ({"size": [256]}, "size"),
        ({"sigma": 0}, "sigma"),
        ({"rate": 0}, "rate"),
        ({"epochs": 20, "drops": [20]}, "before the last of 20"),
        ({"decoding": "best"}, "decoding"),
        ({"flip": 1.5}, "flip"),
    ],
)
def test_options_that_cannot_be_are_named(wrong: dict[str, Any], says: str):
    with pytest.raises(CatalogError, match=says):
        runners.configure("pose", wrong)


def test_the_recipes_fit_their_data():
    from evalkit import catalog, datasets

    for name in ("pose-linear-coco", "pose-linear-coco-cached", "pose-linear-lsp"):
        recipe = catalog.recipe(name)
        config = runners.configure(recipe.runner, recipe.config)
        skeleton = datasets.module(recipe.dataset.name).SKELETON
        assert recipe.headline == ("AP" if "oks" in config.measures else "PCK@0.2")
        assert bool(skeleton.sigmas) or "oks" not in config.measures
        assert recipe.dataset.config["aspect"] == config.size[1] / config.size[0]
