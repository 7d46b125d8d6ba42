"""Label transfer on scenes whose answer is known, and its steps against plain restatements."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evalkit.errors import BrokenImage, CatalogError, ProtocolError
from evalkit.runners import configure, hummingbird
from tests.runners import scenes

MAPS = (("00..", "00.1", "...1", "2..."), ("1...", ".2..", "..00", "..00"))
SCENES = scenes.Scenes(MAPS)
ODD = (("000.",) * 4, ("011.",) * 4, ("2222",) * 4)


def measured(job):
    return {score.name: score for score in hummingbird.run(job)}


def config(**changes):
    return hummingbird.Config(**{"k": 2, **changes})


def test_classes_that_patches_tell_are_transferred_exactly(tmp_path):
    """Upsampling is bilinear: a patch's label reaches into its neighbours only where those count for nothing."""
    job = scenes.job(
        config(at="input"), scenes.Scenes((("00", "00"), ("11", "11"), ("22", "22"))), size=16, tmp=tmp_path
    )
    found = measured(job)
    assert {name: score.value for name, score in found.items()} == dict.fromkeys(
        ["mIoU", "mAcc", "aAcc", "IoU/a", "IoU/b", "IoU/c"], 1.0
    )
    assert found["mIoU"].n == 3 and found["mIoU"].outcomes.shape == (3, 2, 3)
    assert job.facts["memory"] == {"rows": 12, "images": 3}


def plainly(job, k, temperature, truth_of):
    """The published procedure, image by image and patch by patch."""
    data, tokens = job.dataset("test"), job.features("test", parts=("patches",)).get("patches").float()
    bank, shares = [], []
    for index in range(len(data)):
        pixels = data.pixels(index)
        for row in range(4):
            for column in range(4):
                square = pixels[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                counted = square[square >= 0]
                if len(counted):
                    bank.append(tokens[index, row, column])
                    shares.append(np.bincount(counted, minlength=3) / len(counted))
    bank, shares = F.normalize(torch.stack(bank), dim=1), torch.from_numpy(np.array(shares)).float()
    table = np.zeros((3, 3), int)
    for index in range(len(data)):
        mixed = torch.zeros(4, 4, 3)
        for row in range(4):
            for column in range(4):
                cosine = bank @ F.normalize(tokens[index, row, column], dim=0)
                order = sorted(range(len(bank)), key=lambda i: (-float(cosine[i]), i))[:k]
                weight = torch.softmax(cosine[order] / temperature, 0)
                mixed[row, column] = (weight[:, None] * shares[order]).sum(0)
        large = F.interpolate(mixed.permute(2, 0, 1)[None], (32, 32), mode="bilinear")[0].argmax(0)
        truth = truth_of(index)
        for t, p in zip(truth[truth >= 0], large[truth >= 0], strict=True):
            table[int(t), int(p)] += 1
    with np.errstate(invalid="ignore"):
        return np.nanmean(np.diag(table) / (table.sum(0) + table.sum(1) - np.diag(table)))


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.02), (5, 0.3)])
def test_the_whole_is_the_published_procedure(k, temperature, tmp_path):
    data = scenes.Scenes(ODD)
    job = scenes.job(config(k=k, temperature=temperature), data, tmp=tmp_path)
    expected = plainly(job, k, temperature, lambda index: torch.from_numpy(data.pixels(index)))
    assert measured(job)["mIoU"].value == pytest.approx(expected, abs=1e-9)


def test_transfer_is_a_softmax_of_cosines_over_shares():
    values, index = torch.tensor([[0.9, 0.7], [0.1, -0.1]]), torch.tensor([[2, 0], [1, 1]])
    shares = torch.tensor([[1.0, 0], [0, 1], [0.5, 0.5]])
    weight = 1 / (1 + np.exp(-(0.9 - 0.7) / 0.1))
    expected = [1 - weight / 2, weight / 2, 0, 1]
    assert hummingbird.transfer(values, index, shares, 0.1).flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_painting_is_the_largest_interpolated_share_and_ties_go_to_the_lowest():
    shares = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    shares[..., 4] = 0
    expected = F.interpolate(shares.permute(2, 0, 1)[None], (20, 33), mode="bilinear")[0].argmax(0)
    assert torch.equal(hummingbird.painted(shares, (20, 33)), expected)
    assert (hummingbird.painted(torch.full((2, 2, 3), 1 / 3), (5, 5)) == 0).all()


def test_a_limited_memory_keeps_rare_classes_first():
    present = torch.zeros(20, 3, dtype=torch.bool)
    present[:15, 0], present[15:17, 1] = True, True  # 18 and 19 have no label
    times = np.zeros(20)
    for seed in range(300):
        kept = hummingbird.sample(present, 4, torch.Generator().manual_seed(seed))
        assert kept.tolist() == sorted(set(kept.tolist())) and len(kept) == 4
        times[kept] += 1
    assert times[17:].sum() == 0
    assert times[15:17].mean() > 2 * times[:15].mean()
    assert hummingbird.sample(present, 99, torch.Generator()).tolist() == list(range(17))


def test_the_memory_has_as_many_rows_of_every_image(tmp_path):
    job = scenes.job(config(memory=6), scenes.Scenes(ODD), tmp=tmp_path)
    memory = hummingbird.remember(job)
    assert memory.rows.shape == (6, 27) and memory.shares.sum(1).tolist() == [1] * 6
    again = hummingbird.remember(scenes.job(config(memory=6), scenes.Scenes(ODD), tmp=tmp_path))
    assert torch.equal(memory.rows, again.rows)


def test_ignored_pixels_are_left_out_or_the_first_class(tmp_path):
    left = hummingbird.remember(scenes.job(config(), SCENES, tmp=tmp_path))
    first = hummingbird.remember(scenes.job(config(ignored="first"), SCENES, tmp=tmp_path))
    assert (len(left.rows), len(first.rows)) == (13, 32)
    assert first.shares[:, 0].sum() == 8 + 19


def test_names_that_fit_better_are_taken_only_where_it_is_asked_for(tmp_path):
    """Classes a and b have changed places in training: a supervised transfer is wrong, renaming hides it."""
    swapped = scenes.Scenes((("00", "00"), ("11", "11")), split="train")
    truth = scenes.Scenes((("11", "11"), ("00", "00")))

    class Painted(scenes.Scenes):
        def image(self, group):
            return swapped.image(group)

    test = Painted(truth.maps)
    direct = measured(scenes.job(config(), test, swapped, size=16, tmp=tmp_path))
    assert direct["mIoU"].value == 0
    job = scenes.job(config(matching="hungarian"), test, swapped, size=16, tmp=tmp_path)
    assert measured(job)["mIoU"].value == 1
    assert job.facts["renamed"] == {"a": "b", "b": "a"}


def test_truth_at_the_input_is_the_nearest_pixel():
    class One:
        def pixels(self, index):
            return np.arange(48, dtype=np.int32).reshape(6, 8)

    found = hummingbird.Truth((2, 2), 2)(One(), 0)
    assert found.tolist() == [[int((y + 0.5) * 1.5) * 8 + int((x + 0.5) * 2) for x in range(4)] for y in range(4)]


def test_shares_of_the_memory_count_pixels_of_the_input_where_truth_does():
    """A column of labels that the resized map skips has no share there."""

    class One:
        def pixels(self, index):
            return np.array([[0, 1, 0, 2], [0, 1, 0, 2]], np.int32)

    own = hummingbird.Shares((1, 1), 3, first=False)(One(), 0)
    resized = hummingbird.Shares((1, 1), 3, first=False, side=2)(One(), 0)
    assert own.tolist() == [[4, 2, 2]]
    assert hummingbird.Truth((1, 1), 2)(One(), 0).tolist() == [[1, 2], [1, 2]]
    assert resized.tolist() == [[0, 2, 2]]


def test_the_memory_of_a_resized_truth_is_resized_too(tmp_path):
    data = scenes.Scenes(ODD)
    asked = []

    class Asked(hummingbird.Shares):
        def __call__(self, dataset, position):
            asked.append(self.side)
            return super().__call__(dataset, position)

    for at, side in (("image", 0), ("input", 8)):
        asked.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hummingbird, "Shares", Asked)
            hummingbird.remember(scenes.job(config(at=at), data, tmp=tmp_path))
        assert set(asked) == {side}


@pytest.mark.parametrize("search", ["faiss", "faiss-ivf"])
def test_faiss_finds_the_same(search, tmp_path):
    found = measured(scenes.job(config(search=search, probes=99), scenes.Scenes(ODD), tmp=tmp_path))
    exact = measured(scenes.job(config(), scenes.Scenes(ODD), tmp=tmp_path))
    assert found["mIoU"].value == pytest.approx(exact["mIoU"].value)


def test_images_are_looked_up_in_any_number_at_once(tmp_path, monkeypatch):
    whole = measured(scenes.job(config(), scenes.Scenes(ODD), tmp=tmp_path))["mIoU"].value
    monkeypatch.setattr(hummingbird, "QUERIES", 17)
    assert measured(scenes.job(config(), scenes.Scenes(ODD), tmp=tmp_path))["mIoU"].value == whole


def test_an_image_that_is_all_background_is_no_unit(tmp_path):
    blank = scenes.Scenes((*MAPS, ("....",) * 4))
    assert measured(scenes.job(config(), blank, tmp=tmp_path))["mIoU"].n == 2


def test_broken_masks_are_refused_or_left_out(tmp_path):
    broken = scenes.Scenes((*MAPS, MAPS[0]), masks_broken=(0,))
    with pytest.raises(BrokenImage, match="scene 0"):
        measured(scenes.job(config(), broken, tmp=tmp_path))
    job = scenes.job(config(), broken, skip_broken=True, tmp=tmp_path)
    assert measured(job)["mIoU"].n == 2 and job.skipped == {"train": ["s0"], "test": ["s0"]}


@pytest.mark.parametrize(
    ("data", "changes", "match"),
    [
        (scenes.Flat(SCENES), {}, "needs labels for every pixel"),
        (scenes.Scenes(()), {}, "the split test of scenes holds no image"),
        (SCENES, {"k": 14}, "holds 13 labelled patches, fewer than the k = 14"),
        (scenes.Scenes((("....",) * 4,)), {}, "holds 0 labelled patches"),
    ],
)
def test_data_that_cannot_be_transferred(data, changes, match, tmp_path):
    with pytest.raises(ProtocolError, match=match):
        measured(scenes.job(config(**changes), data, tmp=tmp_path))


@pytest.mark.parametrize("changes", [{"k": 0}, {"temperature": 0}, {"memory": -1}, {"search": "near"}])
def test_options_that_cannot_be(changes):
    with pytest.raises(CatalogError, match=next(iter(changes))):
        configure("hummingbird", changes)
