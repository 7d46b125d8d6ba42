"""`evalkit data`: is a dataset complete and in its layout, and lists of classes that are made from a whole release."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Annotated

import typer

from evalkit import catalog
from evalkit.cli.options import DataPaths, pairs
from evalkit.errors import EvalkitError, MissingFiles, UnknownName, UsageError
from evalkit.types import Dataset, DatasetRef, Role

app = typer.Typer(help="Look after the data sets.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


def _known(own: bool) -> dict[str, DatasetRef]:
    """By name of the module or, which counts more, of the folder; of one that is shipped and can be had elsewhere too, the
    user's own where there is one."""
    from evalkit import datasets

    asked = sorted((catalog.recipe(r).dataset for r in catalog.recipes()), key=lambda ref: ref.shipped != own)
    modules = {name: DatasetRef(name, name) for name in datasets.names()}
    return modules | {ref.name: ref for ref in asked} | {ref.folder: ref for ref in asked}


def _located(dataset: str, data_root: Path | None, data: list[str] | None) -> tuple[DatasetRef, Path]:
    """The data set of a folder's or a module's name, and where it lies. data: NAME=PATH, or the path alone."""
    from evalkit import datasets

    known = _known(own=data_root is not None or bool(data))
    if dataset.endswith(".toml"):
        known = {dataset: catalog.recipe(dataset).dataset}
    if dataset not in known:
        raise UnknownName("dataset", dataset, known)
    reference = known[dataset]
    given = pairs([text if "=" in text or not text else f"{reference.folder}={text}" for text in data or []])
    if strange := sorted(set(given) - {dataset, reference.folder, reference.name}):
        name = reference.folder if dataset.endswith(".toml") else dataset
        raise UsageError(f"--data names {', '.join(strange)}, but {dataset} was asked for: --data {name}=PATH")
    if given:
        given = {reference.folder: list(given.values())[-1]}
    return reference, datasets.locate(reference, data_root, given, catalog.shipped_data())


def _as_the_recipe_has_it(reference: DatasetRef, path: Path) -> list[str]:
    """What is wrong with the two splits, and with each of their masks."""
    from evalkit import datasets
    from evalkit.datasets import dense

    roles: tuple[Role, ...] = ("train", "test")
    makers = [functools.partial(datasets.open_dataset, reference, role, path) for role in roles]
    return dense.problems(makers)


def _opened(reference: DatasetRef, path: Path) -> tuple[Dataset, Dataset] | None:
    """Both splits, by the names that the recipes use or the usual ones; None where no such pair can be opened."""
    from evalkit import datasets

    for train, test in ((reference.train, reference.test), ("train", "val"), ("train", "test")):
        asked = dataclasses.replace(reference, train=train, test=test, labelled=None)
        try:
            return datasets.open_dataset(asked, "train", path), datasets.open_dataset(asked, "test", path)
        except EvalkitError:
            continue
    return None


@app.command()
def verify(
    dataset: Annotated[
        str,
        typer.Argument(help="A folder name as recipes use it (cifar10, ccp ...), a dataset module, or a recipe file."),
    ],
    data_root: Annotated[
        Path | None, typer.Option(envvar="EVALKIT_DATA", help="Folder that holds the datasets.")
    ] = None,
    data: DataPaths = None,
) -> None:
    """Say what is missing or wrong in a dataset, all of it, with the expected layout; exit code 1 if anything is.

    By the name of a folder (imagenet ...) it must have the classes and photos of the published data set too; by that of a
    module (image_folder ...) any data in its layout are complete; a recipe file's data are read with its options.
    """
    from evalkit import datasets
    from evalkit.datasets import agreement, published

    reference, path = _located(dataset, data_root, data)
    own = dataset.endswith(".toml")
    problems = _as_the_recipe_has_it(reference, path) if own else datasets.verify(reference.name, path)
    if dataset == reference.folder:  # a folder's name is a published data set; a module's is any data in its layout
        problems = list(dict.fromkeys([*problems, *published.problems(reference, path)]))
    notes: list[str] = []
    if not problems and (splits := _opened(reference, path)):
        problems, notes = agreement.looked_at(*splits)
    if problems:
        raise MissingFiles("\n  ".join([f"{path}: {len(problems)} problems as {reference.name}:", *problems]))
    typer.echo("\n".join([f"{path}: complete as {reference.name}", *(f"note: {note}" for note in notes)]))


@app.command()
def classes(
    dataset: Annotated[str, typer.Argument(help="A dataset whose classes are made from its release: ade20k_parts.")],
    data_root: Annotated[
        Path | None, typer.Option(envvar="EVALKIT_DATA", help="Folder that holds the datasets.")
    ] = None,
    data: DataPaths = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write the list (the dataset's own place if empty).")
    ] = None,
    objects: Annotated[str, typer.Option(help='A list of objects whose parts count, "all" for every object.')] = "",
    least: Annotated[int, typer.Option(min=1, help="Photos of each split that must have a part.")] = 1,
) -> None:
    """Read a whole release, write the list of its classes, and say how many it has."""
    from evalkit import datasets

    reference, path = _located(dataset, data_root, data)
    reader = datasets.module(reference.name)
    if not hasattr(reader, "write_classes"):
        raise UsageError(f"{reference.name} has official classes: there is no list to make")
    typer.echo(reader.write_classes(path, out, objects=objects, least=least))
