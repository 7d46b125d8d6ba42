"""Augmented batches: the same whatever ran before, every sample once an epoch, crops as torchvision draws them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from feature_fakes import SIZE, Photos

from evalkit.errors import BrokenImage, FeatureError, ProtocolError, UsageError
from evalkit.features.decoding import Broken, Loading, read
from evalkit.features.stream import augmented, generator, random_crop, stream
from evalkit.types import Augmentation

PLAIN = Augmentation(SIZE)


def taken(dataset=None, augmentation=PLAIN, **changes):
    settings = {
        "epochs": 3,
        "batch_size": 4,
        "first_epoch": 0,
        "seed": 1,
        "device": "cpu",
        "workers": 0,
        "progress": None,
    }
    dataset = Photos(10) if dataset is None else dataset
    return list(stream(dataset, augmentation, **(settings | changes)))


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.epoch == b.epoch
        for a, b in zip(left, right, strict=True)
    )


def test_an_epoch_is_the_same_wherever_the_stream_began_and_whoever_decodes():
    whole = taken()
    assert same([batch for batch in whole if batch.epoch == 2], taken(first_epoch=2))
    assert same(whole, taken(workers=2))


def test_epochs_and_seeds_differ():
    whole = taken()
    assert not torch.equal(whole[0].images, whole[3].images)
    assert not torch.equal(whole[0].images, taken(seed=2)[0].images)
    first, second, _ = taken(Photos(1))  # one image: only the crop can differ
    assert not torch.equal(first.images, second.images)


def test_each_epoch_has_every_sample_once_and_tells_its_last_batch():
    class Numbered(Photos):
        def __getitem__(self, index):
            return replace(super().__getitem__(index), label=index)

    batches = taken(Numbered(10))
    assert [len(batch.labels) for batch in batches] == [4, 4, 2] * 3
    assert [batch.epoch for batch in batches] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [batch.last_of_epoch for batch in batches] == [False, False, True] * 3
    orders = [torch.cat([batch.labels for batch in batches if batch.epoch == epoch]).tolist() for epoch in range(3)]
    assert [sorted(order) for order in orders] == [list(range(10))] * 3
    assert len({tuple(order) for order in orders} | {tuple(range(10))}) == 4


def test_pixels_are_normalised_float32():
    batch = taken(augmentation=replace(PLAIN, mean=(0.0,) * 3, std=(0.5,) * 3))[0]
    assert batch.images.dtype == torch.float32
    assert batch.images.shape == (4, 3, SIZE, SIZE)
    assert 0 <= batch.images.min() < 1 < batch.images.max() <= 2
    assert batch.labels.dtype == torch.int64


def test_a_crop_of_everything_is_the_image_and_its_mirror():
    image = Photos().image("image-0").crop((0, 0, SIZE, SIZE))
    all_of_it = Augmentation(SIZE, scale=(1, 1), ratio=(1, 1), flip=0)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(augmented(image, None, all_of_it, generator(0)), pixels)
    assert torch.equal(augmented(image, None, replace(all_of_it, flip=1), generator(0)), pixels.flip(2))
    part = augmented(image, (2, 3, 6, 7), replace(all_of_it, size=4), generator(0))
    assert torch.equal(part, pixels[:, 3:7, 2:6])


def test_crops_are_spread_as_asked():
    crops = [random_crop((200, 100), PLAIN, generator(0, number)) for number in range(4000)]
    shares = np.array([width * height / 20_000 for _, _, width, height in crops])
    assert all(left >= 0 and top >= 0 and left + w <= 200 and top + h <= 100 for left, top, w, h in crops)
    assert shares.min() >= 0.075
    square = [random_crop((400, 400), PLAIN, generator(1, number)) for number in range(4000)]
    aspects = np.log([width / height for _, _, width, height in square])
    assert np.abs(aspects).max() <= math.log(4 / 3) + 0.05
    assert abs(aspects.mean()) < 0.02
    area = np.array([width * height / 160_000 for _, _, width, height in square])
    assert abs(np.median(area[area < 0.7]) - 0.39) < 0.02  # uniform from 0.08: below 0.7 every draw fits


@pytest.mark.parametrize(
    ("size", "expected"), [((1, 1), (0, 0, 1, 1)), ((90, 3), (43, 0, 4, 3)), ((3, 90), (0, 43, 3, 4))]
)
def test_images_of_hostile_shape_have_a_crop(size, expected):
    assert random_crop(size, replace(PLAIN, scale=(0.9, 1.0)), generator(3)) == expected


def test_broken_images_are_refused_or_left_out():
    dataset = Photos(10, broken=frozenset({3}))
    with pytest.raises(BrokenImage, match="image-3"):
        taken(dataset)
    broken = Broken(dataset, skip=True)
    batches = taken(dataset, broken=broken)
    assert sum(len(batch.labels) for batch in batches) == 27
    assert set(broken.positions) == {3}
    for batch in batches:
        assert batch.labels.tolist() == [dataset[position].label for position in batch.positions.tolist()]
    alone = taken(dataset, broken=broken, batch_size=1)
    assert [batch.last_of_epoch for batch in alone] == ([False] * 8 + [True]) * 3
    with pytest.raises(FeatureError, match="no image"):
        taken(nothing := Photos(2, broken=frozenset({0, 1})), broken=Broken(nothing, skip=True))


def test_stopping_early_ends_the_workers():
    batches = stream(Photos(40), PLAIN, epochs=2, batch_size=4, workers=2)
    assert next(batches).epoch == 0
    batches.close()


def test_nothing_is_left_to_do_after_the_last_epoch():
    assert taken(first_epoch=3) == []


@pytest.mark.parametrize("wrong", [{"epochs": -1}, {"first_epoch": -1}, {"batch_size": 0}, {"seed": -1}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError):
        taken(**wrong)


def test_a_dataset_without_samples_is_refused():
    with pytest.raises(FeatureError, match="no samples"):
        taken(Photos(0))


def test_the_global_generators_are_left_alone():
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    taken(workers=2)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])


def brightness(dataset, position, turn):
    """A reader: the first pixel of a sample, and the second number of its item."""
    return int(np.asarray(dataset.image(dataset[position].group))[0, 0, 0]), turn


@pytest.mark.parametrize("workers", [0, 2])
def test_readers_answer_in_the_order_asked_for(workers):
    dataset = Photos(6)
    items = [(3, 0), (0, 1), (3, 2), (5, 3)]
    found = list(read(dataset, brightness, items, loading=Loading(workers, False, 1), broken=Broken(dataset, False)))
    assert found == [(item, brightness(dataset, *item)) for item in items]


def test_readers_of_broken_images_are_refused_or_left_out():
    dataset = Photos(4, broken=frozenset({2}))
    items, loading = [(1, 0), (2, 0), (3, 0), (2, 1)], Loading(0, False, 1)
    with pytest.raises(BrokenImage, match="image-2"):
        list(read(dataset, brightness, items, loading=loading, broken=Broken(dataset, False)))
    broken = Broken(dataset, True)
    found = read(dataset, brightness, items, loading=loading, broken=broken)
    assert [item for item, _ in found] == [(1, 0), (3, 0)] and broken.positions == [2, 2]


def stubborn(dataset, position):
    """A reader that finds something wrong with every sample."""
    raise ProtocolError(f"sample {position} is wrong")


def test_errors_of_readers_keep_their_class():
    dataset = Photos(2)
    with pytest.raises(ProtocolError, match="sample 1 is wrong"):
        list(read(dataset, stubborn, [(1,)], loading=Loading(2, False, 1), broken=Broken(dataset, False)))
