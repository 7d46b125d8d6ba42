"""Signs of collapse on features that have collapsed and on features that have not; the log that goes on."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from evalkit.pretrain import watch


def test_spread_features_have_deviation_one_and_full_rank() -> None:
    found = watch.signs(torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)))
    assert found["feature_std"] == pytest.approx(1, abs=0.01)
    assert found["effective_rank"] == pytest.approx(16, abs=0.2)


def test_equal_features_have_deviation_zero() -> None:
    found = watch.signs(torch.randn(1, 16).expand(50, 16) * torch.rand(50, 1).add(0.1))
    assert found["feature_std"] == pytest.approx(0, abs=1e-3)
    assert list(watch.alarms(found, None)) == [
        f"the features of all images are nearly the same (deviation {found['feature_std']:.3f} of 1)"
    ]


def test_features_of_few_directions_have_that_rank() -> None:
    corners = torch.eye(16)[:2][torch.arange(100) % 2]
    found = watch.signs(corners)
    assert found["effective_rank"] == pytest.approx(1, abs=1e-3)  # two points lie on a line
    assert found["feature_std"] == pytest.approx(math.sqrt(0.5), abs=1e-3)
    assert "lie on a line" in next(watch.alarms(found, None))


@pytest.mark.parametrize(
    ("entropy", "says"), [(0.0, "into one prototype"), (math.log(64), "tells no prototype"), (2.0, None), (None, None)]
)
def test_the_teachers_entropy_is_watched(entropy: float | None, says: str | None) -> None:
    healthy = {"feature_std": 0.9, "effective_rank": 10.0}
    found = list(watch.alarms(healthy if entropy is None else healthy | {"teacher_entropy": entropy}, 64))
    assert [says in sentence for sentence in found] == ([True] if says else [])  # type: ignore[operator]


def test_a_window_gives_means_since_the_last_look() -> None:
    window = watch.Window()
    for values in ((1.0, 4.0), (3.0, 8.0)):
        window.add({"a": torch.tensor(values[0]), "b": torch.tensor(values[1])})
    assert window.take() == {"a": 2.0, "b": 6.0}
    window.add({"a": torch.tensor(5.0)})
    assert window.take() == {"a": 5.0}


def test_a_log_drops_what_comes_after_the_step_from_which_a_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    log = watch.Log(path, 0)
    for step in (10, 20, 30):
        log.write({"step": step, "loss": step / 10})
    watch.Log(path, 20).write({"step": 25, "loss": 9})
    assert [(row["step"], row["loss"]) for row in watch.read(path)] == [("10", "1.0"), ("20", "2.0"), ("25", "9")]
    with path.open("a") as file:
        file.write("\0\xff,what\n30")  # what a killed process or a bad disk leaves
    watch.Log(path, 25)
    assert [row["step"] for row in watch.read(path)] == ["10", "20", "25"]
    watch.Log(path, 0)
    assert watch.read(path) == []
