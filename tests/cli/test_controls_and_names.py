"""Controls stand beside what a suite measures, and two files of one name are told apart: by eval, table and compare."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evalkit import catalog, records
from evalkit.cli.main import main
from evalkit.engine import naming
from evalkit.engine.evaluate import load
from evalkit.errors import UsageError

RECIPE = "mini-knn-ccp-items"
FEW = ("--limit", "24")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def evalkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """In a folder with a suite of one's own: (exit code, standard output, standard error in one line)."""
    (tmp_path / "own.toml").write_text(f'title = "own"\n[[columns]]\nrecipe = "{RECIPE}"\ntitle = "items"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["evalkit", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        out, err = capsys.readouterr()
        return code, out, " ".join(err.split())

    return run


def folders(out: str = "runs") -> set[str]:
    return {path.name for path in Path(out).iterdir()}


def test_a_suite_brings_its_controls(evalkit: Run) -> None:
    """One twin per network and pixels, told and why; found again; the table tests each encoder against its own twin."""
    code, out, err = evalkit("eval", "micro-mgc", "micro-mugs", "micro-cae", "--suite", "own.toml", *FEW)
    assert code == 0, err
    assert "6 measured now" in out
    assert folders() == {"micro-mgc", "micro-mugs", "micro-cae", "random", "random-cae", "pixels"}
    said = "random (untrained twin of micro-mgc, micro-mugs), random-cae (untrained twin of micro-cae), pixels;"
    assert said in err and "--no-controls leaves them out" in err
    assert (
        "0 measured now, 6 reused"
        in evalkit("eval", "micro-mgc", "micro-mugs", "micro-cae", "--suite", "own.toml", *FEW)[1]
    )
    _, text, _ = evalkit("table", "own.toml", *FEW, "--against", "random", "--format", "md")
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert list(rows)[1:] == ["micro-cae", "micro-mgc", "micro-mugs", "random", "random-cae", "pixels"]
    value = {r.encoder["id"]: 100 * r.score()["value"] for r in records.find(Path("runs"))}
    for name, twin in (
        ("micro-cae", "random-cae"),
        ("micro-mgc", "random"),
        ("micro-mugs", "random"),
        ("pixels", "random"),
    ):
        assert f"({value[name] - value[twin]:+.1f}" in rows[name], rows[name]
    assert "(" not in rows["random"] + rows["random-cae"]
    assert "the same network untrained: random of micro-mgc, micro-mugs; random-cae of micro-cae" in text
    (record,) = records.find(Path("runs"), encoder="random-cae")
    assert record.encoder["audit"]["untrained twin of"]["id"] == "micro-cae"
    again = evalkit("repeat", next(Path("runs/random-cae").glob("*.json")))
    assert again[0] == 0, again
    assert evalkit("compare", "micro-cae", "random:micro-cae")[1].startswith(f"{RECIPE} top1@k=10: micro-cae ")


def test_without_controls_there_are_none(evalkit: Run) -> None:
    code, out, err = evalkit("eval", "micro-mgc", "--suite", "own.toml", "--no-controls", *FEW)
    assert code == 0 and "1 measured now" in out and "controls" not in err
    assert (
        "micro-mgc: not measured untrained (random): evalkit eval random:micro-mgc"
        in evalkit("table", "own.toml", *FEW)[1]
    )
    assert "1 measured now" in evalkit("eval", "micro-cae", "--recipe", RECIPE, *FEW)[1]
    assert folders() == {"micro-mgc", "micro-cae"}
    assert "3 measured now" in evalkit("eval", "micro-mugs", "--recipe", RECIPE, "--controls", *FEW)[1]


def shipped(name: str, to: str) -> str:
    Path(to).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(catalog.root() / "model_zoo" / "weights" / f"{name}.safetensors", to)
    return to


def test_two_files_of_one_name_are_told_apart(evalkit: Run) -> None:
    one, other = (
        shipped("micro-mugs", "a/checkpoint.safetensors"),
        shipped("micro-selfpatch", "b/checkpoint.safetensors"),
    )
    asked = ("--recipe", RECIPE, *FEW)
    assert evalkit("eval", one, *asked)[0] == 0
    _, _, err = evalkit("eval", other, *asked)
    mark = f"checkpoint-{catalog.manifest('micro-selfpatch').sha256[:8]}"
    assert f"{other}: called {mark}, as another network is called checkpoint; --name chooses" in err
    assert "1 reused" in evalkit("eval", one, *asked)[1] and "1 reused" in evalkit("eval", other, *asked)[1]
    assert folders() == {"checkpoint", mark}
    assert evalkit("compare", "checkpoint", mark)[0] == 0
    assert evalkit("compare", one, other)[0] == 0  # by file
    assert "another network under this name" in evalkit("eval", other, "--name", "checkpoint", *asked)[2]
    assert evalkit("eval", other, "--name", "mine", *asked)[0] == 0 and "mine" in folders()
    for out, files in (("forth", (one, other)), ("back", (other, one))):  # in one command, whatever the order
        assert evalkit("eval", *files, *asked, "--out", out)[0] == 0
    assert folders("forth") == folders("back") == {mark, f"checkpoint-{catalog.manifest('micro-mugs').sha256[:8]}"}


def test_a_name_of_two_networks_is_refused_with_both(evalkit: Run) -> None:
    """As folders of before have them: two networks' records under one id."""
    one, other = (
        shipped("micro-mugs", "a/checkpoint.safetensors"),
        shipped("micro-selfpatch", "b/checkpoint.safetensors"),
    )
    evalkit("eval", one, "pixels", "--recipe", RECIPE, *FEW)
    evalkit("eval", other, "--recipe", RECIPE, *FEW, "--out", "more")
    for path in Path("more").glob("*/*"):
        shutil.copy(path, "runs/checkpoint")
    code, _, err = evalkit("compare", "checkpoint", "pixels")
    assert code == 1 and "checkpoint is the name of 2 networks; say which" in err
    assert "mugs vit_micro_patch8_64" in err and "selfpatch vit_micro_patch8_64" in err
    one_of_them = err.split("'checkpoint (")[1].split(")")[0]
    assert evalkit("compare", f"checkpoint ({one_of_them})", "pixels")[0] == 0
    code, _, err = evalkit("table", "own.toml", *FEW, "--against", "checkpoint")
    assert code == 1 and f"checkpoint ({one_of_them})" in err


def test_who_has_no_record_is_told_who_has(evalkit: Run) -> None:
    evalkit("eval", "pixels", "--recipe", RECIPE, *FEW)
    for name in ("nobody", "*", "[p]ixels", "../pixels"):
        code, _, err = evalkit("compare", name, "pixels")
        assert code == 1 and f"there is no record of {name}; there are records of: pixels" in err


def test_networks_of_one_file_are_told_apart(tmp_path: Path) -> None:
    weights = load("micro-dino").vit.state_dict()  # type: ignore[attr-defined]
    both = {
        "teacher": {f"backbone.{k}": v for k, v in weights.items()},
        "student": {f"module.backbone.{k}": v / 2 for k, v in weights.items()},
    }
    torch.save(both, tmp_path / "both.pth")
    file = str(tmp_path / "both.pth")
    names = {
        network: naming.settle(
            load(file, family="dino", arch="vit_micro_patch8_64", network=network), naming.Named(file, network), None
        ).spec.id
        for network in ("", "teacher", "student")
    }
    assert names == {"": "both", "teacher": "both", "student": "both-student"}


@pytest.mark.parametrize("name", ["", "micro-mgc", "random", "pixels"])
def test_a_file_never_bears_the_name_of_another_network_of_the_zoo(name: str, tmp_path: Path) -> None:
    file = shipped("micro-mugs", str(tmp_path / f"{name or 'micro-mugs'}.safetensors"))
    found = naming.settle(load(file), naming.Named(file), None).spec.id
    assert found == (f"{name}-{catalog.manifest('micro-mugs').sha256[:8]}" if name else "micro-mugs")


@pytest.mark.parametrize(
    "name", ["../a", "a/b", "-a", ".", "a b", "a\n", "x" * 101, "random", "micro-dino", "random-mine"]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UsageError, match="--name"):
        naming.check(name)


def test_a_record_says_of_what_network_it_is(evalkit: Run) -> None:
    evalkit("eval", "micro-cae", "--recipe", RECIPE, *FEW)
    encoder = json.loads(next(Path("runs/micro-cae").glob("*.json")).read_text())["encoder"]
    assert encoder["twin"] == "random-cae" and encoder["built"]["layer_scale"] == 0.1
