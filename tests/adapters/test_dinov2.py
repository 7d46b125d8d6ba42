"""What only DINOv2's files have: SwiGLU of the giant (at a small width), chunks whose numbers collide, one rank's file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evalkit import adapters
from evalkit.adapters import dinov2
from evalkit.errors import CheckpointError, KeyMismatch
from evalkit.types import Manifest
from tests.adapters import oracles
from tests.adapters.oracles import dinov2 as oracle

ARCH = "vit_giant_patch14_224"
MANIFEST = Manifest("x", "dinov2", ARCH)


@pytest.fixture
def narrow(monkeypatch):
    """The giant's network with a width of 96 and 3 x 3 patches."""
    monkeypatch.setitem(oracle.ARCHS, ARCH, oracles.Facts(dim=96, depth=2, heads=4, patch=14, size=42))
    config = replace(dinov2.ARCHITECTURES[ARCH], dim=96, depth=2, heads=4, size=42, hidden=256)
    monkeypatch.setitem(dinov2.ARCHITECTURES, ARCH, config)
    return oracle.weights(5, arch=ARCH)


@pytest.mark.parametrize("chunks", [0, 1, 2])
def test_the_giants_network(narrow, chunks, tmp_path):
    torch.save(oracle.chunked(narrow, chunks) if chunks else narrow, tmp_path / "x.pth")
    encoder = adapters.load(MANIFEST, tmp_path / "x.pth").to(dtype=torch.float64)
    for height, width in ((42, 42), (56, 28)):
        x = torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        truth, (tokens,) = oracle.forward(narrow, x, arch=ARCH), encoder.encode(x)
        torch.testing.assert_close(tokens.cls, truth.cls, rtol=0, atol=1e-10)
        torch.testing.assert_close(tokens.patches, truth.patches, rtol=0, atol=1e-10)


def test_the_width_of_the_giants_mlp():
    for arch, config in dinov2.ARCHITECTURES.items():
        if config.mlp == "swiglu":
            assert config.hidden == (int(4 * config.dim * 2 / 3) + 7) // 8 * 8, arch


def test_two_chunks_with_one_number(narrow, tmp_path):
    state = oracle.chunked(narrow, 2)
    state |= {
        key.replace("blocks.1.1.", "blocks.0.1."): value + 1 for key, value in state.items() if "blocks.1." in key
    }
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(KeyMismatch, match=r"blocks\.0\.1\.norm1\.weight"):
        adapters.load(MANIFEST, tmp_path / "x.pth")


def test_the_flat_pieces_of_one_rank(narrow, tmp_path):
    """fsdp/__init__.py:100-101: parameters without names."""
    torch.save({"model": {"teacher.backbone._flat_param": torch.zeros(9)}, "iteration": 1}, tmp_path / "x.pth")
    with pytest.raises(KeyMismatch, match="_flat_param"):
        adapters.load(MANIFEST, tmp_path / "x.pth")


def test_a_file_of_the_student_alone(narrow, tmp_path):
    torch.save({"model": oracle.under("student.", oracle.under("backbone.", narrow))}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"student[^\n]*--network"):
        adapters.load(MANIFEST, tmp_path / "x.pth")
    assert adapters.load(replace(MANIFEST, network="student"), tmp_path / "x.pth").spec.network == "student"
