"""The fake pictures tell their class exactly, or chance, as the options say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evalkit.datasets.fake import Config, Drawn, colours, open
from evalkit.errors import BrokenImage, DatasetError


def read(dataset: object, config: Config) -> np.ndarray:
    """The class of every sample, read back from the mean colour of its box."""
    table = colours(config.classes).astype(float)
    found = []
    for sample in dataset:
        image = dataset.image(sample.group)
        mean = np.asarray(image.crop(sample.box) if sample.box else image).reshape(-1, 3).mean(0)
        found.append(((table - mean) ** 2).sum(-1).argmin())
    return np.array(found)


@pytest.mark.parametrize("config", [Config(), Config(27, 4, size=1), Config(5, 6, groups_of=4), Config(1, 3)])
def test_without_noise_every_class_is_read_back(config: Config) -> None:
    data = open(Path("nowhere"), "train", config)
    assert len(data) == config.classes * config.per_class
    assert np.array_equal(read(data, config), [sample.label for sample in data])


def test_with_noise_one_the_picture_tells_nothing() -> None:
    config = Config(classes=4, per_class=300, size=2, noise=1.0)
    data = open(Path(), "test", config)
    right = (read(data, config) == [sample.label for sample in data]).mean()
    assert abs(right - 1 / 4) < 0.05


def test_noise_is_a_share_of_the_samples() -> None:
    config = Config(classes=4, per_class=300, size=2, noise=0.4)
    data = open(Path(), "test", config)
    right = (read(data, config) == [sample.label for sample in data]).mean()
    assert abs(right - (0.6 + 0.4 / 4)) < 0.05


def test_no_pixel_strays_by_a_quarter_of_a_step() -> None:
    tile = np.asarray(open(Path(), "train", Config(size=64)).image("2")).astype(int)
    assert 0 < np.abs(tile - colours(4)[2]).max() < 32


def test_pictures_differ_by_sample_split_and_seed_and_repeat() -> None:
    def first(split: str = "train", group: str = "0", seed: int = 0) -> bytes:
        return open(Path(), split, Config(seed=seed)).image(group).tobytes()

    assert first() == first()
    assert len({first(), first(split="test"), first(group="4"), first(seed=1)}) == 4


def test_these_pictures_never_change() -> None:
    assert Drawn("train", Config(size=2)).image("1").tobytes().hex() == "01ff7200f98603f88400ff7a"


def test_groups_share_a_picture_and_are_consecutive() -> None:
    data = open(Path(), "train", Config(classes=3, per_class=3, size=10, groups_of=4))
    assert [sample.group for sample in data] == ["0"] * 4 + ["1"] * 4 + ["2"]
    assert (data.image("0").size, data.image("2").size) == ((40, 10), (10, 10))
    assert data[5].box == (10, 0, 20, 10)


def test_the_digest_follows_the_options() -> None:
    digests = {open(Path(), split, Config(noise=noise)).digest for split in ("train", "test") for noise in (0, 0.5)}
    assert len(digests) == 4


def test_bad_input() -> None:
    with pytest.raises(DatasetError, match="no split 'training'; allowed: train, val, test"):
        open(Path(), "training", Config())
    with pytest.raises(BrokenImage):
        open(Path(), "train", Config()).image("32")
    with pytest.raises(ValueError, match="1 to 27"):
        colours(28)


def test_the_fake_encoder_uses_the_same_colours() -> None:
    from evalkit.adapters.fake import colours as theirs

    assert np.array_equal(colours(27), theirs(27))
