"""What papers print for a recipe: rows of the recipe's own file, and cells of papers' tables that it measures."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from evalkit import catalog
from evalkit.reporting import printed
from evalkit.reporting.names import name

HEADS = ("network", "score", "value", "unit", "where", "note")


def of(recipe: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows under HEADS; empty where nothing is printed."""
    own = [
        tuple(str(part) for part in (
            row.get("encoder", ""), row.get("score", ""), row.get("value", ""), row.get("unit", ""),
            f"{row.get('paper', '')} {row.get('table', '')}".strip(), row.get("note", ""),
        ))
        for row in recipe.get("published") or ()
    ]  # fmt: skip
    return list(dict.fromkeys([*own, *_by_recipe().get(str(recipe["id"]), ())]))


@cache
def _by_recipe() -> Mapping[str, list[tuple[str, ...]]]:
    found: dict[str, list[tuple[str, ...]]] = {}
    for table in map(catalog.paper_table, catalog.paper_tables()):
        for row in table.rows:
            for column in table.columns:
                value = printed.printed(table, row, column)
                if value is None:
                    continue
                for measure in printed.fitting(column, value):
                    found.setdefault(measure.recipe, []).append(_told(value, table.id, measure.differs))
    return found


def _told(value: Mapping[str, str], table: str, differs: str) -> tuple[str, ...]:
    network = f"{name(value['method'])}, {name(value['arch'])}"
    if value["pretrain_epochs"]:
        network += f", {value['pretrain_epochs']} epochs"
    note = "; ".join(part for part in (differs and f"not quite this recipe: {differs}", value["note"]) if part)
    unit = "%" if value["unit"] == "percent" else value["unit"]
    return (
        network,
        value["metric"],
        value["value"],
        unit,
        f"{value['paper']} {value['table']} (evalkit table {table})",
        note,
    )
