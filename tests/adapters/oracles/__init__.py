"""One plain implementation per family of checkpoints, written from the released code's behaviour and independent of evalkit.

Each module `<family>.py` offers FAMILY, ARCHS, ARCH, `weights`, `head`, `forward` and `files`; the parity and mutation
tests find it by its name. Everything is computed in float64 with explicit loops; nothing here is fast.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Facts:
    """What the official code says of one architecture. size: native side in pixels."""

    dim: int
    depth: int
    heads: int
    patch: int
    size: int = 224


@dataclass(frozen=True)
class Truth:
    """blocks: the tokens after each block, (B, T, D), every token in the network's own order, before the final norm.

    cls: (B, D), patches: (B, h, w, D) after the final norm where the network has one. attention: (B, heads, T, T) of the
    last block. projection, bottleneck: (B, D') of the pretraining head in evaluation mode, None without a head.
    """

    blocks: list[Tensor]
    cls: Tensor | None
    patches: Tensor
    attention: Tensor | None = None
    projection: Tensor | None = None
    bottleneck: Tensor | None = None


@dataclass(frozen=True)
class File:
    """One official layout. content: what is saved. ask: the network that the user names, "" for none. network: what the
    loaded spec must say. weights, head: what the loaded encoder must compute with. arch: "" for the oracle's ARCH."""

    name: str
    content: dict[str, Any]
    weights: dict[str, Tensor]
    head: dict[str, Tensor] | None = None
    ask: str = ""
    network: str = ""
    arch: str = ""


def names() -> list[str]:
    """The families that have an oracle, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "plain")


@functools.cache
def files(name: str) -> tuple[File, ...]:
    """What `files()` of a family's oracle writes, drawn once; nothing may change it."""
    return tuple(module(name).files())


def module(name: str) -> ModuleType:
    """The oracle of a family."""
    return importlib.import_module(f"{__name__}.{name}")
