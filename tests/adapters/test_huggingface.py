"""Configs of Hugging Face's folders: read, checked against the weights, refused where the shared transformer differs."""

from __future__ import annotations

import pytest
import torch

from evalkit import adapters
from evalkit.adapters import huggingface
from evalkit.adapters.files import RawCheckpoint
from evalkit.errors import CheckpointError, EvalkitError, KeyMismatch, Unsupported
from evalkit.types import Manifest, Preprocessing
from tests.adapters import oracles
from tests.adapters.oracles import huggingface as oracle


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    for arch in oracle.ARCHS:
        monkeypatch.setitem(oracle.ARCHS, arch, oracles.Facts(dim=64, depth=2, heads=2, patch=8, size=32))


def raw(tmp_path, arch="vit", model=None, preprocessor=None, **changes):
    state = {"config": oracle.config(arch, **changes), "model": model or oracle.weights(3, arch=arch)}
    state |= {"preprocessor": preprocessor} if preprocessor else {}
    return RawCheckpoint(state, "safetensors-folder", "0" * 64, tmp_path)


def load(raw, arch="vit", **fields):
    return huggingface.load(Manifest("x", "huggingface", arch, **fields), raw)


def refused(raw, kind=CheckpointError, arch="vit"):
    with pytest.raises(kind) as caught:
        load(raw, arch)
    message = str(caught.value)
    assert len(message) < 1500
    return message


def test_the_spec_is_the_configs(tmp_path):
    spec = load(raw(tmp_path, "dinov2_with_registers"), "dinov2_with_registers").spec
    assert (spec.dim, spec.depth, spec.heads, spec.patch, spec.grid) == (64, 2, 2, 8, (4, 4))
    assert (spec.arch, spec.network) == ("dinov2_with_registers", "backbone")
    assert "projection" not in spec.offers


@pytest.mark.parametrize("pair", [{"image_size": [32, 32]}, {"patch_size": [8, 8]}])
def test_sides_as_pairs(tmp_path, pair):
    assert load(raw(tmp_path, **pair)).spec.grid == (4, 4)


def test_values_that_older_configs_leave_out(tmp_path):
    """`qkv_bias`, `use_mask_token` and others came later; the library's defaults stand for them."""
    folder = raw(tmp_path, "dinov2")
    for key in ("qkv_bias", "use_mask_token", "use_swiglu_ffn", "mlp_ratio", "layer_norm_eps", "num_channels"):
        del folder.state["config"][key]
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    tokens = load(folder, "dinov2").to(dtype=torch.float64).encode(x)[0]
    truth = oracle.forward(folder.state["model"], x, arch="dinov2")
    torch.testing.assert_close(tokens.patches, truth.patches, rtol=0, atol=1e-10)


def test_without_biases_of_queries_keys_and_values(tmp_path):
    model = {key: v for key, v in oracle.weights(3).items() if "attention.attention" not in key or "weight" in key}
    x = torch.randn(1, 3, 40, 24, dtype=torch.float64)
    tokens = load(raw(tmp_path, model=model, qkv_bias=False)).to(dtype=torch.float64).encode(x)[0]
    torch.testing.assert_close(tokens.patches, oracle.forward(model, x).patches, rtol=0, atol=1e-10)
    assert "missing" in refused(raw(tmp_path, model=model), KeyMismatch)


@pytest.mark.parametrize("eps", [1e-12, 1e-5])
def test_eps_is_the_configs(tmp_path, monkeypatch, eps):
    monkeypatch.setitem(oracle.EPS, "vit", eps)
    folder = raw(tmp_path)
    folder.state["model"]["embeddings.patch_embeddings.projection.weight"] *= 1e-2
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    tokens = load(folder).to(dtype=torch.float64).encode(x)[0]
    torch.testing.assert_close(tokens.patches, oracle.forward(folder.state["model"], x).patches, rtol=0, atol=1e-10)


def test_another_model_type(tmp_path):
    assert "model_type 'dinov2', not 'vit'" in refused(raw(tmp_path, "dinov2"))
    assert "model_type None" in refused(raw(tmp_path, model_type=None))


def test_one_file(tmp_path):
    (tmp_path / "x.pth").touch()
    file = RawCheckpoint(oracle.weights(3), "safetensors", "0" * 64, tmp_path / "x.pth")
    assert "reads a folder with config.json" in refused(file)


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"hidden_act": "quick_gelu"}, Unsupported, "hidden_act 'quick_gelu'"),
        ({"hidden_act": "x" * 9999}, Unsupported, "hidden_act"),
        ({"num_channels": 4}, Unsupported, "num_channels 4"),
        ({"image_size": [32, 64]}, Unsupported, "square"),
        ({"hidden_size": 65}, CheckpointError, "no multiple of"),
        ({"hidden_size": True}, CheckpointError, "hidden_size has to be"),
        ({"hidden_size": 64.0}, CheckpointError, "hidden_size has to be"),
        ({"hidden_size": 1 << 60}, CheckpointError, "hidden_size has to be"),
        ({"num_attention_heads": 0}, CheckpointError, "num_attention_heads has to be"),
        ({"num_hidden_layers": 10**9}, CheckpointError, "num_hidden_layers has to be"),
        ({"num_hidden_layers": -1}, CheckpointError, "num_hidden_layers has to be"),
        ({"image_size": 4}, CheckpointError, "patch_size 8 is larger"),
        ({"image_size": "32"}, CheckpointError, "image_size has to be"),
        ({"intermediate_size": None}, CheckpointError, "intermediate_size has to be"),
        ({"layer_norm_eps": 0}, CheckpointError, "layer_norm_eps has to be"),
        ({"layer_norm_eps": float("nan")}, CheckpointError, "layer_norm_eps has to be"),
        ({"qkv_bias": "yes"}, CheckpointError, "qkv_bias has to be"),
    ],
)
def test_configs_that_are_refused(tmp_path, changes, kind, says):
    assert says in refused(raw(tmp_path, **changes), kind)


def test_a_config_without_its_sizes(tmp_path):
    folder = raw(tmp_path)
    del folder.state["config"]["hidden_size"]
    assert "hidden_size has to be a whole number from 1 to 65,536; it lacks it" in refused(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 1 << 16},
        {"num_hidden_layers": 256},
        {"intermediate_size": 1 << 18},
        {"image_size": 1 << 14, "patch_size": 1},
        {"num_hidden_layers": 1},
        {"image_size": 40},
    ],
)
def test_a_config_that_is_not_the_weights(tmp_path, changes):
    """Refused by shapes alone: a config that claims terabytes takes none."""
    assert "do not agree" in refused(raw(tmp_path, **changes), KeyMismatch)


@pytest.mark.parametrize("change", [{"use_swiglu_ffn": True}, {"mlp_ratio": 3}, {"use_mask_token": False}])
def test_a_dinov2_config_that_is_not_the_weights(tmp_path, change):
    assert "do not agree" in refused(raw(tmp_path, "dinov2", **change), KeyMismatch, "dinov2")


def test_mean_and_std(tmp_path):
    content = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_normalize": True,
        "rescale_factor": 1 / 255,
    }
    folder = raw(tmp_path, preprocessor=content)
    found = load(folder).spec.preprocessing
    assert found == Preprocessing(32, (0.5,) * 3, (0.5,) * 3, "preprocessor_config.json in the folder")
    own = Preprocessing(64, source="the manifest")
    assert load(folder, preprocessing=own).spec.preprocessing == own
    assert "ImageNet mean and std assumed" in load(raw(tmp_path)).spec.preprocessing.source


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_mean": [0.5, 0.5]}, "image_mean has to be three numbers"),
        ({"image_mean": None}, "image_mean has to be three numbers"),
        ({"image_std": [0.5, 0.5, "x"]}, "image_std has to be three numbers"),
        ({"image_std": [0.5, 0.5, float("nan")]}, "image_std has to be three numbers"),
        ({"image_std": [0.5, 0.5, 0]}, "not above 0"),
        ({"do_normalize": False}, "do_normalize False"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"rescale_factor": "1/255"}, "rescale_factor"),
    ],
)
def test_preprocessors_that_are_refused(tmp_path, change, says):
    content = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]} | change
    assert says in refused(raw(tmp_path, preprocessor=content), EvalkitError)


def test_weights_without_dimensions(tmp_path):
    model = oracle.weights(3)
    for name in ("query", "key", "value"):
        model[f"encoder.layer.0.attention.attention.{name}.bias"] = torch.tensor(1.0)
    assert "missing" in refused(raw(tmp_path, model=model), KeyMismatch)


def test_two_names_for_one_weight(tmp_path):
    model = oracle.weights(3)
    model["encoder.layer.0.norm1.weight"] = model["encoder.layer.0.layernorm_before.weight"] + 1
    assert "unexpected" in refused(raw(tmp_path, model=model), KeyMismatch)


def test_the_family_is_found():
    assert set(adapters.module("huggingface").ARCHITECTURES) == set(oracle.ARCHS)
