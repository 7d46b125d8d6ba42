"""What only DINOv3's files have: periods as they are saved, masked biases, a class norm of its own, satellite statistics."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evalkit import adapters
from evalkit.adapters import dinov3
from evalkit.errors import CheckpointError, KeyMismatch
from evalkit.types import Manifest, Preprocessing
from tests.adapters import oracles
from tests.adapters.oracles import dinov3 as oracle
from tests.adapters.oracles.plain import draw

MANIFEST = Manifest("x", "dinov3", "vit_small_patch16")


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Every architecture with a width of 64, two blocks, two heads; the MLP as wide as its rule says."""
    for arch, config in dinov3.ARCHITECTURES.items():
        monkeypatch.setitem(oracle.ARCHS, arch, oracles.Facts(dim=64, depth=2, heads=2, patch=16))
        hidden = oracle.hidden(arch) if config.mlp == "swiglu" else None
        monkeypatch.setitem(dinov3.ARCHITECTURES, arch, replace(config, dim=64, depth=2, heads=2, hidden=hidden))


def check(state, path, arch="vit_small_patch16"):
    torch.save(state, path)
    encoder = adapters.load(replace(MANIFEST, arch=arch), path).to(dtype=torch.float64)
    x = torch.randn(2, 3, 32, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    truth, (tokens,) = oracle.forward(state, x, arch=arch), encoder.encode(x)
    torch.testing.assert_close(tokens.cls, truth.cls, rtol=0, atol=1e-10)
    torch.testing.assert_close(tokens.patches, truth.patches, rtol=0, atol=1e-10)
    return encoder


@pytest.mark.parametrize("arch", sorted(dinov3.ARCHITECTURES))
def test_every_architectures_network(arch, tmp_path):
    check(oracle.weights(3, arch=arch), tmp_path / "x.pth", arch)


def test_the_widths_of_the_mlps():
    """At the official widths, hub/backbones.py: ffn_ratio 6 aligned to 8, ffn_ratio 3 aligned to 64."""
    assert {(c.dim, c.hidden) for c in OFFICIAL.values() if c.mlp == "swiglu"} == {
        (384, 1536), (1024, 4096), (1280, 5120), (4096, 8192)
    }  # fmt: skip


OFFICIAL = dict(dinov3.ARCHITECTURES)


def test_other_periods_are_used(tmp_path):
    state = oracle.weights(3)
    check(state | {"rope_embed.periods": state["rope_embed.periods"] * 1.3}, tmp_path / "x.pth")


def test_periods_in_half_precision(tmp_path):
    state = oracle.weights(3)
    check(state | {"rope_embed.periods": state["rope_embed.periods"].bfloat16()}, tmp_path / "x.pth")


def test_a_class_norm_of_its_own(tmp_path):
    check(oracle.weights(3) | draw({"cls_norm.weight": (64,), "cls_norm.bias": (64,)}, 9), tmp_path / "x.pth")


@pytest.mark.parametrize("key", ["rope_embed.periods", "storage_tokens", "blocks.1.attn.qkv.bias_mask"])
def test_a_key_is_missing(key, tmp_path):
    state = oracle.weights(3)
    del state[key]
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(KeyMismatch, match="missing"):
        adapters.load(MANIFEST, tmp_path / "x.pth")


def test_a_mask_that_was_never_filled(tmp_path):
    """layers/attention.py:36: NaN until the weights are initialised."""
    state = oracle.weights(3)
    state["blocks.1.attn.qkv.bias_mask"].fill_(float("nan"))
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        adapters.load(MANIFEST, tmp_path / "x.pth")


@pytest.mark.parametrize("key", ["blocks.0.mlp.w1.weight", "blocks.0.mlp.w2.bias", "blocks.1.mlp.w3.bias"])
@pytest.mark.parametrize("change", ["gone", "longer"])
def test_a_part_of_swiglu_is_wrong(key, change, tmp_path):
    state = oracle.weights(3, arch=oracle.PLUS)
    state |= {key: torch.cat([state[key], state[key]])} if change == "longer" else {}
    state = {k: v for k, v in state.items() if change == "longer" or k != key}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(KeyMismatch, match=r"missing|mis-shaped"):
        adapters.load(replace(MANIFEST, arch=oracle.PLUS), tmp_path / "x.pth")


@pytest.mark.parametrize("shape", [(40, 23), (40,)])
def test_prototypes_that_do_not_fit_their_mlp(shape, tmp_path, monkeypatch):
    monkeypatch.setitem(dinov3.ARCHITECTURES, MANIFEST.arch, replace(OFFICIAL[MANIFEST.arch], depth=2))
    monkeypatch.setitem(oracle.ARCHS, MANIFEST.arch, oracles.Facts(dim=384, depth=2, heads=6, patch=16))
    head = oracle.head(4) | {"last_layer.weight": torch.zeros(shape)}
    torch.save({"teacher": oracle.whole(oracle.weights(3), head, oracle.head(5))}, tmp_path / "x.pth")
    with pytest.raises(KeyMismatch, match="its MLP gives 24 values"):
        adapters.load(MANIFEST, tmp_path / "x.pth")


def test_satellite_statistics(tmp_path):
    encoder = check(oracle.weights(3, arch="vit_7b_patch16_sat493m"), tmp_path / "x.pth", "vit_7b_patch16_sat493m")
    assert encoder.spec.preprocessing.mean == (0.430, 0.411, 0.296)
    own = replace(MANIFEST, arch="vit_7b_patch16_sat493m", preprocessing=Preprocessing(256, source="mine"))
    assert adapters.load(own, tmp_path / "x.pth").spec.preprocessing.source == "mine"
    web = adapters.load(replace(MANIFEST, arch="vit_7b_patch16"), tmp_path / "x.pth").spec.preprocessing
    assert web.mean == (0.485, 0.456, 0.406)
