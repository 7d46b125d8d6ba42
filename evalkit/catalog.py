"""Finds and validates recipes, manifests and suites: TOML files whose name is their id.

In a checkout they lie in `protocols/` and `model_zoo/`; in an installed wheel in `evalkit/_catalogues/`. A path to a file
of one's own works wherever an id does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from evalkit.errors import CatalogError, UnknownName
from evalkit.types import Manifest, Recipe, Suite
from evalkit.validation import parse

_NOT_MEASURED = {"title", "published", "source", "digest"}
"""Keys of a recipe that say something about it and change no number."""


@cache
def root() -> Path:
    """The folder that holds `protocols/`, `model_zoo/`, `reports/` and `mini/`."""
    package = Path(__file__).resolve().parent
    checkout = package.parent
    return checkout if (checkout / "protocols").is_dir() else package / "_catalogues"


def shipped_data() -> Path:
    """Where the data sets lie that travel with evalkit."""
    return root() / "mini"


def _ids(folder: str) -> dict[str, Path]:
    return {p.stem: p for p in sorted((root() / folder).glob("*.toml"))}


def recipes() -> list[str]:
    """Ids of all recipes."""
    return list(_ids("protocols"))


def manifests() -> list[str]:
    """Ids of all encoders in the zoo."""
    return list(_ids("model_zoo"))


def suites() -> list[str]:
    """Ids of all suites."""
    return list(_ids("protocols/suites"))


def _read(kind: str, name: str, folder: str) -> tuple[Path, dict[str, Any]]:
    known = _ids(folder)
    path = Path(name) if name.endswith(".toml") else known.get(name)
    if path is None:
        raise UnknownName(kind, name, known)
    try:
        return path, tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CatalogError(f"{path}: no such {kind} file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CatalogError(f"{path}: not a TOML file: {error}") from None
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read: {error.strerror}") from None


def _refuse(path: Path, mapping: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        if key in mapping:
            raise CatalogError(f"{path}: key {key!r} is not written in the file: it follows from its name or content")


def recipe(name: str) -> Recipe:
    """The recipe of this id, or of this file. Raises UnknownName or CatalogError (file, key, allowed)."""
    path, content = _read("recipe", name, "protocols")
    _refuse(path, content, "id", "digest")
    measured = {k: v for k, v in content.items() if k not in _NOT_MEASURED}
    return parse(Recipe, content | {"id": path.stem, "digest": digest(measured)}, str(path))


def manifest(name: str) -> Manifest:
    """The encoder of this id, or of this file; a relative `file` is resolved against the manifest's folder."""
    path, content = _read("encoder", name, "model_zoo")
    _refuse(path, content, "id")
    found = parse(Manifest, content | {"id": path.stem}, str(path))
    if not found.file or found.url:
        return found
    return dataclasses.replace(found, file=str(path.parent / found.file))


def suite(name: str) -> Suite:
    """The suite of this id, or of this file; every recipe and encoder that it names must exist."""
    path, content = _read("suite", name, "protocols/suites")
    _refuse(path, content, "id")
    found = parse(Suite, content | {"id": path.stem}, str(path))
    for column in found.columns:
        if column.recipe not in recipes():
            raise CatalogError(f"{path}: {UnknownName('recipe', column.recipe, recipes())}")
    for encoder in found.encoders:
        if encoder not in manifests():
            raise CatalogError(f"{path}: {UnknownName('encoder', encoder, manifests())}")
    return found


def file(path: str) -> Manifest | Recipe | Suite:
    """A file of one's own, told apart by the key that only its kind has: family, runner or columns."""
    content = _read("catalog", path, "protocols")[1]
    if "family" in content:
        return manifest(path)
    if "runner" in content:
        return recipe(path)
    if "columns" in content:
        return suite(path)
    raise CatalogError(f"{path}: no encoder (family), recipe (runner) or suite (columns): none of these keys is in it")


def shipped_encoders() -> list[str]:
    """Ids of the encoders whose weights travel with evalkit, trained ones first, controls last."""
    found = [manifest(i) for i in manifests()]
    return [m.id for m in sorted(found, key=lambda m: (m.control, m.id)) if m.shipped]


def digest(content: Any) -> str:
    """sha256 of a plain structure, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
