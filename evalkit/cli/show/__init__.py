"""`evalkit show`: pictures, one module each, found by its file name: its function `show` is the command.

A module imports nothing heavy before it is run; what it draws with lies in `evalkit.reporting.figures`.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import typer

app = typer.Typer(help="Draw what an encoder sees.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


def names() -> list[str]:
    """The pictures, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


for _name in names():
    app.command(_name.replace("_", "-"))(importlib.import_module(f"{__name__}.{_name}").show)
