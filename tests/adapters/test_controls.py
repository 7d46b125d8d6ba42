"""The encoders without weights files: random, pixels, fake."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evalkit import adapters
from evalkit.adapters import fake
from evalkit.datasets import fake as fake_data
from evalkit.errors import FeatureError, NoProjection, Unsupported
from evalkit.types import Manifest, Preprocessing, Tokens

RANDOM = Manifest(id="random", family="random", arch="vit_micro_patch8_64", seed=0)


def _encoder(family, arch="", **fields):
    return adapters.load(Manifest(id=family, family=family, arch=arch, **fields))


def test_random_is_the_same_everywhere():
    """The first numbers for seed 0, so that a change of the initialisation is noticed."""
    torch.manual_seed(7)
    one = adapters.load(RANDOM)
    torch.manual_seed(8)
    two = adapters.load(RANDOM)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    weight = one.vit.blocks[0].attn.qkv.weight
    # Xavier uniform of a (3 x 192, 192) matrix: deviation sqrt(2 / (fan_in + fan_out))
    assert weight.std() == pytest.approx((2 / (192 + 3 * 192)) ** 0.5, rel=0.01)
    assert not one.vit.blocks[0].attn.qkv.bias.any()
    assert one.spec.seed == 0
    assert one.spec.network == "untrained"
    assert one.spec.digest == ""


def test_random_has_a_seed():
    one, two = adapters.load(RANDOM), _encoder("random", RANDOM.arch, seed=1)
    assert not torch.equal(one.vit.patch_embed.proj.weight, two.vit.patch_embed.proj.weight)
    assert torch.equal(one.vit.pos_embed, two.vit.pos_embed)  # sines and cosines, not drawn
    assert two.spec.seed == 1


def test_random_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    adapters.load(RANDOM)
    assert torch.equal(torch.get_rng_state(), before)


def test_pixels():
    encoder = _encoder("pixels")
    images = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    first, last = encoder.encode(images, blocks=(0, -1), norm=(False, True))
    assert torch.equal(first.patches, last.patches)
    assert first.patches.shape == (2, 8, 4, 192)
    assert torch.equal(first.patches[1, 2, 3].view(3, 8, 8), images[1, :, 16:24, 24:32])
    small = images[0].unfold(1, 8, 8).unfold(2, 4, 4).mean((-2, -1))
    torch.testing.assert_close(first.cls[0].view(3, 8, 8), small)
    assert encoder.spec.offers == {"cls", "patches", "blocks"}


def test_pixels_lack_a_head_and_attention():
    encoder = _encoder("pixels")
    images = torch.zeros(1, 3, 64, 64)
    with pytest.raises(NoProjection):
        encoder.project(encoder.encode(images)[0])
    with pytest.raises(Unsupported, match="no attention"):
        encoder.attention(images)


@pytest.mark.parametrize("family", ["pixels", "fake"])
def test_sizes_and_blocks_are_checked(family):
    encoder = _encoder(family, "fake_patch8" if family == "fake" else "")
    with pytest.raises(FeatureError, match="not a multiple of the patch size 8"):
        encoder.encode(torch.zeros(1, 3, 20, 24))
    with pytest.raises(FeatureError, match="does not exist"):
        encoder.encode(torch.zeros(1, 3, 24, 24), blocks=(12,))


def test_the_colours_are_those_of_the_dataset():
    for n in (1, 4, 27):
        np.testing.assert_array_equal(fake.colours(n), fake_data.colours(n))
    assert len(np.unique(fake.colours(27), axis=0)) == 27
    for n in (0, 28):
        with pytest.raises(ValueError, match="colours for 1 to 27"):
            fake.colours(n)


def _painted(encoder, noise=0.0):
    """(27, 3, 32, 32): one normalised image of each colour."""
    fed = encoder.spec.preprocessing
    images = torch.from_numpy(fake.colours(27))[:, :, None, None].expand(-1, -1, 32, 32) / 255
    images = images + noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v)[:, None, None] for v in (fed.mean, fed.std))
    return (images - mean) / std


@pytest.mark.parametrize("fed", [Preprocessing(), Preprocessing(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "test")])
def test_fake_reads_every_class(fed):
    encoder = _encoder("fake", "fake_patch8", preprocessing=fed)
    tokens = encoder.encode(_painted(encoder, noise=0.2))[0]
    assert torch.equal(tokens.cls, torch.eye(27))
    clean = encoder.encode(_painted(encoder))[0].patches
    assert torch.equal(clean, torch.eye(27)[:, None, None].expand(-1, 4, 4, -1))


def test_fake_reads_patches_where_they_are():
    encoder = _encoder("fake", "fake_patch8")
    images = _painted(encoder)[:1].clone()
    images[0, :, 8:16, 24:32] = _painted(encoder)[5, :, :8, :8]
    found = encoder.encode(images)[0].patches.argmax(-1)[0]
    assert found[1, 3] == 5
    assert found.sum() == 5


def test_fake_head_and_attention():
    encoder = _encoder("fake", "fake_patch8")
    tokens = encoder.encode(_painted(encoder))[0]
    assert torch.equal(encoder.project(tokens), tokens.cls)
    assert torch.equal(encoder.attention(_painted(encoder), ("cls", 3)), torch.full((27, 2, 2, 17), 1 / 17))
    with pytest.raises(NoProjection):
        encoder.project(Tokens(None, tokens.patches))


def test_fake_can_be_blind():
    encoder = _encoder("fake", "fake_blind_patch8")
    assert torch.equal(encoder.encode(_painted(encoder))[0].cls, torch.eye(27)[:1].expand(27, -1))
