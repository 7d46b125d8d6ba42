"""What a runner is given: features that were stored for one protocol serve the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evalkit import catalog
from evalkit.engine.evaluate import Options, Session, load
from evalkit.types import Encoder


def test_class_token_and_mean_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, seen = load("pixels"), []
    encode = type(encoder).encode

    def counted(self: Encoder, images: Any, *rest: Any, **named: Any) -> Any:
        seen.append(len(images))
        return encode(self, images, *rest, **named)

    monkeypatch.setattr(type(encoder), "encode", counted)
    job = Session(Options(out=None, limit=6, cache=tmp_path)).job(encoder, catalog.recipe("mini-knn-ccp-items"))
    cls = job.features("test", parts=("cls",)).get("cls")
    assert sum(seen) == 6
    assert job.features("test", parts=("mean",)).get("mean").shape[0] == 6
    assert job.features("test", parts=("cls", "mean")).get("cls").equal(cls)
    assert sum(seen) == 6
    job.features("test", parts=("patches",))
    assert sum(seen) == 12
