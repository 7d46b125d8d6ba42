"""State of unfinished work: any flipped bit shows, what is foreign is told in one line, and what is whole comes back."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from evalkit import state
from evalkit.engine.job import FileCheckpoint
from evalkit.errors import StateError
from evalkit.probing.heads import Heads
from evalkit.probing.resume import Between, taken_up

STATE = {"epochs": 3, "weight": torch.arange(40.0).view(5, 8), "seeds": {0: [1.5, None, True]}}


def flipped(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_what_was_saved_comes_back_and_torch_reads_it_too(tmp_path: Path) -> None:
    state.save(tmp_path / "s.pt", STATE)
    for found in (state.load(tmp_path / "s.pt"), torch.load(tmp_path / "s.pt", weights_only=True)):
        assert found["weight"].equal(STATE["weight"]) and found["seeds"] == STATE["seeds"]
    assert [p.name for p in tmp_path.iterdir()] == ["s.pt"]


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.pt"
    state.save(path, STATE)
    bits = 8 * path.stat().st_size
    tail = range(bits - 8 * state.TAIL, bits)
    for bit in [0, *random.Random(0).sample(range(bits), 300), *tail[:: 8 * 5], bits - 1]:
        flipped(path, bit)
        with pytest.raises(StateError, match=r"s\.pt: damaged") as caught:
            state.load(path)
        assert "\n" not in str(caught.value)
        flipped(path, bit)
    assert state.load(path)["epochs"] == 3


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b + b"x", lambda b: b"text"]
)
def test_what_is_cut_short_or_longer_is_damaged(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "s.pt"
    state.save(path, STATE)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StateError, match="damaged"):
        state.load(path)


def test_a_state_without_a_digest_and_what_is_no_file_are_told(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "old.pt")
    with pytest.raises(StateError, match="earlier version"):
        state.load(tmp_path / "old.pt")
    os.mkfifo(tmp_path / "fifo.pt")
    with pytest.raises(StateError, match="a FIFO"):
        state.load(tmp_path / "fifo.pt")


FORM = {"epochs": range(1, 9), "weight": STATE["weight"], "seeds": {0: [float, None, True]}}


def test_a_state_is_a_form_of_itself() -> None:
    assert state.misfit(STATE, FORM) == state.misfit(STATE, STATE) == ""


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({}, "no key 'epochs'"),
        ([], "list, not a mapping"),
        (None, "NoneType, not a mapping"),
        (STATE | {"more": 1}, "'more' that does not belong"),
        (STATE | {"epochs": -5}, "epochs is int '-5', not a number from 1 to 8"),
        (STATE | {"epochs": 9}, "not a number from 1 to 8"),
        (STATE | {"epochs": True}, "epochs is bool 'True'"),
        (STATE | {"epochs": 10**6000}, "epochs is int, not a number"),
        (STATE | {"epochs": "3"}, "epochs is str"),
        (STATE | {"weight": torch.zeros(5, 9)}, r"weight is a tensor \(5, 9\) of float32, not a tensor \(5, 8\)"),
        (STATE | {"weight": torch.zeros(5, 8).double()}, "of float64"),
        (STATE | {"weight": [1.0]}, "weight is list, not a tensor"),
        (STATE | {"seeds": {1: []}}, "seeds has a key '1'"),
        (STATE | {"seeds": {0: [1.5, None]}}, r"not a list of 3"),
        (STATE | {"seeds": {0: [1.5, 0, True]}}, r"seeds.0\[1\] is int"),
    ],
)
def test_what_does_not_fit_is_named(other: Any, said: str) -> None:
    found = state.misfit(other, FORM)
    assert re.search(said, found) and "\n" not in found


def test_the_state_of_an_optimiser_is_held_to_its_parameters() -> None:
    def trained(steps: int, width: int = 3) -> torch.optim.Optimizer:
        weight = torch.nn.Parameter(torch.ones(2, width))
        found = torch.optim.AdamW([weight])
        for _ in range(steps):
            weight.grad = torch.ones_like(weight)
            found.step()
        return found

    form = state.Optimiser(trained(0))
    assert [state.misfit(trained(n).state_dict(), form) for n in (0, 2)] == ["", ""]
    assert "not of its parameter" in state.misfit(trained(1, width=4).state_dict(), form)
    groups = trained(0).state_dict()["param_groups"]
    for other in ({}, [], {"state": {}, "param_groups": []}, {"state": {7: {}}, "param_groups": groups}):
        assert state.misfit(other, form)


# ---------------------------------------------------------------- a job's checkpoint


def checkpoint(path: Path) -> tuple[FileCheckpoint, list[str]]:
    said: list[str] = []
    return FileCheckpoint(path, said.append), said


def test_a_checkpoint_is_taken_up_and_says_nothing(tmp_path: Path) -> None:
    checkpoint(tmp_path / "q.pt")[0].save(STATE)
    again, said = checkpoint(tmp_path / "q.pt")
    assert again.load()["epochs"] == 3 and again.resumed and said == []  # type: ignore[index]
    fresh, _ = checkpoint(tmp_path / "new.pt")
    assert fresh.load() is None
    fresh.save(STATE)
    assert fresh.load() is not None and not fresh.resumed


def damaged(path: Path) -> None:
    flipped(path, 8 * (path.stat().st_size // 2))


@pytest.mark.parametrize(
    "spoil",
    [
        damaged,
        lambda path: path.write_bytes(path.read_bytes()[:99]),
        lambda path: torch.save(STATE, path),
        lambda path: state.save(path, {}),
        lambda path: state.save(path, [1]),
        lambda path: state.save(path, {"of": "another", "state": STATE}),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
)
def test_damaged_or_foreign_state_begins_anew_with_one_line(tmp_path: Path, spoil: Any) -> None:
    path = tmp_path / "q.pt"
    checkpoint(path)[0].save(STATE)
    spoil(path)
    found, said = checkpoint(path)
    assert found.load() is None and found.load() is None and not found.resumed
    assert len(said) == 1 and str(path) in said[0] and "\n" not in said[0] and "anew" in said[0]
    found.save(STATE)
    assert checkpoint(path)[0].load() is not None


def heads() -> Heads:
    return Heads(torch.zeros(4, 3), [0.1, 0.2])


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"epochs": -5, "stacks": {"a": heads().state()}, "watch": {}},
        {"epochs": 6, "stacks": {"a": heads().state()}, "watch": {}},
        {"epochs": 2, "stacks": {"a": Heads(torch.zeros(5, 3), [0.1]).state()}, "watch": {}},
        {"epochs": 2, "stacks": [], "watch": {}},
        {"epochs": 2, "stacks": {"b": heads().state()}, "watch": {}},
    ],
)
def test_training_does_not_go_on_from_a_state_of_other_heads(tmp_path: Path, other: Any) -> None:
    path = tmp_path / "q.pt"
    checkpoint(path)[0].save(other)
    found, said = checkpoint(path)
    mine = heads()
    before = mine.state()
    assert Between(found).resume({"a": mine}, 5) == 0
    assert all(mine.state()[name].equal(before[name]) for name in before)
    assert len(said) == 1 and "anew" in said[0]


def test_a_state_that_fits_is_not_refused(tmp_path: Path) -> None:
    trained = heads()
    trained.step(torch.ones(2, 4), torch.tensor([0, 1]))
    Between(checkpoint(tmp_path / "q.pt")[0]).after(2, {"a": trained}, last=True)
    mine = heads()
    assert Between(checkpoint(tmp_path / "q.pt")[0]).resume({"a": mine}, 5) == 2
    assert mine.state()["weight"].equal(trained.state()["weight"])
    found, said = checkpoint(tmp_path / "q.pt")
    assert taken_up(found, {"epochs": int, "stacks": dict, "watch": dict}) is not None and said == []
