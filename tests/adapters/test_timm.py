"""The timm adapter against timm's own forward, with random weights; and the real ViT-S/14 where it is at hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from evalkit import adapters
from evalkit.adapters import specs, twins
from evalkit.adapters import timm as family
from evalkit.errors import FeatureError, KeyMismatch, NoProjection, UnknownName, Unsupported, UsageError
from evalkit.types import Manifest, Preprocessing

MANIFEST = Manifest(id="x", family="timm", arch="vit_tiny_patch16_224")
CASES = {
    "vit_tiny_patch16_224": (224, (96, 160)),
    "vit_small_patch14_dinov2": (518, (98, 126)),
    "vit_small_patch14_reg4_dinov2": (518, (126, 98)),
}
BOTH = {
    "vit_tiny_patch16_224",
    "vit_small_patch14_dinov2",  # of the two at 518 pixels one is enough
}


def _model(arch, **options):
    """timm's model with random weights, norms and LayerScale included, so that every one of them counts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(arch, pretrained=False, dynamic_img_size=True, **options).eval()
        for parameter in model.parameters():
            parameter.data = parameter.data + torch.randn_like(parameter) * 0.02
    return model.requires_grad_(False)


def _images(height, width=None, batch=1):
    return torch.randn(batch, 3, height, width or height, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    model = _model(request.param)
    path = tmp_path_factory.mktemp("timm") / "w.safetensors"
    save_file(model.state_dict(), path)
    return model, adapters.load(replace(MANIFEST, arch=request.param), path)


def test_parity_at_the_native_and_at_another_size(pair):
    model, encoder = pair
    native, other = CASES[encoder.spec.arch]
    for images in (*([_images(native)] if encoder.spec.arch in BOTH else []), _images(*other, batch=2)):
        expected = model.forward_features(images)
        tokens = encoder.encode(images)[0]
        torch.testing.assert_close(tokens.cls, expected[:, 0], rtol=1e-5, atol=1e-5)
        patches = expected[:, model.num_prefix_tokens :]
        torch.testing.assert_close(tokens.patches.flatten(1, 2), patches, rtol=1e-5, atol=1e-5)
        side = encoder.spec.patch
        assert tokens.patches.shape[1:3] == (images.shape[2] // side, images.shape[3] // side)


def test_blocks_in_the_order_asked_for(pair):
    model, encoder = pair
    images = _images(*CASES[encoder.spec.arch][1])
    late, early, raw = encoder.encode(images, blocks=(-2, 3, 3), norm=(True, True, False))
    expected = model.forward_intermediates(images, indices=[3, 10], output_fmt="NLC", intermediates_only=True)
    for tokens, rows in ((late, model.norm(expected[1])), (early, model.norm(expected[0])), (raw, expected[0])):
        torch.testing.assert_close(tokens.patches.flatten(1, 2), rows, rtol=1e-5, atol=1e-5)


def test_attention_rows(pair):
    """The rows, applied to the values, give what the block's own attention gives."""
    model, encoder = pair
    images = _images(*CASES[encoder.spec.arch][1])
    prefix, last = model.num_prefix_tokens, model.blocks[-1]
    before = model.forward_intermediates(
        images, [10], return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    x = last.norm1(torch.cat(before[0][::-1], 1))
    rows = encoder.attention(images, queries=("cls", 7))
    assert rows.shape == (1, encoder.spec.heads, 2, x.shape[1])
    torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:3]))
    values = last.attn.qkv(x).chunk(3, -1)[2].unflatten(-1, (encoder.spec.heads, -1)).transpose(1, 2)
    out = last.attn.proj((rows @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, last.attn(x)[:, [0, prefix + 7]], rtol=1e-4, atol=1e-5)


def test_the_spec(pair):
    model, encoder = pair
    spec = encoder.spec
    assert (spec.dim, spec.depth, spec.heads) == (model.embed_dim, 12, model.embed_dim // 64)
    assert spec.grid == model.patch_embed.grid_size
    assert spec.offers == {"cls", "patches", "blocks", "attention"}
    assert spec.preprocessing.size == CASES[spec.arch][0]
    assert "pretrained_cfg" in spec.preprocessing.source
    dropped = {name: set(keys) for name, keys in spec.audit["backbone"]["dropped"].items()}
    assert dropped == ({"classifier": {"head.weight", "head.bias"}} if model.num_classes else {})
    assert spec.parameters == sum(p.numel() for name, p in model.named_parameters() if not name.startswith("head."))


def test_what_cannot_be(pair):
    _, encoder = pair
    with pytest.raises(FeatureError, match="not a multiple of the patch"):
        encoder.encode(_images(100))
    with pytest.raises(FeatureError, match="not a multiple of the patch"):
        encoder.attention(_images(100))
    with pytest.raises(FeatureError, match="has 12 blocks"):
        encoder.encode(_images(112), blocks=(12,))
    with pytest.raises(NoProjection, match="no pretraining head"):
        encoder.project(encoder.encode(_images(112))[0])


@pytest.fixture(scope="module")
def tiny():
    return _model("test_vit", num_classes=3)


def _saved(path, content):
    torch.save(content, path)
    return path


def test_training_files(tiny, tmp_path):
    manifest = replace(MANIFEST, arch="test_vit")
    state = tiny.state_dict()
    averaged = {f"module.{key}": value + 1 for key, value in state.items()}
    path = _saved(
        tmp_path / "x.pth.tar", {"epoch": 3, "state_dict": state, "state_dict_ema": averaged, "optimizer": {}}
    )
    plain, ema = adapters.load(manifest, path), adapters.load(replace(manifest, network="ema"), path)
    assert torch.equal(ema.model.cls_token, plain.model.cls_token + 1)
    assert (plain.spec.network, ema.spec.network) == ("backbone", "ema")
    with pytest.raises(UsageError, match="'teacher'"):
        adapters.load(replace(manifest, network="teacher"), path)


def test_every_key_counts(tiny, tmp_path):
    manifest = replace(MANIFEST, arch="test_vit")
    state = tiny.state_dict()
    less = {key: value for key, value in state.items() if key != "blocks.2.norm1.bias"}
    with pytest.raises(KeyMismatch, match=r"missing \(1\): blocks\.2\.norm1\.bias"):
        adapters.load(manifest, _saved(tmp_path / "x.pth", less))
    with pytest.raises(KeyMismatch, match=r"unexpected \(1\): heads\.weight"):
        adapters.load(manifest, _saved(tmp_path / "x.pth", state | {"heads.weight": torch.zeros(1)}))
    with pytest.raises(KeyMismatch, match="another image size"):
        adapters.load(manifest, _saved(tmp_path / "x.pth", state | {"pos_embed": torch.zeros(1, 52, tiny.embed_dim)}))


def test_a_network_without_class_token(tmp_path):
    model = _model("test_vit2", num_classes=0, class_token=False, global_pool="avg")
    encoder = family.TimmEncoder(
        model, family._spec(replace(MANIFEST, arch="test_vit2"), model, specs.Origin("backbone", 1, ""))
    )
    assert "cls" not in encoder.spec.offers
    tokens = encoder.encode(_images(160))[0]
    assert tokens.cls is None
    torch.testing.assert_close(
        tokens.patches.flatten(1, 2), model.forward_features(_images(160))[:, model.num_prefix_tokens :]
    )
    with pytest.raises(Unsupported, match="no class token"):
        encoder.attention(_images(160))
    assert encoder.attention(_images(160), queries=(0,)).shape[2] == 1


def test_the_manifest_says_how_it_is_fed(tiny, tmp_path):
    fed = Preprocessing(size=96, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), source="its authors")
    path = _saved(tmp_path / "x.pth", tiny.state_dict())
    assert adapters.load(replace(MANIFEST, arch="test_vit", preprocessing=fed), path).spec.preprocessing == fed


def test_unknown_architectures():
    with pytest.raises(UnknownName, match=r"Did you mean .*vit_small_patch16_224"):
        family.create("vit_small_patch16_225")
    for arch in ("resnet18", "swin_tiny_patch4_window7_224"):
        with pytest.raises(Unsupported, match="no plain vision transformer"):
            family.create(arch)


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    family.create("test_vit")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_real_vit_small(shared):
    path = shared / "weights" / "vit_small_patch14_focus.fp16.safetensors"
    encoder = adapters.load(replace(MANIFEST, arch="vit_small_patch14_dinov2"), path)
    assert encoder.spec.audit["backbone"] == {"used": 174, "dtypes": {"float16": 174}, "dropped": {}}
    assert encoder.model.cls_token.dtype == torch.float32
    assert torch.equal(encoder.model.pos_embed, load_file(path)["pos_embed"].float())
    for side in (98, 224):
        tokens = encoder.encode(_images(side))[0]
        assert tokens.patches.shape == (1, side // 14, side // 14, 384)
        assert tokens.cls.isfinite().all()


def _wide(grid, seed=0):
    """timm's own test network with a table of another grid, and the same weights elsewhere."""
    patch = 16
    torch.manual_seed(seed)
    size = (grid[0] * patch, grid[1] * patch)
    return timm.create_model("test_vit", num_classes=0, img_size=size, dynamic_img_size=True).eval()


@pytest.mark.parametrize(("grid", "told"), [((7, 7), None), ((5, 8), (5, 8))])
def test_a_table_of_another_native_size(grid, told, tmp_path):
    model, manifest = _wide(grid), replace(MANIFEST, arch="test_vit", grid=told)
    path = _saved(tmp_path / "x.pth", {"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}})
    encoder = adapters.load(manifest, path)
    assert encoder.spec.grid == grid
    assert encoder.spec.preprocessing.size == 16 * min(grid)
    x = torch.randn(2, 3, 16 * grid[0], 16 * grid[1])
    with torch.no_grad():
        truth = model.forward_features(x)
    assert torch.equal(encoder.encode(x)[0].cls, truth[:, 0])


def test_the_untrained_twin_has_the_grid_of_its_encoder(tmp_path):
    """And another name than the twin of another grid."""
    found = {}
    for grid in ((7, 7), (5, 8), (8, 5)):
        path = _saved(tmp_path / "x.pth", _wide(grid).state_dict())
        encoder = adapters.load(replace(MANIFEST, arch="test_vit", grid=grid), path)
        twin = twins.of(encoder)
        assert twin.model.patch_embed.grid_size == grid
        found[twin.spec.id] = grid
    assert len(found) == 3


def test_a_rectangle_that_is_not_told_is_refused(tmp_path):
    path = _saved(tmp_path / "x.pth", _wide((5, 8)).state_dict())
    with pytest.raises(KeyMismatch, match=r"mis-shaped.*pos_embed"):
        adapters.load(replace(MANIFEST, arch="test_vit"), path)
