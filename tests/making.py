"""Records made by hand, for tests of what reads records."""

from __future__ import annotations

from typing import Any

import numpy as np

from evalkit.records import Record
from evalkit.types import Score


def a_score(name: str = "top1@k=10", value: float = 0.5, n: int = 10, **fields: Any) -> Score:
    return Score(name, value, n, value - 0.1, value + 0.1, outcomes=np.full(n, value, np.float32), **fields)


def a_record(encoder: str = "one", recipe: str = "mini-knn-ccp-items", value: float = 0.5, **fields: Any) -> Record:
    score = a_score(value=value)
    plain = {
        "name": score.name,
        "value": value,
        "n": 10,
        "low": value - 0.1,
        "high": value + 0.1,
        "unit": "fraction",
        "note": "",
        "interval": "bootstrap",
    }
    limit = fields.pop("limit", None)
    given: dict[str, Any] = {
        "key": f"{abs(hash((encoder, recipe, value, limit))):016x}"[:16],
        "comparable": f"same-{limit}",
        "created": "2026-01-01T00:00:00+00:00",
        "encoder": {"id": encoder, "digest": "d"},
        "recipe": {"id": recipe, "version": 1, "headline": "top1@k=10"},
        "data": {
            "test": {"digest": "0" * 64, "limit": limit, "samples": limit or 9, "samples_of_whole": 99 if limit else 9}
        },
        "arguments": {"given": {}, "resolved": {"limit": limit}},
        "environment": {},
        "identity": {},
        "scores": (plain,),
    }
    return Record(**(given | fields))
