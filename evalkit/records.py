"""Results on disk: one JSON file per encoder and recipe, with everything needed to repeat and to compare it.

    runs/<encoder>/<recipe>.<key>.json                 the record
    runs/<encoder>/<recipe>.<key>.units.safetensors    outcome per unit, for paired tests and breakdowns
    runs/<encoder>/<recipe>.<key>.<name>.safetensors   what the runner kept (trained heads)

The key is a digest of what decides the numbers, so that the same question finds its answer again, and another question
never overwrites it. Files are written under a temporary name, flushed and renamed; the record comes last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import resource
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evalkit.catalog import digest
from evalkit.errors import CatalogError, RecordError
from evalkit.types import Score
from evalkit.validation import parse
from evalkit.version import __version__

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA = 1
PACKAGES = ("torch", "torchvision", "timm", "numpy", "safetensors", "scikit-learn", "faiss-cpu", "pillow")


@dataclass(frozen=True)
class Record:
    """One measurement. `docs` of the fields are the README's page on records.

    key: digest of `identity`, all that decides the numbers. comparable: digest of what must agree in one column (recipe,
    version, data). scores: plain `Score`s without their outcomes. facts: what the runner told. status "n/a": the encoder
    lacks what the recipe needs, `reason` says what.
    """

    key: str
    comparable: str
    created: str
    encoder: Mapping[str, Any]
    recipe: Mapping[str, Any]
    data: Mapping[str, Any]
    arguments: Mapping[str, Any]
    environment: Mapping[str, Any]
    identity: Mapping[str, Any]
    scores: tuple[Mapping[str, Any], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    status: Literal["done", "n/a"] = "done"
    reason: str = ""
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    peak_gpu_memory_bytes: int = 0
    kept: tuple[str, ...] = ()
    schema: int = SCHEMA

    def score(self, name: str = "") -> Mapping[str, Any] | None:
        """The score of this name, the headline for ""; None where the record has none."""
        wanted = name or self.recipe["headline"]
        return next((s for s in self.scores if s["name"] == wanted), None)


def key_of(identity: Mapping[str, Any]) -> str:
    """The key under which a measurement with this identity is filed."""
    return digest(identity)[:16]


def path_of(out: Path, encoder: str, recipe: str, key: str) -> Path:
    """Where the record lies."""
    return out / encoder / f"{recipe}.{key[:8]}.json"


def save(record: Record, scores: Iterable[Score], kept: Mapping[str, Mapping[str, Any]], out: Path) -> Path:
    """Write outcomes, kept tensors and then the record. Raises RecordError where the folder cannot be written."""
    from safetensors import SafetensorError

    path = path_of(out, record.encoder["id"], record.recipe["id"], record.key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _save_outcomes(path.with_suffix(".units.safetensors"), scores)
        for name, tensors in kept.items():
            _save_tensors(path.with_suffix(f".{name}.safetensors"), dict(tensors))
        text = json.dumps(
            _finite(dataclasses.asdict(record)), indent=1, ensure_ascii=False, default=str, allow_nan=False
        )
        _atomically(path, lambda part: part.write_text(text + "\n", "utf-8"))
    except (OSError, SafetensorError) as error:
        raise RecordError(f"{path}: cannot be written ({error}); choose another folder with --out") from None
    return path


def _finite(value: Any) -> Any:
    """NaN and infinities as null: JSON has no words for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def check_writable(out: Path) -> None:
    """Before hours of work: raises RecordError where no record could be written under `out`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".{os.getpid()}.probe"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise RecordError(
            f"{out}: records cannot be written there ({error}); choose another folder with --out"
        ) from None


def _save_outcomes(path: Path, scores: Iterable[Score]) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    arrays: dict[str, Any] = {}
    for score in scores:
        if score.outcomes is not None:
            arrays[f"outcomes/{score.name}"] = np.ascontiguousarray(score.outcomes)
        if score.groups is not None:
            arrays[f"groups/{score.name}"] = np.ascontiguousarray(score.groups)
    if arrays:
        _atomically(path, lambda part: save_file(arrays, part))


def _save_tensors(path: Path, tensors: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    _atomically(path, lambda part: save_file({k: v.contiguous() for k, v in tensors.items()}, part))


def _atomically(path: Path, write: Any) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read(path: Path) -> Record:
    """The record of a file. Raises RecordError where it is no record, damaged, or of a newer schema."""
    try:
        content = json.loads(path.read_text("utf-8"))
        newer = isinstance(content, dict) and isinstance(content.get("schema"), int) and content["schema"] > SCHEMA
        if newer:
            raise RecordError(f"{path}: schema {content['schema']}; this evalkit reads up to {SCHEMA}: upgrade it")
        return parse(Record, content | {"scores": [_numbers(score) for score in content["scores"]]}, str(path))
    except FileNotFoundError:
        raise RecordError(f"{path}: no such record") from None
    except (OSError, ValueError, CatalogError, TypeError, KeyError) as error:
        raise RecordError(f"{path}: not a record, or damaged ({error}); delete it to measure again") from None


def _numbers(score: Mapping[str, Any]) -> dict[str, Any]:
    """A score whose empty bounds and value are NaN again. Older records do not say how an interval was found, and claim
    certainty where the bootstrap had no spread: those have none."""
    bounded = score.get("low") is not None and (score.get("interval") or score["low"] != score.get("high"))
    empty = {k for k in ("value", "low", "high") if score.get(k) is None} | (set() if bounded else {"low", "high"})
    return {"interval": "bootstrap" if bounded else "none", **score, **dict.fromkeys(empty, math.nan)}


def find(out: Path, encoder: str = "*", recipe: str = "*") -> list[Record]:
    """All records under a folder, oldest first."""
    found = [read(p) for p in sorted(out.glob(f"{encoder}/{recipe}.????????.json"))]
    return sorted(found, key=lambda r: r.created)


def outcomes(record: Record, out: Path, score: str = "") -> tuple[Any, Any | None]:
    """(n,) outcomes and (n,) groups or None of one score, from the file beside the record. Raises RecordError."""
    from safetensors.numpy import load_file

    name = score or record.recipe["headline"]
    path = path_of(out, record.encoder["id"], record.recipe["id"], record.key).with_suffix(".units.safetensors")
    try:
        arrays = load_file(path)
        return arrays[f"outcomes/{name}"], arrays.get(f"groups/{name}")
    except (OSError, KeyError) as error:
        raise RecordError(f"{path}: holds no outcomes of {name!r} ({error})") from None


def resamples(record: Record, out: Path, score: str) -> tuple[Any, int] | None:
    """(R,) a score on resamples of the test images, and the seed that drew them; None where none were kept.

    Of scores that belong to pairs of images and have no outcome per image (the runner `similarity`).
    """
    from safetensors.numpy import load_file

    path = path_of(out, record.encoder["id"], record.recipe["id"], record.key).with_suffix(".resamples.safetensors")
    try:
        arrays = load_file(path)
        return arrays[score], int(arrays["seed"][0])
    except (OSError, KeyError):
        return None


def load(out: Path | str = "runs") -> DataFrame:
    """Every score of every record under a folder as a pandas table, one row per score."""
    import pandas as pd

    rows = [
        {"encoder": r.encoder["id"], "recipe": r.recipe["id"], "version": r.recipe["version"], **s,
         "status": r.status, "comparable": r.comparable, "created": r.created, "key": r.key}
        for r in find(Path(out)) for s in r.scores
    ]  # fmt: skip
    return pd.DataFrame(rows)


def now() -> str:
    """The present time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def environment(device: str, threads: int) -> dict[str, Any]:
    """Versions and machine, for the record."""
    versions = {p: _version(p) for p in PACKAGES}
    return {
        "evalkit": __version__,
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "processor": _processor(),
        "device": device,
        "threads": threads,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        if names:
            return names[0]
    return platform.processor()


def forget_peak() -> None:
    """Begin to measure peak memory anew, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Largest resident size of this process in bytes, since `forget_peak` on Linux, since its start elsewhere."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
