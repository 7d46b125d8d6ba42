"""Names of ADE20K's classes: the lists in `lists/`, whose lines hold all synonyms of a class, the first one its name."""

from __future__ import annotations

from pathlib import Path

from evalkit.datasets import dense
from evalkit.errors import UnknownName

LISTS = Path(__file__).parent / "lists"


def lists() -> list[str]:
    """The lists that there are, sorted."""
    return sorted(path.stem for path in LISTS.glob("ade20k-*.names"))


def named(which: str) -> tuple[str, ...]:
    """The names of a list, in its order. Raises UnknownName."""
    if which not in lists():
        raise UnknownName("list of ADE20K classes", which, lists())
    return tuple(first(row) for row in dense.class_names(LISTS / f"{which}.names"))


def scene() -> tuple[str, ...]:
    """The 150 classes of the scene parsing benchmark."""
    return named("ade20k-150")


def first(synonyms: str) -> str:
    """The first of comma-separated synonyms: "building" of "building, edifice"."""
    return synonyms.split(",")[0].strip()
