"""What only DINO's files have: heads, our own pretraining's safetensors, the older container, messages.

Layouts and numbers are compared with `oracles/dino.py` by test_parity.py; mistakes in the backbone are in
test_mutations.py.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from evalkit import adapters
from evalkit.adapters import dino
from evalkit.adapters.vit import VisionTransformer
from evalkit.errors import CheckpointError, KeyMismatch, NoProjection, UnsafeFile, UsageError
from evalkit.types import Manifest
from tests.adapters.oracles import dino as oracle
from tests.adapters.oracles.dino import under

ARCH = "vit_micro_patch8_64"
MANIFEST = Manifest(id="x", family="dino", arch=ARCH)
BACKBONE, HEAD = oracle.weights(1, 6, ARCH), oracle.head(2, 192)


def training_file():
    """The entries that loading looks at, and two that it must not."""
    other = oracle.weights(3, 6, ARCH)
    return {
        "student": under("module.backbone.", other) | under("module.head.", oracle.head(4, 192)),
        "teacher": under("backbone.", BACKBONE) | under("head.", HEAD),
    } | oracle.beside(args=argparse.Namespace(arch="vit_small"))


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    path = tmp_path_factory.mktemp("dino") / "checkpoint.pth"
    torch.save(training_file(), path)
    return path


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def check(encoder, images, head=HEAD):
    """The class token, and the head's bottleneck where there is a head."""
    truth = oracle.forward(BACKBONE, images, head, ARCH)
    tokens = encoder.encode(images)[0]
    torch.testing.assert_close(tokens.cls, truth.cls.float(), rtol=1e-4, atol=1e-5)
    if head is not None:
        ours = encoder.project(tokens, at="bottleneck")
        torch.testing.assert_close(ours, truth.bottleneck.float(), rtol=1e-4, atol=1e-5)


def test_the_audit_counts_what_was_used(training):
    spec = adapters.load(MANIFEST, training).spec
    assert spec.offers == {"cls", "patches", "blocks", "attention", "projection"}
    assert "optimizer" in spec.audit["beside"]
    assert spec.audit["backbone"]["used"] == len(BACKBONE)
    assert spec.audit["backbone"]["dropped"] == {}
    assert spec.audit["head"]["used"] == len(HEAD)


def test_the_older_container(tmp_path, images):
    torch.save(training_file(), tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    check(adapters.load(MANIFEST, tmp_path / "x.pth"), images)


def test_the_released_backbone_has_no_head_and_no_student(tmp_path, images):
    torch.save(BACKBONE, tmp_path / "x.pth")
    encoder = adapters.load(MANIFEST, tmp_path / "x.pth")
    check(encoder, images, None)
    assert "projection" not in encoder.spec.offers
    with pytest.raises(NoProjection, match="no pretraining head"):
        encoder.project(encoder.encode(images)[0])
    with pytest.raises(CheckpointError, match="one network only"):
        adapters.load(replace(MANIFEST, network="student"), tmp_path / "x.pth")


def test_files_of_our_own_pretraining(tmp_path, images):
    head = {key: value for key, value in HEAD.items() if "last_layer" not in key}
    save_file(under("backbone.", BACKBONE) | under("head.", head), tmp_path / "x.safetensors")
    encoder = adapters.load(replace(MANIFEST, network="teacher"), tmp_path / "x.safetensors")
    check(encoder, images, head)
    with pytest.raises(NoProjection, match="prototype layer is not shipped"):
        encoder.project(encoder.encode(images)[0])
    assert encoder.spec.network == "teacher"

    save_file(under("backbone.", BACKBONE), tmp_path / "y.safetensors")
    assert "projection" not in adapters.load(MANIFEST, tmp_path / "y.safetensors").spec.offers


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda t: t.pop("head.mlp.2.bias"), KeyMismatch, r"missing \(1\): mlp\.2\.bias"),
        (lambda t: t.update({"other.w": torch.zeros(1)}), KeyMismatch, r"unexpected \(1\): other\.w"),
        (lambda t: t.update({"head.last_layer.weight": torch.zeros(1)}), KeyMismatch, "unexpected"),
        (lambda t: t.update({"head.mlp.0.weight": torch.zeros(3)}), KeyMismatch, "none of DINO's"),
        (lambda t: t.update({"head.mlp.0.weight": torch.zeros(3, 3, 3)}), KeyMismatch, "none of DINO's"),
        (lambda t: t.update({"backbone.pos_embed": torch.zeros(1, 200, 192)}), KeyMismatch, "200 rows"),
        (lambda t: t["head.last_layer.weight_v"].fill_(float("inf")), CheckpointError, "infinite"),
        (lambda t: [t.pop(f"head.mlp.2.{part}") for part in ("weight", "bias")], KeyMismatch, "none of DINO's"),
        (lambda t: [t.pop(f"head.mlp.4.{part}") for part in ("weight", "bias")], KeyMismatch, "none of DINO's"),
    ],
)  # fmt: skip
def test_mutations_of_the_head(tmp_path, change, error, says):
    content = training_file()
    content["teacher"] = {key: value.clone() for key, value in content["teacher"].items()}
    change(content["teacher"])
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(error, match=says):
        adapters.load(MANIFEST, tmp_path / "x.pth")


def test_another_architecture(training):
    with pytest.raises(KeyMismatch) as caught:
        adapters.load(replace(MANIFEST, arch="vit_small_patch16"), training)
    for hint in ("shallower: blocks 6 to 11", "192 wide, this architecture 384", "8 pixels a side"):
        assert hint in str(caught.value)


def test_another_network(training):
    with pytest.raises(UsageError, match=r"'ema'.*teacher, student"):
        adapters.load(replace(MANIFEST, network="ema"), training)


def test_a_head_alone(tmp_path):
    torch.save(under("head.", HEAD), tmp_path / "x.pth")
    with pytest.raises(KeyMismatch, match="missing"):
        adapters.load(MANIFEST, tmp_path / "x.pth")


def test_code_in_the_arguments(tmp_path):
    content = training_file()
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
    with torch.device("meta"):
        vit = VisionTransformer(dino.ARCHITECTURES[arch])
    assert sum(parameter.numel() for parameter in vit.parameters()) == parameters


def test_the_global_random_state_is_left_alone(training):
    before = torch.get_rng_state()
    adapters.load(MANIFEST, training)
    assert torch.equal(torch.get_rng_state(), before)
