"""`evalkit table`: a suite's comparison table from records, or a paper's table with what was measured here beside it."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evalkit import catalog
from evalkit.cli.options import complete_suite

if TYPE_CHECKING:
    from evalkit.reporting.paper import PaperSheet
    from evalkit.reporting.table import Cell, Table


class Format(enum.StrEnum):
    """How the table is written; without one it is drawn for the terminal."""

    md = "md"
    csv = "csv"
    latex = "latex"
    html = "html"


def table(
    suite: Annotated[str, typer.Argument(help="A suite id or file.", autocompletion=complete_suite)],
    format_: Annotated[Format | None, typer.Option("--format", "-f", help="Print this instead of drawing.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("runs"),
    limit: Annotated[int | None, typer.Option(help="The table of what was measured with this --limit.")] = None,
    against: Annotated[
        str, typer.Option(help="Encoder that all others are tested against, instead of the best of each column.")
    ] = "",
    write: Annotated[
        bool, typer.Option(help="Also write tables/SUITE.md, .csv and .html into the records' folder.")
    ] = False,
) -> None:
    """Print the comparison table of a suite: rows encoders, columns recipes, each cell value and half its 95 % interval.

    * marks what a paired bootstrap tells apart from the best of its column. A paper's table (mugs-table1 ...) has the
    paper's rows and columns, and in each cell the printed value beside ours.
    """
    from evalkit.errors import UsageError
    from evalkit.reporting import paper, paper_formats, table_formats
    from evalkit.reporting import table as tables

    found: Any
    formats: Any
    draw: Any
    if catalog.is_paper_table(suite):
        if against:
            raise UsageError(
                "--against: a paper's table compares with the printed values; leave it out, or name a suite"
            )
        found, formats, draw = paper.build(catalog.paper_table(suite), out, limit=limit), paper_formats.FORMATS, _papers
    else:
        found, formats, draw = (
            tables.build(catalog.suite(suite), out, limit=limit, against=against),
            table_formats.FORMATS,
            _draw,
        )
    if format_ is None:
        draw(found)
    else:
        typer.echo(formats[format_.value](found), nl=False)
    if write:
        asked = ("" if limit is None else f".limit-{limit}") + (f".against-{Path(against).name}" if against else "")
        name = Path(suite).stem + asked
        tables.write({suffix: formats[suffix](found) for suffix in ("md", "csv", "html")}, out / "tables", name)
        typer.echo(f"records: {out}/   table: {out}/tables/{name}.md, .csv and .html", err=True)


WIDE = 8
"""Columns that a terminal has room for; a wider table is drawn with its encoders as columns."""


def _draw(table: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    drawn = Drawn(
        title=Text(table.title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left", title_style="bold"
    )
    heads = [f"{title}\n({unit})" if unit else title for title, unit in table.columns]
    corner, names, grid = "encoder", list(table.rows), [[_marked(cell) for cell in row] for row in table.rows.values()]
    if len(heads) > WIDE:
        flat = [head.replace("\n", " ") for head in heads]
        corner, heads, names, grid = "", names, flat, [list(column) for column in zip(*grid, strict=True)]
    drawn.add_column(corner, overflow="fold")
    widths = [max(map(_width, column)) for column in zip(*grid, strict=True)]
    room = max(map(len, names)) + sum(widths) + 2 * len(widths) + 3 <= Console().width  # 2: padding and divider
    for head, width in zip(heads, widths, strict=True):  # heads fold before values do
        drawn.add_column(Text(head), justify="right", overflow="fold", min_width=width if room else None)
    for name, row in zip(names, grid, strict=True):
        drawn.add_row(Text(name), *row)
    _show(drawn, table.notes)


def _marked(cell: Cell) -> str:
    return f"[bold green]{cell.plain()}[/]" if cell.best else cell.plain()


def _width(marked: str) -> int:
    """Of a cell that may break before its difference."""
    from rich.text import Text

    return max(len(piece) for piece in Text.from_markup(marked).plain.split(" ("))


def _papers(sheet: PaperSheet) -> None:
    from rich import box
    from rich.table import Table as Drawn
    from rich.text import Text

    from evalkit.reporting import paper_formats

    drawn = Drawn(title=Text(sheet.title), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for i, head in enumerate(paper_formats.heads(sheet)):
        drawn.add_column(Text(head), justify="left" if i < len(sheet.stubs) else "right", overflow="fold")
    for section, lines in paper_formats.sections(sheet):
        if section:
            drawn.add_row(Text(section, style="bold"))
        for line in lines:
            drawn.add_row(*map(Text, line.labels), *(Text(paper_formats.text(c)) for c in line.cells))
        drawn.add_section()
    _show(drawn, paper_formats.footing(sheet))


def _show(drawn: Any, notes: Any) -> None:
    from rich.console import Console

    console = Console()
    console.print(drawn)
    for note in notes:
        console.print(f"  {note}", style="dim", highlight=False, markup=False)
