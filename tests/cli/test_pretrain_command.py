"""`evalkit pretrain`: list, one short run of a real method on real files, a kill and the way back, errors in words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from evalkit.cli.main import app
from evalkit.pretrain import watch
from tests.waiting import until

pytest.importorskip("lightning.fabric")
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*expandable.*",
                                        "ignore::UserWarning", "ignore::DeprecationWarning")  # fmt: skip
SMALL = [
    "--set", "run.batch=8", "--set", "run.epochs=3", "--set", "run.warmup=1.0", "--set", "config.hidden=16",
    "--set", "config.prototypes=32", "--set", "windows=1",
]  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "images.zip"
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(19):
            file = tmp_path / "one.png"
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
            archive.write(file, f"train/{i:02}.png")
    return path


def command(images: Path, out: Path, *more: str) -> list[str]:
    return ["pretrain", "dino", "--preset", "micro", "--data", str(images), "--out", str(out), "--device", "cpu",
            "--save-steps", "2", "--log-steps", "1", "--no-probe", *SMALL, *more]  # fmt: skip


def run(images: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"EVALKIT_CACHE": str(images.parent / "cache"), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "evalkit.cli.main", *command(images, out, *more)]
    return subprocess.run(line, capture_output=True, text=True, env=environment, check=False)


def weights(out: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(out / "checkpoint.pt", weights_only=True)["method"]
    return state


def test_list_names_every_method_with_its_presets() -> None:
    done = CliRunner().invoke(app, ["pretrain", "list"])
    assert done.exit_code == 0
    for name in ("mugs", "mgc", "mmc", "selfpatch", "dino", "ibot", "moco_v3", "mae", "cae", "micro", "paper-imagenet"):
        assert name in done.stdout


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_ends_as_one_that_was_not(images: Path, tmp_path: Path) -> None:
    whole = run(images, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    environment = os.environ | {"EVALKIT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "evalkit.cli.main", *command(images, tmp_path / "parts")],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until((tmp_path / "parts" / "checkpoint.pt").exists, "a checkpoint", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = run(images, tmp_path / "parts", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    for (name, a), b in zip(weights(tmp_path / "whole").items(), weights(tmp_path / "parts").values(), strict=True):
        assert torch.equal(a, b), name
    steps = [int(row["step"]) for row in watch.read(tmp_path / "parts" / "log.csv")]
    assert steps == list(range(1, 7))
    assert list((tmp_path / "parts" / "tensorboard").iterdir())


@pytest.mark.slow
def test_two_processes_train_one_model(images: Path, tmp_path: Path) -> None:
    done = run(images, tmp_path / "out", "--devices", "2", "--max-steps", "2")
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in watch.read(tmp_path / "out" / "log.csv")] == ["1", "2"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pretrain", "dinoo", "--preset", "micro"], "no pretraining method named 'dinoo'"),
        (["pretrain", "dino"], "--preset NAME"),
        (["pretrain", "dino", "--preset", "micro"], "name folders, zips"),
        (["pretrain", "dino", "--preset", "micro", "--data", "none.zip"], "no such folder or zip"),
        (["pretrain", "dino", "--preset", "micro", "--resume"], "holds no checkpoint.pt to go on from"),
        (["pretrain", "dino", "--preset", "micro", "--set", "run.batch"], "form KEY=VALUE"),
        (["pretrain", "dino", "--preset", "micro", "--probe", "knn"], "no recipe named 'knn'"),
    ],
)
def test_a_wrong_question_is_answered_in_words(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evalkit.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evalkit", *arguments])
    said: list[str] = []
    monkeypatch.setattr(main.typer, "echo", lambda text, **_: said.append(str(text)))
    with pytest.raises(SystemExit) as stopped:
        main.main()
    assert stopped.value.code == 1
    assert says in " ".join(said)


def test_a_run_is_not_begun_anew_over_another(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "checkpoint.pt").write_bytes(b"")
    done = CliRunner().invoke(app, command(images, out))
    assert done.exit_code == 1
    assert "holds a run already" in str(done.exception)
