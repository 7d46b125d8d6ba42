"""One file per kind of protocol, found by its name: a frozen `Config` and `run(job) -> Iterator[Score]`.

A recipe names its runner; `configure` turns the recipe's table into that runner's `Config`, or says which key is wrong.
Listing the names imports nothing: a runner is imported when it is asked for.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from evalkit.errors import CatalogError, UnknownName, UsageError


def names() -> tuple[str, ...]:
    """The runners that there are, sorted; a file whose name begins with "_" is none."""
    return tuple(sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_")))


def module(name: str) -> ModuleType:
    """The runner's module. Raises UnknownName, with the nearest names, where there is none."""
    if name not in names():
        raise UnknownName("runner", name, names())
    return importlib.import_module(f"{__name__}.{name}")


def configure(name: str, mapping: Mapping[str, Any]) -> Any:
    """The runner's frozen `Config` with the values of a recipe, defaults for the rest.

    mapping: keys as the fields of `Config`. Lists stand for tuples and whole numbers for floats, as in JSON; nothing
    else is converted: "3" is no number. Raises UnknownName for the runner, CatalogError naming runner, key, what came
    and what is allowed.
    """
    config = module(name).Config
    allowed = [field.name for field in dataclasses.fields(config)]
    for key in mapping:
        if key not in allowed:
            raise CatalogError(f"runner {name}: there is no option {key!r}; allowed: {', '.join(allowed)}")
    try:
        # Through JSON, because pydantic's strict mode refuses a list for a tuple only where Python objects come in.
        return TypeAdapter(config).validate_json(to_json(dict(mapping)), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise CatalogError(f"runner {name}: option {key} is {first['input']!r}; {_lower(first['msg'])}") from error
    except UsageError as error:
        raise CatalogError(f"runner {name}: {error}") from error


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
