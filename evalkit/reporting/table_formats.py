"""A suite's table as Markdown, comma-separated values, LaTeX or HTML."""

from __future__ import annotations

import csv
import io

from evalkit.reporting import html
from evalkit.reporting.table import Cell, Table


def _heads(table: Table) -> list[str]:
    return ["encoder", *(f"{title} ({unit})" if unit else title for title, unit in table.columns)]


def markdown(table: Table) -> str:
    """GitHub's table, the best of each column bold, notes below."""
    heads = _heads(table)
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for encoder, row in table.rows.items():
        cells = (c.plain().replace("*", r"\*") for c in row)
        bold = (f"**{shown}**" if c.best else shown for c, shown in zip(row, cells, strict=True))
        lines.append("| " + " | ".join([encoder, *bold]) + " |")
    notes = (f"- {note}".replace("- *", r"- \*") for note in table.notes)
    return "\n".join([f"### {table.title}", "", *lines, "", *notes, ""])


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
    tested = ("" if x != x else x for x in (cell.difference, cell.p))  # NaN
    return cell.value, cell.half, cell.n, *tested


_LATEX = str.maketrans({"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "±": r"$\pm$", "*": r"$^{*}$"})


def latex(table: Table) -> str:
    """A booktabs tabular; notes as comments above."""
    rows = [
        [encoder, *(rf"\textbf{{{c.plain()}}}" if c.best else c.plain() for c in row)]
        for encoder, row in table.rows.items()
    ]
    body = [" & ".join(x.translate(_LATEX) for x in row) + r" \\" for row in rows]
    return "\n".join([
        *(f"% {note}" for note in (table.title, *table.notes)),
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(head.translate(_LATEX) for head in _heads(table)) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        "",
    ])  # fmt: skip


def page(table: Table) -> str:
    """A page of its own, without anything from elsewhere; n in the title of each cell."""
    rows = [[encoder, *map(_data, row)] for encoder, row in table.rows.items()]
    return html.document(table.title, html.table(_heads(table), rows, label=table.title, numbers=1), table.notes)


def _data(cell: Cell) -> html.Safe:
    name = "strong" if cell.best else "span"
    return html.tag(name, cell.plain(), title=f"n = {cell.n:,}" if cell.measured else cell.note or None)


FORMATS = {"md": markdown, "csv": comma_separated, "latex": latex, "html": page}
