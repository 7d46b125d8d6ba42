"""The command line on the fake encoder and data: what a user types, what it says, and what it exits with."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from evalkit import catalog, records
from evalkit.cli.main import main
from tests.adapters import oracles

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
    assert "top1@k=5 100.0 % [89.1, 100.0] (n 32)" in first.err
    assert "1 measured now, 0 reused" in first.out
    second = evalkit(*MEASURE)
    assert "record reused" in second.err
    assert "0 measured now, 1 reused" in second.out


def test_a_sweep_that_ends_at_its_edge_is_told(desk: Path, evalkit) -> None:
    """Of two rates either one is the last of the grid."""
    sweep = RECIPE.replace('runner = "knn"', 'runner = "linear"').replace('"top1@k=5"', '"top1"')
    sweep = sweep.replace("ks = [1, 5]", "rates = [0.1, 1.0]\nepochs = 3\nbatch_size = 16\nseeds = [0]")
    (desk / "sweep.toml").write_text(sweep.format(dataset="fake"))
    said = evalkit("eval", "fake.toml", "--recipe", "sweep.toml", "--data", "fake=.")
    assert said.code == 0
    assert "of the 2 tried (0.1 to 1): a better one may lie beyond" in said.err
    (record,) = records.find(desk / "runs", recipe="sweep")
    assert record.facts["choices"]["top1"]["edge"] in ("lowest", "highest")


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


def test_a_score_that_vanished_has_moved(desk: Path, evalkit) -> None:
    evalkit(*MEASURE)
    (record,) = (desk / "runs/fake").glob("*.json")
    content = json.loads(record.read_text())
    content["scores"].append({**content["scores"][0], "name": "top1@k=999"})
    record.write_text(json.dumps(records.sealed(content)))
    said = evalkit("repeat", record)
    assert said.code == 1
    assert "top1@k=999: 1 then, nan now  MOVED" in said.out


def test_a_bare_file_is_repeated_from_its_own_path(desk: Path, evalkit) -> None:
    torch.save(oracles.module("dino").weights(0, depth=6, arch="vit_micro_patch8_64"), desk / "mine.pth")
    assert evalkit("eval", "mine.pth", "--family", "dino", *MEASURE[2:]).code == 0
    (record,) = (desk / "runs/mine").glob("*.json")
    content = json.loads(record.read_text())
    assert content["encoder"]["audit"]["file"] == str((desk / "mine.pth").resolve())
    content["arguments"]["given"] = {}
    record.write_text(json.dumps(records.sealed(content)))
    assert evalkit("repeat", record).code == 0


def test_an_encoder_that_does_not_load_takes_no_other_with_it(desk: Path, evalkit) -> None:
    (desk / "text.pth").write_text("no weights")
    said = evalkit("eval", "text.pth", *MEASURE[1:])
    assert said.code == 1
    assert "evalkit: text.pth: " in said.err
    assert len(list((desk / "runs/fake").glob("knn.*.json"))) == 1


def test_too_little_memory_is_one_line(desk: Path, evalkit, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nand more")

    monkeypatch.setattr("evalkit.engine.evaluate._Measurement.run", full)
    said = evalkit(*MEASURE)
    assert said.code == 1
    assert "cpu has not enough memory: CUDA out of memory. Tried to allocate 9 GiB" in said.err


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
        (["eval"], 1, "no encoder to measure: name a zoo id"),
        (["eval", "--recipe", "mini-knn-ccp-items"], 1, "or a --suite with encoders of its own"),
        (["eval", "none.pth", "--recipe", "knn.toml", "--family", "dino"], 1, "no checkpoint file at none.pth"),
        (["eval", "two.pth", "--recipe", "knn.toml", "--data", "fake=."], 1, "several families: deit, dino, ibot"),
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
        (["eval", "text.pth", "--recipe", "knn.toml", "--data", "fake=."], 1, "no checkpoint"),
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
        (["fetch", "dino-s61"], 1, "Did you mean dino-s16"),
        (["fetch", "dino-s16", "--mirror", "mirror.org"], 1, "http://HOST[/PATH]"),
        (["fetch", "dino-s16", "dino-b16", "--from", "text.pth"], 1, "give one encoder"),
        (["fetch", "dino-s16", "--from", "none.pth"], 1, "there is no such file"),
        (["fetch", "dinov3-s16"], 1, "evalkit fetch dinov3-s16 --from FILE"),
        (["eval", "dino-s16", "--recipe", "knn.toml"], 1, "run: evalkit fetch dino-s16"),
        (["eval", "cae-b16-1600", "--recipe", "knn.toml"], 1, "drive.google.com"),
        (["repeat", "none.json"], 1, "no such record"),
    ],
    ids=lambda v: " ".join(v)[:60] if isinstance(v, list) else None,
)
def test_bad_input_gets_one_clear_message(desk: Path, evalkit, words: list[str], code: int, said: str) -> None:
    (desk / "text.pth").write_text("this is no checkpoint")
    torch.save(oracles.module("dino").weights(0, depth=12), desk / "two.pth")
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


WEIGHTS = (catalog.root() / "model_zoo/weights/micro-dino.safetensors").read_bytes()
ZEROS = b"PK\x03\x04" + bytes(1000)
FETCHED = 'family = "dino"\narch = "vit_micro_patch8_64"\nlicence = "MIT"\nurl = "{url}"\n'


@pytest.fixture
def zoo(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of this machine over the folder `served`, which has one file; its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    (desk / "served/zoo").mkdir(parents=True)
    (desk / "served/zoo/vit.pth").write_bytes(WEIGHTS)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(desk / "served")))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_weights_are_fetched_once_and_held_to_their_first_digest(desk: Path, zoo: str, evalkit) -> None:
    (desk / "vit.toml").write_text(FETCHED.format(url=f"{zoo}/zoo/vit.pth"))
    assert "run: evalkit fetch vit.toml" in evalkit("eval", "vit.toml", "--recipe", "knn.toml").err
    assert "weights: not downloaded" in evalkit("describe", "vit.toml").out
    first = evalkit("fetch", "vit.toml")
    assert first.code == 0, first.err
    assert "vit: fetched, 6.3 MB" in first.out and "recorded at the first download" in first.out and "MIT" in first.out
    assert "already there" in evalkit("fetch", "vit.toml").out
    described = evalkit("describe", "vit.toml").out
    assert "weights: downloaded (6.3 MB)" in described and "recorded at the first download" in described
    evaluated = evalkit("eval", "vit.toml", "--recipe", "knn.toml", "--data", "fake=.")
    assert evaluated.code == 0, evaluated.err  # found in the cache
    next(Path(os.environ["EVALKIT_CACHE"]).rglob("vit.pth")).unlink()
    (desk / "served/zoo/vit.pth").write_bytes(WEIGHTS + b"changed")
    changed = evalkit("fetch", "vit.toml")
    assert changed.code == 1
    assert "has changed since it was first fetched" in changed.err and "remove " in changed.err


@pytest.mark.parametrize("how", ["option", "environment", "folder"])
def test_a_mirror(desk: Path, zoo: str, evalkit, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    (desk / "vit.toml").write_text(FETCHED.format(url="https://nowhere.invalid/vit.pth"))
    mirror = (desk / "served/zoo").as_uri() if how == "folder" else f"{zoo}/zoo/"
    if how == "environment":
        monkeypatch.setenv("EVALKIT_MIRROR", mirror)
    said = evalkit("fetch", "vit.toml", *([] if how == "environment" else ["--mirror", mirror]))
    assert said.code == 0, said.err
    assert next(Path(os.environ["EVALKIT_CACHE"]).rglob("vit.pth")).read_bytes() == WEIGHTS


def test_weights_got_by_hand_are_checked_and_copied(desk: Path, evalkit) -> None:
    by_hand = (
        FETCHED.replace("url =", "origin =").format(url="https://drive/folder")
        + 'notes = "ask"\nsha256_prefix = "{}"\n'
    )
    (desk / "vit.toml").write_text(by_hand.format(hashlib.sha256(WEIGHTS).hexdigest()[:8]))
    (desk / "got.pth").write_bytes(WEIGHTS)
    (desk / "page.html").write_text("<html>warning</html>")
    assert "ask\n  page: https://drive/folder\n  then run" in evalkit("eval", "vit.toml", "--recipe", "knn.toml").err
    assert "a web page" in evalkit("fetch", "vit.toml", "--from", "page.html").err
    assert "vit: fetched" in evalkit("fetch", "vit.toml", "--from", "got.pth").out
    assert "nothing to fetch (its weights are" in evalkit("fetch", "vit.toml").out
    assert evalkit("eval", "vit.toml", "--recipe", "knn.toml", "--data", "fake=.").code == 0
    (desk / "got.pth").write_bytes(WEIGHTS + b"x")
    assert "has changed" in evalkit("fetch", "vit.toml", "--from", "got.pth", "--out", "elsewhere").err


@pytest.mark.parametrize("content", [ZEROS, b"any bytes", b"", WEIGHTS[:-9], "other"])
def test_what_does_not_open_does_not_count(desk: Path, evalkit, content: bytes | str) -> None:
    """A wrong file is refused in words, and the right one that came before it stays."""
    (desk / "vit.toml").write_text(FETCHED.format(url="https://nowhere.invalid/vit.pth"))
    other = (catalog.root() / "model_zoo/weights/micro-cae.safetensors").read_bytes()
    (desk / "wrong.pth").write_bytes(other if isinstance(content, str) else content)
    (desk / "right.pth").write_bytes(WEIGHTS)
    wrong = evalkit("fetch", "vit.toml", "--from", "wrong.pth")
    assert wrong.code == 1 and "wrong.pth" in wrong.err and "nothing of it was kept" in wrong.err
    assert "Traceback" not in wrong.err and not list(Path(os.environ["EVALKIT_CACHE"]).rglob("vit.pth*"))
    assert "vit: fetched" in evalkit("fetch", "vit.toml", "--from", "right.pth").out
    assert "already there" in evalkit("fetch", "vit.toml", "--from", "right.pth").out
    again = evalkit("fetch", "vit.toml", "--from", "wrong.pth")
    assert again.code == 1 and "is not the file that is already there" in again.err and "already there" not in again.out
    assert next(Path(os.environ["EVALKIT_CACHE"]).rglob("vit.pth")).read_bytes() == WEIGHTS


def test_what_an_earlier_fetch_took_unseen_is_not_already_there(desk: Path, evalkit) -> None:
    (desk / "vit.toml").write_text(FETCHED.format(url=(desk / "vit.pth").as_uri()))
    (desk / "vit.pth").write_bytes(WEIGHTS)
    evalkit("fetch", "vit.toml")
    place = next(Path(os.environ["EVALKIT_CACHE"]).rglob("vit.pth"))
    place.write_bytes(ZEROS)
    place.with_name("vit.pth.sha256").write_text(f"{hashlib.sha256(ZEROS).hexdigest()}  vit.pth\n")
    said = evalkit("fetch", "vit.toml")
    assert "vit: fetched" in said.out and "not what is wanted" in said.err
    assert place.read_bytes() == WEIGHTS


def test_an_interrupted_download_is_one_line_and_130(
    desk: Path, zoo: str, evalkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evalkit.download import transfer

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    (desk / "vit.toml").write_text(FETCHED.format(url=f"{zoo}/zoo/vit.pth"))
    monkeypatch.setattr(transfer.Transfer, "_read", stop)
    said = evalkit("fetch", "vit.toml")
    assert said.code == 130
    assert "the same command goes on from there" in said.err and "Traceback" not in said.err


def test_the_list_says_where_weights_are(desk: Path, evalkit) -> None:
    lines = {line.split()[0]: line for line in evalkit("list", "encoders").out.splitlines() if line.strip()}
    for name, state in (
        ("random", "control"),
        ("micro-dino", "shipped"),
        ("dino-s16", "not downloaded"),
        ("dinov3-s16", "by hand"),
    ):
        assert state in lines[name]


def test_describing_a_checkpoint_prints_what_papers_print(desk: Path, evalkit) -> None:
    said = evalkit("describe", "mugs-l16-250").out
    assert "published numbers (3 rows of reports/published/papers.csv)" in said
    assert "  mugs, Table 1:\n" in said and "linear_probe, imagenet1k, top1: 82.1 %" in said


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


def test_a_suite_without_an_encoder_is_measured_on_its_own(desk: Path, evalkit) -> None:
    column = '[[columns]]\nrecipe = "mini-knn-ccp-items"\ntitle = "items"\n'
    (desk / "own.toml").write_text(f'title = "own"\nencoders = ["pixels"]\n{column}')
    (desk / "none.toml").write_text(f'title = "none"\n{column}')
    said = evalkit("eval", "--suite", "own.toml", "--limit", 60)
    assert said.code == 0 and "1 measured now" in said.out
    assert [path.name for path in (desk / "runs").iterdir()] == ["pixels"]
    assert "no encoder to measure" in evalkit("eval", "--suite", "none.toml").err


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
    [
        [],
        ["eval"],
        ["fetch"],
        ["table"],
        ["list"],
        ["describe"],
        ["data"],
        ["data", "verify"],
        ["cache"],
        ["cache", "prune"],
    ],
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
    from evalkit.cli.options import complete_encoder, complete_recipe, complete_suite

    assert "mini-knn-ccp-items" in complete_recipe("mini-knn")
    assert complete_suite("dem") == ["demo"]
    assert complete_encoder("ship") == ["shipped"]


def test_what_is_no_percentage_is_told_with_three_decimals() -> None:
    from types import SimpleNamespace

    from evalkit.cli.measure import describe_score

    score = {"name": "cls", "value": 0.0384, "low": 0.0364, "high": 0.0404, "n": 401, "unit": "variance"}
    assert describe_score(SimpleNamespace(score=lambda: score)) == "cls 0.038 variance ± 0.002 (n 401)"  # type: ignore[arg-type]
