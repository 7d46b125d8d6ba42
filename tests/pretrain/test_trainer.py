"""The loop: a run is a function of its seed, can be stopped anywhere, and keeps what it had."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from evalkit import state
from evalkit.errors import PretrainError
from evalkit.pretrain import watch
from evalkit.pretrain.corpus import Packed
from evalkit.pretrain.run import Run
from evalkit.pretrain.trainer import Options, Trainer
from evalkit.progress import RichProgress
from tests.pretrain.toy import SIDE, Config, Toy

fabric_module = pytest.importorskip("lightning.fabric")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

RUN = Run(epochs=3, batch=4, lr=0.05, lr_batch=0, warmup=0.5, clip=1.0, weight_decay=0.1, weight_decay_end=0.2)
OPTIONS = Options(save_steps=2, log_steps=2)
IMAGES = torch.randint(0, 256, (18, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trainer(
    out: Path, run: Run = RUN, config: Config = Config(), options: Options = OPTIONS, method: Any = None
) -> Trainer:
    torch.manual_seed(run.seed)
    fabric = fabric_module.Fabric(accelerator="cpu", devices=1)
    out.mkdir(exist_ok=True)
    question = {"method": "toy", "arch": "none"}
    return Trainer(
        method or Toy(None, config), Packed(IMAGES, "d"), run, out, fabric=fabric, question=question, options=options
    )


def train(out: Path, *, resume: bool = False, probe: Any = None, **kwargs: Any) -> Trainer:
    found = trainer(out, **kwargs)
    found.train(found.resume() if resume else 0, progress=RichProgress(quiet=True), probe=probe)
    return found


def same(a: Trainer, b: Trainer) -> None:
    for (name, one), two in zip(a.method.state_dict().items(), b.method.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.parametrize("at", [1, 4, 5, 11])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path, at: int) -> None:
    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", options=replace(OPTIONS, max_steps=at))
    parts = train(tmp_path / "parts", resume=True)
    same(whole, parts)
    logs = [watch.read(tmp_path / name / "log.csv") for name in ("whole", "parts")]
    columns = [c for c in logs[0][0] if c != "images_per_s"]
    rows = [{r["step"]: [r[c] for c in columns] for r in log} for log in logs]
    shared = set(rows[0]) & set(rows[1])
    assert set(rows[0]) <= set(rows[1])
    if at % 2 == 0:  # a stop between two looks makes a look of its own
        assert all(rows[0][step] == rows[1][step] for step in shared)


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")

    class Killed(Toy):
        def after_step(self, now: Any) -> None:
            super().after_step(now)
            if now.step == 4:  # a checkpoint was written after step 3; what follows is lost
                raise KeyboardInterrupt

    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", method=Killed())
    parts = train(tmp_path / "parts", resume=True)
    same(whole, parts)
    steps = [int(row["step"]) for row in watch.read(tmp_path / "parts" / "log.csv")]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_its_step_and_keeps_it(tmp_path: Path, number: int) -> None:
    class Signalled(Toy):
        def after_step(self, now: Any) -> None:
            super().after_step(now)
            if now.step == 2:
                os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    torch.manual_seed(0)
    stopped = train(tmp_path / "parts", method=Signalled())
    assert stopped.stopped
    assert torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["step"] == 3
    assert signal.getsignal(number) is before
    same(train(tmp_path / "whole"), train(tmp_path / "parts", resume=True))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    train(tmp_path, options=replace(OPTIONS, max_steps=4))
    good = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(PretrainError, match=r"toy is not finite between steps 4 and 6.*last good checkpoint"):
        train(tmp_path, resume=True, config=Config(poison=5))
    assert (tmp_path / "checkpoint.pt").read_bytes() == good


def test_another_run_does_not_go_on_from_a_foreign_checkpoint(tmp_path: Path) -> None:
    train(tmp_path, options=replace(OPTIONS, max_steps=2))
    with pytest.raises(PretrainError, match=r"another run \(run.lr: 0.05 -> 0.5\)"):
        train(tmp_path, resume=True, run=replace(RUN, lr=0.5))


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    train(tmp_path, options=replace(OPTIONS, max_steps=2))
    path = tmp_path / "checkpoint.pt"
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "other": b"not a checkpoint"}[damage])
    with pytest.raises(PretrainError, match=r"checkpoint.pt: damaged"):
        train(tmp_path, resume=True)


def test_a_flipped_bit_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    train(tmp_path, options=replace(OPTIONS, max_steps=2))
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    for at in range(7, len(whole), len(whole) // 9):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(PretrainError, match=r"checkpoint.pt: damaged.*delete it to begin anew"):
            train(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda held: {}, "no key 'step'"),
        (lambda held: [], "not a mapping"),
        (lambda held: held | {"step": -5}, "step is int '-5'"),
        (lambda held: held | {"step": 10**9}, "step is int"),
        (lambda held: held | {"method": {}}, "method has no key"),
        (lambda held: held | {"method": {k: v[None] for k, v in held["method"].items()}}, "is a tensor"),
        (lambda held: held | {"optimizer": {}}, "optimizer has no key 'state'"),
        (lambda held: held | {"question": "[" * 200_000}, "another run.*cannot be read"),
    ],
)
def test_a_foreign_checkpoint_is_refused_in_one_line(tmp_path: Path, other: Any, said: str) -> None:
    train(tmp_path, options=replace(OPTIONS, max_steps=2))
    path = tmp_path / "checkpoint.pt"
    state.save(path, other(state.load(path)))
    with pytest.raises(PretrainError, match=said) as caught:
        train(tmp_path, resume=True)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    a, b = train(tmp_path / "a"), train(tmp_path / "b")
    same(a, b)
    files = [(tmp_path / name / "encoder.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]
    other = train(tmp_path / "c", run=replace(RUN, seed=1))
    assert not torch.equal(a.method.student.weight, other.method.student.weight)


def test_targets_follow_frozen_parameters_wait_and_rates_are_applied(tmp_path: Path) -> None:
    first = trainer(tmp_path, options=replace(OPTIONS, max_steps=4))
    start, bias = first.method.teacher.weight.clone(), first.method.student.bias.clone()
    first.train(0, progress=RichProgress(quiet=True))  # four steps of four images: one epoch of 18
    assert torch.equal(first.method.student.bias, bias)
    assert not torch.equal(first.method.teacher.weight, start)
    now = first.plan.now(3)
    assert [g["lr"] for g in first.optimizer.param_groups] == [RUN.rate(now)] * 2
    assert [g["weight_decay"] for g in first.optimizer.param_groups] == [RUN.decay(now), 0.0]
    second = trainer(tmp_path, options=replace(OPTIONS, max_steps=5))
    second.train(second.resume(), progress=RichProgress(quiet=True))
    assert not torch.equal(second.method.student.bias, bias)


def test_accumulated_parts_equal_the_whole_batch_where_nothing_is_random(tmp_path: Path) -> None:
    class Plain(Toy):
        def views(self, images: Any, rng: Any) -> Any:
            return images.flatten(1) / 255

        def forward(self, views: Any, now: Any) -> Any:
            return {"toy": (self.student(views) - 1).square().mean()}, {"features": self.teacher(views).detach()}

    torch.manual_seed(0)
    whole = train(tmp_path / "whole", method=Plain())
    torch.manual_seed(0)
    parts = train(tmp_path / "parts", method=Plain(), run=replace(RUN, accumulate=2))
    assert torch.allclose(whole.method.student.weight, parts.method.student.weight, atol=1e-6)


def test_the_export_tells_how_it_was_made(tmp_path: Path) -> None:
    train(tmp_path)
    with safe_open(tmp_path / "encoder.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["training"])
        assert file.get_tensor("backbone.weight").dtype == torch.float16
    assert facts["corpus_digest"] == "d" and facts["step"] == 12 and facts["run"]["epochs"] == 3
    assert facts["last"]["loss"] > 0
    assert 'family = "dino"' in (tmp_path / "encoder.toml").read_text()


def test_the_probe_runs_at_the_epochs_asked_for_and_at_the_end(tmp_path: Path) -> None:
    asked: list[Path] = []

    def probe(manifest: Path) -> dict[str, float]:
        asked.append(manifest)
        return {"knn": len(asked) / 10}

    train(tmp_path, probe=probe, options=replace(OPTIONS, probe_epochs=2))
    rows = watch.read(tmp_path / "probe.csv")
    assert [(row["step"], row["knn"]) for row in rows] == [("8", "0.1"), ("12", "0.2")]
    assert asked[0] == tmp_path / "encoder.toml"


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    train(tmp_path)
    before = (tmp_path / "checkpoint.pt").stat().st_mtime_ns
    train(tmp_path, resume=True)
    assert (tmp_path / "checkpoint.pt").stat().st_mtime_ns == before
