"""`evalkit report`: a folder of HTML pages from records, to look at."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from evalkit.reporting.site.board import Board
    from evalkit.reporting.site.parts import Picture


def report(
    runs: Annotated[Path, typer.Argument(help="Folder of the records.")] = Path("runs"),
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the report, new, empty or an older report.")] = Path("report"),
    pictures: Annotated[bool, typer.Option(
        help="Draw what the shipped encoders see; drawn once, then taken from the cache.")] = True,
) -> None:  # fmt: skip
    """Write a report that opens in any browser, without a network: leaderboard, a page per encoder and per recipe, pictures."""
    from evalkit.reporting.site import board, build, collected
    from evalkit.reporting.site.pictures import FAILED

    build.check(out)
    found = collected.collect(runs)
    for line in found.broken:
        typer.echo(f"evalkit: left out: {line}", err=True)
    table = board.build(found)
    drawn = _pictures(table, out / "pictures") if pictures else {}
    for who, picture in ((e.name, p) for e in table.encoders for p in drawn.get(e.who, ())):
        if picture.why.startswith(FAILED):
            typer.echo(f"evalkit: {who}, {picture.title}: {picture.why}", err=True)
    first = build.write(table, drawn, out)
    count = sum(bool(p.file) for kept in drawn.values() for p in kept)
    typer.echo(f"{len(table.encoders)} encoders, {len(table.columns)} recipes, {count} pictures", err=True)
    typer.echo(f"report: {first}")


def _pictures(table: Board, folder: Path) -> dict[str, list[Picture]]:
    """By network. The bar writes to the terminal itself, because what is drawn speaks to nobody meanwhile."""
    from rich.console import Console
    from rich.progress import Progress

    from evalkit.reporting.site import pictures

    shown = [encoder for encoder in table.encoders if pictures.is_shipped(encoder)]
    found: dict[str, list[Picture]] = {}
    terminal = Console(file=sys.stderr)
    with Progress(console=terminal, transient=True, disable=not terminal.is_terminal, redirect_stdout=False,
                  redirect_stderr=False) as bar:  # fmt: skip
        task = bar.add_task("pictures", total=len(shown) * len(pictures.kinds()))
        for encoder in shown:
            bar.update(task, description=f"pictures of {encoder.name}")
            for picture in pictures.make(encoder, _draw, folder):
                found.setdefault(encoder.who, []).append(picture)
                bar.advance(task)
    return found


def _draw(kind: str, arguments: Mapping[str, Any], path: Path) -> None:
    """What `evalkit show KIND` draws, without what it says."""
    module = importlib.import_module(f"evalkit.cli.show.{kind}")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        module.show(**arguments, out=path)
