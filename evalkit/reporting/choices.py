"""What a sweep chose at an end of its grid: the grid may be what was measured, so it is told wherever the number stands.

Source: the fact "choices" of a record, written by runners through `evalkit.probing.selection`; records of before have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalkit.records import Record

_END = (
    "{what} = {chosen:g} is the {edge} of the {values} tried ({lowest:g} to {highest:g}): a better one may lie beyond"
)


def at_edges(record: Record) -> dict[str, str]:
    """A sentence for each score whose sweep ended at the lowest or highest value of its grid, by the score's name."""
    found = record.facts.get("choices")
    if not isinstance(found, Mapping):
        return {}
    return {name: _END.format(**one) for name, one in found.items() if _is_edge(one)}


def _is_edge(one: Any) -> bool:
    numbers = ("chosen", "values", "lowest", "highest")
    return (
        isinstance(one, Mapping)
        and isinstance(one.get("what"), str)
        and one.get("edge") in ("lowest", "highest")
        and all(isinstance(one.get(name), int | float) for name in numbers)
    )


def told(record: Record) -> list[str]:
    """The sentences of a record, each with the scores that it is about."""
    scores: dict[str, list[str]] = {}
    for name, sentence in at_edges(record).items():
        scores.setdefault(sentence, []).append(name)
    return [f"{', '.join(names)}: {sentence}" for sentence, names in scores.items()]


def footnotes(found: Mapping[str, Record], score: str = "") -> list[str]:
    """The same for a column of a table. found: records of one recipe by encoder. score: of the column, "" the headline."""
    who: dict[str, list[str]] = {}
    for encoder, record in found.items():
        name = score or record.recipe["headline"]
        if sentence := at_edges(record).get(name):
            who.setdefault(f"{record.recipe['id']}: {name} of {{}}: {sentence}", []).append(encoder)
    return [sentence.replace("{}", ", ".join(names)) for sentence, names in who.items()]
