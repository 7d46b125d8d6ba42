"""Similarity statistics on scenes whose answer is known, and what is drawn of many patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evalkit.errors import BrokenImage, CatalogError, ProtocolError
from evalkit.metrics import pairs
from evalkit.runners import configure, similarity
from tests.runners import scenes

MAPS = (("00..", "00.1", "...1", "2..."), ("1...", ".2..", "..00", "..00"))
BOXES = (((0, 0, 0, 16, 16), (1, 24, 8, 32, 24), (2, 0, 24, 8, 32)), ((0, 16, 16, 24, 32), (0, 24, 16, 32, 32)))
SCENES = scenes.Scenes(MAPS, BOXES)


def measured(job):
    return {score.name: score for score in similarity.run(job)}


def test_categories_that_are_told_apart_do_not_overlap(tmp_path):
    job = scenes.job(similarity.Config(), SCENES, tmp=tmp_path)
    found = measured(job)
    assert [found[name].value for name in ("overlap", "intra", "inter")] == [0, 1, 0]
    assert {score.n for score in found.values()} == {2}
    assert [found[name].unit for name in ("overlap", "intra", "inter")] == ["ratio", "cosine", "cosine"]
    sizes = {0: 8, 1: 3, 2: 2}
    alike = sum(n * (n - 1) // 2 for n in sizes.values())
    assert job.facts["pairs"]["category"] == {"intra": alike, "inter": 13 * 12 // 2 - alike}
    assert (job.facts["patches"], job.facts["labelled_patches"]) == (13, 13)
    assert job.kept["histograms"]["category"].shape == (2, 200)


def test_objects_are_compared_within_their_image(tmp_path):
    job = scenes.job(similarity.Config(), SCENES, tmp=tmp_path)
    found = measured(job)
    intra = 6 + 1 + (1 + 1)  # objects of 4, 2 and 1 patches, then two of 2 each
    inter = (4 * 2 + 4 * 1 + 2 * 1) + 2 * 2
    assert job.facts["pairs"]["instance"] == {"intra": intra, "inter": inter}
    assert found["instance/intra"].value == 1
    assert found["instance/inter"].value == pytest.approx(4 / inter)  # the two of one class, alike


@pytest.mark.parametrize("blocks", [64, 1])
def test_pairs_across_are_those_of_two_images_however_they_are_blocked(blocks, tmp_path, monkeypatch):
    monkeypatch.setattr(similarity, "BLOCKS", blocks)
    job = scenes.job(similarity.Config(), SCENES, tmp=tmp_path)
    found = measured(job)
    assert job.facts["pairs"]["across"] == {"intra": 4 * 4 + 2 * 1 + 1 * 1, "inter": 7 * 6 - 19}
    assert [found[f"across/{name}"].value for name in ("overlap", "intra", "inter")] == [0, 1, 0]


def test_an_encoder_that_sees_nothing_overlaps_wholly(tmp_path):
    found = measured(scenes.job(similarity.Config(), SCENES, arch="fake_blind_patch8", tmp=tmp_path))
    assert [found[name].value for name in ("overlap", "intra", "inter", "instance/overlap")] == pytest.approx([1] * 4)


def test_scores_are_those_of_the_pairs_in_a_loop(tmp_path):
    """With tokens that are not one-hot: mixed patches make cosines between 0 and 1."""
    rng = np.random.default_rng(0)
    maps = tuple(tuple("".join(rng.choice(list("012."), 4)) for _ in range(4)) for _ in range(5))
    job = scenes.job(similarity.Config(bins=20, instances=False), scenes.Scenes(maps, ((),) * 5), tmp=tmp_path)
    held = job.features("test", parts=("patches",)).get("patches").float()
    noisy = held + torch.randn(held.shape, generator=torch.Generator().manual_seed(0))
    job.features = lambda role, **_: Given(noisy)
    found = measured(job)
    labels = np.concatenate([[-1 if c == "." else int(c) for row in rows for c in row] for rows in maps])
    vectors = torch.nn.functional.normalize(noisy.double().flatten(0, 2), dim=1).numpy()[labels >= 0]
    labels = labels[labels >= 0]
    cosines, above = vectors @ vectors.T, np.triu(np.ones((len(labels),) * 2, bool), 1)
    alike = labels[:, None] == labels[None]
    columns = [cosines[above & alike], cosines[above & ~alike]]
    histograms = [np.histogram(column, 20, (-1, 1))[0] / len(column) for column in columns]
    assert found["overlap"].value == pytest.approx(np.minimum(*histograms).sum())
    assert [found["intra"].value, found["inter"].value] == pytest.approx([c.mean() for c in columns], abs=1e-6)
    assert found["overlap"].interval == "none" and "instance/overlap" not in found  # of five images


class Given:
    skipped = ()

    def __init__(self, tokens):
        self.tokens = tokens

    def batches(self, part, size):
        return iter(self.tokens.split(size))


def test_more_patches_than_asked_for_are_drawn_and_said(tmp_path):
    job = scenes.job(similarity.Config(patches=6), SCENES, tmp=tmp_path)
    measured(job)
    pairs_of = job.facts["pairs"]["category"]
    assert (job.facts["patches"], job.facts["labelled_patches"]) == (6, 13)
    assert pairs_of["intra"] + pairs_of["inter"] == 15


def test_what_is_drawn_does_not_depend_on_the_pieces_and_everyone_has_the_same_chance():
    def drawn(keys, step, most=10):
        found = similarity.Drawn(most)
        for rows in torch.arange(len(keys)).split(step):
            found.add(keys[rows], rows=rows)
        found.cut()
        return found.columns["rows"].tolist()

    keys = torch.rand(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert drawn(keys, 3) == drawn(keys, 40) == drawn(keys, 100) == sorted(drawn(keys, 100))
    assert drawn(keys, 7, most=100) == list(range(100))
    times = np.zeros(40)
    for seed in range(400):
        times[drawn(torch.rand(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), 9)] += 1
    assert abs(times - 100).max() < 5 * np.sqrt(400 * 0.25 * 0.75)


def test_of_each_category_and_object_of_an_image_so_many_count(tmp_path):
    job = scenes.job(similarity.Config(each=1), SCENES, tmp=tmp_path)
    found = measured(job)
    assert (job.facts["patches"], job.facts["labelled_patches"]) == (6, 13)
    # three categories in each of two images, then three objects in the one and two in the other
    assert job.facts["pairs"]["category"] == {"intra": 3, "inter": 12}
    assert job.facts["pairs"]["across"] == {"intra": 3, "inter": 6}
    assert job.facts["pairs"]["instance"] == {"intra": 0, "inter": 3 + 1}
    assert found["overlap"].n == 2 and found["instance/overlap"].n == 0
    job = scenes.job(similarity.Config(each=3), SCENES, tmp=tmp_path)
    measured(job)
    assert job.facts["pairs"]["instance"] == {"intra": 3 + 1 + 2, "inter": (3 * 2 + 3 * 1 + 2 * 1) + 2 * 2}


@pytest.mark.parametrize("most", [0, 1, 4, 100])
def test_of_each_label_those_with_the_lowest_keys_count(most):
    keys = torch.rand(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.randint(-1, 5, (60,), generator=torch.Generator().manual_seed(1))
    there, of = similarity.lowest(keys, labels, most)
    expected = []
    for label in range(5):
        mine = sorted((float(keys[i]), i) for i in range(60) if labels[i] == label)
        expected += [i for _, i in (mine[:most] if most else mine)]
    assert there.tolist() == sorted(expected) and of.tolist() == labels[there].tolist()


def test_resamples_are_of_the_same_images_whichever_have_labelled_patches(tmp_path):
    """Every third image has none, as one whose objects are smaller than a patch of a coarse grid."""
    maps, boxes = 5 * (MAPS[0], ("....",) * 4, MAPS[1]), 5 * (BOXES[0], (), BOXES[1])
    job = scenes.job(similarity.Config(), scenes.Scenes(maps, boxes), tmp=tmp_path)
    found = measured(job)
    kept = job.kept["resamples"]
    assert set(kept) == {*found, "seed"} and kept["seed"].tolist() == [job.seed]
    drawn = np.random.default_rng(job.seed).multinomial(15, [1 / 15] * 15, size=2000)
    labelled = np.delete(drawn, np.arange(1, 15, 3), axis=1)
    none, both = (labelled == 0).all(1), (labelled > 0).sum(1) > 1
    for scope in ("", "across/"):
        assert np.array_equal(np.isnan(kept[f"{scope}inter"].numpy()), ~both if scope else none)
    low, high = np.nanquantile(kept["instance/inter"].numpy(), [0.025, 0.975])
    assert (low, high) == pytest.approx((found["instance/inter"].low, found["instance/inter"].high))


def test_data_without_objects_have_categories_alone(tmp_path):
    class Segmented(scenes.Flat):
        classes = ("a", "b", "c")

        def pixels(self, index):
            return self.whole.pixels(index)

    job = scenes.job(similarity.Config(), Segmented(SCENES, classes=("a", "b", "c")), tmp=tmp_path)
    assert set(measured(job)) == {
        f"{scope}{name}" for scope in ("", "across/") for name in ("overlap", "intra", "inter")
    }
    assert "outlines no objects" in job.facts["absent"]["instance/overlap"]


def test_broken_masks_are_refused_or_left_out(tmp_path):
    broken = scenes.Scenes((*MAPS, MAPS[0]), (*BOXES, ()), masks_broken=(2,))
    with pytest.raises(BrokenImage, match="scene 2"):
        measured(scenes.job(similarity.Config(), broken, tmp=tmp_path))
    job = scenes.job(similarity.Config(), broken, skip_broken=True, tmp=tmp_path)
    assert measured(job)["overlap"].n == 2 and job.skipped["test"] == ["s2"]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (scenes.Flat(SCENES), "needs labels for every pixel"),
        (scenes.Scenes((), ()), "the split test of scenes holds no image"),
        (scenes.Scenes((("....",) * 4,) * 2, ((), ())), "no patch of scenes"),
        (scenes.Scenes((("0...",) * 4,) * 2, ((), ())), "same class"),
    ],
)
def test_data_that_hold_nothing_to_compare(data, match, tmp_path):
    with pytest.raises(ProtocolError, match=match):
        measured(scenes.job(similarity.Config(), data, tmp=tmp_path))


def test_one_image_has_no_interval(tmp_path):
    one = scenes.Scenes(MAPS[:1], BOXES[:1])
    score = measured(scenes.job(similarity.Config(), one, tmp=tmp_path))["overlap"]
    assert score.value == 0 and np.isnan([score.low, score.high]).all()


@pytest.mark.parametrize("config", [{"bins": 1}, {"patches": 1}, {"each": -1}, {"bin": 3}])
def test_options_that_cannot_be(config):
    with pytest.raises(CatalogError, match=next(iter(config))):
        configure("similarity", config)


def test_the_pairs_of_one_image_and_of_one_block_are_the_same():
    vectors = torch.nn.functional.normalize(torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.arange(9) % 3
    spread = pairs.between_blocks(vectors, labels, torch.zeros(9, dtype=torch.int64), bins=7)
    assert np.array_equal(spread.counts[0, 0], pairs.within(vectors, labels, 7)[0])
