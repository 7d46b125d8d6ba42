"""Landmark retrieval: scoring on ground truth made by hand, and the whole run on photos whose answer is known."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from evalkit.errors import BrokenImage, CatalogError, ProtocolError, Unsupported
from evalkit.runners import configure, landmarks
from evalkit.types import Judgement, Preprocessing, Sample, Tokens
from tests.runners.fakes import FakeJob, features


@dataclass
class Photos:
    """One photo per colour; named by number. size: (width, height)."""

    colours: list[tuple[int, int, int]]
    judgements: dict[str, Judgement] | None = None
    size: tuple[int, int] = (48, 32)
    boxes: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)
    name = "photos"

    def __len__(self):
        return len(self.colours)

    def __getitem__(self, index):
        return Sample(str(index), str(index), 0, self.boxes.get(str(index)))

    def image(self, group):
        if self.colours[int(group)] is None:
            raise BrokenImage(f"photo {group} is broken")
        return Image.new("RGB", self.size, self.colours[int(group)])


class Colour:
    """An encoder: class token = mean colour; it notes the shapes that it saw."""

    def __init__(self, cls=True, patch=16):
        self.cls, self.shapes = cls, []
        plain = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        self.spec = SimpleNamespace(id="colour", dim=3, patch=patch, preprocessing=plain)

    def encode(self, images, blocks=(-1,), norm=True):
        self.shapes.append(tuple(images.shape))
        mean = images.mean((2, 3))
        return (Tokens(mean if self.cls else None, mean[:, None, None, :]),)


class Job(FakeJob):
    gallery = queries = None

    def dataset(self, role):
        return self.gallery if role == "train" else self.queries


RED, DARK_RED, GREEN, BLUE, PINK = (255, 0, 0), (180, 60, 60), (0, 255, 0), (0, 0, 255), (255, 20, 20)


def job(gallery=None, queries=None, cls=True, patch=16, **config):
    made = Job(landmarks.Config(**config), features([0, 1]), features([0, 1]), encoder=Colour(cls, patch))
    made.gallery = gallery or Photos([RED, GREEN, BLUE, DARK_RED, PINK])
    judged = {
        "0": Judgement(easy=("0",), hard=("3",), junk=("4",)),
        "1": Judgement(easy=("1",), hard=(), junk=()),
        "2": Judgement(easy=(), hard=(), junk=("2",)),
    }
    made.queries = queries or Photos([RED, GREEN, BLUE], judged)
    return made


def independent_map(ranks, truth, kappas):
    """The benchmark's evaluation, restated from its formula for columns of ranked positions."""
    areas, precisions = [], []
    for column, one in zip(ranks.T, truth, strict=True):
        if not one["ok"]:
            continue
        places, seen_junk = [], 0
        for place, image in enumerate(column.tolist()):
            if image in one["ok"]:
                places.append(place - seen_junk)
            elif image in one["junk"]:
                seen_junk += 1
        steps = [((1.0 if p == 0 else i / p) + (i + 1) / (p + 1)) / 2 for i, p in enumerate(places)]
        areas.append(sum(steps) / len(one["ok"]))
        depths = [min(places[-1] + 1, k) for k in kappas]
        precisions.append([sum(p < depth for p in places) / depth for depth in depths])
    return areas, precisions


@pytest.mark.parametrize("seed", range(8))
def test_scores_equal_an_independent_evaluation(seed):
    """Random photos and judgements, with junk, queries without anything to find, and ties."""
    rng = np.random.default_rng(seed)
    queries, gallery = rng.choice([-1.0, 1.0], (6, 4)), rng.choice([-1.0, 1.0], (12, 4))  # exact cosines
    ids = [f"p{i}" for i in range(12)]
    kinds = rng.integers(0, 5, (6, 12))  # 0 easy, 1 hard, 2 junk, else not judged
    kinds[0] = 3
    judged = [Judgement(*(tuple(np.array(ids)[row == kind]) for kind in range(3))) for row in kinds]
    order = landmarks.rankings(torch.tensor(queries), torch.tensor(gallery))
    similarity = queries @ gallery.T
    ranks = np.argsort(-similarity, axis=1, kind="stable").T
    assert all(len(set(row)) < 12 for row in similarity)
    for setup, ok, junk in (("easy", [0], [1, 2]), ("medium", [0, 1], [2]), ("hard", [1], [0, 2])):
        truth = [
            {"ok": set(np.flatnonzero(np.isin(r, ok))), "junk": set(np.flatnonzero(np.isin(r, junk)))} for r in kinds
        ]
        areas, precisions = independent_map(ranks, truth, (1, 5, 10))
        found = [landmarks.ranks(order[i], ids, judged[i], setup) for i in range(6)]
        found = [places for places in found if len(places)]
        assert [landmarks.ranking.trapezoid(f) for f in found] == pytest.approx(areas)
        at = [[landmarks.ranking.precision_at(f, k) for k in (1, 5, 10)] for f in found]
        assert np.allclose(at, precisions)


def test_ties_rank_in_the_order_of_the_gallery():
    gallery = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, -1], [2, 2, 2, 2], [4, 4, 4, 4]])
    order = landmarks.rankings(torch.ones(1, 4), gallery)
    assert order.tolist() == [[0, 2, 3, 1]]


def test_a_run_with_known_answers():
    given = job()
    scores = {s.name: s for s in landmarks.run(given)}
    names = [f"{m}@{s}" for s in ("medium", "easy", "hard") for m in ("mAP", "mP@1", "mP@5", "mP@10")]
    assert list(scores) == names
    # red ranks red, pink (junk), dark red: without the junk both are first
    assert (scores["mAP@medium"].value, scores["mAP@medium"].n) == (1.0, 2)
    assert (scores["mAP@easy"].value, scores["mAP@easy"].n) == (1.0, 2)
    assert (scores["mAP@hard"].value, scores["mAP@hard"].n) == (1.0, 1)
    assert given.facts["empty"] == {"medium": 1, "easy": 1, "hard": 2}
    assert given.facts["input"]["longest_side"] == 224


def test_junk_that_is_not_taken_out_would_cost():
    given = job()
    given.queries.judgements["0"] = Judgement(("0",), ("3",), ())
    scores = {s.name: s for s in landmarks.run(given)}
    assert scores["mAP@hard"].value < 1


def test_a_setup_without_any_query_is_nan_with_n_0():
    given = job(queries=Photos([RED], {"0": Judgement(("0",), (), ())}))
    hard = next(s for s in landmarks.run(given) if s.name == "mAP@hard")
    assert math.isnan(hard.value) and hard.n == 0


def test_photos_keep_their_shape_and_lose_what_fills_no_patch():
    given = job(gallery=Photos([RED, GREEN], size=(640, 430)), queries=Photos([RED], {"0": Judgement(("0",), (), ())}))
    list(landmarks.run(given))
    assert given.encoder.shapes == [(1, 3, 32, 48)] + [(1, 3, 144, 224)] * 2  # 430 x 224 / 640 is 150.5: 9 patches


def test_scales_are_resized_before_they_are_cut():
    given = job(
        gallery=Photos([RED], size=(640, 430)),
        queries=Photos([RED], {"0": Judgement(("0",), (), ())}, size=(64, 64)),
        scales=(1.0, 2**-0.5, 0.5),
    )
    list(landmarks.run(given))
    # floor(151 x 0.707) = 106 and floor(224 x 0.707) = 158; cut to 96 x 144
    assert [s[2:] for s in given.encoder.shapes] == [(64, 64), (32, 32), (32, 32), (144, 224), (96, 144), (64, 112)]


def test_scales_are_averaged():
    pixels = torch.randint(256, (3, 64, 80), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    given = job(scales=(1.0, 0.5))
    found = landmarks._vector(given, given.config, pixels)
    image = (pixels.float() / 255 - 0.5) / 0.5
    half = torch.nn.functional.interpolate(image[None], scale_factor=0.5, mode="bilinear", align_corners=False)[0]
    expected = (image.mean((1, 2)) + half[:, :32, :32].mean((1, 2))) / 2
    assert torch.allclose(found, expected, atol=1e-6)


def test_queries_are_cut_to_their_box():
    queries = Photos([RED], {"0": Judgement(("0",), (), ())}, boxes={"0": (0.0, 0.0, 32.0, 17.4)})
    given = job(queries=queries)
    list(landmarks.run(given))
    assert given.encoder.shapes[0] == (1, 3, 16, 32)


def test_an_interrupted_run_goes_on_with_the_same_result(monkeypatch):
    monkeypatch.setattr(landmarks, "SAVED", 2)
    expected = [s.value for s in landmarks.run(job())]
    broken = job(gallery=Photos([RED, GREEN, BLUE, DARK_RED, None]))
    with pytest.raises(BrokenImage):
        list(landmarks.run(broken))
    resumed = job()
    resumed.checkpoint.state = broken.checkpoint.state
    assert [s.value for s in landmarks.run(resumed)] == expected
    assert len(resumed.encoder.shapes) == 1  # three queries and four photos of five were there


@pytest.mark.parametrize("size", [(8, 40), (15, 15)])
def test_a_photo_smaller_than_a_patch_is_refused(size):
    with pytest.raises(ProtocolError, match=f"{size[0]}x{size[1]} pixels.*patch"):
        list(landmarks.run(job(queries=Photos([RED], {"0": Judgement(("0",), (), ())}, size=size))))


def test_what_cannot_run_says_why():
    with pytest.raises(ProtocolError, match="no judged queries"):
        list(landmarks.run(job(queries=Photos([RED]))))
    with pytest.raises(BrokenImage, match="photo 1 is broken"):
        list(landmarks.run(job(gallery=Photos([RED, None, GREEN]))))
    with pytest.raises(Unsupported, match="no class token"):
        list(landmarks.run(job(cls=False)))
    assert next(iter(landmarks.run(job(cls=False, part="mean")))).value == 1.0


@pytest.mark.parametrize("mapping", [{"size": 0}, {"scales": []}, {"scales": [0.0]}, {"ks": [0]}, {"part": "patches"}])
def test_options_that_cannot_be_are_named(mapping):
    with pytest.raises(CatalogError, match=next(iter(mapping))):
        configure("landmarks", mapping)
