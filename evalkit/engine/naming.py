"""Under which id an encoder that is no entry of the zoo is filed, so that what is different is told apart.

The id is the file's name; a network that the family does not evaluate by itself (`--network student`) adds its own. Where
another network bears that id already, in the folder of records or in the same command, eight digits of the file's sha256
follow, then family and architecture if even these agree. A name of one's own (`--name`) is taken as it is, or refused.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evalkit import adapters, catalog, records
from evalkit.errors import RecordError, UsageError
from evalkit.types import Encoder, EncoderSpec

LONGEST = 100
"""Characters of an id: it is a folder's name, and a file's name may have 255 bytes."""


def of_file(path: Path) -> str:
    """The id that a file's name gives."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-.")[:LONGEST] or "checkpoint"


def check(name: str) -> str:
    """A name of one's own. Raises UsageError for what is no folder's name, and for ids of the zoo."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name) or len(name) > LONGEST:
        raise UsageError(
            f"--name {name[:40]!r}: letters, digits, '.', '_' and '-', not '.' or '-' first, at most {LONGEST} characters"
        )
    if name in catalog.manifests() or name.startswith("random"):
        raise UsageError(f"--name {name}: this is what evalkit calls an encoder of its own; choose another name")
    return name


def network_of(spec: EncoderSpec) -> list[Any]:
    """What makes two encoders the same one, as a record's identity begins: file, network, seed, family, architecture."""
    return [spec.digest, spec.network, spec.seed, spec.family, spec.arch]


@dataclass(frozen=True)
class Named:
    """How a person names an encoder. checkpoint, network: as for `load`. name: of one's own, "" for none. alone: whether no
    other encoder of the same command has a file of this name."""

    checkpoint: str
    network: str = ""
    name: str = ""
    alone: bool = True


def settle(encoder: Encoder, named: Named, out: Path | None) -> Encoder:
    """The encoder under the id that is its own in a folder of records (None: in none).

    Raises UsageError for a `name` that is no file's, is none, or that another network bears there.
    """
    spec, usual = encoder.spec, _usual(named.checkpoint, encoder.spec.family)
    settled = named.checkpoint in catalog.manifests() or named.checkpoint.startswith(catalog.TWIN)
    if named.name and settled:
        raise UsageError(f"--name is for weights files and manifests of one's own; {named.checkpoint} has its name")
    if named.name and _other(out, check(named.name), spec):
        raise UsageError(
            f"--name {named.name}: {out} holds records of another network under this name; choose another one"
        )
    other = bool(named.network) and spec.network not in (usual, "backbone", "untrained")
    if named.name or (settled and not other):
        return renamed(encoder, named.name or spec.id)
    wanted = list(_candidates(spec, f"-{spec.network}" if other else ""))
    free = (name for name in wanted[0 if named.alone else 1 :] if not _other(out, name, spec))
    return renamed(encoder, next(free, wanted[-1]))


def alone(target: str, targets: Sequence[str]) -> bool:
    """Whether no other file of a command has this one's name."""
    files = {Path(t).resolve() for t in targets if not (t in catalog.manifests() or t.startswith(catalog.TWIN))}
    return sum(file.stem == Path(target).stem for file in files) < 2


def renamed(encoder: Encoder, name: str) -> Encoder:
    """The same encoder under another id."""
    holder: Any = encoder
    holder.spec = replace(encoder.spec, id=name)
    return encoder


def _candidates(spec: EncoderSpec, network: str) -> Iterator[str]:
    name = spec.id + network
    yield name
    for part in filter(None, (spec.digest[:8], spec.family, spec.arch)):
        name = f"{name}-{part}"
        yield name


def _usual(checkpoint: str, family: str) -> str:
    """The network that is taken when none is named."""
    described = checkpoint in catalog.manifests() or checkpoint.endswith(".toml")
    if described and (own := catalog.manifest(checkpoint).network):
        return own
    declared = getattr(adapters.module(family), "FAMILY", None)
    return "" if declared is None else next(iter(declared.layout.networks), "")


def _other(out: Path | None, name: str, spec: EncoderSpec) -> bool:
    """Whether the name is another network's: of the zoo, or of the records that the folder holds under it."""
    if name in catalog.manifests() and catalog.manifest(name).sha256 != (spec.digest or None):
        return True
    held = []
    for path in () if out is None else (out / name).glob("*.????????.json"):
        with contextlib.suppress(RecordError):  # a damaged one says nothing of who is held here
            held.append(list(records.read(path).identity.get("encoder", ()))[:5])
    return bool(held) and network_of(spec) not in held
