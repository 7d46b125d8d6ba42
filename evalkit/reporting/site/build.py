"""Writes a report: records in, a folder of pages out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from evalkit.errors import UsageError
from evalkit.files import read_regular
from evalkit.reporting.site import encoder_page, front, parts, recipe_page
from evalkit.reporting.site.board import Board
from evalkit.reporting.site.parts import Picture

BESIDE = ("style.css", "script.js")
"""Files that every page refers to, copied as they are."""


def check(out: Path) -> None:
    """Before any work: raises UsageError where `out` holds something that is no report, or is no folder."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: that is a file; a report is a folder")
    if out.is_dir() and any(out.iterdir()) and not _is_report(out):
        raise UsageError(f"--out {out}: the folder holds other things and no report; choose an empty or a new one")


def _is_report(out: Path) -> bool:
    try:
        return f'content="{parts.GENERATOR}"' in read_regular(out / "index.html").decode("utf-8", "replace")
    except OSError:
        return False


def write(board: Board, pictures: Mapping[str, Sequence[Picture]], out: Path) -> Path:
    """All pages; gives the path of the first. pictures: by network, their files lie in `out`/pictures already.

    Pages and pictures of an older report that are no longer there are removed. Raises UsageError where nothing can be
    written.
    """
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    pages = {"index.html": front.page(board, pictures, made)}
    pages |= {
        f"encoders/{parts.slug(e.name)}.html": encoder_page.page(board, e, pictures.get(e.who, ()))
        for e in board.encoders
    }
    pages |= {f"recipes/{parts.slug(c.id)}.html": recipe_page.page(board, c) for c in board.columns}
    here = Path(__file__).resolve().parent
    pages |= {name: (here / name).read_text("utf-8") for name in BESIDE}
    try:
        for name, text in pages.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(text, "utf-8", "replace")
        kept = {out / name for name in pages} | {
            out / "pictures" / p.file for found in pictures.values() for p in found
        }
        for old in [*out.glob("encoders/*.html"), *out.glob("recipes/*.html"), *out.glob("pictures/*.png")]:
            if old not in kept:
                old.unlink()
    except OSError as error:
        raise UsageError(f"--out {out}: the report cannot be written ({error})") from None
    return out / "index.html"
