"""Segmentation from a prompt: against a loop over thresholds and objects, and on scenes whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evalkit.errors import BrokenImage, CatalogError, FeatureError, ProtocolError, UsageError
from evalkit.probing import outlines
from evalkit.runners import configure, prompt
from evalkit.types import Outlined
from tests.runners import scenes

CUTS = (0.0, 0.1, 0.25, 0.5, 0.9)
COARSE = (("....", ".00.", ".00.", "...1"), ("11..", "11..", "..2.", "...."))
BOXES = (((0, 8, 8, 24, 24), (1, 24, 24, 32, 32)), ((1, 0, 0, 16, 16), (2, 16, 16, 24, 24)))
SCENES = scenes.Scenes(COARSE, BOXES)


def image(seed, size=(45, 61), grid=(6, 8), count=4, masks=False, merge="each"):
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    objects = []
    for number in range(count):
        y, x, r = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(1.5, 15)
        objects.append(Outlined(str(number), number % 2, (rows - y) ** 2 + (columns - x) ** 2 < r * r))
    objects = [one for one in objects if one.mask.any()]
    tokens = torch.from_numpy(rng.normal(0.3, 1, (*grid, 7))).float()
    return objects, tokens, outlines.outline(objects, grid, masks=masks, merge=merge)


def by_loop(objects, tokens, prompts, fine):
    """IoU of each prompt (object number, row, column) at each threshold, pixel by pixel."""
    h, w, _ = tokens.shape
    result = []
    for number, row, column in prompts:
        mask = objects[number].mask
        similar = F.cosine_similarity(tokens, tokens[row, column][None, None], dim=-1).numpy()
        own = []
        for cut in CUTS:
            kept = similar > np.float32(cut)
            if fine:
                ys = [int((y + 0.5) * h / mask.shape[0]) for y in range(mask.shape[0])]
                xs = [int((x + 0.5) * w / mask.shape[1]) for x in range(mask.shape[1])]
                drawn, truth = kept[np.ix_(ys, xs)], mask
            else:
                share = np.zeros((h, w)), np.zeros((h, w))
                for y in range(mask.shape[0]):
                    for x in range(mask.shape[1]):
                        cell = int((y + 0.5) * h / mask.shape[0]), int((x + 0.5) * w / mask.shape[1])
                        share[0][cell] += mask[y, x]
                        share[1][cell] += 1
                drawn, truth = kept, share[0] > share[1] / 2
            own.append((drawn & truth).sum() / (drawn | truth).sum() if truth.any() else np.nan)
        result.append(own)
    return np.array(result)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fine", [True, False])
@pytest.mark.parametrize("rule", ["deepest", "all"])
def test_all_thresholds_at_once_are_a_loop_over_thresholds(seed, fine, rule):
    objects, tokens, found = image(seed)
    prompts, owner = prompt.choose(found, rule, 3, torch.Generator())
    count = prompt.at_pixels if fine else prompt.at_patches
    mine = count(prompt.similarity(tokens, prompts), owner, found, CUTS)
    places = [(int(o), int(p) // 8, int(p) % 8) for o, p in zip(owner, prompts, strict=True)]
    assert np.allclose(mine, by_loop(objects, tokens, places, fine), rtol=1e-12, equal_nan=True)


def test_interpolated_maps_are_torchs_upsampling_thresholded():
    objects, tokens, found = image(1, masks=True)
    prompts, owner = prompt.choose(found, "deepest", 1, torch.Generator())
    cosines, _ = prompt.segment(tokens, prompts, CUTS)
    mine = prompt.at_interpolated(cosines, owner, found, CUTS)
    for number, one in enumerate(objects):
        (large,) = F.interpolate(cosines[number][None, None], (45, 61), mode="bilinear")[0].numpy()
        expected = [
            ((large > np.float32(c)) & one.mask).sum() / ((large > np.float32(c)) | one.mask).sum() for c in CUTS
        ]
        assert mine[number].tolist() == pytest.approx(expected)


def test_interpolated_maps_in_chunks(monkeypatch):
    _, tokens, found = image(2, masks=True)
    prompts, owner = prompt.choose(found, "all", 1, torch.Generator())
    cosines = prompt.similarity(tokens, prompts)
    whole = prompt.at_interpolated(cosines, owner, found, CUTS)
    monkeypatch.setattr(prompt, "CHUNK", 3 * 45 * 61)
    assert torch.equal(prompt.at_interpolated(cosines, owner, found, CUTS), whole)


def test_the_mask_is_where_the_cosine_exceeds_the_threshold():
    tokens = torch.tensor([[[1.0, 0], [0.6, 0.8]], [[0, 2.0], [-3, 0]]])
    cosines, masks = prompt.segment(tokens, torch.tensor([0]), [0.0, 0.6, -1.0])
    assert cosines[0].flatten().tolist() == pytest.approx([1, 0.6, 0, -1])
    assert masks[0, 0].tolist() == [[True, True], [False, False]]
    assert masks[2, 0].tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("at", [-1, 4])
def test_a_prompt_outside_the_grid_is_refused(at):
    with pytest.raises(ProtocolError, match="outside the grid of 2 x 2"):
        prompt.segment(torch.ones(2, 2, 3), torch.tensor([at]), [0.1])


def test_tokens_that_are_not_finite_are_refused():
    with pytest.raises(FeatureError, match="not finite"):
        prompt.segment(torch.full((2, 2, 3), torch.nan), torch.tensor([0]), [0.1])


def test_rules_for_prompts():
    _, _, found = image(3, count=3)
    own = [np.flatnonzero(2 * cover > found.cells) for cover in found.cover]
    deepest = prompt.choose(found, "deepest", 5, torch.Generator())
    assert deepest[0].tolist() == found.deepest.tolist() and deepest[1].tolist() == list(range(len(own)))
    every = prompt.choose(found, "all", 5, torch.Generator())
    drawn = prompt.choose(found, "random", 2, torch.Generator().manual_seed(0))
    for number, patches in enumerate(own):
        expected = patches.tolist() or [found.deepest[number]]
        assert every[0][every[1] == number].tolist() == expected
        mine = drawn[0][drawn[1] == number].tolist()
        assert set(mine) <= set(expected) and len(mine) == len(set(mine)) == min(2, len(expected))


def test_objects_are_found_exactly_where_patches_tell_their_class(tmp_path):
    job = scenes.job(prompt.Config(), SCENES, tmp=tmp_path)
    found = {score.name: score for score in prompt.run(job)}
    assert {"IoU@T=train", "IoU@T=optimal", "IoU@T=0.1", "patch/IoU@T=0.4", "category/IoU@T=train", "IoU/c"} <= set(
        found
    )
    assert all(score.value == 1.0 for score in found.values())
    assert found["IoU@T=train"].n == 4 and found["category/IoU@T=train"].n == 2
    assert found["IoU@T=optimal"].note == "best-on-test" and found["IoU@T=train"].note == ""
    assert job.facts["thresholds"]["IoU"] == {"train": 0.0, "optimal": 0.0}  # equally good ones: the lowest
    assert job.facts["objects"]["whole_image"] == pytest.approx(np.mean([256, 64, 256, 64]) / 1024)


def test_an_encoder_that_sees_nothing_scores_the_share_of_the_image(tmp_path):
    job = scenes.job(prompt.Config(), SCENES, arch="fake_blind_patch8", tmp=tmp_path)
    score, *_ = prompt.run(job)
    assert score.value == pytest.approx(job.facts["objects"]["whole_image"])


@pytest.mark.parametrize("changes", [{"prompt": "all"}, {"prompt": "random"}, {"objects": "category"}])
def test_other_rules_find_them_too(changes, tmp_path):
    job = scenes.job(replace(prompt.Config(), **changes), SCENES, tmp=tmp_path)
    assert next(prompt.run(job)).value == 1.0


def test_interpolation_blurs_borders_and_the_largest_object_stands_for_its_image(tmp_path):
    config = prompt.Config(upsampling="bilinear", objects="largest")
    score = next(prompt.run(scenes.job(config, SCENES, tmp=tmp_path)))
    assert 0.5 < score.value < 1 and score.n == 2


def test_the_threshold_of_training_is_chosen_there_and_the_optimal_one_on_test():
    table = prompt._Table(
        pixel=np.array([[0.2, 0.9, 0.1], [0.4, 0.5, 0.9]]), patch=np.full((2, 3), np.nan), labels=np.zeros(2, int),
        groups=np.arange(2), share=np.zeros(2), tiny=np.zeros(2, bool),
    )  # fmt: skip
    config = prompt.Config(thresholds=(), candidates=(0.3, 0.1, 0.2))
    assert prompt._best(table, "", config).index == 1  # of 0.1, 0.2, 0.3: means 0.7, 0.5, 0.3 in the order of the cuts
    assert prompt._best(table, "patch/", config).index == 0  # nothing to choose by: the lowest


def test_objects_smaller_than_a_patch_are_counted_and_have_no_patch(tmp_path):
    small = scenes.Scenes((("0...", "....", "....", "...."),) * 2, (((0, 1, 1, 6, 6), (1, 8, 8, 24, 24)),) * 2)
    job = scenes.job(prompt.Config(), small, tmp=tmp_path)
    found = {score.name: score for score in prompt.run(job)}
    facts = job.facts["objects"]
    assert (facts["scored"], facts["smaller_than_a_patch"], facts["without_a_patch"]) == (4, 2, 2)
    assert (found["IoU@T=0.1"].n, found["patch/IoU@T=0.1"].n) == (4, 2)
    assert found["IoU/a"].value == pytest.approx(25 / 64)  # its patch, of which it has 25 pixels


def test_broken_masks_are_refused_or_left_out_and_tokens_stay_with_their_image(tmp_path):
    broken = scenes.Scenes((COARSE[0], COARSE[1], COARSE[0]), (BOXES[0], (), BOXES[0]), masks_broken=(1,))
    with pytest.raises(BrokenImage, match="scene 1"):
        list(prompt.run(scenes.job(prompt.Config(), broken, tmp=tmp_path)))
    job = scenes.job(prompt.Config(), broken, skip_broken=True, tmp=tmp_path)
    score = next(prompt.run(job))
    assert (score.value, score.n) == (1.0, 4) and job.skipped["test"] == ["s1"]


def test_data_without_objects_are_refused_in_words(tmp_path):
    with pytest.raises(ProtocolError, match=r"needs outlined objects; flat \(test\) has none"):
        list(prompt.run(scenes.job(prompt.Config(), scenes.Flat(SCENES), tmp=tmp_path)))
    with pytest.raises(ProtocolError, match="the split test of scenes holds no image"):
        list(prompt.run(scenes.job(prompt.Config(), scenes.Scenes((), ()), tmp=tmp_path)))
    with pytest.raises(ProtocolError, match="no outlined object"):
        list(prompt.run(scenes.job(prompt.Config(), scenes.Scenes(COARSE, ((), ())), tmp=tmp_path)))


@pytest.mark.parametrize(
    "config",
    [{"thresholds": [0.1, 0.1]}, {"candidates": []}, {"thresholds": [1.5]}, {"prompts": 0}, {"prompt": "first"}],
)
def test_options_that_cannot_be(config):
    with pytest.raises((CatalogError, UsageError), match=next(iter(config))):
        configure("prompt", config)
