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

from evalkit.errors import CatalogError, UnknownName, UsageError
from evalkit.validation import LATER, parse


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

    mapping: keys as the fields of `Config`. Lists stand for tuples and whole numbers for floats; nothing else is
    converted: "3" is no number. Raises UnknownName for the runner, CatalogError naming runner, key, what came and what
    is allowed.
    """
    where = f"runner {name}"
    try:
        return parse(module(name).Config, mapping, where)
    except UsageError as error:
        raise CatalogError(f"{where}: {error}") from None


def resolved(config: Any) -> dict[str, Any]:
    """Every parameter of a configuration by its name, as records and digests have them; a field that came `LATER` only where
    it is not at its default, so that what was measured before stays comparable."""
    late = {field.name: field.default for field in dataclasses.fields(config) if field.metadata == LATER}
    whole = dataclasses.asdict(config)
    return {name: value for name, value in whole.items() if name not in late or value != late[name]}


def __getattr__(name: str) -> ModuleType:
    """`evalkit.runners.knn` without an import of its own, for notebooks."""
    if name in names():
        return module(name)
    raise AttributeError(f"there is no runner {name!r}; there are {', '.join(names())}")
