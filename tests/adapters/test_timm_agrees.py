"""A second witness: where timm has a family's network, it computes the same tokens from the same weights at native size."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer

from tests.adapters import oracles
from tests.adapters.written import load, saved

PLAIN = ("dino", "ibot", "mugs", "mae", "moco_v3", "deit", "msn", "cae", "dinov2")


def timms(config):
    """timm's network of one of our configurations."""
    shape = {"patch_size": config.patch, "embed_dim": config.dim, "depth": config.depth, "num_heads": config.heads}
    parts = {
        "init_values": config.layer_scale,
        "reg_tokens": config.registers,
        "no_embed_class": not config.cls_position,
    }
    norm = {"norm_layer": partial(torch.nn.LayerNorm, eps=config.eps)}
    return VisionTransformer(img_size=config.size, num_classes=0, global_pool="", **shape, **parts, **norm)


def compared(encoder, model, state):
    model.load_state_dict(state, strict=True)
    model = model.double().eval()
    size = encoder.spec.grid[0] * encoder.spec.patch
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        theirs = model.forward_features(x)
    ours = encoder.double().encode(x)[0]
    torch.testing.assert_close(ours.cls, theirs[:, 0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        ours.patches.flatten(1, 2), theirs[:, -ours.patches[0, ..., 0].numel() :], rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("family", PLAIN)
def test_timm_computes_the_same(family, tmp_path, monkeypatch):
    oracle, file = oracles.module(family), oracles.files(family)[0]
    encoder = load(oracle, file, saved(file, tmp_path), monkeypatch)
    state = {key: value for key, value in encoder.vit.state_dict().items() if key != "mask_token"}
    compared(encoder, timms(encoder.vit.config), state)


def test_timms_beit_computes_the_same(tmp_path, monkeypatch):
    oracle, file = oracles.module("beit"), oracles.files("beit")[0]
    encoder = load(oracle, file, saved(file, tmp_path), monkeypatch)
    config = encoder.vit.config
    model = Beit(
        img_size=config.size, patch_size=config.patch, embed_dim=config.dim, depth=config.depth, num_heads=config.heads,
        num_classes=0, global_pool="", init_values=0.1, use_shared_rel_pos_bias=config.relative == "shared",
        use_rel_pos_bias=config.relative == "blocks", use_abs_pos_emb=False,
        norm_layer=partial(torch.nn.LayerNorm, eps=config.eps),
    )  # fmt: skip
    state = {key: value for key, value in file.weights.items() if key in model.state_dict()}
    compared(encoder, model, state | {k: v for k, v in model.state_dict().items() if "index" in k})
