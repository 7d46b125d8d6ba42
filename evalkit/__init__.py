"""evalkit: how good is this frozen encoder, from whole scenes down to single patches.

    import evalkit
    encoder = evalkit.load("micro-mgc")
    record = evalkit.evaluate(encoder, "mini-knn-ccp-items")

Names below are imported on first use: `import evalkit` itself loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from evalkit.version import __version__

if TYPE_CHECKING:
    from evalkit.engine.evaluate import Options, evaluate, load
    from evalkit.errors import EvalkitError
    from evalkit.records import Record
    from evalkit.types import EncoderSpec, Sample, Score, Tokens

_HOME = {
    "EncoderSpec": "types",
    "EvalkitError": "errors",
    "Options": "engine.evaluate",
    "Record": "records",
    "Sample": "types",
    "Score": "types",
    "Tokens": "types",
    "evaluate": "engine.evaluate",
    "load": "engine.evaluate",
}

__all__ = [
    "EncoderSpec",
    "EvalkitError",
    "Options",
    "Record",
    "Sample",
    "Score",
    "Tokens",
    "__version__",
    "evaluate",
    "load",
]


_ROOMS = frozenset({"adapters", "catalog", "datasets", "errors", "features", "metrics", "records", "runners", "types"})


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"evalkit.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"evalkit.{_HOME[name]}"), name)
    raise AttributeError(f"module 'evalkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
