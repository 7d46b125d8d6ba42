"""Families are found by their file's name; what a manifest asks for is checked before anything is read."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from evalkit import adapters
from evalkit.errors import CheckpointError, DigestMismatch, UnknownName, UsageError
from evalkit.types import Manifest, Preprocessing

ROOT = Path(__file__).resolve().parents[2]


def test_names():
    assert {"dino", "fake", "pixels", "random", "timm"} <= set(adapters.names())
    assert not adapters.SHARED & set(adapters.names())
    assert {path.stem for path in Path(adapters.__file__).parent.glob("*.py")} == adapters.SHARED | {
        *adapters.names(),
        "__init__",
    }


@pytest.mark.parametrize("name", adapters.names())
def test_every_family_keeps_the_form(name):
    family = adapters.module(name)
    assert family.VERSION >= 1
    assert family.NEEDS_FILE in (True, False)
    assert len(family.ARCHITECTURES) > 0


def test_unknown_family():
    with pytest.raises(UnknownName, match=r"no family named 'dinno'. Did you mean dino"):
        adapters.module("dinno")
    with pytest.raises(UnknownName):
        adapters.module("loading")


def test_unknown_architecture():
    with pytest.raises(UnknownName, match=r"Did you mean .*vit_small_patch16"):
        adapters.load(Manifest(id="x", family="dino", arch="vit_smal_patch16"), Path("none.pth"))


def test_an_architecture_has_to_be_said_where_there_are_several():
    with pytest.raises(UsageError, match=r"several architectures: say which with --arch: vit_base_patch16.*vit_micro"):
        adapters.load(Manifest(id="x", family="dino", arch=""), Path("none.pth"))
    assert adapters.load(Manifest(id="x", family="pixels", arch="")).spec.arch == "pixels_patch8_64"


def test_files_where_they_belong(tmp_path):
    with pytest.raises(CheckpointError, match="x: the family 'dino' needs a weights file"):
        adapters.load(Manifest(id="x", family="dino", arch="vit_micro_patch8_64"))
    with pytest.raises(CheckpointError, match="'pixels' reads no weights file"):
        adapters.load(Manifest(id="x", family="pixels", arch=""), tmp_path / "w.pth")


def test_digest(tmp_path):
    torch.save(
        adapters.load(Manifest(id="x", family="random", arch="vit_micro_patch8_64")).vit.state_dict(), tmp_path / "w"
    )
    digest = hashlib.sha256((tmp_path / "w").read_bytes()).hexdigest()
    manifest = Manifest(id="x", family="dino", arch="vit_micro_patch8_64", sha256=digest)
    encoder = adapters.load(manifest, tmp_path / "w", id="mine")
    assert encoder.spec.digest == digest
    assert encoder.spec.id == "mine"
    with pytest.raises(DigestMismatch, match=f"{digest}, expected {'0' * 64}"):
        adapters.load(Manifest(id="x", family="dino", arch="vit_micro_patch8_64", sha256="0" * 64), tmp_path / "w")


@pytest.mark.parametrize("name", ["random", "pixels"])
def test_the_shipped_controls(name):
    content = tomllib.loads((ROOT / "model_zoo" / f"{name}.toml").read_text())
    assert set(content) <= {field.name for field in fields(Manifest)} - {"id"}
    fed = content.pop("preprocessing")
    fed = Preprocessing(fed["size"], tuple(fed["mean"]), tuple(fed["std"]), fed["source"])
    manifest = Manifest(id=name, preprocessing=fed, **content)
    assert manifest.control
    assert manifest.shipped
    encoder = adapters.load(manifest)
    assert encoder.spec.preprocessing == fed
    assert encoder.encode(torch.zeros(1, 3, 64, 64))[0].cls.shape == (1, 192)


def test_names_cost_nothing():
    code = "import sys, evalkit.adapters as a; a.names(); print('torch' in sys.modules, 'timm' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
