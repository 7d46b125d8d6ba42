"""A pickle reader that cannot run code: plain containers, text, numbers and arrays of bytes, nothing else.

The two names that numpy arrays need are not looked up but replaced by functions of this file, which make an empty
uint8 array and the dtype uint8 and nothing more; every other name is refused before anything is called.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from evalkit.errors import DatasetError


class _Refused(pickle.UnpicklingError):
    pass


def _reconstruct(*_: object) -> np.ndarray:
    return np.empty((0,), np.uint8)


def _dtype(code: str | bytes, *_: object) -> np.dtype[Any]:
    if code not in ("u1", b"u1"):
        raise _Refused(f"an array of dtype {code!r}; only bytes (u1) are read")
    return np.dtype(np.uint8)


def _frombuffer(data: bytes | bytearray, dtype: np.dtype[Any], shape: tuple[int, ...], order: str) -> np.ndarray:
    if order not in ("C", "F"):
        raise _Refused(f"an array in the order {order!r}")
    return np.frombuffer(data, dtype).reshape(shape, order="C" if order == "C" else "F")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): np.ndarray,  # only an argument of _reconstruct, but see `find_class`
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in _ALLOWED:
            raise _Refused(f"it asks for {module}.{name}, which could run code")
        # A stand-in for the class: called with a huge shape, the real one would fill the memory.
        return "ndarray" if name == "ndarray" else _ALLOWED[module, name]


def loads(data: bytes, name: str) -> Any:
    """The plain value in a pickle, Python 2's text as bytes; its arrays are uint8.

    name: what messages call it. Raises DatasetError where it would need code, or is damaged.
    """
    try:
        return _Reader(io.BytesIO(data), encoding="bytes").load()
    except _Refused as cause:
        raise DatasetError(f"{name} is refused: {cause}; nothing of it was run") from cause
    except Exception as cause:  # a damaged pickle raises nearly anything
        raise DatasetError(f"{name} is no readable pickle: {cause}") from cause
