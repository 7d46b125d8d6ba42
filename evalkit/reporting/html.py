"""HTML from values: the one place where text is escaped.

`tag("td", 3, class_="n")` is `<td class="n">3</td>`. What is not `Safe` is escaped, whatever it is; None is nothing.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = frozenset({"meta", "link", "img", "br", "input", "wbr"})
"""Elements that are never closed."""


class Safe(str):
    """Markup that was made here."""

    __slots__ = ()


def text(value: object) -> Safe:
    """Any value as markup: `Safe` as it is, a list or tuple or generator item after item, None as nothing."""
    if isinstance(value, Safe):
        return value
    if value is None:
        return Safe()
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return Safe("".join(text(item) for item in value))
    return Safe(html.escape(str(value)))


def tag(name: str, /, *children: object, **attributes: object) -> Safe:
    """An element. A trailing underscore of an attribute's name is dropped, others become hyphens; None and False leave the
    attribute out, True gives it without a value."""
    given = "".join(
        _attribute(key, value) for key, value in attributes.items() if value is not None and value is not False
    )
    if name in VOID:
        return Safe(f"<{name}{given}>")
    return Safe(f"<{name}{given}>{text(children)}</{name}>")


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'


def breakable(name: str) -> Safe:
    """A long id that may break after its hyphens and slashes."""
    parts = text(name)
    for mark in "-/_":
        parts = Safe(parts.replace(mark, f"{mark}<wbr>"))
    return parts


def table(heads: Iterable[object], rows: Iterable[Iterable[object]], *, label: str, numbers: int = 99) -> Safe:
    """A table that scrolls in its own box; a row's first cell is its heading, cells from column `numbers` on are numbers.
    A row of one cell heads those below it."""
    titles = list(heads)
    head = tag("tr", [tag("th", h, scope="col", class_="n" if i >= numbers else None) for i, h in enumerate(titles)])
    body = [tag("tr", _cells(list(row), len(titles), numbers)) for row in rows]
    inner = tag("table", tag("thead", head), tag("tbody", body))
    return tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=label)


def _cells(row: list[object], columns: int, numbers: int) -> list[Safe]:
    if len(row) == 1 < columns:
        return [tag("th", row[0], scope="rowgroup", colspan=columns)]
    cells = [tag("td", cell, class_="n" if i >= numbers else None) for i, cell in enumerate(row)]
    return [tag("th", row[0], scope="row"), *cells[1:]]


def sentence(words: str) -> str:
    """A remark from a file as a sentence: a capital letter at its beginning, a full stop at its end."""
    words = words.strip()
    ended = words if not words or words[-1] in ".!?:" else f"{words}."
    return ended[:1].upper() + ended[1:]


_STYLE = """:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem }
th, td { padding: .35rem .7rem; text-align: left; border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent) }
thead th { border-bottom-width: 2px; vertical-align: bottom }
.n { text-align: right; white-space: nowrap }
thead .n { white-space: normal }
ul { font-size: .88rem; padding-left: 1.2rem; opacity: .8; max-width: 90ch }"""


def document(title: str, body: object, notes: Iterable[object] = ()) -> str:
    """A page that needs no other file: a heading, `body`, and notes as a list."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Safe(_STYLE)),
    )
    listed = tag("ul", [tag("li", note) for note in notes])
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('h1', title), body, listed), lang='en')}\n"
