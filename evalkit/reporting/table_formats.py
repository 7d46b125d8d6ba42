"""A suite's table as Markdown, comma-separated values, LaTeX or HTML."""

from __future__ import annotations

import csv
import io
import math

from evalkit.reporting import html
from evalkit.reporting.table import Cell, Table


def _heads(table: Table) -> list[str]:
    return ["encoder", *(f"{title} ({unit})" if unit else title for title, unit in table.columns)]


_MARKDOWN = str.maketrans({"|": r"\|", "*": r"\*", "<": "&lt;"})


def markdown(table: Table) -> str:
    """GitHub's table, the best of each column bold, notes below."""
    heads = [head.translate(_MARKDOWN) for head in _heads(table)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for encoder, row in table.rows.items():
        cells = (c.plain().translate(_MARKDOWN) for c in row)
        bold = (f"**{shown}**" if c.best else shown for c, shown in zip(row, cells, strict=True))
        lines.append("| " + " | ".join([encoder.translate(_MARKDOWN), *bold]) + " |")
    notes = (f"- {' '.join(note.translate(_MARKDOWN).split())}" for note in table.notes)
    return "\n".join([f"### {table.title.translate(_MARKDOWN)}", "", *lines, "", *notes, ""])


def comma_separated(table: Table) -> str:
    """One row per encoder; value, half interval, n, difference to the table's reference and its p of each column."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    what = ("±", "n", f"minus {table.reference}", "p")
    writer.writerow(["encoder", *(f"{title} {x}".strip() for title, unit in table.columns for x in (unit, *what))])
    for encoder, row in table.rows.items():
        writer.writerow([encoder, *(x for cell in row for x in _numbers(cell))])
    return text.getvalue()


def _numbers(cell: Cell) -> tuple[object, ...]:
    if not cell.measured:
        return cell.text, "", "", "", ""
    half, difference, p = ("" if math.isnan(x) else x for x in (cell.half, cell.difference, cell.p))
    return cell.value, half, cell.n, difference, p


_LATEX = str.maketrans({
    **{mark: f"\\{mark}" for mark in "%_&#${}"},
    **{"±": r"$\pm$", "*": r"$^{*}$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
})  # fmt: skip


def latex(table: Table) -> str:
    """A booktabs tabular; notes as comments above."""
    rows = [[encoder.translate(_LATEX), *map(_bold, row)] for encoder, row in table.rows.items()]
    body = [" & ".join(row) + r" \\" for row in rows]
    return "\n".join([
        *(f"% {' '.join(note.split())}" for note in (table.title, *table.notes)),
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(head.translate(_LATEX) for head in _heads(table)) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        "",
    ])  # fmt: skip


def _bold(cell: Cell) -> str:
    shown = cell.plain().translate(_LATEX)
    return rf"\textbf{{{shown}}}" if cell.best else shown


def page(table: Table) -> str:
    """A page of its own, without anything from elsewhere; n in the title of each cell."""
    rows = [[encoder, *map(_data, row)] for encoder, row in table.rows.items()]
    return html.document(table.title, html.table(_heads(table), rows, label=table.title, numbers=1), table.notes)


def _data(cell: Cell) -> html.Safe:
    name = "strong" if cell.best else "span"
    return html.tag(name, cell.plain(), title=f"n = {cell.n:,}" if cell.measured else cell.note or None)


FORMATS = {"md": markdown, "csv": comma_separated, "latex": latex, "html": page}
