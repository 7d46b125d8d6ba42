"""What pictures are made from: sizes in whole patches, points in patches, views whose geometry is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from evalkit.engine.evaluate import load
from evalkit.errors import Unsupported, UsageError
from evalkit.metrics import maps
from evalkit.reporting import looking


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards: every place has its own colour."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 128)], axis=2).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("given", "size", "patch", "expected"),
    [
        ((640, 480), 480, 16, (480, 352)),
        ((100, 400), 64, 8, (16, 64)),
        ((1000, 3), 64, 8, (64, 8)),
        ((7, 7), 14, 14, (14, 14)),
    ],
)
def test_pictures_have_whole_patches(given, size, patch, expected):
    assert looking.fitted(gradient(*given), size, patch).size == expected


@pytest.mark.parametrize("size", [7, 8 * 65])
def test_sizes_that_cannot_be(size):
    with pytest.raises(UsageError, match=r"8 to 512"):
        looking.fitted(gradient(9, 9), size, 8)


def test_points_lie_in_patches():
    picture, grid = (40, 20), (2, 4)
    assert [looking.patch_at(picture, grid, p) for p in ((0, 0), (9, 9), (10, 9), (39, 19), (0, 10))] == [0, 0, 1, 7, 4]
    with pytest.raises(UsageError, match="outside the image"):
        looking.patch_at(picture, grid, (40, 0))


@pytest.mark.parametrize("seed", range(6))
def test_a_view_knows_where_its_patches_come_from(seed):
    whole = gradient(300, 200)
    cut = looking.cut_of(whole, 96, draws=np.random.default_rng(seed))
    places = cut.origin((8, 8))
    colours = np.asarray(cut.picture, np.float64).reshape(8, 12, 8, 12, 3).mean((1, 3)).reshape(64, 3)
    assert np.allclose(places[:, 0], colours[:, 0] * 300 / 255, atol=1.5)
    assert np.allclose(places[:, 1], colours[:, 1] * 200 / 255, atol=1.5)


def test_views_are_sometimes_mirrored():
    drawn = [looking.cut_of(gradient(64, 64), 16, draws=np.random.default_rng(seed)) for seed in range(20)]
    assert {cut.mirrored for cut in drawn} == {True, False}


def test_an_encoder_that_knows_places_matches_them_right():
    """Tokens that are the place in the whole image: every match of two views is right."""
    from evalkit.cli.show.correspondence import _right

    whole, draws = gradient(400, 300), np.random.default_rng(3)
    cuts = [looking.cut_of(whole, 160, draws=draws) for _ in range(2)]
    tokens = [torch.from_numpy(np.c_[cut.origin((20, 20)), np.full(400, 300.0)]) for cut in cuts]
    found = maps.matches(*tokens, top=400)
    right = _right(cuts, found, (20, 20))
    assert len(right) > 40 and np.mean(right) > 0.9  # a cosine does not tell all places of a plane apart exactly
    wrong = _right(cuts, maps.Matches(found.first, found.second.flip(0), found.similarity), (20, 20))
    assert np.mean(wrong) < 0.3


def test_attention_of_class_token_and_patch():
    encoder = load("micro-dino")
    eyes, picture = looking.Eyes(encoder, torch.device("cpu"), "fp32"), gradient(64, 48)
    rows = eyes.attention(picture)
    assert rows.shape == (3, 6, 8) and bool((rows.sum((1, 2)) < 1).all())  # the class token keeps some
    assert not torch.equal(eyes.attention(picture, 5), rows)
    assert eyes.see(picture).grid == (6, 8)
    with pytest.raises(Unsupported, match="no attention"):
        looking.Eyes(load("pixels"), torch.device("cpu")).attention(picture)
