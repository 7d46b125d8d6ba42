"""State that unfinished work goes on from: one writer, one reader and one rule of what fits, for every file of it.

    save(path, {"epochs": 3, "weight": tensor})
    state = load(path)
    why = misfit(state, {"epochs": range(101), "weight": tensor})

A file is what `torch.save` writes, followed by a line with the sha256 of all that is before it: torch checks neither a
zip's sums nor what is behind it, so a flipped bit would be resumed; and any tool for torch still reads the file. File and
digest appear in one rename. A state that reads well may be another run's or another version's, which `misfit` tells.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from evalkit.errors import NotARegularFile, StateError
from evalkit.files import open_regular, shown, write_atomically

MARK = b"\nevalkit state, sha256 "
"""What the last line begins with; 64 hexadecimal digits and a line's end follow."""

TAIL = len(MARK) + 65
BLOCK = 1 << 20


def save(path: Path, state: Any) -> None:
    """Write the state whole or not at all. state: tensors and plain values in dicts, lists and tuples. Raises OSError."""
    write_atomically(path, lambda part: _write(part, state))


def _write(part: Path, state: Any) -> None:
    with part.open("wb") as file:
        sink = _Sink(file)
        try:
            torch.save(state, sink)  # type: ignore[arg-type]
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(str(error).splitlines()[0]) from None
        file.write(MARK + sink.sha256.hexdigest().encode() + b"\n")


class _Sink:
    """A file that sums up what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write and sum up."""
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """As a file's."""
        self._file.flush()


def load(path: Path) -> Any:
    """The state in a file, tensors on the CPU; no code runs.

    Raises StateError where the file is damaged (any bit), no state, no regular file or cannot be read; FileNotFoundError.
    """
    try:
        with open_regular(path) as file:
            _check(file, path)
            return torch.load(file, weights_only=True, map_location="cpu")
    except (FileNotFoundError, StateError):
        raise
    except NotARegularFile as error:
        raise StateError(str(error)) from None
    except OSError as error:
        raise StateError(f"{shown(path)}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # noqa: BLE001 - what torch raises for whole files that it cannot read has no end
        raise StateError(f"{shown(path)}: no state that can be read ({type(error).__name__})") from None


def _check(file: BinaryIO, path: Path) -> None:
    """Leaves the file at its beginning. Raises StateError where its last line is not the digest of the rest."""
    left = os.fstat(file.fileno()).st_size - TAIL
    file.seek(max(left, 0))
    tail = file.read()
    if left < 0 or not tail.startswith(MARK):
        raise StateError(f"{shown(path)}: damaged, or of an earlier version (no digest at its end)")
    file.seek(0)
    found = hashlib.sha256()
    while left > 0 and (block := file.read(min(left, BLOCK))):
        found.update(block)
        left -= len(block)
    if tail != MARK + found.hexdigest().encode() + b"\n":
        raise StateError(f"{shown(path)}: damaged (its content is not what its digest says)")
    file.seek(0)


# ---------------------------------------------------------------- what fits

Form = Any
"""What a state has to look like. A tensor: one of its shape and dtype. A range: an int in it. A type: an instance of it.
A mapping: the same keys, each as its form; a list or tuple: as many, each as its form. Another bool, int, float, str or
None: one of that type (an int 0 or more). `Each`, `Some`, `OneOf`, `Sized`, `Optimiser`: see there. So a state is a form
of later ones."""


@dataclass(frozen=True)
class Each:
    """A mapping with any of `keys`, none of which need be there, each value as `form`."""

    keys: Sequence[Any]
    form: Form


@dataclass(frozen=True)
class Some:
    """A mapping with any of these keys, none of which need be there, each value as the form of its key."""

    forms: Mapping[Any, Form]


@dataclass(frozen=True)
class OneOf:
    """A value that fits one of several forms."""

    forms: tuple[Form, ...]


@dataclass(frozen=True)
class Sized:
    """A tensor of this dtype; a size is an int, a range or, for any, None."""

    dtype: torch.dtype
    sizes: tuple[int | range | None, ...]


@dataclass(frozen=True, eq=False)
class Optimiser:
    """What `state_dict` of this optimiser is, before any step or after some."""

    of: torch.optim.Optimizer


def misfit(value: Any, form: Form, at: str = "the state") -> str:
    """The first thing in which a state is not of its form, in words; "" where it fits. Changes and raises nothing."""
    if isinstance(form, Optimiser):
        return _of_optimiser(value, form.of, at)
    if isinstance(form, OneOf):
        whys = [misfit(value, one, at) for one in form.forms]
        return "" if "" in whys else whys[0]
    if isinstance(form, (Each, Some)):
        forms = form.forms if isinstance(form, Some) else dict.fromkeys(form.keys, form.form)
        return _mapping(value, forms, at, whole=False)
    if isinstance(form, Mapping):
        return _mapping(value, form, at, whole=True)
    if isinstance(form, (list, tuple)):
        if not isinstance(value, (list, tuple)) or len(value) != len(form):
            return f"{at} is {_what(value)}, not a list of {len(form)}"
        return _first(misfit(*pair, f"{at}[{i}]") for i, pair in enumerate(zip(value, form, strict=True)))
    return "" if _is(value, form) else f"{at} is {_what(value)}, not {_wanted(form)}"


def _mapping(value: Any, forms: Mapping[Any, Form], at: str, *, whole: bool) -> str:
    if not isinstance(value, Mapping):
        return f"{at} is {_what(value)}, not a mapping"
    if unknown := [key for key in value if key not in forms]:
        return f"{at} has a key {str(unknown[0])[:60]!r} that does not belong there"
    if whole and (absent := [key for key in forms if key not in value]):
        return f"{at} has no key {str(absent[0])[:60]!r}"
    return _first(misfit(held, forms[key], f"{at}.{key}") for key, held in value.items())


def _first(whys: Any) -> str:
    return next((why for why in whys if why), "")


def _is(value: Any, form: Form) -> bool:
    """Whether a value fits a form that has no parts."""
    number = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(form, Tensor):
        return isinstance(value, Tensor) and value.shape == form.shape and value.dtype == form.dtype
    if isinstance(form, Sized):
        held = isinstance(value, Tensor) and value.dtype == form.dtype and value.ndim == len(form.sizes)
        return held and all(_sized(n, size) for n, size in zip(value.shape, form.sizes, strict=True))
    if isinstance(form, range):
        return number and value in form
    if isinstance(form, type):
        return isinstance(value, form)
    return (number and value >= 0) if type(form) is int else type(value) is type(form)


def _sized(found: int, size: int | range | None) -> bool:
    return size is None or (found in size if isinstance(size, range) else found == size)


def _of_optimiser(value: Any, optimizer: torch.optim.Optimizer, at: str) -> str:
    """Groups as the optimiser has them; of each parameter nothing yet, or tensors of its shape and single numbers."""
    mine = optimizer.state_dict()
    groups = [{key: object for key in group} | {"params": group["params"]} for group in mine["param_groups"]]
    if why := misfit(value, {"state": dict, "param_groups": groups}, at):
        return why
    shapes = {
        number: p.shape
        for held, group in zip(optimizer.param_groups, mine["param_groups"], strict=True)
        for number, p in zip(group["params"], held["params"], strict=True)
    }
    if strange := [number for number in value["state"] if number not in shapes]:
        return f"{at}.state has a key {str(strange[0])[:60]!r} that does not belong there"
    wrong = [
        f"{at}.state.{number}.{str(name)[:60]}"
        for number, held in value["state"].items()
        for name, kept in (held.items() if isinstance(held, Mapping) else [("", ...)])
        if not _kept(kept, shapes[number])
    ]
    unlike = [p for p, q in zip(_params(value), _params(mine), strict=True) if p != q]
    return f"{wrong[0]} is not of its parameter" if wrong else (f"{at} is of other parameters" if unlike else "")


def _params(state: Mapping[str, Any]) -> list[Any]:
    return [group["params"] for group in state["param_groups"]]


def _kept(value: Any, shape: torch.Size) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 0 or value.shape == shape
    return value is None or isinstance(value, (bool, int, float))


def _what(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    small = isinstance(value, (float, str)) or (isinstance(value, int) and value.bit_length() < 99)
    return f"{type(value).__name__} {str(value)[:40]!r}" if small else type(value).__name__


def _wanted(form: Form) -> str:
    if isinstance(form, Tensor):
        return _what(form)
    if isinstance(form, Sized):
        sizes = (
            "any" if n is None else f"{n.start} to {n.stop - 1}" if isinstance(n, range) else str(n) for n in form.sizes
        )
        return f"a tensor ({', '.join(sizes)}) of {str(form.dtype).removeprefix('torch.')}"
    if isinstance(form, range):
        return f"a number from {form.start} to {form.stop - 1}"
    return (
        form.__name__ if isinstance(form, type) else ("a number from 0" if type(form) is int else type(form).__name__)
    )
