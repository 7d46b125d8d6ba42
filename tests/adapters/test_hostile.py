"""Hostile files end in one line, run nothing, and cost neither memory nor time; one process reads all of them."""

from __future__ import annotations

import io
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evalkit.cli.main import main
from tests.adapters import hostile

ROOT = Path(__file__).resolve().parents[2]
RESIDENT = 1536 << 20
"""Bytes; torch alone takes 300 MB."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile")
    hostile.write_all(path)
    return path


@pytest.fixture(scope="module")
def outcomes(folder):
    """{name: what the reading process said}; the file that ended it has no entry, nor have those after it."""
    command = [sys.executable, "-m", "tests.adapters.hostile", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{lines[-1:]} ended the process: {done.stderr[-2000:]}"
    assert done.stderr == ""
    return {line["name"]: line for line in lines if "says" in line}


def test_there_are_many():
    assert len(hostile.FILES) > 400


@pytest.mark.parametrize("name", hostile.FILES)
def test_one_line_that_says_why(folder, outcomes, name):
    path, outcome = json.loads((folder / "files.json").read_text())[name], outcomes[name]
    assert outcome["ours"], outcome
    assert re.search(hostile.FILES[name].says, outcome["says"]), outcome["says"]
    assert outcome["says"].isprintable()
    assert len(outcome["says"]) < 600
    assert "".join(c if c.isprintable() else "?" for c in path) in outcome["says"]
    assert not re.search(r"Re-running|add_safe_globals", outcome["says"]), "advice to trust the file"


def test_no_memory(outcomes):
    assert max(outcome["peak"] for outcome in outcomes.values()) < RESIDENT


def test_nothing_ran(folder, outcomes):
    assert len(outcomes) == len(hostile.FILES)
    assert list(folder.rglob(hostile.SENTINEL)) == []
    assert not (ROOT / hostile.SENTINEL).exists()


@pytest.mark.parametrize("name", hostile.RUNS)
def test_the_same_payload_does_run_elsewhere(tmp_path, name):
    """Without this the test above would prove nothing."""
    # bytes that this test made and that touch its own folder alone: only a full unpickle shows that they do run
    torch.load(io.BytesIO(hostile.saved(hostile.calls(tmp_path)[name], "zip")), weights_only=False)
    assert (tmp_path / hostile.SENTINEL).exists()


@pytest.mark.parametrize("protocol", range(6))
def test_so_does_every_pickle_protocol(tmp_path, protocol):
    pickle.loads(hostile.FILES[f"os.system, pickle protocol {protocol}"].write(tmp_path).read_bytes())
    assert (tmp_path / hostile.SENTINEL).exists()


def test_the_command_line_says_one_line_each(tmp_path, monkeypatch, capsys):
    names = ("eval, zip", "zip, step of 0", "safetensors, key twice", "pipe", "slip /etc/evil")
    paths = []
    for name in names:
        own = tmp_path / str(len(paths))
        own.mkdir()
        paths.append(str(hostile.FILES[name].write(own)))
    monkeypatch.chdir(tmp_path)
    about = ["--family", "dino", "--arch", "vit_small_patch16", "--suite", "mini"]
    monkeypatch.setattr(sys, "argv", ["evalkit", "eval", *paths, *about])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 1
    assert len(said) == len(names)
    assert all(re.search(hostile.FILES[name].says, line) for name, line in zip(names, said, strict=True)), said
    assert not list(tmp_path.rglob(hostile.SENTINEL))
