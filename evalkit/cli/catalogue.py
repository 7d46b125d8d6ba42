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
    for column in ("id", "what", "weights" if kind == Kind.encoders else "where"):
        drawn.add_column(column, overflow="fold", no_wrap=column == "id")
    for row in _ROWS[kind.value]():
        drawn.add_row(*row)
    Console().print(drawn)


def _encoders() -> Iterator[tuple[str, str, str]]:
    for manifest in map(catalog.manifest, catalog.manifests()):
        yield manifest.id, f"{manifest.title} ({manifest.family} {manifest.arch})", _state(manifest)


def _state(manifest: Manifest) -> str:
    """Where its weights are: control (it has none), shipped, downloaded, not downloaded; sizes where known."""
    if manifest.control:
        return "control"
    if manifest.shipped:
        return "shipped"
    if manifest.file and Path(manifest.file).is_file():
        return f"downloaded ({_megabytes(Path(manifest.file).stat().st_size)})"
    size = f" ({_megabytes(manifest.size)})" if manifest.size else ""
    return f"not downloaded{size}" + (", by hand" if catalog.by_hand(manifest) else "")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


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
    found = find(name)
    recorded = isinstance(found, Manifest) and found.sha256 and not catalog.states_digest(name)
    for text in _lines(dataclasses.asdict(found)):
        typer.echo(text)
    if recorded:
        typer.echo("sha256 is no published one: it was recorded at the first download")
    more = _about_weights(found) if isinstance(found, Manifest) else _about_numbers(found)
    for text in more:
        typer.echo(text)


def _about_weights(manifest: Manifest) -> Iterator[str]:
    """Where the weights are, and the numbers that papers print for them, by paper and table."""
    yield f"weights: {_state(manifest)}"
    if manifest.published_as is None:
        return
    tables: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for row in catalog.published(manifest.published_as):
        tables.setdefault((row["paper"], row["table"]), []).append(row)
    count = sum(map(len, tables.values()))
    yield f"published numbers ({count} rows of reports/published/papers.csv):"
    for (paper, table), rows in tables.items():
        yield f"  {paper}, {table}:"
        for row in rows:
            yield "    " + _number(row)


def _about_numbers(found: Recipe | Suite) -> Iterator[str]:
    """The numbers that papers print for a recipe, by paper and table, as the tables of protocols/suites link them."""
    if isinstance(found, Suite):
        if found.id in catalog.suites() and catalog.is_paper_table(found.id):
            yield f"printed beside measured values by: evalkit table {found.id}"
        return
    from evalkit.datasets import published
    from evalkit.reporting import printed

    if sizes := published.splits(found.dataset):
        asked = dict.fromkeys((found.dataset.train, found.dataset.test))
        yield "published on: " + "; ".join(f"{split}, {sizes[split].told()}" for split in asked if split in sizes)
    tables: dict[tuple[str, str, str, str], list[str]] = {}
    for table, measure, score, row in printed.links(found.id):
        what = ", ".join(row[k] for k in ("method", "arch", "pretrain_data", "pretrain_epochs") if row[k])
        key = (table.paper, table.table, table.id, measure.differs)
        beside = f"; beside it {score}" if score else ""
        tables.setdefault(key, []).append(f"    {what}: {_number(row)}{beside}")
    if tables:
        yield f"published numbers ({sum(map(len, tables.values()))} rows of reports/published/papers.csv):"
    for (paper, table_name, suite, differs), lines in tables.items():
        yield f"  {paper}, {table_name} (evalkit table {suite})" + (
            f", no difference is shown: {differs}" if differs else ""
        )
        yield from lines


def _number(row: Mapping[str, str]) -> str:
    what = [row[k] for k in ("protocol", "dataset", "split_or_variant", "metric") if row[k]]
    unit = " %" if row["unit"] == "percent" else f" {row['unit']}"
    note = f"  ({row['note']})" if row["note"] else ""
    return f"{', '.join(what)}: {row['value']}{unit}{note}"


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
