"""Adapters: one file per checkpoint family, found by its name; nothing to register.

A family is a module of this folder with

    VERSION: int                        raised when its numbers change; part of every feature key
    NEEDS_FILE: bool                    False for controls
    ARCHITECTURES: Collection[str]      the names it knows
    load(manifest, raw) -> Encoder      raw: RawCheckpoint, or None where it needs no file
    READS_GRID: bool                    optional, True where `load` heeds the manifest's grid and there is no FAMILY

Nothing heavy is imported before a family is asked for.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from evalkit.errors import CheckpointError, UnknownName, UsageError
from evalkit.types import Encoder, Manifest

if TYPE_CHECKING:
    from evalkit.adapters.files import RawCheckpoint

SHARED = frozenset(
    {"blocks", "class_attention", "encoder", "family", "files", "folders", "heads", "inspection", "instructions"}
    | {"loading", "mismatch", "pickles", "positions", "renames", "specs", "strangers", "twins", "vit", "wrappers"}
)
"""The modules of this folder that families are built from."""


class Family(Protocol):
    """What a family's module offers."""

    @property
    def VERSION(self) -> int: ...
    @property
    def NEEDS_FILE(self) -> bool: ...
    @property
    def ARCHITECTURES(self) -> Collection[str]: ...
    def load(self, manifest: Manifest, raw: Any) -> Encoder: ...


def names() -> tuple[str, ...]:
    """The families, sorted."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in found if name not in SHARED and not name.startswith("_")))


def module(name: str) -> Family:
    """The module of a family. Raises UnknownName with the nearest names."""
    if name not in names():
        raise UnknownName("family", name, names())
    return cast(Family, importlib.import_module(f"{__name__}.{name}"))


def load(manifest: Manifest, path: Path | None = None, *, id: str | None = None) -> Encoder:
    """The encoder that a manifest names. path: its weights file, None for a control. id: instead of the manifest's.

    Raises UnknownName (family, architecture), CheckpointError where the file is missing, needless or cannot be used,
    DigestMismatch where it is not the one that the manifest's sha256 names, and what the family raises.
    """
    family = module(manifest.family)
    manifest = replace(manifest, id=id or manifest.id, arch=_arch(manifest, family))
    if manifest.grid and not (hasattr(family, "FAMILY") or getattr(family, "READS_GRID", False)):
        raise UsageError(f"the family {manifest.family!r} reads the grid from its own files: leave --grid out")
    if manifest.prefix and not family.NEEDS_FILE:
        raise UsageError(f"the family {manifest.family!r} reads no weights file: leave --prefix out")
    return family.load(manifest, _raw(manifest, path, family))


def _arch(manifest: Manifest, family: Family) -> str:
    """The architecture's name; a family that has one need not be told. timm refuses names itself: it knows tags."""
    known = sorted(family.ARCHITECTURES)
    if not manifest.arch and len(known) > 1:
        some = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
        raise UsageError(f"the family {manifest.family!r} has several architectures: say which with --arch: {some}")
    arch = manifest.arch or known[0]
    if manifest.family != "timm" and arch not in known:
        raise UnknownName(f"architecture of the family {manifest.family!r}", arch, known)
    return arch


def _raw(manifest: Manifest, path: Path | None, family: Family) -> RawCheckpoint | None:
    if not family.NEEDS_FILE:
        if path is not None:
            raise CheckpointError(f"the family {manifest.family!r} reads no weights file; {path} was given")
        return None
    if path is None:
        raise CheckpointError(f"{manifest.id}: the family {manifest.family!r} needs a weights file and none was given")
    return read(path, sha256=manifest.sha256)


def read(path: str | Path, *, sha256: str = "") -> RawCheckpoint:
    """Opens a checkpoint file, or a folder of Hugging Face's layout; see `files.read` and `folders.read_folder`."""
    from evalkit.adapters import files, folders

    path = Path(path)
    return folders.read_folder(path, sha256=sha256) if path.is_dir() else files.read(path, sha256=sha256)
