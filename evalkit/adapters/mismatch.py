"""The message of a KeyMismatch: what differs, in bounded lists with counts, and what usually causes it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

SHOWN = 8
"""Keys listed of each kind; the rest is counted."""

Shape = tuple[int, ...]


class Differences(Protocol):
    """The part of an `Audit` that a message is made of."""

    @property
    def used(self) -> tuple[str, ...]: ...
    @property
    def missing(self) -> tuple[str, ...]: ...
    @property
    def unexpected(self) -> tuple[str, ...]: ...
    @property
    def misshaped(self) -> Mapping[str, tuple[Shape, Shape]]: ...


def explain(what: str, found: Differences, expected: Mapping[str, Tensor]) -> str:
    """Several lines: a summary, one line per kind of difference, and hints. what: the architecture's name."""
    shapes = [f"{key} (file {tuple(f)}, expected {tuple(e)})" for key, (f, e) in found.misshaped.items()]
    lines = [f"the keys of the file and of {what} do not agree; {len(found.used)} of {len(expected)} do"]
    for kind, keys in (("missing", found.missing), ("unexpected", found.unexpected), ("mis-shaped", shapes)):
        if keys:
            lines.append(f"  {kind} ({len(keys)}): {_bounded(keys)}")
    return "\n".join(lines + [f"  hint: {hint}" for hint in _hints(found)])


def _bounded(keys: Sequence[str]) -> str:
    rest = len(keys) - SHOWN
    return ", ".join(key[:160] for key in keys[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _hints(found: Differences) -> list[str]:
    hints = [_prefix(found), _networks(found), _depth(found), _width(found), _patch(found), _positions(found)]
    return [hint for hint in hints if hint]


def _prefix(found: Differences) -> str:
    """All keys under one more name, as wrapped models are saved."""
    first = found.unexpected[0] if found.unexpected else ""
    for end in (m.end() for m in re.finditer(r"\.", first)):
        prefix = first[:end]
        if not all(key.startswith(prefix) for key in found.unexpected):
            break
        fit = len({key[end:] for key in found.unexpected} & set(found.missing))
        if fit:
            return f"every unexpected key begins with {prefix!r}; without it {fit} of the missing keys would be found"
    return ""


def _networks(found: Differences) -> str:
    heads = {key.split(".")[0] for key in found.unexpected} & {"student", "teacher", "momentum_encoder", "base_encoder"}
    return f"the file holds several networks ({', '.join(sorted(heads))}): choose one with --network" if heads else ""


def _depth(found: Differences) -> str:
    for keys, word in ((found.unexpected, "deeper"), (found.missing, "shallower")):
        blocks = {int(m[1]) for key in keys if (m := re.match(r"blocks\.(\d+)\.norm1\.weight$", key))}
        if blocks and min(blocks) > 0:
            return f"the file's network is {word}: blocks {min(blocks)} to {max(blocks)} are on one side only"
    return ""


def _width(found: Differences) -> str:
    file, expected = found.misshaped.get("norm.weight", ((0,), (0,)))
    return f"the file's network is {file[0]} wide, this architecture {expected[0]}" if file != expected else ""


def _patch(found: Differences) -> str:
    file, expected = found.misshaped.get("patch_embed.proj.weight", ((0,), (0,)))
    if len(file) != 4 or file[-1] == expected[-1]:
        return ""
    return f"the file's patches have {file[-1]} pixels a side, this architecture's {expected[-1]}"


def _positions(found: Differences) -> str:
    file, expected = found.misshaped.get("pos_embed", ((0, 0, 0), (0, 0, 0)))
    if len(file) != 3 or file[1] == expected[1]:
        return ""
    return (
        f"the position table has {_grid(file[1])}, this architecture's {_grid(expected[1])}: another image size, tokens or "
        "patch size; choose the --arch that was trained, or say the sides of a rectangle with --grid HxW"
    )


def _grid(rows: int) -> str:
    for prefix in (1, 0, 2, 5):
        side = math.isqrt(max(rows - prefix, 0))
        if side and side * side + prefix == rows:
            return f"{rows} rows ({side} x {side} patches{f' + {prefix}' if prefix else ''})"
    return f"{rows} rows"
