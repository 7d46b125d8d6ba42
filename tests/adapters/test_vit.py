"""The shared transformer against timm's with equal weights, in float64, and the rules of resizing restated."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer as TimmTransformer

from evalkit.adapters.encoder import ViTEncoder
from evalkit.adapters.vit import VisionTransformer, ViTConfig
from evalkit.errors import FeatureError, NoProjection, Unsupported
from evalkit.types import EncoderSpec, Preprocessing

PLAIN = ViTConfig(dim=48, depth=4, heads=3, patch=8, size=48)
CONFIGS = {
    "plain": PLAIN,
    "layer scale": replace(PLAIN, layer_scale=0.3),
    "registers": replace(PLAIN, registers=3, cls_position=False, positions="timm"),
    "no class token": replace(PLAIN, cls=False, cls_position=False),
    "no bias": replace(PLAIN, qkv_bias=False),
}


def _vit(config, seed=0):
    """Weights large enough that every term counts, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    vit = VisionTransformer(config).double().eval().requires_grad_(False)
    for parameter in vit.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
    return vit


def _timm(vit, table=None, size=None):
    """timm's network with the same weights; `table` (1, T, D) replaces the positions for another image size."""
    config = vit.config
    shape = {"patch_size": config.patch, "embed_dim": config.dim, "depth": config.depth, "num_heads": config.heads}
    prefix = {"class_token": config.cls, "reg_tokens": config.registers, "no_embed_class": not config.cls_position}
    parts = {"init_values": config.layer_scale, "qkv_bias": config.qkv_bias, "global_pool": "", "num_classes": 0}
    model = TimmTransformer(img_size=size or config.size, **shape, **prefix, **parts).double().eval()
    state = dict(vit.state_dict())
    state["pos_embed"] = state["pos_embed"] if table is None else table
    model.load_state_dict(state, strict=True)
    return model.requires_grad_(False)


def _encoder(vit):
    config = vit.config
    sizes = {
        "dim": config.dim,
        "depth": config.depth,
        "heads": config.heads,
        "patch": config.patch,
        "grid": config.grid,
    }
    rest = {"preprocessing": Preprocessing(), "network": "", "digest": "", "adapter_version": 1, "offers": frozenset()}
    spec = EncoderSpec(id="x", family="x", arch="x", **sizes, **rest)
    return ViTEncoder(vit, spec)


def _images(height, width, seed=1):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", CONFIGS)
def test_native_size_equals_timm(name):
    vit, images = _vit(CONFIGS[name]), _images(48, 48)
    model, prefix = _timm(vit), CONFIGS[name].prefix
    tokens, early, raw = _encoder(vit).encode(images, blocks=(-1, 1, 1), norm=(True, True, False))
    expected = model.forward_features(images)
    torch.testing.assert_close(tokens.patches.flatten(1, 2), expected[:, prefix:], rtol=1e-9, atol=1e-9)
    outputs = model.forward_intermediates(images, indices=[1], output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(raw.patches.flatten(1, 2), outputs[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(early.patches.flatten(1, 2), model.norm(outputs[0]), rtol=1e-9, atol=1e-9)
    if CONFIGS[name].cls:
        torch.testing.assert_close(tokens.cls, expected[:, 0], rtol=1e-9, atol=1e-9)
    else:
        assert tokens.cls is None


def _cubic(x):
    """Keys' kernel with a = -0.75."""
    x = x.abs()
    near = 1.25 * x**3 - 2.25 * x**2 + 1
    far = -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _rows(n_in, n_out):
    """(n_out, n_in) weights of DINO's resizing along one side: scale (n_out + 0.1) / n_in, borders repeated."""
    weights = torch.zeros(n_out, n_in, dtype=torch.float64)
    for i in range(n_out):
        centre = (i + 0.5) / ((n_out + 0.1) / n_in) - 0.5
        first = int(torch.tensor(centre).floor()) - 1
        for j in range(first, first + 4):
            weights[i, min(max(j, 0), n_in - 1)] += _cubic(torch.tensor(centre - j, dtype=torch.float64))
    return weights


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 32), (40, 72), (72, 32)])
def test_other_sizes_by_dinos_rule(height, width):
    """(72, 32) has the native number of patches on another grid."""
    vit, images = _vit(PLAIN), _images(height, width)
    table = vit.pos_embed[0, 1:].view(6, 6, -1)
    table = torch.einsum("ai,bj,ijd->abd", _rows(6, height // 8), _rows(6, width // 8), table).flatten(0, 1)
    model = _timm(vit, torch.cat([vit.pos_embed[:, :1], table[None]], 1), (height, width))
    tokens = _encoder(vit).encode(images)[0]
    expected = model.forward_features(images)
    assert tokens.patches.shape == (2, height // 8, width // 8, 48)
    torch.testing.assert_close(tokens.cls, expected[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens.patches.flatten(1, 2), expected[:, 1:], rtol=1e-5, atol=1e-5)


def test_other_sizes_by_timms_rule():
    config = replace(PLAIN, positions="timm")
    vit, images = _vit(config), _images(40, 72)
    model = _timm(vit)
    model.dynamic_img_size = model.patch_embed.strict_img_size = False
    model.set_input_size(img_size=(40, 72))
    expected = model.forward_features(images)
    tokens = _encoder(vit).encode(images)[0]
    torch.testing.assert_close(tokens.patches.flatten(1, 2), expected[:, 1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "registers"])
def test_attention_rows_are_rows_of_the_full_softmax(name):
    vit, images, prefix = _vit(CONFIGS[name]), _images(48, 64), CONFIGS[name].prefix
    rows = _encoder(vit).attention(images, queries=("cls", 0, 47, 5))
    x, geometry = vit.embed(images)
    for block in vit.blocks[:-1]:
        x = block(x, geometry)
    last = vit.blocks[-1]
    q, k, v = last.attn.split(last.norm1(x), geometry)
    full = (q @ k.transpose(2, 3) / 16**0.5).softmax(-1)
    torch.testing.assert_close(rows, full[:, :, [0, prefix, prefix + 47, prefix + 5]], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 3, 4, dtype=torch.float64))
    with_full = x + last.attn.proj((full @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(last(x, geometry), with_full + last.mlp(last.norm2(with_full)), rtol=1e-9, atol=1e-9)


def test_only_visible_patches_enter():
    vit, images = _vit(replace(PLAIN, registers=2)), _images(48, 64)
    keep = torch.stack([torch.randperm(48, generator=torch.Generator().manual_seed(i))[:11] for i in range(2)])
    x, geometry = vit.embed(images)
    rows = torch.stack([torch.cat([x[i, :3], x[i, 3 + keep[i]]]) for i in range(2)])
    for block in vit.blocks:
        rows = block(rows, geometry)
    torch.testing.assert_close(vit(images, keep=keep), vit.norm(rows), rtol=1e-9, atol=1e-9)


def test_hidden_pixels_change_nothing():
    vit, images = _vit(PLAIN), _images(48, 48)
    keep = torch.arange(18).expand(2, -1)
    changed = images.clone()
    changed[..., 24:, :] = 7.0
    assert torch.equal(vit(images, keep=keep), vit(changed, keep=keep))
    assert not torch.equal(vit(images), vit(changed))


def test_masked_patches_are_the_mask_token():
    vit, images = _vit(replace(PLAIN, mask_token=True)), _images(48, 48)
    mask = torch.zeros(2, 36, dtype=torch.bool)
    mask[:, :6] = True
    changed = images.clone()
    changed[..., :8, :] = 7.0
    assert torch.equal(vit(images, mask=mask), vit(changed, mask=mask))
    x, plain = vit.embed(images, mask=mask)[0], vit.embed(images)[0]
    torch.testing.assert_close(x[:, 1:7], (vit.mask_token + vit.pos_embed[:, 1:7]).expand(2, -1, -1))
    assert torch.equal(x[:, 7:], plain[:, 7:])


def test_registers_never_leak():
    config = replace(PLAIN, registers=4)
    vit, images = _vit(config), _images(48, 48)
    tokens = _encoder(vit).encode(images)[0]
    full = vit(images)
    assert torch.equal(tokens.cls, full[:, 0])
    assert torch.equal(tokens.patches.flatten(1, 2), full[:, 5:])
    with pytest.raises(FeatureError):
        _encoder(vit).encode(_images(48, 50))


def test_what_cannot_be():
    encoder = _encoder(_vit(PLAIN))
    for size in ((50, 48), (48, 4), (0, 48)):
        with pytest.raises(FeatureError, match="not a multiple of the patch size 8"):
            encoder.encode(_images(*size))
    for block in (4, -5, 100):
        with pytest.raises(FeatureError, match="has 4 blocks"):
            encoder.encode(_images(48, 48), blocks=(block,))
    with pytest.raises(NoProjection):
        encoder.project(encoder.encode(_images(48, 48))[0])
    with pytest.raises(Unsupported, match="no class token"):
        _encoder(_vit(CONFIGS["no class token"])).attention(_images(48, 48))


def test_frozen():
    encoder = _encoder(_vit(replace(PLAIN, drop_path=0.5)))
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    images = _images(48, 48)
    assert torch.equal(encoder.encode(images)[0].cls, encoder.encode(images)[0].cls)
