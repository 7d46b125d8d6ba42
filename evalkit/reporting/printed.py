"""The cells of a paper's table as selectors into reports/published/papers.csv, and what measures them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from evalkit import catalog
from evalkit.errors import CatalogError
from evalkit.reporting.names import name
from evalkit.types import Measure, PaperColumn, PaperNetwork, PaperRow, PaperTable

Printed = Mapping[str, str]
"""A row of papers.csv: column to text."""


def cells(table: PaperTable) -> Iterator[tuple[PaperRow, PaperColumn, Printed]]:
    """Every cell that the paper prints. Raises CatalogError where it is not exactly one row of papers.csv."""
    for row in table.rows:
        for column in table.columns:
            if (found := printed(table, row, column)) is not None:
                yield row, column, found


def printed(table: PaperTable, row: PaperRow, column: PaperColumn) -> Printed | None:
    """What the paper prints in a cell; None where the row declares it blank.

    Raises CatalogError where papers.csv holds no such row, or several, or one for a cell declared blank.
    """
    wanted = {"paper": table.paper, "table": table.table, "protocol": column.protocol, "dataset": column.dataset,
              "metric": column.metric, "method": row.method, "arch": row.arch, "pretrain_data": row.pretrain_data,
              "pretrain_epochs": row.pretrain_epochs}  # fmt: skip
    asked = {key: value for key, value in wanted.items() if value is not None}
    variant = {*row.variant, *column.variant}
    found = [r for r in catalog.papers() if parts(r) == variant and all(r[k] == v for k, v in asked.items())]
    blank = column.title in row.blank
    if len(found) != (0 if blank else 1):
        raise CatalogError(
            f"{table.id}: {len(found)} rows of papers.csv, not {0 if blank else 1}, are the cell "
            f"{', '.join(f'{k} {v!r}' for k, v in asked.items())}, variant {';'.join(sorted(variant))!r}"
        )
    return None if blank else found[0]


def links(recipe: str) -> Iterator[tuple[PaperTable, Measure, str, Printed]]:
    """The printed values that a recipe measures, by the tables that name it: table, measure, score and row of papers.csv."""
    for table in map(catalog.paper_table, catalog.paper_tables()):
        if any(m.recipe == recipe for column in table.columns for m in column.measures):
            for _, column, row in cells(table):
                if (m := next((m for m in fitting(column, row) if m.recipe == recipe), None)) is not None:
                    yield table, m, score_of(m, row), row


def network(table: PaperTable, row: Printed) -> PaperNetwork | None:
    """The encoder of a printed value: the one that the table names, else the manifest's that says so."""
    mine = (n for n in table.networks if n.method == row["method"] and parts(row) >= set(n.variant))
    encoder = catalog.encoder_of(row)
    return next(mine, PaperNetwork(encoder, row["method"], "", certain=True) if encoder else None)


def recipes_of(table: PaperTable, encoder: str) -> list[str]:
    """The recipes that measure the cells of an encoder, the best match of each; none where the table has no cell of it."""
    known, found = set(catalog.recipes()), dict[str, None]()
    for _, column, row in cells(table):
        if (of := network(table, row)) is not None and of.encoder == encoder:
            found |= dict.fromkeys([m.recipe for m in fitting(column, row) if m.recipe in known][:1])
    return list(found)


def doubtful(row: Printed) -> bool:
    """Whether a printed value could not be read, or placed, beyond doubt."""
    return row["note"].startswith("uncertain:")


def parts(row: Printed) -> set[str]:
    """The parts of its variant."""
    return {part for part in row["split_or_variant"].split(";") if part}


def _keyed(row: Printed) -> dict[str, str]:
    return dict(part.split("=", 1) for part in parts(row) if "=" in part)


def label(row: Printed, declared: PaperRow, stub: str) -> str:
    """What labels a row: a column of papers.csv, the words of its variant, or the value of a key in it.

    Raises CatalogError for another stub.
    """
    if stub == "variant":
        return ", ".join(name(part) for part in declared.variant if "=" not in part)
    known = {**_keyed(row), **row}
    if stub not in known:
        raise CatalogError(f"a stub is {stub!r}; it is 'variant', a key of the variant or one of {', '.join(row)}")
    return known[stub]


def fitting(column: PaperColumn, row: Printed) -> list[Measure]:
    """The column's measures that are of this value, the best match first."""
    return [
        m for m in column.measures
        if (not m.methods or row["method"] in m.methods) and (not m.archs or row["arch"] in m.archs)
        and parts(row) >= set(m.variant)
    ]  # fmt: skip


def score_of(measure: Measure, row: Printed) -> str:
    """The name of the score, "" for the headline. Raises CatalogError for a key that the variant lacks."""
    try:
        return measure.score.format_map(_keyed(row))
    except KeyError as error:
        raise CatalogError(
            f"{measure.recipe}: score {measure.score!r} needs {error}, but the cell's variant is {row['split_or_variant']!r}"
        ) from None
