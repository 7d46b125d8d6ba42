"""The gate: quiet where nothing changed, loud at each planted mistake, and never satisfied by what it did not measure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from evalkit import catalog
from evalkit.adapters.dino import ARCHITECTURES
from evalkit.adapters.vit import VisionTransformer
from evalkit.cli.main import app
from evalkit.engine.evaluate import Options, load
from evalkit.errors import RecordError
from evalkit.progress import RichProgress
from evalkit.reporting import regress
from evalkit.types import Column, Suite

KNN, LINEAR = "mini-knn-ccp-items", "mini-linear-ccp-items-cached"
SUITE = Suite("small", "small", (Column(KNN), Column(KNN, "top1@k=20"), Column(LINEAR)))
OPTIONS = Options(limit=60, out=None, device="cpu")
QUIET = RichProgress(quiet=True)


def network(seed: int) -> dict[str, torch.Tensor]:
    vit = VisionTransformer(ARCHITECTURES["vit_micro_patch8_64"]).initialise(torch.Generator().manual_seed(seed))
    with torch.no_grad():  # a final norm that does something
        vit.norm.weight.copy_(torch.linspace(0.1, 4, 192))
        vit.norm.bias.copy_(torch.linspace(-1, 1, 192))
    return {f"backbone.{k}": v for k, v in vit.state_dict().items()}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training file with two networks, and its manifest."""
    folder = tmp_path_factory.mktemp("zoo")
    torch.save({"teacher": network(1), "student": network(2), "epoch": 3}, folder / "both.pth")
    manifest = folder / "both.toml"
    manifest.write_text('family = "dino"\narch = "vit_micro_patch8_64"\nfile = "both.pth"\ntitle = "both"\n')
    return manifest


@pytest.fixture(scope="module")
def baseline(encoder: Path) -> regress.Baseline:
    return regress.updated(None, "small", regress.repeat(SUITE, [str(encoder)], OPTIONS, 2, QUIET), "first")


def moved(encoder: Path, baseline: regress.Baseline) -> list[regress.Moved]:
    return regress.compare(baseline, regress.once(SUITE, [str(encoder)], OPTIONS, QUIET))


def test_what_did_not_change_passes(encoder: Path, baseline: regress.Baseline, tmp_path: Path) -> None:
    assert moved(encoder, baseline) == []
    regress.write(baseline, tmp_path / "small.json")
    assert regress.read(tmp_path / "small.json") == baseline


def test_counts_are_held_to_one_unit_and_trained_heads_to_their_seeds(baseline: regress.Baseline) -> None:
    by_recipe = {recipe: cell for (_, recipe), cell in baseline.cells.items()}
    assert all(s.tolerance == pytest.approx(1 / s.n) for s in by_recipe[KNN].scores.values())
    assert all(s.tolerance >= 1 / (3 * s.n) for s in by_recipe[LINEAR].scores.values())


def swapped_normalisation(name: str) -> Any:
    found: Any = load(name)
    preprocessing = replace(found.spec.preprocessing, mean=(0.5, 0.5, 0.5), std=(0.2, 0.3, 0.6))
    found.spec = replace(found.spec, preprocessing=preprocessing)
    return found


def dropped_norm(name: str) -> Any:
    found: Any = load(name)
    found.vit.norm = nn.Identity()
    return found


def student_for_teacher(name: str) -> Any:
    return load(name, network="student")


@pytest.mark.parametrize("mistake", [swapped_normalisation, dropped_norm, student_for_teacher])
def test_a_planted_mistake_is_caught(
    mistake: Any, encoder: Path, baseline: regress.Baseline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regress, "load", mistake)
    found = moved(encoder, baseline)
    assert found and {m.what for m in found} == {"moved"}
    assert all(abs(m.now - m.was) > m.tolerance for m in found)


AMD, INTEL = "AMD EPYC", "Intel Xeon"


def held(value: float, tolerance: float = 1e-4, n: int = 5) -> regress.Held:
    return regress.Held(n, tolerance, {AMD: (value,)})


@pytest.mark.parametrize(
    ("values", "n", "tolerance"),
    [
        ({AMD: [0.28461, 0.28461]}, 536, 1e-4),  # a mean of precisions: the last bits of sums
        ({AMD: [0.28461, 0.284699]}, 536, 1e-4),
        ({AMD: [118 / 401, 118 / 401]}, 401, 1 / 401),  # right answers: one of them may turn
        ({AMD: [float(torch.tensor(118 / 401))]}, 401, 1 / 401),
        ({AMD: [4 / 33]}, 11, 1 / 33),  # the same, a mean over the heads of three seeds
        ({AMD: [0.0, 0.0, 0.0]}, 17, 1 / 17),
        ({AMD: [0.4123, 0.6123]}, 401, 4 * 0.2),  # seeds
        ({AMD: [0.28461], INTEL: [0.28491]}, 536, 3e-4),  # processors
        ({AMD: [0.28461, 0.28471], INTEL: [0.28461, 0.28491]}, 536, 4 * 3e-4),
        ({AMD: [float("nan")]}, 0, 1e-4),
    ],
)
def test_tolerances_come_from_what_can_move_a_number(values: dict[str, list[float]], n: int, tolerance: float) -> None:
    assert regress.tolerance(values, n) == pytest.approx(tolerance)


def test_each_processor_of_a_baseline_is_as_good_as_the_other() -> None:
    cell = regress.Cell("c", "w", "done", {"AP": regress.Held(5, 1e-4, {AMD: (0.5,), INTEL: (0.6, 0.61)})})

    def words(value: float) -> list[float]:
        found: Any = SimpleNamespace(
            comparable="c", encoder={"digest": "w"}, status="done", scores=[{"name": "AP", "value": value, "n": 5}]
        )
        return [m.was for m in regress._compare(("e", "r"), cell, found)]

    assert words(0.50005) == words(0.59995) == []
    assert words(0.56) == [0.6]
    assert words(0.54) == [0.5]


def measured(value: float, processor: str, comparable: str = "c") -> Any:
    scores = [{"name": "AP", "value": value, "n": 5}]
    return SimpleNamespace(
        comparable=comparable, encoder={"digest": "w"}, status="done", scores=scores,
        environment={"processor": processor}, score=lambda name: scores[0],
    )  # fmt: skip


def test_a_new_baseline_keeps_what_other_processors_measured_of_the_same_question() -> None:
    first = regress.cell([measured(0.51, INTEL), measured(0.51, INTEL)])
    both = regress.cell([measured(0.512, AMD)], first)
    assert both.scores["AP"] == regress.Held(5, pytest.approx(2e-3), {INTEL: (0.51, 0.51), AMD: (0.512,)})
    assert regress.cell([measured(0.511, INTEL)], both).scores["AP"].values == {INTEL: (0.511,), AMD: (0.512,)}
    assert regress.cell([measured(0.512, AMD, "other")], both).scores["AP"].values == {AMD: (0.512,)}


def test_every_kind_of_change_has_its_words(encoder: Path, baseline: regress.Baseline) -> None:
    now = regress.once(SUITE, [str(encoder)], OPTIONS, QUIET)
    key = (str(encoder), KNN)
    record: Any = now[key]
    cell = baseline.cells[key]
    top = cell.scores["top1@k=10"]
    value = top.nearest(0.0)

    def words(changed: regress.Cell | None, found: Any = record) -> list[str]:
        cells = {k: v for k, v in baseline.cells.items() if k != key} | ({key: changed} if changed else {})
        return [m.what for m in regress.compare(replace(baseline, cells=cells), {key: found})]

    assert words(cell) == []
    assert "does not have it" in words(None)[0]
    assert words(cell, "disk is full") == ["not measured: disk is full"]
    assert "other weights" in words(replace(cell, weights="0"))[0]
    assert "another version" in words(replace(cell, comparable="0"))[0]
    assert "it was n/a" in words(replace(cell, status="n/a"))[0]
    assert words(replace(cell, scores=cell.scores | {"gone": held(1.0)})) == ["no longer measured"]
    assert words(replace(cell, scores={"top1@k=10": top}))[0].startswith("the baseline does not have it")
    assert words(replace(cell, scores=cell.scores | {"top1@k=10": replace(top, n=1)})) == [f"n is {top.n}; it was 1"]
    assert words(replace(cell, scores=cell.scores | {"top1@k=10": held(value + 2e-4, n=top.n)})) == ["moved"]
    assert words(replace(cell, scores=cell.scores | {"top1@k=10": held(value + 5e-5, n=top.n)})) == []
    assert words(replace(cell, scores=cell.scores | {"top1@k=10": held(value + 1 / top.n, 1 / top.n, top.n)})) == []
    assert words(replace(cell, scores=cell.scores | {"top1@k=10": held(float("nan"), n=top.n)})) == ["moved"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', '{"schema": 2}', '{"schema": 9}'])
def test_a_baseline_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "small.json"
    path.write_text(content)
    with pytest.raises(RecordError, match=r"small\.json"):
        regress.read(path)
    with pytest.raises(RecordError, match="no baseline to hold this suite to"):
        regress.read(tmp_path / "none.json")


@pytest.mark.slow
def test_the_command_writes_holds_and_fails(tmp_path: Path) -> None:
    suite = tmp_path / "one.toml"
    suite.write_text(f'title = "one"\nencoders = ["random"]\n[[columns]]\nrecipe = "{KNN}"\n')
    asked = ["regress", "--suite", str(suite), "--baseline", str(tmp_path), "--limit", "40", "--device", "cpu"]
    run = CliRunner().invoke
    written = run(app, [*asked, "--update", "--reason", "the first", "--seeds", "2"])
    assert written.exit_code == 0, written.output
    (path,) = tmp_path.glob("*.json")
    content = json.loads(path.read_text())
    assert [change["reason"] for change in content["changes"]] == ["the first"]
    assert run(app, asked).exit_code == 0
    (values,) = content["cells"]["random"][KNN]["scores"]["top1@k=10"]["values"].values()
    values[0] += 2 / 40  # two answers
    path.write_text(json.dumps(content))
    failed = run(app, [*asked, "--json"])
    assert failed.exit_code == 1
    (only,) = json.loads(failed.stdout)
    assert (only["encoder"], only["score"], only["what"]) == ("random", "top1@k=10", "moved")
    assert run(app, [*asked, "--update"]).exit_code == 1  # no reason
    again = run(app, [*asked, "--update", "--reason", "the second", "--seeds", "2"])
    assert again.exit_code == 0
    assert [change["reason"] for change in json.loads(path.read_text())["changes"]] == ["the first", "the second"]


def test_the_shipped_baselines_hold_what_their_suites_ask() -> None:
    folder = catalog.root() / "model_zoo" / "baselines"
    for path in folder.glob("*.json"):
        found, suite = regress.read(path), catalog.suite(path.stem)
        recipes = {column.recipe for column in suite.columns}
        assert {key for key in found.cells} >= {(e, r) for e in suite.encoders for r in recipes}
