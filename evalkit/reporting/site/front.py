"""The front page: what one sees, the profile, the leaderboard, and the way to every other page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evalkit.reporting.html import Safe, breakable, table, tag, text
from evalkit.reporting.site import grains, parts, plots, profile
from evalkit.reporting.site.board import Board, Cell, Column, Encoder
from evalkit.reporting.site.parts import Picture

EXPLAINED = (
    "Each row is a vision encoder, frozen: none of its weights were changed. Each column is a recipe, one exact way to ask "
    "how good its features are, from whole photographs (scene) to single patches. A number is the score on test images, "
    "± half of its 95 % interval: how far other test images of the same kind would move it. Encoders marked "
)
CONTROLS = (
    " are there to be beaten: an untrained network, and plain pixels. A score that does not beat them means nothing."
)

UNMIXED = (
    "A column holds one recipe version with the same options and the same data; anything else is left out, never mixed."
)
PROFILED = (
    "Within each recipe 0 is the weakest control (plain pixels or an untrained network) and 1 the best encoder measured; recipes "
    "of one grain are averaged, with equal weight. So 1 says best here, not good, and places in different reports do not compare."
)


def page(board: Board, pictures: Mapping[str, Sequence[Picture]], made: str) -> str:
    """The front page. pictures: by network. made: when."""
    counts = f"{_many(len(board.encoders), 'encoder')}, {_many(len(board.columns), 'recipe')}"
    said = text([EXPLAINED, tag("span", "control", class_="chip control"), CONTROLS])
    return parts.page(
        "evalkit report",
        tag("h1", "How good are these encoders?"),
        tag("p", said, class_="lead"),
        tag("p", f"{counts}; made {made}.", class_="quiet"),
        _broken(board),
        _board(board),
        _profile(board),
        _seen(board, pictures),
        _encoders(board),
        _recipes(board),
    )


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _broken(board: Board) -> Safe | None:
    if not board.broken:
        return None
    title = f"{_many(len(board.broken), 'record')} left out because {'it' if len(board.broken) == 1 else 'they'} cannot be read"
    return tag("section", tag("h2", title), parts.notes(board.broken), class_="warning", id="broken")


def _board(board: Board) -> Safe:
    head = tag("tr", tag("th", _sorter("encoder"), scope="col", class_="name"), [_head(c) for c in board.columns])
    body = [_row(board, encoder) for encoder in board.encoders]
    grid = tag("table", tag("thead", head), tag("tbody", body), id="leaderboard")
    box = tag("div", grid, class_="scroll", tabindex=0, role="region", aria_label="Leaderboard, scrolls sideways")
    left = [text([tag("code", c.id), ": ", line]) for c in board.columns for line in c.said]
    return tag(
        "section",
        tag("h2", "Leaderboard"),
        _filters(board),
        box,
        tag("p", parts.FOOTNOTE, class_="quiet"),
        tag("p", UNMIXED, class_="quiet"),
        tag("details", tag("summary", f"Left out or remarkable: {len(left)}"), parts.notes(left)) if left else None,
        id="board",
    )  # fmt: skip


def _sorter(*content: object) -> Safe:
    return tag("button", content, tag("span", class_="arrow", aria_hidden="true"), type="button", class_="sort")


def _head(column: Column) -> Safe:
    title = column.title or column.id
    return tag(
        "th",
        _sorter(tag("span", breakable(title), class_="short")),
        tag("a", breakable(column.id) if column.title else "about", href=f"recipes/{parts.slug(column.id)}.html", class_="id",
            aria_label=f"About {column.id}"),
        parts.grain_chip(column.grain),
        tag("span", f"{column.unit or 'score'} {'↑' if column.higher else '↓'}", class_="unit", title=parts.unit_of(column)),
        scope="col", aria_sort="none", data_runner=str(column.recipe.get("runner", "")), data_grain=column.grain,
        data_first="descending" if column.higher else "ascending",
    )  # fmt: skip


def _row(board: Board, encoder: Encoder) -> Safe:
    cells = [_cell(c, c.cells.get(encoder.who)) for c in board.columns]
    return tag(
        "tr",
        tag("th", parts.encoder_link(encoder), scope="row", class_="name", data_value=encoder.name),
        cells,
        class_="control" if encoder.control else None,
        data_family=str(encoder.spec.get("family", "")),
        data_arch=str(encoder.spec.get("arch", "")),
    )


def _cell(column: Column, cell: Cell | None) -> Safe:
    if cell is None:
        return tag(
            "td", tag("span", "not measured", class_="unseen"), tag("span", "–", aria_hidden="true"), class_="n none"
        )
    if cell.value is None:
        return tag("td", "n/a", class_="n none", title=cell.why)
    value = cell.value
    shown = tag("span", f"{value.value:.{value.digits}f}", class_="value")
    more = [
        tag("span", value.spread, class_="half") if value.spread else None,
        parts.mark(cell) or tag("span", class_="mark"),
    ]
    bar = None
    if column.unit == "%" and value.interval():
        place = f"--low:{max(value.low, 0):.2f}%;--high:{min(value.high, 100):.2f}%;--at:{value.value:.2f}%"
        bar = tag("span", tag("i"), tag("b"), class_="bar", style=place, aria_hidden="true")
    told = f"{value.plain()} {column.unit}, 95 % interval {value.interval() or 'unknown'}, n = {value.n:,}"
    return tag("td", shown, more, bar, class_=f"n {cell.standing}", data_value=value.value, title=told)


def _filters(board: Board) -> Safe:
    choices = {
        "runner": ("Protocol", sorted({str(c.recipe.get("runner", "")) for c in board.columns})),
        "grain": ("Grain", [g for g in grains.ORDER if any(c.grain == g for c in board.columns)]),
        "family": ("Family", sorted({str(e.spec.get("family", "")) for e in board.encoders})),
        "arch": ("Architecture", sorted({str(e.spec.get("arch", "")) for e in board.encoders})),
    }
    chosen = [
        tag("label", title, tag("select", tag("option", "all", value=""), [tag("option", v, value=v) for v in values if v],
                                data_filter=name))
        for name, (title, values) in choices.items()
    ]  # fmt: skip
    controls = tag("label", tag("input", type="checkbox", checked=True, data_controls=True), "controls", class_="tick")
    reset = tag("button", "Show all", type="button", class_="reset")
    said = tag("p", class_="quiet", aria_live="polite", id="shown")
    return tag("form", chosen, controls, reset, said, class_="filters", aria_label="Filter the leaderboard")


def _profile(board: Board) -> Safe | None:
    found = profile.build(board)
    if not found.axes:
        return None
    controls = {e.who for e in board.encoders if e.control}
    there = [e for e in board.encoders if any(e.who in axis.places for axis in found.axes)]
    places = {e.who: max(a.places.get(e.who, -9) for a in found.axes) for e in there}
    best = sorted((e for e in there if not e.control), key=lambda e: -places[e.who])[:8]
    names = {e.who: e.name for e in [*best, *(e for e in there if e.control)]}
    words = "; ".join(
        f"{axis.grain}: " + ", ".join(f"{names[w]} {p:.2f}" for w, p in axis.places.items() if w in names)
        for axis in found.axes
    )
    rows = [
        [axis.grain, *(f"{axis.places[w]:.2f}" if w in axis.places else "–" for w in names), _of(axis.recipes)]
        for axis in found.axes
    ]
    return tag(
        "section",
        tag("h2", "From scene to patch: the granularity profile"),
        tag("p", PROFILED, class_="quiet"),
        tag("figure", plots.profile(found, names, controls, label=f"Granularity profile. {words}"), plots.legend(names, controls)),
        tag("details", tag("summary", "The profile in numbers, and which recipes it averages"),
            table(["grain", *names.values(), "recipes"], rows, label="Granularity profile"),
            parts.notes(found.left_out)),
        id="profile",
    )  # fmt: skip


def _of(recipes: Sequence[str]) -> Safe:
    return text([[tag("code", breakable(r)), " "] for r in recipes])


SHOWN = {
    "pca": "Patches of one colour look alike to the encoder: three principal components as red, green and blue.",
    "prompt": "A person points at one patch; what resembles it lights up, and the mask is where the cosine exceeds a threshold.",
}
"""Which pictures stand on the front page: the two that need the fewest words."""


def _seen(board: Board, pictures: Mapping[str, Sequence[Picture]]) -> Safe | None:
    drawn = [(e, p) for e in board.encoders for p in pictures.get(e.who, ()) if p.file]
    shown = [
        [
            tag("p", words),
            tag(
                "div",
                [parts.figure(p, parts.encoder_link(e)) for e, p in drawn if p.kind == kind],
                class_="figures side",
            ),
        ]
        for kind, words in SHOWN.items()
        if any(p.kind == kind for _, p in drawn)
    ]
    more = tag("p", "More pictures stand on each encoder's own page.", class_="quiet")
    return tag("section", tag("h2", "What they see"), shown, more, id="pictures") if shown else None


def _encoders(board: Board) -> Safe:
    rows = [
        [
            parts.encoder_link(e), e.spec.get("family", ""), breakable(str(e.spec.get("arch", ""))),
            _parameters(e),
            sum(1 for c in board.columns if (cell := c.cells.get(e.who)) and cell.value),
        ]
        for e in board.encoders
    ]  # fmt: skip
    heads = ["encoder", "family", "architecture", "parameters", "recipes measured"]
    return tag("section", tag("h2", "Encoders"), table(heads, rows, label="Encoders", numbers=3), id="encoders")


def _parameters(encoder: Encoder) -> str:
    count = encoder.spec.get("parameters")
    return f"{count / 1e6:.1f} M" if isinstance(count, int) and count else ("none" if count == 0 else "")


def _recipes(board: Board) -> Safe:
    rows = [
        [
            parts.recipe_link(c),
            c.recipe.get("title", ""),
            parts.grain_chip(c.grain),
            c.recipe.get("runner", ""),
            len(c.cells),
        ]
        for c in board.columns
    ]
    legend = "; ".join(f"{grain}: {grains.MEANING[grain]}" for grain in grains.ORDER)
    return tag(
        "section",
        tag("h2", "Recipes"),
        tag("p", f"Grains, from coarse to fine. {legend}.", class_="quiet"),
        table(["recipe", "what it measures", "grain", "protocol", "encoders"], rows, label="Recipes", numbers=4),
        id="recipes",
    )
