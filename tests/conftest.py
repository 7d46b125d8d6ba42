"""What every test may ask for. Nothing here writes outside the test's own folder, and no test sees the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data beside the checkout; tests that need them are skipped where they are absent."""
    path = REPOSITORY.parent / "shared"
    if not (path / "data").is_dir():
        pytest.skip("needs the folder of real data beside the checkout (../shared)")
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has an empty feature store, and no data root from the environment."""
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("EVALKIT_DATA", raising=False)


def pytest_configure() -> None:
    """One thread, before torch is imported: on small tensors a second one costs more than it gives, and parallel test
    workers share the cores. No example of hypothesis is ever too slow."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    hypothesis.settings.register_profile(
        "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("patient")
