"""Docstrings for the API reference: the house's prose, read as Markdown."""

from __future__ import annotations

from typing import Any

import griffe
from prose import inline, markdown, split


class HouseStyle(griffe.Extension):
    """Arguments that a docstring explains ("bank: (N, D) ...") stand as code on lines of their own."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrites every docstring of the package."""
        _rewrite(pkg)


def _rewrite(obj: griffe.Object) -> None:
    if obj.docstring is not None:
        obj.docstring.value = "" if obj.is_module else _styled(obj)
    for member in obj.members.values():
        if not member.is_alias:
            _rewrite(member)


def _styled(obj: griffe.Object) -> str:
    head, rest = split(obj.docstring.value)
    lines = obj.docstring.value.splitlines()
    if len(lines) > 1 and lines[1].strip():
        head, rest = lines[0], "\n".join(lines[1:])
    names = [p.name for p in getattr(obj, "parameters", [])] + [m for m in obj.members if obj.is_class]
    said = "\n\n".join(filter(None, [inline(head), markdown(rest, names)]))
    for word in ("Returns", "Raises"):
        said = said.replace(f"\n{word} ", f"\n\n**{word}** ").replace(f". {word} ", f".\n\n**{word}** ")
    return said
