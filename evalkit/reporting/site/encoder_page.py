"""An encoder's page: what it is, how its weights were loaded, every score with interval and n, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalkit import catalog
from evalkit.reporting.html import Safe, breakable, sentence, table, tag, text
from evalkit.reporting.site import board as boards
from evalkit.reporting.site import parts, training
from evalkit.reporting.site.board import Board, Cell, Column, Encoder
from evalkit.reporting.site.parts import Picture
from evalkit.types import Manifest


def page(board: Board, encoder: Encoder, pictures: Sequence[Picture]) -> str:
    """The page of one encoder."""
    manifest = _manifest(encoder)
    scored = [(c, c.cells[encoder.who]) for c in board.columns if encoder.who in c.cells]
    return parts.page(
        f"{encoder.name} · evalkit report",
        tag("h1", breakable(encoder.name), tag("span", "control", class_="chip control") if encoder.control else None),
        tag("p", manifest.title, class_="lead") if manifest else None,
        tag("p", sentence(manifest.notes)) if manifest and manifest.notes else None,
        _facts(encoder, manifest),
        _summary(scored),
        _pictures(pictures),
        training.curves(manifest) if manifest else None,
        _every(scored),
        _audit(encoder),
        up="../",
    )


def _manifest(encoder: Encoder) -> Manifest | None:
    name = str(encoder.spec["id"])
    return catalog.manifest(name) if name in catalog.manifests() else None


def _facts(encoder: Encoder, manifest: Manifest | None) -> Safe:
    spec = encoder.spec
    view = spec.get("preprocessing") or {}
    known = {
        "family": spec.get("family"), "architecture": spec.get("arch"), "network": spec.get("network"),
        "parameters": f"{spec['parameters']:,}" if isinstance(spec.get("parameters"), int) else None,
        "width, blocks, heads": _joined(spec.get("dim"), spec.get("depth"), spec.get("heads")),
        "patch": f"{spec['patch']} px" if spec.get("patch") else None,
        "input": f"{view['size']} px ({view.get('source', '')})" if view.get("size") else None,
        "offers": ", ".join(spec.get("offers") or ()),
        "paper": manifest.paper if manifest else None, "origin": manifest.origin if manifest else None,
        "licence": manifest.licence if manifest else None,
    }  # fmt: skip
    return definitions({key: value for key, value in known.items() if value})


def _joined(*values: object) -> str:
    return ", ".join(str(v) for v in values) if all(values) else ""


def definitions(known: Mapping[str, object]) -> Safe:
    """Names and what they stand for."""
    return tag("dl", [[tag("dt", key), tag("dd", value)] for key, value in known.items()], class_="facts")


def _summary(scored: Sequence[tuple[Column, Cell]]) -> Safe:
    rows = [
        [
            parts.recipe_link(c, up="../"), parts.grain_chip(c.grain), c.recipe["headline"],
            _value(cell), cell.value.interval() if cell.value else "", f"{cell.value.n:,}" if cell.value else "",
        ]
        for c, cell in scored
    ]  # fmt: skip
    heads = ["recipe", "grain", "score", "value", "95 % interval", "n"]
    return tag(
        "section",
        tag("h2", "Scores"),
        table(heads, rows, label="Scores", numbers=3),
        tag("p", parts.FOOTNOTE, class_="quiet"),
        id="scores",
    )


def _value(cell: Cell) -> Safe:
    if cell.value is None:
        return tag("span", "n/a: ", cell.why, class_="why")
    return text([f"{cell.value.plain()} {'%' if cell.value.unit == '%' else ''} ", parts.mark(cell)])


def _pictures(pictures: Sequence[Picture]) -> Safe | None:
    if not pictures:
        return None
    said = "Each picture was drawn by the command under it, on photographs and clips that travel with evalkit."
    return tag("section", tag("h2", "Pictures"), tag("p", said, class_="quiet"), parts.figures(pictures), id="pictures")


def _every(scored: Sequence[tuple[Column, Cell]]) -> Safe:
    shown = [_record(column, cell) for column, cell in scored if cell.record.scores]
    return tag("section", tag("h2", "Every score of every record"), shown, id="every")


def _record(column: Column, cell: Cell) -> Safe:
    record = cell.record
    rows = []
    for score in record.scores:
        value = boards.printed(score)
        unit = value.unit
        rows.append([score["name"], f"{value.plain()}", unit, value.interval(), f"{value.n:,}", score.get("note", "")])
    how = record.arguments.get("resolved") or {}
    said = (
        f"record {record.key}, {record.created[:10]}, {record.seconds:,.0f} s on {how.get('device', '?')} in "
        f"{how.get('precision', '?')}, seed {how.get('seed', '?')}, evalkit {record.environment.get('evalkit', '?')}"
    )
    grid = table(
        ["score", "value", "unit", "95 % interval", "n", "note"], rows, label=f"All scores of {column.id}", numbers=1
    )
    return tag("details", tag("summary", tag("code", breakable(column.id)), f" · {len(rows)} scores"),
               tag("p", said, class_="quiet"), grid)  # fmt: skip


def _audit(encoder: Encoder) -> Safe | None:
    audit = encoder.spec.get("audit")
    if not isinstance(audit, Mapping):
        return None
    said = "What was taken from the weights file, and what was not: a number means little if half of the keys were dropped."
    flat = {key: Path(str(v)).name if key == "file" else v for key, v in _flat(audit).items()}
    shown = definitions({**flat, "sha256 or seed": breakable(str(encoder.spec.get("digest", "")))})
    return tag("section", tag("h2", "Load audit"), tag("p", said, class_="quiet"), shown, id="audit")


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in tree.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value and len(value) <= 12:
            found |= _flat(value, f"{name} · ")
        elif value or value == 0:
            found[name] = _told(value)
    return found


def _told(value: object) -> str:
    if isinstance(value, Mapping):
        value = list(value)
    if isinstance(value, (list, tuple)):
        more = f" and {len(value) - 12} more" if len(value) > 12 else ""
        return ", ".join(str(v) for v in value[:12]) + more
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
