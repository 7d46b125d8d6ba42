"""Which records may stand beside each other: those of one recipe id and version, resolved parameters and data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evalkit import catalog
from evalkit.errors import CatalogError, RecordError
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


def is_control(encoder: Mapping[str, Any]) -> bool:
    """Whether an encoder, as a record describes it, is there to be beaten: untrained, or a control of the zoo."""
    try:
        name = encoder["id"]
        return encoder.get("network") == "untrained" or (name in catalog.manifests() and catalog.manifest(name).control)
    except CatalogError:
        return False


def named(found: Sequence[Record], text: str) -> str:
    """The network (`who`) that a person means among the records: by id, by `who` itself, by the file that was measured, or
    `random:` before one of these for its untrained twin.

    Raises RecordError where there is none, or several: then each with what tells it apart.
    """
    known = {who(record): record for record in found}
    if text in known:
        return text
    if text.startswith(catalog.TWIN):
        twin = known[named(found, text.removeprefix(catalog.TWIN))].encoder.get("twin", "")
        return named(found, twin or text.removesuffix(":"))
    ids = [name for name, record in known.items() if record.encoder["id"] == text]
    meant = ids or [name for name, record in known.items() if _is_file(record, text)]
    if not meant:
        there = ", ".join(sorted(short(known).values())) or "none"
        raise RecordError(f"there is no record of {text}; there are records of: {there}")
    if len(meant) > 1:
        told = "".join(f"\n  {name!r}: {_network(known[name])}" for name in sorted(meant))
        raise RecordError(f"{text} is the name of {len(meant)} networks; say which, with its digits:{told}")
    return meant[0]


def _is_file(record: Record, text: str) -> bool:
    given = record.arguments.get("given", {}).get("checkpoint")
    file = record.encoder.get("audit", {}).get("file")
    return given == text or bool(file and Path(file) == Path(text).absolute())


def _network(record: Record) -> str:
    encoder = record.encoder
    parts = [encoder.get(key) for key in ("family", "arch", "network")]
    file = encoder.get("audit", {}).get("file") or record.arguments.get("given", {}).get("checkpoint") or ""
    return f"{' '.join(filter(None, parts))}, sha256 {encoder.get('digest', '')[:8] or 'none'}, {file}".rstrip(", ")


def _what(group: Mapping[str, Record]) -> str:
    record = next(iter(group.values()))
    limit = limit_of(record)
    subset = "" if limit is None else f", --limit {limit}"
    return f"version {record.recipe['version']}, data {record.data['test']['digest'][:8]}{subset}"
