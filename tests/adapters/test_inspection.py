"""Inspection: every official layout is recognised as what it is or asked about, and never taken for something else."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from evalkit import adapters
from evalkit.adapters.inspection import Wish, identify, inspect, undecided
from evalkit.cli.main import app
from evalkit.engine.evaluate import load as load_encoder
from evalkit.errors import CheckpointError, KeyMismatch, UsageError
from tests.adapters import oracles
from tests.adapters.written import saved, shallow

FAMILIES = [f for f in oracles.names() if f in adapters.names() and hasattr(adapters.module(f), "FAMILY")]
FILES = [(family, file.name) for family in FAMILIES for file in oracles.files(family)]


def written(family, name, tmp_path, patch):
    """An oracle's file on disk; the family's architecture has its depth."""
    oracle = oracles.module(family)
    file = next(file for file in oracles.files(oracle.FAMILY) if file.name == name)
    shallow(oracle, file.arch or oracle.ARCH, file.weights, patch)
    return file, saved(file, tmp_path)


@pytest.mark.parametrize(("family", "name"), FILES)
def test_a_file_is_read_as_its_family(family, name, tmp_path, monkeypatch):
    file, path = written(family, name, tmp_path, monkeypatch)
    arch = file.arch or oracles.module(family).ARCH
    seen = inspect(path, Wish(family=family, network=file.ask))
    assert seen.chosen is not None, undecided(seen)
    assert (seen.chosen.family, seen.chosen.fit.arch) == (family, arch)
    assert seen.chosen.fit.parts.network == file.network


@pytest.mark.parametrize(("family", "name"), FILES)
def test_without_a_hint_it_is_itself_or_asked_about(family, name, tmp_path, monkeypatch):
    """Other families keep their true depths, so those whose files look alike are patched too."""
    for other in FAMILIES:
        for known in oracles.files(other):
            shallow(oracles.module(other), known.arch or oracles.module(other).ARCH, known.weights, monkeypatch)
    _, path = written(family, name, tmp_path, monkeypatch)
    seen = inspect(path)
    assert family in {candidate.family for candidate in seen.candidates}
    if seen.chosen is None:
        assert isinstance(undecided(seen), UsageError)
    else:
        assert seen.chosen.family == family


def bare(tmp_path, depth=12):
    path = tmp_path / "bare.pth"
    torch.save(oracles.module("dino").weights(0, depth=depth), path)
    return path


def test_a_bare_network_that_many_families_have_is_not_guessed(tmp_path):
    with pytest.raises(UsageError, match=r"deit, dino, ibot.*--family"):
        identify(bare(tmp_path), Wish())
    assert load_encoder(bare(tmp_path), family="dino").spec.arch == "vit_small_patch16"


def test_a_training_file_needs_no_option(tmp_path):
    oracle = oracles.module("dino")
    file = next(file for file in oracle.files(depth=12) if file.network == "teacher")
    torch.save(file.content, tmp_path / "checkpoint.pth")
    spec = load_encoder(tmp_path / "checkpoint.pth").spec
    assert (spec.family, spec.arch, spec.network) == ("dino", "vit_small_patch16", "teacher")


def test_what_no_family_has_is_told_with_the_nearest(tmp_path):
    state = oracles.module("dino").weights(0, depth=12)
    state["norm.gain"] = state.pop("norm.weight")
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(KeyMismatch, match=r"(?s)no family exactly.*norm\.gain"):
        identify(tmp_path / "odd.pth", Wish())
    torch.save({"layer": torch.zeros(3, 3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"fits no family.*layer.*3x3"):
        identify(tmp_path / "other.pth", Wish())


def run(*words):
    return CliRunner().invoke(app, ["inspect", *map(str, words)])


def test_the_command_prints_everything_that_is_known(tmp_path):
    told = run(bare(tmp_path), "--family", "dino")
    assert told.exit_code == 0, told.output
    for line in (
        "heads                   6, known from",
        "patch                   16",
        "final norm",
        "sha256",
        "torch-zip",
    ):
        assert line in told.output
    facts = json.loads(run(bare(tmp_path), "--family", "dino", "--json").output)
    assert facts["family"] == "dino"
    assert facts["parameters"] == 21_665_664
    assert facts["keys"]["used"] == 150
    assert facts["keys"]["missing"] == []


def test_the_command_tells_what_it_cannot_decide(tmp_path):
    told = run(bare(tmp_path))
    assert isinstance(told.exception, UsageError)
    assert "dino vit_small_patch16, backbone" in told.output
    assert "--family" in str(told.exception)
