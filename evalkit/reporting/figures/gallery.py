"""Galleries of retrieval: a query, and its neighbours in order, right and wrong told apart by frame, mark and colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from evalkit.reporting.figures import canvas

TILE, QUERY = 112, 176
"""Sides of a neighbour's and of the query's tile in pixels."""


@dataclass(frozen=True, eq=False)
class Neighbour:
    """One found image. right: whether it is what was asked for, None where nobody says. name: of its class, "" for none."""

    image: Image.Image
    similarity: float
    name: str = ""
    right: bool | None = None


@dataclass(frozen=True, eq=False)
class Block:
    """The neighbours by one representation, the nearest first. title: its name. note: what it comes to, "" for nothing."""

    title: str
    neighbours: Sequence[Neighbour]
    note: str = ""


def gallery(
    query: Image.Image,
    blocks: Sequence[Block],
    *,
    title: str,
    note: str = "",
    caption: str = "",
    whole: Image.Image | None = None,
) -> Image.Image:
    """The picture. caption: of the query, may have several lines. whole: the image that the query is a part of."""
    widest = max(len(block.neighbours) for block in blocks)
    columns = max(1, min(widest, 8 if len(blocks) == 1 else 6))
    asked = canvas.captioned(canvas.framed(canvas.fitted(query, QUERY, QUERY), canvas.CHOSEN), caption)
    column = [asked] if whole is None else [asked, canvas.fitted(whole, QUERY, QUERY)]
    left = canvas.titled(
        canvas.below(column, gap=2 * canvas.GAP), "Query", " " if any(b.note for b in blocks) else "", size=13
    )
    parts = [left, *(_block(block, columns) for block in blocks)]
    row = canvas.beside(parts, gap=4 * canvas.GAP)
    judged = any(n.right is not None for block in blocks for n in block.neighbours)
    body = canvas.below([row, _legend()], gap=2 * canvas.GAP) if judged else row
    return canvas.bordered(canvas.titled(canvas.widened(body, title, note), title, note))


def marked(whole: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """A copy with a rectangle around a part of it: white outside of black, visible on any ground."""
    out = whole.convert("RGB")
    pen, width = ImageDraw.Draw(out), max(2, round(whole.width / 75))
    x0, y0, x1, y1 = (round(side) for side in box)
    pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=canvas.PAPER, width=2 * width)
    pen.rectangle(
        (x0 + width // 2, y0 + width // 2, x1 - 1 - width // 2, y1 - 1 - width // 2), outline=canvas.INK, width=width
    )
    return out


def _block(block: Block, columns: int) -> Image.Image:
    frames = [None if n.right is None else canvas.RIGHT if n.right else canvas.WRONG for n in block.neighbours]
    captions = [
        f"{rank} · {n.similarity:.2f}" + (f"\n{n.name}" if n.name else "") for rank, n in enumerate(block.neighbours, 1)
    ]
    grid = canvas.tiles([n.image for n in block.neighbours], captions, columns=columns, frames=frames, size=TILE)
    return canvas.titled(canvas.widened(grid, block.title, block.note), block.title, block.note, size=13)


def _legend() -> Image.Image:
    parts = [
        canvas.beside([canvas.framed(Image.new("RGB", (28, 28), canvas.EMPTY), frame), canvas.written(text, 28)])
        for frame, text in ((canvas.RIGHT, "the query's class"), (canvas.WRONG, "another class"))
    ]
    return canvas.beside(
        [*parts, canvas.written("below: rank · cosine similarity", 28, canvas.FADED)], gap=3 * canvas.GAP
    )
