"""Which records may stand beside each other: those of one recipe id and version, resolved parameters and data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from evalkit import catalog
from evalkit.records import Record


def select(found: Iterable[Record], limit: int | None) -> tuple[dict[str, Record], list[str]]:
    """The records of one recipe that are comparable, by network (`who`), and sentences on what was left out.

    Of several such sets the one measured with this limit wins (None: on all the data), then the one with more networks,
    then the newest.
    """
    groups: dict[str, dict[str, Record]] = {}
    before: Counter[tuple[str, str]] = Counter()
    for record in found:
        group = groups.setdefault(record.comparable, {})
        before[record.comparable, who(record)] += 1
        group[who(record)] = record

    def rank(group: dict[str, Record]) -> tuple[bool, int, str]:
        newest = max(group.values(), key=lambda r: r.created)
        return _measured_with(newest, limit), len(group), newest.created

    ordered = sorted(groups.values(), key=rank, reverse=True)
    if not ordered or (limit is not None and not rank(ordered[0])[0]):
        return {}, []
    best, others = ordered[0], ordered[1:]
    names = short({name for g in ordered for name in g})
    said = [f"left out, not comparable: {', '.join(sorted(names[w] for w in g))} ({_what(g)})" for g in others]
    for name, record in best.items():
        if (count := before[record.comparable, name]) > 1:
            said.append(
                f"{names[name]}: the newest of {count} records that differ in seed, precision, device or version"
            )
    measured = limit_of(next(iter(best.values())))
    if measured is not None and limit is None:
        said.append(f"measured on a subset: --limit {measured}")
    return best, said


def limit_of(record: Record) -> int | None:
    """The --limit that left samples out; None for a record on all the data, however it was asked for."""
    splits = [part for part in record.data.values() if isinstance(part, Mapping)]
    return max((p["limit"] for p in splits if p.get("samples", 0) < p.get("samples_of_whole", 0)), default=None)


def _measured_with(record: Record, limit: int | None) -> bool:
    """Whether this --limit, or none, leaves the samples that were measured; data with fewer samples are whole under it."""
    measured = limit_of(record)
    if limit is None or measured is not None:
        return measured == limit
    sizes = [part["n"] for part in record.data.values() if isinstance(part, Mapping) and "n" in part]
    return bool(sizes) and max(sizes) <= limit


def who(record: Record) -> str:
    """The network behind a record: two networks may bear one id (files of one name, teacher and student)."""
    network = [record.identity.get("encoder"), record.identity.get("preprocessing")]
    return f"{record.encoder['id']} ({catalog.digest(network)[:6]})"


def short(encoders: Iterable[str]) -> dict[str, str]:
    """From `who` to the name in the table: the id alone where only one network bears it."""
    names = {name: name.rsplit(" (", 1)[0] for name in encoders}
    often = Counter(names.values())
    return {long: name if often[name] == 1 else long for long, name in names.items()}


def _what(group: Mapping[str, Record]) -> str:
    record = next(iter(group.values()))
    limit = limit_of(record)
    subset = "" if limit is None else f", --limit {limit}"
    return f"version {record.recipe['version']}, data {record.data['test']['digest'][:8]}{subset}"
