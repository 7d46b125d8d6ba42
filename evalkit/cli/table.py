"""`evalkit table`: a suite's comparison table from records."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evalkit import catalog
from evalkit.cli.measure import complete_suite

if TYPE_CHECKING:
    from evalkit.reporting.table import Table


class Format(enum.StrEnum):
    """How the table is written; without one it is drawn for the terminal."""

    md = "md"
    csv = "csv"
    latex = "latex"


def table(
    suite: Annotated[str, typer.Argument(help="A suite id or file.", autocompletion=complete_suite)],
    format_: Annotated[Format | None, typer.Option("--format", "-f", help="Print this instead of drawing.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("runs"),
    limit: Annotated[int | None, typer.Option(help="The table of what was measured with this --limit.")] = None,
    write: Annotated[bool, typer.Option(help="Also write tables/SUITE.md and .csv into the records' folder.")] = False,
) -> None:
    """Print the comparison table of a suite: rows encoders, columns recipes, each cell value and half its 95 % interval."""
    from evalkit.reporting import table as tables

    found = tables.build(catalog.suite(suite), out, limit=limit)
    if format_ is None:
        _draw(found)
    else:
        typer.echo(tables.FORMATS[format_.value](found), nl=False)
    if write:
        name = Path(suite).stem + ("" if limit is None else f".limit-{limit}")
        tables.write(found, out / "tables", name)
        typer.echo(f"records: {out}/   table: {out}/tables/{name}.md and .csv", err=True)


def _draw(table: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as Drawn

    drawn = Drawn(title=table.title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    drawn.add_column("encoder", overflow="fold")
    for title, unit in table.columns:
        drawn.add_column(f"{title}\n({unit})" if unit else title, justify="right")
    for encoder, row in table.rows.items():
        drawn.add_row(encoder, *(f"[bold green]{c.plain()}[/]" if c.best else c.plain() for c in row))
    console = Console()
    console.print(drawn)
    for note in table.notes:
        console.print(f"  {note}", style="dim", highlight=False)
