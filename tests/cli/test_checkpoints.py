"""Wrapped checkpoints through the commands: inspect, eval, repeat and a manifest read a file in one way, and say how."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from evalkit.cli.main import main
from tests.adapters.test_wrappers import HEAD, NET, OTHER, WRAPPED, under
from tests.cli.test_cli import RECIPE

ABOUT = ("--family", "dino", "--arch", "vit_micro_patch8_64")
TWO = {"state_dict": under("a.") | under("b.", OTHER)}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command in a folder with a recipe and a cache of its own: (exit code, output, errors)."""
    (tmp_path / "knn.toml").write_text(RECIPE.format(dataset="fake"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["evalkit", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def measured(run: Any, file: str, *options: str) -> dict[str, Any]:
    data = ("--recipe", "knn.toml", "--data", f"fake={Path.cwd()}")
    code, out, err = run("eval", file, *data, *options, "--json")
    assert code == 0, err
    (record,) = json.loads(out)
    return dict(record)


def values(record: dict[str, Any]) -> list[tuple[str, float]]:
    return [(score["name"], score["value"]) for score in record["scores"]]


def test_a_wrapped_file_is_inspected_and_measured_as_the_bare_one(run: Any) -> None:
    torch.save(NET, "bare.pth")
    torch.save(WRAPPED["solo-learn"][0], "wrapped.ckpt")
    code, out, err = run("inspect", "wrapped.ckpt", *ABOUT)
    assert code == 0, err
    for line in ("Lightning's entry", "the average of the other network", "78 keys", "projector", "classifier"):
        assert line in out
    bare, wrapped = measured(run, "bare.pth", *ABOUT), measured(run, "wrapped.ckpt", *ABOUT)
    assert values(bare) == values(wrapped)
    assert wrapped["encoder"]["audit"]["unwrapped"]["Lightning's entry"] == len(NET)
    assert set(wrapped["encoder"]["audit"]["backbone"]["dropped"]) >= {"projector", "classifier"}


def test_what_stays_open_is_asked_with_the_command_that_answers(run: Any) -> None:
    torch.save(TWO, "two.pth")
    code, _, err = run("eval", "two.pth", "--recipe", "knn.toml", *ABOUT)
    assert code == 1
    assert err.count("\n") == 1
    words = err.split("for instance ")[1].split()
    assert words[:2] == ["evalkit", "inspect"]
    code, out, err = run(*words[1:], *ABOUT)
    assert code == 0, err
    assert "state_dict.a" in out


def test_two_prefixes_are_measured_apart_and_repeated(run: Any) -> None:
    torch.save(TWO, "two.pth")
    one, other = (measured(run, "two.pth", *ABOUT, "--prefix", prefix) for prefix in ("a", "b"))
    assert one["key"] != other["key"]
    assert one["arguments"]["given"]["prefix"] == "a"
    for file in sorted(Path("runs").rglob("*.json")):
        code, out, err = run("repeat", file)
        assert code == 0, err
        assert "MOVED" not in out


def test_a_manifest_says_prefix_and_grid(run: Any) -> None:
    state = NET | {"pos_embed": torch.randn(1, 1 + 6 * 12, 192, generator=torch.Generator().manual_seed(5))}
    torch.save({"state_dict": under("a.", state) | under("b.", OTHER) | HEAD}, "two.pth")
    Path("mine.toml").write_text(
        'family = "dino"\narch = "vit_micro_patch8_64"\nfile = "two.pth"\nprefix = "a"\ngrid = [6, 12]\n'
    )
    mine = measured(run, "mine.toml")
    assert mine["encoder"]["grid"] == [6, 12]
    assert values(mine) == values(measured(run, "two.pth", *ABOUT, "--prefix", "a", "--grid", "6x12"))
    (file,) = [path for path in Path("runs").rglob("*.json") if path.parent.name == "mine"]
    assert run("repeat", file)[0] == 0


@pytest.mark.parametrize("grid", ["6", "6x", "0x3", "6x12x2", "-1x4", "axb"])
def test_a_grid_that_is_none_is_one_line(run: Any, grid: str) -> None:
    torch.save(NET, "bare.pth")
    code, _, err = run("inspect", "bare.pth", f"--grid={grid}")
    assert code == 1
    assert "it is HxW in whole patches" in err
