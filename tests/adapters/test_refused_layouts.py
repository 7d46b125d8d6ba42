"""Official files that must not load, in the words that say why: a norm that the file lost, a table of another family,
one network where another is wanted."""

from __future__ import annotations

import pytest
import torch

from evalkit import adapters
from evalkit.errors import CheckpointError, KeyMismatch, UsageError
from evalkit.types import Manifest
from tests.adapters.oracles import mae, moco_v3, msn
from tests.adapters.written import shallow


def load(oracle, content, tmp_path, patch, network=""):
    torch.save(content, tmp_path / "file.pth")
    shallow(oracle, oracle.ARCH, oracle.weights(0), patch)
    return adapters.load(Manifest("x", oracle.FAMILY, oracle.ARCH, network=network), tmp_path / "file.pth")


def test_mae_has_one_network(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="one network without a name"):
        load(mae, mae.files()[0].content, tmp_path, monkeypatch, network="teacher")


@pytest.mark.parametrize("key", ["decoder_blocks.0.attn.extra", "decoder_head.weight", "head.2.weight"])
def test_mae_drops_no_key_that_only_looks_like_its_decoder(key, tmp_path, monkeypatch):
    content = mae.files()[1].content
    content["model"][key] = torch.zeros(3)
    with pytest.raises(KeyMismatch, match=key):
        load(mae, content, tmp_path, monkeypatch)


def test_moco_v3_with_the_table_of_another_family(tmp_path, monkeypatch):
    """DINO's small ViT has the same keys and half as many heads: it would load, and give wrong numbers."""
    with pytest.raises(CheckpointError, match="no file of MoCo v3: its position table"):
        load(moco_v3, msn.weights(0), tmp_path, monkeypatch)


def test_moco_v3_in_half_precision(tmp_path, monkeypatch):
    content = {"model": {key: value.half() for key, value in moco_v3.weights(0).items()}}
    audit = load(moco_v3, content, tmp_path, monkeypatch).spec.audit
    assert audit["backbone"]["dtypes"] == {"float16": len(content["model"])}


@pytest.mark.parametrize("key", ["predictor.0.extra", "projector.0.weight", "queue"])
def test_moco_v3_beside_its_encoders(key, tmp_path, monkeypatch):
    content = moco_v3.files()[0].content
    content["state_dict"][f"module.{key}"] = torch.zeros(3)
    with pytest.raises(KeyMismatch, match=key):
        load(moco_v3, content, tmp_path, monkeypatch)


@pytest.mark.parametrize("key", ["0.weight", "1.running_var", "4.bias", "7.running_mean"])
def test_moco_v3_with_a_part_of_its_head(key, tmp_path, monkeypatch):
    content = moco_v3.files()[0].content
    del content["state_dict"][f"module.base_encoder.head.{key}"]
    with pytest.raises(KeyMismatch, match=key):
        load(moco_v3, content, tmp_path, monkeypatch)


def test_msn_stripped_for_its_linear_probe(tmp_path, monkeypatch):
    with pytest.raises(KeyMismatch, match=r"missing \(2\): norm.weight, norm.bias"):
        load(msn, msn.probed(), tmp_path, monkeypatch)


def test_msn_without_batch_norm_in_its_head(tmp_path, monkeypatch):
    state = {key: value for key, value in msn.head(3).items() if not key.startswith("bn")}
    content = {"target_encoder": msn.weights(0) | {f"fc.{key}": value for key, value in state.items()}}
    encoder = load(msn, content, tmp_path, monkeypatch).double()
    x = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    (tokens,) = encoder.encode(x)
    plain = {f"bn{n}.{part}": torch.full((24,), 1.0 - 1e-5) for n in (1, 2) for part in ("running_var",)}
    plain |= {f"bn{n}.running_mean": torch.zeros(24) for n in (1, 2)}
    truth = msn.forward(msn.weights(0), x, state | {key: value.double() for key, value in plain.items()})
    torch.testing.assert_close(encoder.project(tokens), truth.projection, rtol=0, atol=1e-6)


@pytest.mark.parametrize("key", ["bn2.weight", "fc3.bias", "fc2.weight"])
def test_msn_with_a_part_of_its_head(key, tmp_path, monkeypatch):
    content = msn.files()[0].content
    del content["target_encoder"][f"module.fc.{key}"]
    with pytest.raises(KeyMismatch, match=key):
        load(msn, content, tmp_path, monkeypatch)


def test_msn_whose_target_encoder_is_gone(tmp_path, monkeypatch):
    content = {key: value for key, value in msn.files()[1].content.items() if key != "target_encoder"}
    with pytest.raises(CheckpointError, match="holds the network 'encoder' and not 'target_encoder'"):
        load(msn, content, tmp_path, monkeypatch)
