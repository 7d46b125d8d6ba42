"""Results on disk: one JSON file per encoder and recipe, with everything needed to repeat and to compare it.

    runs/<encoder>/<recipe>.<key>.json                 the record
    runs/<encoder>/<recipe>.<key>.units.safetensors    outcome per unit, for paired tests and breakdowns
    runs/<encoder>/<recipe>.<key>.<name>.safetensors   what the runner kept (trained heads)

The key is a digest of what decides the numbers, so that the same question finds its answer again, and another question
never overwrites it. Files are written under a temporary name, flushed and renamed; the record comes last.

From schema 2 on a record holds the sha256 of each file beside it, and of itself (`sealed`); whoever reads one of them checks
it. Records of schema 1 have no digests and are read where they are well-formed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import platform
import resource
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evalkit.catalog import digest
from evalkit.errors import CatalogError, FileTooLarge, NotARegularFile, RecordError
from evalkit.files import read_regular, shown, sweep, write_atomically
from evalkit.types import Score
from evalkit.validation import parse
from evalkit.version import __version__

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA = 2
LIMIT = 1 << 26
"""Bytes of a record at most; those of 1,000 classes have 1 MB."""

ADVICE = "delete it to measure again"
PACKAGES = ("torch", "torchvision", "timm", "numpy", "safetensors", "scikit-learn", "faiss-cpu", "pillow")


@dataclass(frozen=True)
class Record:
    """One measurement. `docs` of the fields are the README's page on records.

    key: digest of `identity`, all that decides the numbers. comparable: digest of what must agree in one column (recipe,
    version, data). scores: plain `Score`s without their outcomes. facts: what the runner told. status "n/a": the encoder
    lacks what the recipe needs, `reason` says what. files: sha256 of each file beside it, by its name ("units", "head");
    sha256: of the record itself; both are known once it was written.
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
    files: Mapping[str, str] = field(default_factory=dict, compare=False)
    sha256: str = field(default="", compare=False)

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
        files = {name: _save_beside(path, name, tensors) for name, tensors in _beside(scores, kept)}
        content = _finite(dataclasses.asdict(record)) | {"files": files}
        text = json.dumps(sealed(json.loads(json.dumps(content, default=str))), indent=1, ensure_ascii=False)
        write_atomically(path, lambda part: part.write_text(text + "\n", "utf-8"))
    except (OSError, SafetensorError) as error:
        raise RecordError(f"{path}: cannot be written ({error}); choose another folder with --out") from None
    return path


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A record's JSON content with its own sha256 put in: of all but that field, keys sorted, nothing between them."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _beside(scores: Iterable[Score], kept: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, arrays or tensors) of each file beside a record."""
    outcomes = {f"outcomes/{s.name}": s.outcomes for s in scores if s.outcomes is not None}
    groups = {f"groups/{s.name}": s.groups for s in scores if s.groups is not None}
    if outcomes or groups:
        yield "units", outcomes | groups
    yield from ((name, dict(tensors)) for name, tensors in kept.items())


def _save_beside(path: Path, name: str, tensors: dict[str, Any]) -> str:
    """The sha256 of what was written."""
    if name == "units":
        import numpy as np
        from safetensors.numpy import save as serialise

        blob = serialise({key: np.ascontiguousarray(array) for key, array in tensors.items()})
    else:
        from safetensors.torch import save as serialise_tensors

        blob = serialise_tensors({key: tensor.contiguous() for key, tensor in tensors.items()})
    write_atomically(path.with_suffix(f".{name}.safetensors"), lambda part: part.write_bytes(blob))
    return hashlib.sha256(blob).hexdigest()


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
        sweep([out, *(folder for folder in out.iterdir() if folder.is_dir())])
        probe = out / f".{os.getpid()}.probe"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise RecordError(
            f"{out}: records cannot be written there ({error}); choose another folder with --out"
        ) from None


def read(path: Path) -> Record:
    """The record of a file. Raises RecordError where it is no record, damaged, changed by hand, or of a newer schema."""
    try:
        content = json.loads(read_regular(path, limit=LIMIT).decode("utf-8"), parse_constant=_refuse_constant)
        newer = isinstance(content, dict) and isinstance(content.get("schema"), int) and content["schema"] > SCHEMA
        if newer:
            raise RecordError(f"{path}: schema {content['schema']}; this evalkit reads up to {SCHEMA}: upgrade it")
        if not isinstance(content["scores"], list):
            raise TypeError("scores is no list")
        found = parse(Record, content | {"scores": [_numbers(score) for score in content["scores"]]}, str(path))
        if why := _wrong(found) or _unsealed(found, content):
            raise ValueError(why)
        return found
    except FileNotFoundError:
        raise RecordError(f"{path}: no such record") from None
    except (NotARegularFile, FileTooLarge) as error:
        raise RecordError(f"{error}; it is no record") from None
    except (OSError, ValueError, CatalogError, TypeError, KeyError, RecursionError, OverflowError) as error:
        said = "brackets in brackets without end" if isinstance(error, RecursionError) else _line(error)
        raise RecordError(f"{shown(path)}: not a record, or damaged ({said}); {ADVICE}") from None


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _line(error: Exception) -> str:
    """The first line of what an error says, of a length that a person reads."""
    first = (str(error) or type(error).__name__).splitlines()[0]
    return first if len(first) <= 300 else first[:300] + " ..."


def _numbers(score: Mapping[str, Any]) -> dict[str, Any]:
    """A score whose empty bounds and value are NaN again. Older records do not say how an interval was found, and claim
    certainty where the bootstrap had no spread: those have none."""
    if not isinstance(score, Mapping):
        raise TypeError(f"a score is a table; {str(score)[:40]} came")
    bounded = score.get("low") is not None and (score.get("interval") or score["low"] != score.get("high"))
    empty = {k for k in ("value", "low", "high") if score.get(k) is None} | (set() if bounded else {"low", "high"})
    return {"interval": "bootstrap" if bounded else "none", **score, **dict.fromkeys(empty, math.nan)}


_NEEDED: Mapping[str, Mapping[str, type]] = {
    "encoder": {"id": str},
    "recipe": {"id": str, "version": int, "headline": str},
    "data": {"test": dict},
}
"""Without these a file that parses is still no record that could stand beside others."""

_OF_A_SCORE: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "unit", "note"), (str,)),
    **dict.fromkeys(("value", "low", "high"), (int, float)),
    "n": (int,),
}
_OF_A_SPLIT = {
    **dict.fromkeys(("samples", "samples_of_whole", "n"), (int,)),
    "limit": (int, type(None)),
    "digest": (str,),
}
_LARGEST = 1 << 53


def _wrong(record: Record) -> str:
    """The first field that readers use and that is absent or of another type; "" for none."""
    for part, keys in _NEEDED.items():
        for key, kind in keys.items():
            if not isinstance(getattr(record, part).get(key), kind):
                return f"no {part}.{key}" if key not in getattr(record, part) else f"{part}.{key} is no {kind.__name__}"
    for part in ("encoder", "recipe"):
        name = getattr(record, part)["id"]
        if not name or "/" in name or name in (".", ".."):
            return f"{part}.id {name[:60]!r} is no name of a file"
    splits = {name: split for name, split in record.data.items() if isinstance(split, Mapping)}
    parts: dict[str, Mapping[str, Any]] = {f"data.{name}": split for name, split in splits.items()}
    strange = [f"{at}.{key}" for at, of in parts.items() for key, kinds in _OF_A_SPLIT.items()
               if key in of and not _is(of[key], kinds)]  # fmt: skip
    strange += [f"scores.{number}.{key}" for number, score in enumerate(record.scores)
                for key, kinds in _OF_A_SCORE.items() if key not in score or not _is(score[key], kinds)]  # fmt: skip
    return f"{strange[0]} is absent, or no value of its kind" if strange else ""


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, bool) or not isinstance(value, kinds):
        return False
    return not isinstance(value, (int, float)) or math.isnan(value) or abs(value) <= _LARGEST


def _unsealed(record: Record, content: Mapping[str, Any]) -> str:
    """What is wrong with the digest; "" where it holds, or where the schema has none."""
    if record.schema < 2:
        return "schema 1 has no digest, this one has" if record.sha256 or record.files else ""
    if not record.sha256:
        return "its sha256 is missing"
    return "" if sealed(content)["sha256"] == record.sha256 else "its content is not what its sha256 says"


def find(out: Path, encoder: str = "*", recipe: str = "*", *, left_out: list[str] | None = None) -> list[Record]:
    """All records under a folder that can be read, oldest first.

    Each that cannot is told in a line on standard error, and added to `left_out`.
    """
    found = []
    for path in sorted(out.glob(f"{encoder}/{recipe}.????????.json")):
        try:
            found.append(read(path))
        except RecordError as error:
            leave_out(error, left_out)
    return sorted(found, key=lambda r: r.created)


def leave_out(error: RecordError, left_out: list[str] | None = None) -> None:
    """Tell on standard error, and in the list where there is one, what a table or report does without."""
    line = f"left out: {error}"
    print(f"evalkit: {line}", file=sys.stderr)
    if left_out is not None:
        left_out.append(line)


def beside(record: Record, out: Path, name: str) -> bytes | None:
    """The file that lies beside a record under this name ("units", "head"); None where there is none.

    Raises RecordError where it is not the one that the record was written with, or no regular file.
    """
    record_path = path_of(out, record.encoder["id"], record.recipe["id"], record.key)
    path = record_path.with_suffix(f".{name}.safetensors")
    try:
        blob = read_regular(path)
    except FileNotFoundError:
        return None
    except (OSError, NotARegularFile) as error:
        raise RecordError(f"{path}: cannot be read ({error})") from None
    if record.sha256 and hashlib.sha256(blob).hexdigest() != record.files.get(name):
        raise RecordError(
            f"{path}: damaged (its sha256 is not the one in its record); delete {record_path.name} to measure again"
        )
    return blob


def check_beside(record: Record, out: Path) -> None:
    """Raises RecordError where a file beside the record is damaged."""
    for name in record.files:
        beside(record, out, name)


def _arrays(record: Record, out: Path, name: str) -> dict[str, Any] | None:
    from safetensors import SafetensorError
    from safetensors.numpy import load as parsed

    try:
        return None if (blob := beside(record, out, name)) is None else dict(parsed(blob))
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        path = path_of(out, record.encoder["id"], record.recipe["id"], record.key)
        raise RecordError(
            f"{path.with_suffix(f'.{name}.safetensors')}: damaged ({_line(error)}); delete {path.name} to measure again"
        ) from None


def outcomes(record: Record, out: Path, score: str = "") -> tuple[Any, Any | None]:
    """(n,) outcomes and (n,) groups or None of one score, from the file beside the record. Raises RecordError."""
    name = score or record.recipe["headline"]
    path = path_of(out, record.encoder["id"], record.recipe["id"], record.key).with_suffix(".units.safetensors")
    arrays = _arrays(record, out, "units") or {}
    values, groups = arrays.get(f"outcomes/{name}"), arrays.get(f"groups/{name}")
    if values is None:
        why = f"it has {', '.join(k.partition('/')[2] for k in arrays)[:200]}" if arrays else "it is not there"
        raise RecordError(f"{path}: holds no outcomes of {name!r} ({why})")
    if not values.ndim or (groups is not None and groups.shape != values.shape[:1]):
        raise RecordError(f"{path}: damaged (outcomes and groups of {name!r} do not belong together)")
    return values, groups


def resamples(record: Record, out: Path, score: str) -> tuple[Any, int] | None:
    """(R,) a score on resamples of the test images, and the seed that drew them; None where none were kept.

    Of scores that belong to pairs of images and have no outcome per image (the runner `similarity`). Raises RecordError
    where the file is damaged.
    """
    arrays = _arrays(record, out, "resamples")
    if arrays is None or score not in arrays:
        return None
    if "seed" not in arrays or not arrays["seed"].size or arrays[score].ndim != 1:
        raise RecordError(f"the resamples beside {record.recipe['id']} of {record.encoder['id']} are damaged; {ADVICE}")
    return arrays[score], int(arrays["seed"].flat[0])


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
