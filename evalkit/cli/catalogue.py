"""`evalkit list` and `evalkit describe`: what the catalog holds."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from evalkit import catalog
from evalkit.errors import UnknownName
from evalkit.types import Manifest, Recipe, Suite


class Kind(enum.StrEnum):
    """What can be listed."""

    encoders = "encoders"
    recipes = "recipes"
    datasets = "datasets"
    suites = "suites"


def list_(kind: Annotated[Kind, typer.Argument(help="encoders, recipes, datasets or suites")]) -> None:
    """List what evalkit knows, an id and a line each."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=None, header_style="dim")
    for column in ("id", "what", "where"):
        drawn.add_column(column, overflow="fold", no_wrap=column == "id")
    for row in _ROWS[kind.value]():
        drawn.add_row(*row)
    Console().print(drawn)


def _encoders() -> Iterator[tuple[str, str, str]]:
    for manifest in map(catalog.manifest, catalog.manifests()):
        where = "shipped" if manifest.shipped else manifest.url or manifest.file
        yield manifest.id, f"{manifest.title} ({manifest.family} {manifest.arch})", where


def _recipes() -> Iterator[tuple[str, str, str]]:
    for recipe in map(catalog.recipe, catalog.recipes()):
        yield (
            recipe.id,
            recipe.title,
            "shipped data" if recipe.dataset.shipped else f"data root: {recipe.dataset.folder}",
        )


def _datasets() -> Iterator[tuple[str, str, str]]:
    for name, line in _dataset_lines():
        used = sorted({r.dataset.folder for r in map(catalog.recipe, catalog.recipes()) if r.dataset.name == name})
        yield name, line, ", ".join(used)


def _dataset_lines() -> Iterator[tuple[str, str]]:
    """Module names of datasets/ with the first line of their docstring, read without importing them."""
    import ast

    from evalkit import datasets

    for name in datasets.names():
        path = Path(datasets.__file__).parent / f"{name}.py"
        text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        yield name, text.split("\n", 1)[0]


def _suites() -> Iterator[tuple[str, str, str]]:
    for suite in map(catalog.suite, catalog.suites()):
        yield suite.id, suite.title, ", ".join(dict.fromkeys(c.recipe for c in suite.columns))


_ROWS = {"encoders": _encoders, "recipes": _recipes, "datasets": _datasets, "suites": _suites}


def complete_any(incomplete: str) -> list[str]:
    """Every id, for the shell."""
    known = [*catalog.manifests(), *catalog.recipes(), *catalog.suites()]
    return [n for n in known if n.startswith(incomplete)]


def describe(
    name: Annotated[
        str, typer.Argument(metavar="ID", help="An encoder, recipe or suite.", autocompletion=complete_any)
    ],
) -> None:
    """Everything that a manifest, recipe or suite says: source, parameters and published numbers included."""
    for text in _lines(dataclasses.asdict(find(name))):
        typer.echo(text)


def find(name: str) -> Manifest | Recipe | Suite:
    """Whatever has this id. Raises UnknownName with the nearest ids."""
    if name in catalog.manifests():
        return catalog.manifest(name)
    if name.endswith(".toml"):
        return catalog.file(name)
    if name in catalog.recipes():
        return catalog.recipe(name)
    if name in catalog.suites():
        return catalog.suite(name)
    raise UnknownName("encoder, recipe or suite", name, [*catalog.manifests(), *catalog.recipes(), *catalog.suites()])


def _lines(content: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
            yield f"{indent}{key}:"
            for row in value:
                yield f"{indent}  - " + ", ".join(f"{k} {v}" for k, v in row.items() if v not in ("", None))
        elif value not in ("", None, (), {}, []):
            yield f"{indent}{key}: {', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"
