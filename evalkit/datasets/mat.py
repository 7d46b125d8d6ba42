"""Variables of MATLAB files (version 5, not HDF5): numbers, text and records; MATLAB objects are not built."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from evalkit.datasets.files import Tree
from evalkit.errors import DatasetError


def variable(tree: Tree, name: str, key: str) -> np.ndarray[Any, Any]:
    """(N,) the values of one variable in reading order: numbers as stored, text as str, a struct array as records.

    Raises MissingFiles where there is no such file, DatasetError where it is damaged or lacks the variable.
    """
    return _content(tree, name, key, squeeze=True).ravel()


def array(tree: Tree, name: str, key: str) -> np.ndarray[Any, Any]:
    """One numeric variable in its own shape, at least two-dimensional as MATLAB has it. Raises as `variable`, and
    DatasetError where it holds no numbers."""
    found = _content(tree, name, key, squeeze=False)
    if found.dtype.kind not in "uif":
        raise DatasetError(f"{tree.where(name)}: {key!r} holds {found.dtype}, no numbers")
    return found


def _content(tree: Tree, name: str, key: str, *, squeeze: bool) -> np.ndarray[Any, Any]:
    from scipy.io import loadmat  # slow to import, and few layouts need it

    try:
        content = loadmat(io.BytesIO(tree.read(name)), variable_names=[key], squeeze_me=squeeze)
    except DatasetError:
        raise
    except Exception as cause:  # the reader raises nearly anything on a damaged file
        raise DatasetError(f"{tree.where(name)} is no readable .mat file: {cause or type(cause).__name__}") from cause
    if not isinstance(content.get(key), np.ndarray | np.generic | str | int | float):
        raise DatasetError(f"{tree.where(name)} has no variable {key!r}")
    return np.asarray(content[key])


def field(records: np.ndarray[Any, Any], key: str, where: str) -> list[Any]:
    """One field of each record of a struct array, as plain values. Raises DatasetError where there is no such field."""
    names = records.dtype.names or ()
    if key not in names:
        raise DatasetError(f"{where} has no field {key!r}; there are: {', '.join(names) or 'none'}")
    return [np.asarray(value).item() if np.size(value) == 1 else value for value in records[key]]


def numbers(values: Any, where: str, *, last: int | None = None) -> list[int]:
    """Whole numbers from 1 (MATLAB counts from 1) to `last`. Raises DatasetError, naming `where`, for anything else."""
    found: list[int] = []
    for value in np.asarray(values).ravel().tolist():
        if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
            raise DatasetError(f"{where}: {value!r} is no whole number")
        if value < 1 or (last is not None and value > last):
            raise DatasetError(f"{where}: {value!r} is outside 1 ... {'' if last is None else last}")
        found.append(int(value))
    return found


def texts(values: Any, where: str) -> list[str]:
    """Names, none of them empty. Raises DatasetError, naming `where`, for anything else."""
    found = np.asarray(values).ravel().tolist()
    wrong = [value for value in found if not isinstance(value, str) or not value]
    if wrong or not found:
        raise DatasetError(f"{where}: {wrong[0] if wrong else found!r} is no list of names")
    return found
