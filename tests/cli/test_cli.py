"""The command line on the fake encoder and data: what a user types, what it says, and what it exits with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from evalkit.cli.main import main

FAKE = 'family = "fake"\narch = "fake_patch8"\ncontrol = true\n[preprocessing]\nsize = 32\n'
RECIPE = """
version = 1
title = "fake k-NN"
runner = "knn"
headline = "top1@k=5"
[source]
paper = "none"
[dataset]
name = "{dataset}"
folder = "{dataset}"
[view]
size = "encoder"
fit = "squash"
[config]
ks = [1, 5]
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a manifest and recipes of one's own, as working directory."""
    (tmp_path / "fake.toml").write_text(FAKE)
    (tmp_path / "knn.toml").write_text(RECIPE.format(dataset="fake"))
    (tmp_path / "folder.toml").write_text(RECIPE.format(dataset="image_folder"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


class Said:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def evalkit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["evalkit", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return run


MEASURE = ("eval", "fake.toml", "--recipe", "knn.toml", "--data", "fake=.")


def test_it_measures_then_reuses_the_record(desk: Path, evalkit) -> None:
    first = evalkit(*MEASURE)
    assert first.code == 0
    assert "top1@k=5 100.0 % ± 0.0 (n 32)" in first.err
    assert "1 measured now, 0 reused" in first.out
    second = evalkit(*MEASURE)
    assert "record reused" in second.err
    assert "0 measured now, 1 reused" in second.out


@pytest.mark.parametrize("other", [("--limit", 16), ("--seed", 7), ("--precision", "bf16"), ("--skip-broken",)])
def test_another_question_is_another_record(desk: Path, evalkit, other: tuple[object, ...]) -> None:
    evalkit(*MEASURE)
    assert "1 measured now" in evalkit(*MEASURE, *other).out
    assert len(list((desk / "runs/fake").glob("*.json"))) == 2


def test_the_record_alone_is_enough_to_repeat_it(desk: Path, evalkit) -> None:
    evalkit(*MEASURE, "--limit", 16)
    (record,) = (desk / "runs/fake").glob("*.json")
    (desk / "knn.toml").unlink()
    said = evalkit("repeat", record)
    assert said.code == 0, said.err
    assert "top1@k=5: 1 then, 1 now" in said.out


def test_json_is_the_records(desk: Path, evalkit) -> None:
    (record,) = json.loads(evalkit(*MEASURE, "--json").out)
    assert record["scores"][0]["n"] == 32
    assert {"given", "resolved"} == set(record["arguments"])
    assert record["environment"]["torch"]


def test_one_recipe_that_fails_takes_nothing_else_with_it(desk: Path, evalkit) -> None:
    (desk / "image_folder/train/cat").mkdir(parents=True)
    said = evalkit(*MEASURE, "--recipe", "folder.toml", "--data-root", ".")
    assert said.code == 1
    assert "evalkit: folder: " in said.err and "cat" in said.err
    assert len(list((desk / "runs/fake").glob("knn.*.json"))) == 1
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["eval", "randon", "--suite", "demo"], 1, "Did you mean random"),
        (["eval", "random", "--suite", "demmo"], 1, "Did you mean demo"),
        (["eval", "random", "--recipe", "mini-knn-ccp-itms"], 1, "Did you mean mini-knn-ccp-items"),
        (["eval", "random"], 1, "--recipe or --suite"),
        (["eval", "none.pth", "--recipe", "knn.toml", "--family", "dino"], 1, "--arch: vit_base_patch16"),
        (
            ["eval", "none.pth", "--recipe", "knn.toml", "--family", "dino", "--arch", "vit_micro_patch8_64"],
            1,
            "none.pth",
        ),
        (["eval", "fake.toml", "--recipe", "knn.toml", "--data", "fake"], 1, "NAME=PATH"),
        (["eval", "fake.toml", "--recipe", "knn.toml"], 1, "--data-root"),
        (["eval", "fake.toml", "--recipe", "knn.toml", "--data", "fkae=."], 1, "--data names fkae"),
        (
            ["eval", "fake.toml", "--recipe", "knn.toml", "--data", "fake=.", "--limit", "4"],
            1,
            "has no score 'top1@k=5'",
        ),
        (["eval", "fake.toml", "--recipe", "knn.toml", "--data", "fake=.", "--out", "text.pth"], 1, "--out"),
        (["eval", "fake.toml", "--recipe", "knn.toml", "--data", "fake=.", "--limit", "0"], 1, "at least 1"),
        (["eval", "fake.toml", "--recipe", "knn.toml", "--data", "fake=.", "--seed", "-1"], 1, "seed is -1"),
        (["eval", "fake.toml", "--recipe", "knn.toml", "--device", "tpu"], 2, "tpu"),
        (["eval", "text.pth", "--recipe", "knn.toml", "--data", "fake=."], 1, "--family"),
        (["eval", "text.pth", "--family", "dinno", "--recipe", "knn.toml", "--data", "fake=."], 1, "Did you mean dino"),
        (
            ["eval", "text.pth", "--family", "dino", "--arch", "vit_small_patch16", "--recipe", "knn.toml"],
            1,
            "text.pth",
        ),
        (["describe", "rndom"], 1, "Did you mean random"),
        (["data", "verify", "cifr10"], 1, "Did you mean cifar10"),
        (["data", "verify", "cifar10", "--data-root", "."], 1, "cifar10"),
        (["table", "demo"], 1, "evalkit eval"),
        (["cache", "prune"], 1, "--older-than"),
        (["list", "colours"], 2, "colours"),
        (["repeat", "none.json"], 1, "no such record"),
    ],
    ids=lambda v: " ".join(v)[:60] if isinstance(v, list) else None,
)
def test_bad_input_gets_one_clear_message(desk: Path, evalkit, words: list[str], code: int, said: str) -> None:
    (desk / "text.pth").write_text("this is no checkpoint")
    found = evalkit(*words)
    assert found.code == code
    assert said in " ".join((found.out + found.err).replace("│", " ").split())
    assert "Traceback" not in found.err


def test_a_broken_image_is_refused_by_default_and_recorded_when_skipped(desk: Path, evalkit) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for i, name in enumerate(("cat", "dog")):
            folder = desk / "image_folder" / split / name
            folder.mkdir(parents=True)
            for j in range(4):
                Image.new("RGB", (20, 20), (255 * i, 0, 0)).save(folder / f"{j}.png")
    (desk / "image_folder/test/cat/0.png").write_text("a text named .png")
    words = ("eval", "fake.toml", "--recipe", "folder.toml", "--data-root", ".")
    refused = evalkit(*words)
    assert refused.code == 1
    assert "cat/0.png" in refused.err and "--skip-broken" in refused.err
    assert evalkit(*words, "--skip-broken").code == 0
    (record,) = (desk / "runs/fake").glob("folder.*.json")
    content = json.loads(record.read_text())
    assert (
        content["data"]["test"]["skipped"] == ["test/cat/0.png"] or "cat/0.png" in content["data"]["test"]["skipped"][0]
    )
    assert content["scores"][0]["n"] == 7


def test_listing_and_describing(desk: Path, evalkit) -> None:
    for kind, word in (
        ("encoders", "random"),
        ("recipes", "mini-knn-ccp-items"),
        ("datasets", "ccp_items"),
        ("suites", "demo"),
    ):
        said = evalkit("list", kind)
        assert said.code == 0
        assert word in said.out
    assert "arXiv:2104.14294" in evalkit("describe", "mini-knn-ccp-items").out
    assert "seed: 0" in evalkit("describe", "random").out
    assert "fake_patch8" in evalkit("describe", "fake.toml").out
    assert "complete as ccp_items" in evalkit("data", "verify", "ccp_items").out


def test_the_cache_is_listed_verified_and_pruned(desk: Path, evalkit) -> None:
    evalkit(*MEASURE)
    assert "fake" in evalkit("cache", "ls").out
    assert evalkit("cache", "verify").code == 0
    assert evalkit("cache", "prune", "--max-gb", "0").code == 0
    assert "0.0 MB" in evalkit("cache", "ls").out


def test_a_table_of_ones_own_suite_in_every_format(desk: Path, evalkit) -> None:
    suite = desk / "mine.toml"
    suite.write_text('title = "mine"\n[[columns]]\nrecipe = "mini-knn-ccp-items"\ntitle = "items"\n')
    assert evalkit("eval", "pixels", "--suite", suite, "--limit", 60).code == 0
    for form, mark in (("md", "| pixels |"), ("csv", "pixels,"), ("latex", r"\begin{tabular}")):
        said = evalkit("table", suite, "--format", form)
        assert said.code == 0, said.err
        assert mark in said.out
    drawn = evalkit("table", suite, "--write")
    assert "pixels" in drawn.out and "--limit 60" in drawn.out
    assert "tables/mine.md" in drawn.err
    assert (desk / "runs/tables/mine.csv").exists()


@pytest.mark.parametrize(
    "words",
    [[], ["eval"], ["table"], ["list"], ["describe"], ["data"], ["data", "verify"], ["cache"], ["cache", "prune"]],
)
def test_help_on_every_level(evalkit, words: list[str]) -> None:
    said = evalkit(*words, "--help")
    assert said.code == 0
    assert "Usage:" in said.out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['evalkit', 'eval', '--help']\n"
        "from evalkit.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'timm', 'sklearn', 'pandas', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().splitlines()[-1] == "[]"


def test_an_interrupt_is_one_line_and_130(desk: Path, evalkit, monkeypatch: pytest.MonkeyPatch) -> None:
    from evalkit.engine import evaluate

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate._Measurement, "run", stop)
    said = evalkit(*MEASURE)
    assert said.code == 130
    assert "the same command goes on" in said.err


def test_shell_completion_knows_the_recipes() -> None:
    from evalkit.cli.measure import complete_encoder, complete_recipe, complete_suite

    assert "mini-knn-ccp-items" in complete_recipe("mini-knn")
    assert complete_suite("dem") == ["demo"]
    assert complete_encoder("ship") == ["shipped"]
