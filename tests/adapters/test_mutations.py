"""What goes wrong with checkpoint files, done on purpose to every family: each mistake is refused in words that name it,
or shows in the numbers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from evalkit import adapters
from evalkit.errors import CheckpointError, KeyMismatch
from tests.adapters import oracles
from tests.adapters.written import load, manifest, saved, shallow

FAMILIES = [family for family in oracles.names() if family in adapters.names()]


def first(family):
    oracle = oracles.module(family)
    file = oracles.files(family)[0]
    return oracle, replace(file, content=copy.deepcopy(file.content))


def holders(content, value):
    """Every (mapping, key) of nested content that holds this tensor."""
    for key, inner in list(content.items()):
        if isinstance(inner, Mapping):
            yield from holders(inner, value)
        elif isinstance(inner, torch.Tensor) and inner.shape == value.shape and torch.equal(inner, value):
            yield content, key


def weights_of(file, want=lambda key, value: True):
    """(mapping, key) of some of the file's backbone weights, from the first to the last."""
    found = []
    for key, value in file.weights.items():
        if value.is_floating_point() and value.numel() > 1 and want(key, value):
            found += list(holders(file.content, value))[:1]
    assert found
    return found[:: max(1, len(found) // 4)]


def refused(family, file, tmp_path, patch, kind=KeyMismatch):
    oracle = oracles.module(family)
    with pytest.raises(kind) as caught:
        load(oracle, file, saved(file, tmp_path), patch)
    return str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("which", range(4))
def test_a_key_is_missing(family, which, tmp_path, monkeypatch):
    _, file = first(family)
    mapping, key = weights_of(file)[which]
    del mapping[key]
    assert "missing" in refused(family, file, tmp_path, monkeypatch)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_key_is_renamed(family, tmp_path, monkeypatch):
    _, file = first(family)
    mapping, key = weights_of(file)[2]
    mapping[f"{key}_x"] = mapping.pop(key)
    message = refused(family, file, tmp_path, monkeypatch)
    assert "missing" in message
    assert "_x" in message


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["extra.weight", "blocks.0.extra", "blocks.0.attn.qkv.weight_1", "layer.0.extra"])
def test_a_key_is_added(family, name, tmp_path, monkeypatch):
    _, file = first(family)
    mapping, key = weights_of(file)[0]
    stem = key[: key.index("module.") + 7] if key.startswith("module.") else ""
    mapping[stem + name] = torch.zeros(3)
    assert name in refused(family, file, tmp_path, monkeypatch)


@pytest.mark.parametrize("family", FAMILIES)
def test_module_inside_a_key_is_no_prefix(family, tmp_path, monkeypatch):
    _, file = first(family)
    mapping, key = weights_of(file, lambda key, value: key.count(".") > 2)[0]
    start, _, rest = key.rpartition(".")
    mapping[f"{start}.module.{rest}"] = mapping.pop(key)
    assert "module." in refused(family, file, tmp_path, monkeypatch)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_weight_has_another_shape(family, tmp_path, monkeypatch):
    _, file = first(family)
    mapping, key = weights_of(file, lambda key, value: value.ndim == 2 and value.shape[0] != value.shape[1])[1]
    mapping[key] = mapping[key].T.contiguous()
    assert "mis-shaped" in refused(family, file, tmp_path, monkeypatch)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(family, value, tmp_path, monkeypatch):
    _, file = first(family)
    mapping, key = weights_of(file)[1]
    mapping[key].view(-1)[0] = value
    assert "NaN or infinite" in refused(family, file, tmp_path, monkeypatch, CheckpointError)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_truncated_file(family, tmp_path, monkeypatch):
    oracle, file = first(family)
    path = saved(file, tmp_path)
    weights = path / "model.safetensors" if path.is_dir() else path
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size * 2 // 3])
    with pytest.raises(CheckpointError, match=r"truncated|damaged"):
        load(oracle, file, path, monkeypatch)


def apart(family, encoder, file, *, native=True):
    """How far the encoder's patches are from the oracle's, as a share of their size."""
    oracle = oracles.module(family)
    facts = oracle.ARCHS[file.arch or oracle.ARCH]
    h, p = facts.size // facts.patch, facts.patch
    grid = (h, h) if native else (h - 2, h + 1)
    x = torch.randn(1, 3, grid[0] * p, grid[1] * p, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = oracle.forward(file.weights, x, head=file.head, arch=file.arch or oracle.ARCH).patches
    ours = encoder.to(dtype=torch.float64).encode(x)[0].patches
    return ((ours - truth).abs().max() / truth.abs().max()).item()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_transposed_square_matrix_shows_in_the_numbers(family, tmp_path, monkeypatch):
    oracle, file = first(family)
    mapping, key = weights_of(file, lambda key, value: value.ndim == 2 and value.shape[0] == value.shape[1])[0]
    mapping[key] = mapping[key].T.contiguous()
    assert apart(family, load(oracle, file, saved(file, tmp_path), monkeypatch), file) > 1e-4


WRONG = {
    "heads": lambda c: replace(c, heads=c.heads * 2),
    "eps": lambda c: replace(c, eps=1e-5 if c.eps != 1e-5 else 1e-6),
    "final norm": lambda c: replace(c, final_norm=not c.final_norm),
    "positions": lambda c: replace(c, positions="timm" if c.positions != "timm" else "dino"),
}


@pytest.mark.parametrize("family", [f for f in FAMILIES if hasattr(adapters.module(f), "FAMILY")])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_fact_in_the_adapter_shows(family, wrong, tmp_path, monkeypatch):
    """The parity test would fail if the adapter's registry were wrong: the numbers move by more than it allows."""
    oracle, file = first(family)
    arch = file.arch or oracle.ARCH
    known = adapters.module(family).ARCHITECTURES
    if wrong == "positions" and not known[arch].positions:
        pytest.skip("no table of positions")
    shallow(oracle, arch, file.weights, monkeypatch)
    monkeypatch.setitem(known, arch, WRONG[wrong](known[arch]))
    try:
        encoder = adapters.load(manifest(oracle, file), saved(file, tmp_path))
    except KeyMismatch:
        assert wrong in ("final norm", "heads")
        return
    assert apart(family, encoder, file, native=wrong != "positions") > 1e-7


SAME_WIDTH = [
    (family, arch)
    for family in FAMILIES
    for arch, facts in oracles.module(family).ARCHS.items()
    if hasattr(adapters.module(family), "FAMILY")
    and arch != (oracles.files(family)[0].arch or oracles.module(family).ARCH)
]


@pytest.mark.parametrize(("family", "arch"), SAME_WIDTH)
def test_another_architecture_is_refused(family, arch, tmp_path):
    """Without cutting the depth: another width, patch, depth or number of tokens never loads."""
    oracle, file = first(family)
    with pytest.raises(KeyMismatch, match="do not agree"):
        adapters.load(replace(manifest(oracle, file), arch=arch), saved(file, tmp_path))


TWO = [
    (family, one.name, other.name)
    for family in FAMILIES
    for one in oracles.files(family)
    for other in oracles.files(family)
    if one.network < other.network
    and one.arch == other.arch
    and set(one.content) == set(other.content)
    and one.ask != other.ask
]


@pytest.mark.parametrize(("family", "one", "other"), TWO)
def test_the_other_network_has_other_numbers(family, one, other, tmp_path, monkeypatch):
    oracle = oracles.module(family)
    files = {file.name: file for file in oracles.files(oracle.FAMILY)}
    encoder = load(oracle, files[one], saved(files[one], tmp_path), monkeypatch)
    assert apart(family, encoder, files[one]) < 1e-9
    assert apart(family, encoder, files[other]) > 1e-4
