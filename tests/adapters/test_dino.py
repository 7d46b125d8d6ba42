"""DINO's files in their official layouts, against a plain implementation written for this test.

The plain network computes in loops over blocks and heads with a full softmax, from weights under the official names.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from evalkit import adapters
from evalkit.adapters import dino
from evalkit.adapters.vit import VisionTransformer
from evalkit.errors import CheckpointError, KeyMismatch, NoProjection, UnsafeFile, UsageError
from evalkit.types import Manifest

ARCH = "vit_micro_patch8_64"
MANIFEST = Manifest(id="x", family="dino", arch=ARCH)


def _backbone(seed, dim=192, depth=6, patch=8, rows=65):
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, rows, dim)}
    shapes |= {"patch_embed.proj.weight": (dim, 3, patch, patch), "patch_embed.proj.bias": (dim,)}
    for i in range(depth):
        shapes |= {f"blocks.{i}.norm{n}.{part}": (dim,) for n in (1, 2) for part in ("weight", "bias")}
        for name, (wide, narrow) in {
            "attn.qkv": (3 * dim, dim),
            "attn.proj": (dim, dim),
            "mlp.fc1": (4 * dim, dim),
            "mlp.fc2": (dim, 4 * dim),
        }.items():
            shapes |= {f"blocks.{i}.{name}.weight": (wide, narrow), f"blocks.{i}.{name}.bias": (wide,)}
    shapes |= {"norm.weight": (dim,), "norm.bias": (dim,)}
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) * 0.05 for key, shape in shapes.items()}


def _head(seed, dim=192, hidden=64, bottleneck=32, out=96):
    generator = torch.Generator().manual_seed(seed)
    sizes = {0: (hidden, dim), 2: (hidden, hidden), 4: (bottleneck, hidden)}
    state = {f"mlp.{i}.weight": torch.randn(shape, generator=generator) * 0.1 for i, shape in sizes.items()}
    state |= {f"mlp.{i}.bias": torch.randn(shape[0], generator=generator) for i, shape in sizes.items()}
    state["last_layer.weight_g"] = torch.rand(out, 1, generator=generator) + 0.5
    state["last_layer.weight_v"] = torch.randn(out, bottleneck, generator=generator)
    return state


def _plain(state, images, heads=3):
    """(B, 1 + patches, D) after the final norm, at the native size."""
    s = {key: value.double() for key, value in state.items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return centred / scale * s[f"{name}.weight"] + s[f"{name}.bias"]

    def linear(x, name):
        return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]

    patch = s["patch_embed.proj.weight"].shape[-1]
    tiles = (
        images.double()
        .unfold(2, patch, patch)
        .unfold(3, patch, patch)
        .permute(0, 2, 3, 1, 4, 5)
        .flatten(3)
        .flatten(1, 2)
    )
    x = tiles @ s["patch_embed.proj.weight"].flatten(1).T + s["patch_embed.proj.bias"]
    x = torch.cat([s["cls_token"].expand(len(x), -1, -1), x], 1) + s["pos_embed"]
    for i in range(sum(key.endswith("norm1.weight") for key in s)):
        q, k, v = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").chunk(3, -1)
        parts = []
        for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
            parts.append((a @ b.transpose(1, 2) / a.shape[-1] ** 0.5).softmax(-1) @ c)
        x = x + linear(torch.cat(parts, -1), f"blocks.{i}.attn.proj")
        hidden = linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        x = x + linear(hidden, f"blocks.{i}.mlp.fc2")
    return norm(x, "norm")


def _plain_head(state, cls):
    """(bottleneck, output) of the official head."""
    s = {key: value.double() for key, value in state.items()}
    x = cls
    for i in (0, 2, 4):
        x = x @ s[f"mlp.{i}.weight"].T + s[f"mlp.{i}.bias"]
        x = F.gelu(x) if i < 4 else x
    x = x / x.norm(dim=-1, keepdim=True)
    rows = s["last_layer.weight_v"] / s["last_layer.weight_v"].norm(dim=1, keepdim=True) * s["last_layer.weight_g"]
    return x, x @ rows.T


def _under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


STUDENT, TEACHER = (_backbone(1), _head(2)), (_backbone(3), _head(4))


def _training_file():
    """As main_dino.py saves it."""
    return {
        "student": _under("module.backbone.", STUDENT[0]) | _under("module.head.", STUDENT[1]),
        "teacher": _under("backbone.", TEACHER[0]) | _under("head.", TEACHER[1]),
        "optimizer": {
            "state": {0: {"step": 10, "exp_avg": torch.zeros(2)}},
            "param_groups": [{"lr": 0.1, "params": [0]}],
        },
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", out_dim=65536, local_crops_scale=(0.05, 0.4)),
        "dino_loss": {"center": torch.zeros(1, 96)},
        "fp16_scaler": {"scale": 65536.0, "growth_factor": 2.0},
    }


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    path = tmp_path_factory.mktemp("dino") / "checkpoint.pth"
    torch.save(_training_file(), path)
    return path


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def _check(encoder, weights, images):
    backbone, head = weights
    tokens = encoder.encode(images)[0]
    expected = _plain(backbone, images).float()
    torch.testing.assert_close(tokens.cls, expected[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens.patches, expected[:, 1:].unflatten(1, (8, 8)), rtol=1e-4, atol=1e-5)
    if head is not None:
        bottleneck, output = _plain_head(head, _plain(backbone, images)[:, 0])
        torch.testing.assert_close(encoder.project(tokens, at="bottleneck"), bottleneck.float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(encoder.project(tokens), output.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("asked", "taken"), [("", "teacher"), ("teacher", "teacher"), ("student", "student")])
def test_training_files(training, images, asked, taken):
    encoder = adapters.load(replace(MANIFEST, network=asked), training)
    _check(encoder, STUDENT if taken == "student" else TEACHER, images)
    assert encoder.spec.network == taken
    assert encoder.spec.offers == {"cls", "patches", "blocks", "attention", "projection"}
    assert "optimizer" in encoder.spec.audit["beside"]
    assert encoder.spec.audit["backbone"]["used"] == len(TEACHER[0])
    assert encoder.spec.audit["head"]["used"] == len(TEACHER[1])


def test_the_older_container(tmp_path, images):
    torch.save(_training_file(), tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    _check(adapters.load(MANIFEST, tmp_path / "x.pth"), TEACHER, images)


def test_a_teacher_under_data_parallel(tmp_path, images):
    """With batch norm in the head the teacher is wrapped as well."""
    teacher = _under("module.backbone.", TEACHER[0]) | _under("module.head.", TEACHER[1])
    torch.save({"teacher": teacher}, tmp_path / "x.pth")
    _check(adapters.load(MANIFEST, tmp_path / "x.pth"), TEACHER, images)


def test_the_released_backbone(tmp_path, images):
    torch.save(TEACHER[0], tmp_path / "x.pth")
    encoder = adapters.load(MANIFEST, tmp_path / "x.pth")
    _check(encoder, (TEACHER[0], None), images)
    assert encoder.spec.network == "backbone"
    assert "projection" not in encoder.spec.offers
    with pytest.raises(NoProjection, match="no pretraining head"):
        encoder.project(encoder.encode(images)[0])
    with pytest.raises(CheckpointError, match="one network only"):
        adapters.load(replace(MANIFEST, network="student"), tmp_path / "x.pth")


def test_files_of_our_own_pretraining(tmp_path, images):
    head = {key: value for key, value in TEACHER[1].items() if "last_layer" not in key}
    save_file(_under("backbone.", TEACHER[0]) | _under("head.", head), tmp_path / "x.safetensors")
    encoder = adapters.load(replace(MANIFEST, network="teacher"), tmp_path / "x.safetensors")
    _check(encoder, (TEACHER[0], None), images)
    tokens = encoder.encode(images)[0]
    expected = _plain_head(TEACHER[1], tokens.cls.double())[0].float()
    torch.testing.assert_close(encoder.project(tokens, at="bottleneck"), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(NoProjection, match="prototype layer is not shipped"):
        encoder.project(tokens)
    assert encoder.spec.network == "teacher"

    save_file(_under("backbone.", TEACHER[0]), tmp_path / "y.safetensors")
    assert "projection" not in adapters.load(MANIFEST, tmp_path / "y.safetensors").spec.offers


def test_a_head_with_batch_norm(tmp_path, images):
    """`--use_bn_in_head`: linear layers at 0, 3, 6 and norms at 1, 4."""
    head = {}
    for old, new in ((0, 0), (2, 3), (4, 6)):
        head |= {f"mlp.{new}.{part}": TEACHER[1][f"mlp.{old}.{part}"] for part in ("weight", "bias")}
    for place in (1, 4):
        norm = nn.BatchNorm1d(64).state_dict()
        head |= _under(f"mlp.{place}.", norm | {"running_mean": torch.full((64,), 0.3)})
    torch.save({"teacher": _under("backbone.", TEACHER[0]) | _under("head.", head)}, tmp_path / "x.pth")
    encoder = adapters.load(MANIFEST, tmp_path / "x.pth")
    tokens = encoder.encode(images)[0]
    x = tokens.cls.double()
    for linear in (0, 3, 6):
        x = x @ head[f"mlp.{linear}.weight"].double().T + head[f"mlp.{linear}.bias"].double()
        x = F.gelu((x - 0.3) / (1 + 1e-5) ** 0.5) if linear < 6 else x
    torch.testing.assert_close(
        encoder.project(tokens, at="bottleneck"), F.normalize(x, dim=-1).float(), rtol=1e-4, atol=1e-5
    )


def _mutated(change):
    content = _training_file()
    content["teacher"] = {key: value.clone() for key, value in content["teacher"].items()}
    change(content["teacher"])
    return content


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda t: t.pop("backbone.norm.bias"), KeyMismatch, r"missing \(1\): norm\.bias"),
        (lambda t: t.pop("head.mlp.2.bias"), KeyMismatch, r"missing \(1\): mlp\.2\.bias"),
        (lambda t: t.update({"backbone.extra": torch.zeros(1)}), KeyMismatch, r"unexpected \(1\): extra"),
        (lambda t: t.update({"other.w": torch.zeros(1)}), KeyMismatch, r"unexpected \(1\): other\.w"),
        (lambda t: t.update({"head.last_layer.weight": torch.zeros(1)}), KeyMismatch, "unexpected"),
        (lambda t: t.update({"head.mlp.0.weight": torch.zeros(3)}), KeyMismatch, "none of DINO's"),
        (lambda t: t.update({"head.mlp.0.weight": torch.zeros(3, 3, 3)}), KeyMismatch, "none of DINO's"),
        (lambda t: t.update({"backbone.blocks.1.module.norm1.weight": t.pop("backbone.blocks.1.norm1.weight")}),
         KeyMismatch, r"unexpected \(1\): blocks\.1\.module\.norm1\.weight"),
        (lambda t: t.update({"backbone.pos_embed": torch.zeros(1, 197, 192)}), KeyMismatch, "14 x 14 patches"),
        (lambda t: t.update({"backbone.cls_token": torch.full((1, 1, 192), float("nan"))}), CheckpointError, "NaN"),
        (lambda t: t["head.last_layer.weight_v"].fill_(float("inf")), CheckpointError, "infinite"),
        (lambda t: [t.pop(f"head.mlp.2.{part}") for part in ("weight", "bias")], KeyMismatch, "none of DINO's"),
        (lambda t: [t.pop(f"head.mlp.4.{part}") for part in ("weight", "bias")], KeyMismatch, "none of DINO's"),
    ],
)  # fmt: skip
def test_mutations(tmp_path, change, error, says):
    torch.save(_mutated(change), tmp_path / "x.pth")
    with pytest.raises(error, match=says):
        adapters.load(MANIFEST, tmp_path / "x.pth")


def test_another_architecture(training):
    with pytest.raises(KeyMismatch) as caught:
        adapters.load(replace(MANIFEST, arch="vit_small_patch16"), training)
    for hint in ("shallower: blocks 6 to 11", "192 wide, this architecture 384", "8 pixels a side", "8 x 8 patches"):
        assert hint in str(caught.value)


def test_another_network(training):
    with pytest.raises(UsageError, match=r"'ema'.*teacher and student"):
        adapters.load(replace(MANIFEST, network="ema"), training)


def test_a_head_alone(tmp_path):
    torch.save(_under("head.", TEACHER[1]), tmp_path / "x.pth")
    with pytest.raises(KeyMismatch, match="missing"):
        adapters.load(MANIFEST, tmp_path / "x.pth")


def test_code_in_the_arguments(tmp_path):
    content = _training_file()
    content["args"].callback = print
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UnsafeFile, match="print"):
        adapters.load(MANIFEST, tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("arch", "parameters"),
    [
        ("vit_tiny_patch16", 5_524_416),
        ("vit_small_patch16", 21_665_664),
        ("vit_small_patch8", 21_670_272),
        ("vit_base_patch16", 85_798_656),
        ("vit_micro_patch8_64", 2_719_296),
    ],
)
def test_sizes_of_the_architectures(arch, parameters):
    vit = VisionTransformer(dino.ARCHITECTURES[arch])
    assert sum(parameter.numel() for parameter in vit.parameters()) == parameters
    assert dino.ARCHITECTURES[arch].dim == 64 * dino.ARCHITECTURES[arch].heads


def test_the_global_random_state_is_left_alone(training):
    before = torch.get_rng_state()
    adapters.load(MANIFEST, training)
    assert torch.equal(torch.get_rng_state(), before)
