"""`evalkit data verify`: is a dataset complete and in its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evalkit import catalog
from evalkit.errors import MissingFiles, UnknownName
from evalkit.types import DatasetRef

app = typer.Typer(help="Look after the data sets.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


def _known() -> dict[str, DatasetRef]:
    return {r.dataset.folder: r.dataset for r in map(catalog.recipe, catalog.recipes())}


@app.command()
def verify(
    dataset: Annotated[
        str, typer.Argument(help="A folder name as recipes use it (cifar10, ccp ...), or a dataset module.")
    ],
    data_root: Annotated[
        Path | None, typer.Option(envvar="EVALKIT_DATA", help="Folder that holds the datasets.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Path of this dataset itself.")] = None,
) -> None:
    """Say what is missing or wrong in a dataset, all of it, with the expected layout; exit code 1 if anything is."""
    from evalkit import datasets

    known = (
        {name: DatasetRef(name, name) for name in datasets.names()} | {r.name: r for r in _known().values()} | _known()
    )
    if dataset not in known:
        raise UnknownName("dataset", dataset, known)
    reference = known[dataset]
    path = datasets.locate(reference, data_root, {dataset: data} if data else {}, catalog.shipped_data())
    problems = datasets.verify(reference.name, path)
    if problems:
        raise MissingFiles("\n  ".join([f"{path}: {len(problems)} problems as {reference.name}:", *problems]))
    typer.echo(f"{path}: complete as {reference.name}")
