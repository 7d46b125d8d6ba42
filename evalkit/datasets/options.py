"""From a recipe's plain options to a dataset module's frozen `Config`, with errors that name dataset, key and what is
allowed. Types are strict (no "3" for 3), except that an integer may stand for a float and a list for a tuple."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from evalkit.errors import CatalogError

T = TypeVar("T")


def parse(dataset: str, config: type[T], options: Mapping[str, Any]) -> T:
    """`config` with `options` in place of its defaults. Raises CatalogError, listing every wrong key or value."""
    known = [item.name for item in fields(cast(Any, config))]
    strange = [repr(key) for key in options if key not in known]
    if strange:
        raise CatalogError(f"dataset {dataset}: no option {', '.join(strange)}. Allowed: {', '.join(known) or 'none'}.")
    try:  # in JSON there are no tuples, so that strict reading takes a list where the field is a tuple
        return TypeAdapter(config).validate_json(json.dumps(dict(options)), strict=True)
    except TypeError as cause:
        raise CatalogError(f"dataset {dataset}: an option is neither text, number, list nor table: {cause}") from cause
    except ValidationError as cause:
        raise CatalogError(f"dataset {dataset}: {'; '.join(_problem(error) for error in cause.errors())}") from cause


def _problem(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    return f"option {where!r} is {error['input']!r}: {error['msg'].lower()}" if where else str(error["msg"])
