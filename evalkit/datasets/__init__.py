"""Readers of official on-disk layouts, one module per layout, found by its file name: nothing to register.

A dataset module defines

- `Config`: a frozen dataclass of options, each default with its source;
- `open(root, split, config) -> Dataset`: lists the samples of a split and decodes nothing;
- `verify(root) -> list[str]`: every problem of the files under `root`, empty when there is none;
- `ALIASES` (optional): usual names of the folder on disk, by the name that recipes use;
- `published(folder, config)` (optional): the `SplitSize` of each split that published numbers were measured on.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from evalkit.errors import DatasetError, MissingFiles, UnknownName
from evalkit.types import Dataset, DatasetRef, Role
from evalkit.validation import parse

__all__ = ["configure", "locate", "module", "names", "open_dataset", "verify"]


@cache
def _found() -> tuple[str, ...]:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return tuple(path.stem for path in files if path.stem != "__init__" and _defines_open(path))


def _defines_open(path: Path) -> bool:
    # Read, not imported: listing the names must not cost the import of numpy, scipy and Pillow.
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(isinstance(node, ast.FunctionDef) and node.name == "open" for node in body)


def names() -> list[str]:
    """The dataset modules, sorted: those files of this folder that define `open`."""
    return list(_found())


def module(name: str) -> ModuleType:
    """The module of a dataset. Raises UnknownName, which gives the nearest names."""
    if name not in _found():
        raise UnknownName("dataset", name, _found())
    return importlib.import_module(f"{__name__}.{name}")


def locate(ref: DatasetRef, data_root: Path | None, overrides: Mapping[str, Path], shipped_root: Path) -> Path:
    """Where a recipe's data lie: a folder or a zip that exists.

    In this order: `overrides` by folder, then by dataset name (nothing else is tried once one is given); what ships
    with evalkit; `data_root`/folder, the same with ".zip", then the module's aliases. data_root: None where none was
    given. Raises MissingFiles, which lists the paths tried and how to give one; UnknownName for an unknown dataset.
    """
    tried = list(_candidates(ref, data_root, overrides, shipped_root))
    for path in tried:
        if path.exists():
            return path
    listed = "".join(f"\n  {path}" for path in tried) or "\n  nothing: no data root is given"
    raise MissingFiles(
        f"the data of {ref.folder!r} (dataset {ref.name}) are not there. Tried:{listed}\n"
        f"Give the folder that holds it with --data-root DIR (or EVALKIT_DATA), or the data with --data "
        f"{ref.folder}=PATH."
    )


def _candidates(
    ref: DatasetRef, data_root: Path | None, overrides: Mapping[str, Path], shipped_root: Path
) -> Iterator[Path]:
    reader = module(ref.name)
    for key in (ref.folder, ref.name):
        if key in overrides:
            yield Path(overrides[key])
            return
    if ref.shipped:
        yield shipped_root / ref.folder
        return
    if data_root is not None:
        usual: Mapping[str, tuple[str, ...]] = getattr(reader, "ALIASES", {})
        for folder in (ref.folder, *usual.get(ref.folder, ())):
            yield data_root / folder
            yield data_root / f"{folder}.zip"


def open_dataset(ref: DatasetRef, role: Role, path: Path) -> Dataset:
    """The split of a recipe's data that has this role, read from `path`; of the training split the part with labels.

    Raises CatalogError for wrong options, DatasetError (MissingFiles) where the files are not what the layout says.
    """
    split = ref.train if role == "train" else ref.test
    dataset: Dataset = module(ref.name).open(path, split, configure(ref))
    if role == "test" or ref.labelled is None:
        return dataset
    from evalkit.datasets.labelled import Labelled

    return Labelled(dataset, ref.labelled)


def configure(ref: DatasetRef) -> Any:
    """The dataset's frozen `Config` with a recipe's options. Raises CatalogError naming dataset, key and what is allowed."""
    return parse(module(ref.name).Config, ref.config, f"dataset {ref.name}")


def verify(name: str, path: Path) -> list[str]:
    """Every problem of the files under `path`, one sentence each; empty when they are complete. Raises UnknownName."""
    reader = module(name)
    try:
        problems: list[str] = reader.verify(path)
    except DatasetError as error:
        return [str(error)]
    return problems
