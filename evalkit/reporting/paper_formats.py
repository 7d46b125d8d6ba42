"""A paper's table as Markdown, comma-separated values, LaTeX or HTML: `printed / measured ± half (difference)` in each cell."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from itertools import groupby

from evalkit.reporting import html
from evalkit.reporting.paper import NO_ENCODER, NO_RECIPE, NO_RECORD, PaperCell, PaperLine, PaperSheet
from evalkit.reporting.printed import Printed, doubtful


def text(cell: PaperCell) -> str:
    """`75.6[1] / 75.4 ± 0.4 (-0.2)`: with as many decimals as printed, footnotes in brackets; "" where nothing is printed."""
    if cell.printed is None:  # blank in the paper, or a control
        return ours(cell)
    return f"{cell.printed['value']}{_marks([cell.doubt])} / {ours(cell)}"


def ours(cell: PaperCell) -> str:
    """The measured half of `text`; a mark where there is none."""
    if math.isnan(cell.value):
        return cell.text + _marks(cell.remarks)
    digits = max(1, cell.digits)
    said = f"{cell.value:.{digits}f}{cell.spread}"
    if not math.isnan(cell.difference):
        said += f" ({round(cell.difference, digits) + 0.0:+.{digits}f})"
    return said + _marks(cell.remarks)


def _marks(numbers: Sequence[int]) -> str:
    told = [str(n) for n in numbers if n]
    return f"[{','.join(told)}]" if told else ""


def sections(sheet: PaperSheet) -> list[tuple[str, list[PaperLine]]]:
    """Rows that follow each other under one heading."""
    return [(section, list(lines)) for section, lines in groupby(sheet.lines, key=lambda line: line.section)]


def heads(sheet: PaperSheet) -> list[str]:
    """What stands above the columns; marked where no recipe measures it yet."""
    titles = [f"{title} ({unit})" for title, unit in sheet.columns]
    marked = [f"{title} {NO_RECIPE}" if p else title for title, p in zip(titles, sheet.pending, strict=True)]
    return [*sheet.stubs, *marked]


def footing(sheet: PaperSheet) -> list[str]:
    """Footnotes by number, then notes."""
    return [*(f"[{i}] {note}" for i, note in enumerate(sheet.footnotes, 1)), *sheet.notes]


def markdown(sheet: PaperSheet) -> str:
    """GitHub's table; a section is a row of its own."""
    titles = heads(sheet)
    rows = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(sheet.stubs) + "---:|" * len(sheet.columns)]
    for section, lines in sections(sheet):
        if section:
            rows.append("| " + " | ".join([f"**{section}**", *[""] * (len(titles) - 1)]) + " |")
        rows += ["| " + " | ".join([*line.labels, *map(text, line.cells)]) + " |" for line in lines]
    return "\n".join([f"### {sheet.title}", "", *rows, "", *(f"- {note}" for note in footing(sheet)), ""])


FIELDS = ("published", "unit", "doubtful", "note", "encoder", "recipe", "score", "measured", "half", "n", "difference",
          "remark")  # fmt: skip


def comma_separated(sheet: PaperSheet) -> str:
    """One row per printed value or measured control, numbers unrounded, its note beside it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["section", *sheet.stubs, "column", *FIELDS])
    for line in sheet.lines:
        for (title, _), cell in zip(sheet.columns, line.cells, strict=True):
            if cell.printed is not None or not math.isnan(cell.value):
                fields = _fields(cell, cell.printed or {}, sheet.footnotes)
                writer.writerow([line.section, *line.labels, title, *fields])
    return out.getvalue()


_WORDS = {NO_RECORD: "no record", NO_ENCODER: "not in the zoo", NO_RECIPE: "no recipe yet"}


def _fields(cell: PaperCell, printed: Printed, footnotes: Sequence[str]) -> list[str | float | int]:
    value, half, difference = ("" if math.isnan(x) else x for x in (cell.value, cell.half, cell.difference))
    remark = "; ".join([*filter(None, [_WORDS.get(cell.text, cell.text)]), *(footnotes[i - 1] for i in cell.remarks)])
    said = ["", "", "", ""]
    if printed:
        said = [printed["value"], printed["unit"], "yes" if doubtful(printed) else "", printed["note"]]
    return [*said, cell.encoder, cell.recipe, cell.score, value, half, cell.n or "", difference, remark]


_SPECIAL = {
    "%": r"\%",
    "_": r"\_",
    "&": r"\&",
    "#": r"\#",
    "±": r"$\pm$",
    "×": r"$\times$",
    "—": "---",
    "·": r"$\cdot$",
}
_LATEX = str.maketrans(_SPECIAL)


def latex(sheet: PaperSheet) -> str:
    """A booktabs tabular, a rule between sections; footnotes and notes as comments above."""
    width = len(sheet.stubs) + len(sheet.columns)
    body: list[str] = []
    for section, lines in sections(sheet):
        body.append(r"\midrule")
        if section:
            body.append(rf"\multicolumn{{{width}}}{{l}}{{{section.translate(_LATEX)}}} \\")
        body += [" & ".join(w.translate(_LATEX) for w in (*x.labels, *map(text, x.cells))) + r" \\" for x in lines]
    return "\n".join([
        *(f"% {note}" for note in (sheet.title, *footing(sheet))),
        rf"\begin{{tabular}}{{{'l' * len(sheet.stubs)}{'r' * len(sheet.columns)}}}",
        r"\toprule",
        " & ".join(h.translate(_LATEX) for h in heads(sheet)) + r" \\",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        "",
    ])  # fmt: skip


def page(sheet: PaperSheet) -> str:
    """A page of its own, without anything from elsewhere; a section is a row of its own, footnotes and notes are a list."""
    rows: list[list[str]] = []
    for section, lines in sections(sheet):
        rows += [[section]] if section else []
        rows += [[*line.labels, *map(text, line.cells)] for line in lines]
    table = html.table(heads(sheet), rows, label=sheet.title, numbers=len(sheet.stubs))
    return html.document(sheet.title, table, footing(sheet))


FORMATS = {"md": markdown, "csv": comma_separated, "latex": latex, "html": page}
