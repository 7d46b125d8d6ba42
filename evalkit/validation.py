"""From plain mappings (TOML, JSON, keyword arguments) to frozen dataclasses, strictly: pydantic judges, we word the answer."""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from evalkit.errors import CatalogError

if TYPE_CHECKING:
    from pydantic import ValidationError

T = TypeVar("T")

LATER = {"later": True}
"""Metadata of a parameter that came after records had been made: at its default it means what those records mean, and
digests do not see it."""


def parse(kind: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """An instance of the dataclass `kind`. No conversion between types except list to tuple and int to float.

    where: the file or the thing that is read; every message begins with it.
    Raises CatalogError naming each wrong key: what came, what is allowed.
    """
    from pydantic import ConfigDict, ValidationError, create_model  # a third of a second that --help need not wait for

    model = create_model("Strict", __config__=ConfigDict(extra="forbid", strict=True), value=(kind, ...))
    try:
        text = json.dumps({"value": dict(mapping)})
        return typing.cast(T, model.model_validate_json(text).value)  # type: ignore[attr-defined]
    except TypeError as error:
        raise CatalogError(f"{where}: {error}") from None
    except ValidationError as error:
        raise CatalogError("\n".join(_sentences(kind, error, where))) from None


def _sentences(kind: type[Any], error: ValidationError, where: str) -> list[str]:
    return [f"{where}: {_sentence(kind, e['loc'][1:], e['type'], e['msg'], e['input'])}" for e in error.errors()]


def _sentence(kind: type[Any], path: tuple[int | str, ...], code: str, message: str, got: Any) -> str:
    key = ".".join(map(str, path)) or "(the whole)"
    if code == "unexpected_keyword_argument":
        allowed = _fields(kind, path[:-1])
        near = difflib.get_close_matches(str(path[-1]), allowed, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"unknown key {key!r}; {hint}allowed: {', '.join(allowed)}"
    if code == "missing":
        return f"key {key!r} is missing"
    return f"key {key!r} is {got!r}: {message[0].lower()}{message[1:]}"


def _fields(kind: type[Any], path: tuple[int | str, ...]) -> list[str]:
    """Names of the dataclass at the end of a path of field names and list positions."""
    for step in path:
        if isinstance(step, int) or not dataclasses.is_dataclass(kind):
            continue
        hints = [typing.get_type_hints(kind).get(step, object)]
        while hints and not dataclasses.is_dataclass(hints[0]):
            hints = [a for h in hints for a in typing.get_args(h)]
            hints.sort(key=lambda h: not dataclasses.is_dataclass(h))
        kind = hints[0] if hints else kind
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
