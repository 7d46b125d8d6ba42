"""The page of data sets: layout, splits and source of each reader, and the recipes that use it."""

from __future__ import annotations

from pathlib import Path

import known
from prose import docstring, fields, inline, markdown, split, table

from evalkit import datasets as readers
from evalkit.types import Recipe

SOURCES = Path(readers.__file__).parent


def pages() -> list[tuple[str, str]]:
    """(path, Markdown) of the one page."""
    return [("datasets.md", page())]


def page() -> str:
    """A section per reader."""
    names = [name for name in readers.names() if name != "fake"]
    used = {name: [r for r in known.recipes() if r.dataset.name == name] for name in names}
    rows = []
    for name in names:
        what, _ = split(docstring(SOURCES / f"{name}.py"))
        folders = sorted({r.dataset.folder for r in used[name]})
        rows.append((f"[`{name}`](#{name})", inline(what), ", ".join(f"`{f}`" for f in folders)))
    return "\n\n".join([
        "# Data sets",
        "`--data-root DIR`, or the variable `EVALKIT_DATA`, names the folder that holds one folder or `.zip` per data set; "
        "`--data NAME=PATH` gives a single one. Nothing is ever written there, and nothing is unpacked. `evalkit data verify "
        "NAME --data-root DIR` lists everything that is missing or wrong. This page is made from the readers' docstrings; "
        "what is checked in masks is on [its own page](dense-data.md), DAVIS on [another](video.md).",
        table(("reader", "what it reads", "folder, as recipes name it"), rows),
        *(section(name, used[name]) for name in names),
    ])  # fmt: skip


def section(name: str, recipes: list[Recipe]) -> str:
    """One reader."""
    source = SOURCES / f"{name}.py"
    what, rest = split(docstring(source))
    options = fields(source)
    parts = [f"## {name} {{ #{name} data-toc-label='{name}' }}", inline(what), markdown(rest)]
    if options:
        said = [f"`{field}` (default `{default}`)" if default else f"`{field}`" for field, _, default in options]
        parts += [
            f"Options: {', '.join(said)}.",
            markdown(docstring(source, "Config"), [field for field, _, _ in options]),
        ]
    if recipes:
        parts.append("Recipes: " + ", ".join(f"[`{r.id}`](protocols/{r.runner}.md#{r.id})" for r in recipes) + ".")
    return "\n\n".join(parts)
