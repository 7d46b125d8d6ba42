"""A pickle reader that cannot run code: plain containers, text, numbers and arrays of numbers, nothing else.

The names that numpy arrays need are not looked up but replaced by stand-ins of this file, which make arrays and numbers
of the types that the caller allows and nothing more; every other name is refused before anything is called. A stand-in
for numpy's type takes the byte order alone: the real one would believe a pickle that claims its numbers to be objects.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

from evalkit.errors import DatasetError


class _Refused(pickle.UnpicklingError):
    pass


BYTES = ("u1",)
NUMBERS = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")


class _Type:
    """Stands for numpy's dtype."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "=", "|"):
            raise _Refused(f"an array in the byte order {order!r}")
        self.order = order

    @property
    def real(self) -> np.dtype[Any]:
        return np.dtype(self.code).newbyteorder("=" if self.order == "|" else self.order)  # type: ignore[arg-type]


class _Array(np.ndarray[Any, Any]):
    """An array whose pickled state may name a stand-in only."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:  # type: ignore[override]
        version, shape, type_, fortran, data = state
        if not isinstance(type_, _Type) or not isinstance(data, bytes):
            raise _Refused("an array that is not made of numbers")
        super().__setstate__((version, shape, type_.real, fortran, data))


def _reconstruct(*_: object) -> np.ndarray:
    return np.empty((0,), np.uint8).view(_Array)


def _frombuffer(data: bytes | bytearray, dtype: _Type, shape: tuple[int, ...], order: str) -> np.ndarray:
    if order not in ("C", "F"):
        raise _Refused(f"an array in the order {order!r}")
    return np.frombuffer(data, dtype.real).reshape(shape, order="C" if order == "C" else "F")


def _latin1(text: str, encoding: str) -> bytes:
    """How the oldest protocols write bytes: as text to recode."""
    if encoding != "latin1":
        raise _Refused(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _scalar(dtype: _Type, data: bytes) -> Any:
    (value,) = np.frombuffer(data, dtype.real).tolist()
    return value


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,  # only an argument of _reconstruct, but see `find_class`
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}


def _empty() -> bytes:
    return b""


_OLD: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _latin1,
    **{(builtins, "bytes"): _empty for builtins in ("__builtin__", "builtins")},
}
"""What the oldest protocols ask for in order to hold bytes; Python 2, which wrote CIFAR, did not."""


class _Reader(pickle.Unpickler):
    def __init__(self, data: bytes, types: Sequence[str]) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self.types = types

    def _dtype(self, code: str | bytes, *_: object) -> _Type:
        text = code.decode() if isinstance(code, bytes) else code
        if text not in self.types:
            raise _Refused(f"an array of dtype {code!r}; read are {', '.join(self.types)} (u1: bytes)")
        return _Type(text)

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) == ("numpy", "dtype"):
            return self._dtype
        if (module, name) in _OLD and self.types != BYTES:
            return _OLD[module, name]
        if (module, name) not in _ALLOWED:
            raise _Refused(f"it asks for {module}.{name}, which could run code")
        # A stand-in for the class: called with a huge shape, the real one would fill the memory.
        return "ndarray" if name == "ndarray" else _ALLOWED[module, name]


def loads(data: bytes, name: str, types: Sequence[str] = BYTES) -> Any:
    """The plain value in a pickle, Python 2's text as bytes; its arrays and numbers have one of the types.

    name: what messages call it. types: numpy's codes, as "i8". Raises DatasetError where it would need code, or is damaged.
    """
    try:
        return _Reader(data, types).load()
    except _Refused as cause:
        raise DatasetError(f"{name} is refused: {cause}; nothing of it was run") from cause
    except Exception as cause:  # a damaged pickle raises nearly anything
        raise DatasetError(f"{name} is no readable pickle: {cause}") from cause
