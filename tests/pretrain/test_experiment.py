"""Presets, files and changes; every preset builds, trains a step on views of its own and gives a file that loads."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evalkit.errors import CatalogError, PretrainError, UnknownName
from evalkit.pretrain.experiment import compose, names, presets, summary
from evalkit.pretrain.run import Plan

METHODS = ("cae", "dino", "ibot", "mae", "mgc", "mmc", "moco_v3", "mugs", "selfpatch")
ALL = [(method, preset) for method in METHODS for preset in presets(method)]
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*expandable.*")


def test_there_are_nine_methods_each_with_a_micro_and_a_papers_preset() -> None:
    assert names() == METHODS
    for method in METHODS:
        assert {"micro", "paper-imagenet", "paper-coco"} >= set(presets(method)) > {"micro"}
        assert len(summary(method)) > 20


@pytest.mark.parametrize(("method", "preset"), ALL)
def test_every_preset_is_complete(method: str, preset: str) -> None:
    experiment = compose(method, preset)
    plan = Plan(experiment.run, 100_000)
    assert plan.steps > 0 and experiment.run.rate(plan.now(plan.steps // 2)) > 0
    assert experiment.side >= experiment.vit.size
    assert (experiment.vit.size == 64) == (preset == "micro")


def test_all_micro_presets_share_the_budget() -> None:
    runs = [compose(method, "micro").run for method in METHODS]
    assert {(run.epochs, run.batch) for run in runs} == {(runs[0].epochs, runs[0].batch)}
    assert {(e.arch, e.pixels, e.windows) for e in (compose(m, "micro") for m in METHODS)} == {
        ("vit_micro_patch8_64", 0, 100)
    }


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_alone_decides_how_a_method_starts(method: str) -> None:
    experiment = compose(method, "micro")
    torch.manual_seed(5)
    one = experiment.build().state_dict()
    torch.manual_seed(6)
    two = experiment.build().state_dict()
    other = replace(experiment, run=replace(experiment.run, seed=1)).build().state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_a_file_stands_over_the_preset_and_a_change_over_both(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[run]\nepochs = 3\nlr = 0.5\n")
    found = compose("dino", "micro", file, ["run.lr=0.25", "config.prototypes=64", "arch=vit_tiny_patch16"])
    assert (found.run.epochs, found.run.lr, found.config.prototypes, found.arch) == (3, 0.25, 64, "vit_tiny_patch16")
    assert found.run.batch == compose("dino", "micro").run.batch


@pytest.mark.parametrize(
    ("method", "preset", "changes", "error", "message"),
    [
        ("dinoo", "micro", [], UnknownName, "no pretraining method named 'dinoo'. Did you mean dino"),
        ("dino", "mikro", [], UnknownName, "no preset of dino named 'mikro'. Did you mean micro"),
        ("dino", "micro", ["run.lr"], PretrainError, "form KEY=VALUE"),
        ("dino", "micro", ["run.epoch=2"], CatalogError, "did you mean 'epochs'"),
        ("dino", "micro", ["run.batch=many"], CatalogError, "'many'"),
        ("dino", "micro", ["config.protypes=2"], CatalogError, "did you mean 'prototypes'"),
        ("dino", "micro", ["colour=2"], CatalogError, "unknown key 'colour'"),
    ],
)
def test_a_wrong_word_is_answered(method: str, preset: str, changes: list[str], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        compose(method, preset, None, changes)


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(UnknownName, match="architecture of dino"):
        _ = compose("dino", "micro", None, ["arch=vit_giant"]).vit


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("run = ")
    for path in (file, tmp_path / "none.toml"):
        with pytest.raises(PretrainError, match=path.name):
            compose("dino", "", path)


def test_the_core_is_imported_without_the_evaluation_suite() -> None:
    code = (
        "import importlib, sys, warnings; warnings.simplefilter('ignore')\n"
        f"for m in {METHODS}: importlib.import_module('evalkit.pretrain.methods.' + m)\n"
        "import evalkit.pretrain.trainer, evalkit.pretrain.experiment, evalkit.pretrain.probe\n"
        "bad = [m for m in sys.modules if m.startswith(('evalkit.runners', 'evalkit.engine', 'evalkit.features',"
        " 'evalkit.datasets', 'evalkit.metrics', 'evalkit.reporting', 'faiss', 'sklearn', 'cv2'))]\n"
        "print(','.join(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    reading = {"evalkit.datasets", *(f"evalkit.datasets.{name}" for name in ("beside", "files", "images"))}
    assert (
        set(done.stdout.strip().split(",")) <= reading
    )  # how photographs are found and opened, by one rule; no data set
