"""What several pages have: the frame around them, marks, figures, notes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evalkit.catalog import digest
from evalkit.reporting.html import Safe, breakable, tag, text
from evalkit.reporting.site.board import Cell, Column, Encoder

GENERATOR = "evalkit report"
"""In a page's head: by it a folder is known as a report that may be written anew."""

MARKS = {
    "best": ("★", "best"),
    "tied": ("≈", "not significantly different from the best"),
    "untested": ("?", "not tested"),
}

FOOTNOTE = (
    "★ is the best of its column. ≈ cannot be told apart from the best: the 95 % interval of the difference, from a paired "
    "bootstrap (both encoders on the same resampled test images), holds 0, or p is not below 0.05. One test per cell, not "
    "corrected for how many cells there are, and no proof that two encoders are equally good. Without a mark the "
    "difference is significant. ? could not be tested; the recipe's page says why. Where all test images, or nearly all, are "
    "right or wrong the interval is the exact one of a proportion (Clopper and Pearson), [a, b]; where fewer than 10 can "
    "be resampled there is none."
)


@dataclass(frozen=True)
class Picture:
    """A drawn picture. file: its name in the folder of pictures, "" where there is none: then `why` says so. alt: for who
    cannot see it. size: width and height in pixels. command: that draws it."""

    kind: str
    title: str
    alt: str
    command: str
    file: str = ""
    size: tuple[int, int] = (0, 0)
    why: str = ""


def page(title: str, *body: object, up: str = "") -> str:
    """A whole page. up: the way to the report's folder, "" or "../"."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content=GENERATOR),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("link", rel="stylesheet", href=f"{up}style.css"),
        tag("script", src=f"{up}script.js", defer=True),
    )
    links = [
        ("Leaderboard", "index.html#board"),
        ("Encoders", "index.html#encoders"),
        ("Recipes", "index.html#recipes"),
    ]
    menu = tag("nav", [tag("a", name, href=up + where) for name, where in links], aria_label="Report")
    top = tag("header", tag("a", "evalkit", class_="brand", href=f"{up}index.html"), menu, class_="top")
    skip = tag("a", "Skip to the content", href="#main", class_="skip")
    whole = tag("html", head, tag("body", skip, top, tag("main", body, id="main")), lang="en")
    return f"<!doctype html>\n{whole}\n"


def slug(name: str) -> str:
    """A file's name for any id: letters, digits, dot and hyphen; told apart where that loses something."""
    plain = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.") or "x"
    return plain if plain == name else f"{plain}-{digest(name)[:6]}"


def encoder_link(encoder: Encoder, up: str = "") -> Safe:
    """Its name, as a link to its page."""
    link = tag("a", breakable(encoder.name), href=f"{up}encoders/{slug(encoder.name)}.html")
    return text([link, tag("span", "control", class_="chip control") if encoder.control else None])


def recipe_link(column: Column, up: str = "") -> Safe:
    """Its short title where a suite has one and its id, as a link to its page."""
    name = [tag("span", column.title, class_="short"), " "] if column.title else None
    return tag("a", name, tag("code", breakable(column.id)), href=f"{up}recipes/{slug(column.id)}.html")


def grain_chip(grain: str) -> Safe:
    """The grain as a small label."""
    return tag("span", grain, class_=f"chip {grain}")


def unit_of(column: Column) -> str:
    """Score, unit and direction: `top1@k=10, %, higher is better`."""
    unit = f", {column.unit}" if column.unit else ""
    return f"{column.recipe['headline']}{unit}, {'higher' if column.higher else 'lower'} is better"


def mark(cell: Cell | None) -> Safe | None:
    """★, ≈ or ?, said aloud as words."""
    if cell is None or cell.standing not in MARKS:
        return None
    sign, words = MARKS[cell.standing]
    return tag("span", sign, class_=f"mark {cell.standing}", role="img", aria_label=words, title=words)


def notes(lines: Iterable[object], label: str = "") -> Safe | None:
    """A list of remarks; nothing where there are none."""
    items = [tag("li", line) for line in lines]
    return tag("ul", items, class_="notes", aria_label=label or None) if items else None


WIDE = 2.2
"""A picture so many times as wide as it is high has a row of its own."""


def figures(pictures: Sequence[Picture]) -> Safe:
    """Pictures with their captions; in the place of a missing one the reason. On a page in a folder of the report."""
    return tag("div", [_captioned(p) for p in pictures], class_="figures")


def _captioned(picture: Picture) -> Safe:
    if not picture.file:
        return tag("figure", tag("p", tag("strong", picture.title), ": ", picture.why, class_="missing"))
    return figure(picture, tag("strong", picture.title), " ", tag("code", picture.command), up="../")


def figure(picture: Picture, *caption: object, up: str = "") -> Safe:
    """A picture that was drawn, over its caption; a link to itself, to be seen in full size."""
    width, height = picture.size
    source = f"{up}pictures/{picture.file}"
    image = tag("img", src=source, alt=picture.alt, width=width, height=height)
    wide = "wide" if width > WIDE * height else None
    return tag("figure", tag("a", image, href=source), tag("figcaption", caption), class_=wide)
