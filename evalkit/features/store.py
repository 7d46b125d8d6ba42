"""The feature store: a folder of entries, each named by the digest of everything that its features depend on.

    <root>/<key[:2]>/<key>/shard-00000.safetensors ...    rows, in order; see `shards`
    <root>/<key[:2]>/<key>/index.json                     written last: the entry is complete

A killed run leaves whole shards and no index, and the next one makes the rest. Two processes may work on one entry:
each file appears by a rename, and both would write the same rows. The index's time of change is the time of last use.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evalkit import catalog, files
from evalkit.errors import FileTooLarge, NotARegularFile, StoreError, UsageError
from evalkit.features import shards
from evalkit.features.key import FORMAT, Key
from evalkit.files import read_regular

INDEX = "index.json"
INDEX_LIMIT = 1 << 28
"""Bytes of an index at most: some 100 for each of its shards, and the digest of every sample's id in none."""

DEFAULT_GB = 20.0
DAY = 86400.0


@dataclass(frozen=True)
class Origin:
    """Whom an entry belongs to, for people: encoder and dataset ids, split, number of samples asked for."""

    encoder: str
    dataset: str
    split: str
    samples: int


@dataclass(frozen=True)
class Entry:
    """One line of `ls`. n: rows held. bytes: on disk. used: seconds since 1970. complete: False for one that a run has
    not finished; its names are then unknown ("")."""

    key: str
    encoder: str
    dataset: str
    split: str
    n: int
    bytes: int
    used: float
    complete: bool

    @property
    def last_used(self) -> str:
        """Local date and time, to the minute."""
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(self.used))


class FeatureStore:
    """The entries under one folder. root: default `features/` in the cache folder. budget: bytes that one entry may
    take, default `default_budget()`; larger ones are recomputed by extraction, never stored."""

    def __init__(self, root: Path | None = None, *, budget: int | None = None) -> None:
        self.root = catalog.cache_root() / "features" if root is None else Path(root)
        self.budget = default_budget() if budget is None else budget

    def folder(self, key: str) -> Path:
        """Where an entry lies, whether or not it exists."""
        return self.root / key[:2] / key

    def claim(self, key: str) -> Path:
        """The entry's folder, made if need be. Raises StoreError where it cannot be written, before work is spent."""
        folder = self.folder(key)
        with shards.explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
        return folder

    def sound(self, key: str, spans: Sequence[tuple[int, int]]) -> tuple[dict[int, shards.Facts], list[str]]:
        """The usable shards by number, every byte read, and one sentence per shard that is there but damaged.

        spans: [first, stop) of each shard wanted; a shard that covers others is not usable. Where an index is there,
        its checksums must hold too.
        """
        index = self.index(key) or {"shards": []}
        listed = {item["file"]: item["sha256"] for item in index["shards"]}
        good: dict[int, shards.Facts] = {}
        problems = []
        for number, (first, stop) in enumerate(spans):
            path = self.folder(key) / shards.name(number)
            try:
                facts = _matching(path, key, listed)
            except FileNotFoundError:
                if listed:
                    problems.append(f"{path}: it is missing")
            except shards.Damaged as reason:
                problems.append(f"{path}: {reason}")
            else:
                if (facts.number, facts.first, facts.stop) == (number, first, stop):
                    good[number] = facts
        return good, problems

    def index(self, key: str) -> dict[str, Any] | None:
        """The entry's index, or None where there is none that can be used (it can be made again from the shards)."""
        try:
            index: dict[str, Any] = json.loads(read_regular(self.folder(key) / INDEX, limit=INDEX_LIMIT))
            return index if index["format"] == FORMAT and _plausible(index) else None
        except (OSError, NotARegularFile, FileTooLarge, ValueError, KeyError, TypeError, RecursionError):
            return None

    def finish(self, key: Key, origin: Origin, held: Sequence[shards.Facts]) -> None:
        """Writes the index, which makes the entry complete. Raises StoreError."""
        listed = [{"file": shards.name(one.number), "rows": one.rows, "sha256": one.sha256} for one in held]
        index = {
            "format": FORMAT,
            **asdict(origin),
            "rows": sum(one.rows for one in held),
            "skipped": [position for one in held for position in one.skipped],
            "shards": listed,
            "key": json.loads(key.canonical()),
        }
        shards.write(self.folder(key.digest) / INDEX, json.dumps(index, indent=1).encode())

    def touch(self, key: str) -> None:
        """Notes that the entry was used; a read-only store keeps no such note."""
        with suppress(OSError):
            os.utime(self.folder(key) / INDEX)

    def ls(self) -> list[Entry]:
        """Every entry, the one used last first."""
        entries = []
        for folder in self._folders():
            with suppress(FileNotFoundError):  # another process prunes
                entries.append(self._entry(folder))
        return sorted(entries, key=lambda entry: (-entry.used, entry.key))

    def verify(self) -> list[str]:
        """One sentence per problem, naming the file: damaged or missing shards, unreadable indexes, abandoned temporary
        files. Reads every byte. An unfinished entry is no problem."""
        problems = []
        for folder in self._folders():
            problems += self._problems(folder)
        return problems + [f"{path}: left behind by a run that ended" for path in self._abandoned()]

    def prune(self, *, older_than: float | None = None, max_bytes: int | None = None) -> int:
        """Removes entries not used for `older_than` days, then those used longest ago until at most `max_bytes` are
        left, and temporary files that ended runs left. Returns the bytes that entries gave back. Raises UsageError for
        a negative limit, StoreError where files cannot be removed."""
        if (older_than is not None and older_than < 0) or (max_bytes is not None and max_bytes < 0):
            raise UsageError("prune takes days and bytes of 0 or more")
        with shards.explained(self.root):
            for path in self._abandoned():
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            removed = _victims(self.ls(), older_than, max_bytes)
            for entry in removed:
                self._remove(entry.key)
        return sum(entry.bytes for entry in removed)

    def _folders(self) -> Iterator[Path]:
        for folder in sorted(self.root.glob("??/*")):
            if folder.is_dir() and len(folder.name) == 64 and folder.name.startswith(folder.parent.name):
                yield folder

    def _abandoned(self) -> list[Path]:
        found = []
        for path in sorted(self.root.glob("??/*/.*")):
            with suppress(FileNotFoundError):
                if files.is_temporary(path) and files.is_abandoned(path):
                    found.append(path)
        return found + [path for path in sorted(self.root.glob("??/.pruned-*")) if path.is_dir()]

    def _entry(self, folder: Path) -> Entry:
        held = {path: path.stat() for path in folder.iterdir()}
        size = sum(stat.st_size for stat in held.values())
        used = max(stat.st_mtime for stat in [*held.values(), folder.stat()])
        index = self.index(folder.name)
        if index is None:
            return Entry(folder.name, "", "", "", 0, size, used, complete=False)
        used = (folder / INDEX).stat().st_mtime
        return Entry(
            folder.name, index["encoder"], index["dataset"], index["split"], index["rows"], size, used, complete=True
        )

    def _problems(self, folder: Path) -> list[str]:
        index = self.index(folder.name)
        if index is None:
            if (folder / INDEX).exists():
                return [f"{folder / INDEX}: it cannot be read, or belongs to another version"]
            index = {"shards": []}
        listed = {item["file"]: item["sha256"] for item in index["shards"]}
        names = sorted({path.name for path in folder.glob("shard-*")} | set(listed))
        found = []
        for file in names:
            try:
                _matching(folder / file, folder.name, listed)
            except FileNotFoundError:
                found.append(f"{folder / file}: it is missing")
            except shards.Damaged as reason:
                found.append(f"{folder / file}: {reason}")
        return found

    def _remove(self, key: str) -> None:
        folder = self.folder(key)
        away = folder.with_name(f".pruned-{secrets.token_hex(4)}")
        with suppress(FileNotFoundError):  # renamed first: a reader sees all of an entry or nothing
            folder.rename(away)
            shutil.rmtree(away)


def _matching(path: Path, key: str, listed: dict[str, str]) -> shards.Facts:
    """Facts of a sound shard that belongs to the entry and, where an index lists it, is the one listed."""
    facts = shards.check(path)
    if facts.key != key:
        raise shards.Damaged("it belongs to another entry")
    if listed.get(path.name, facts.sha256) != facts.sha256:
        raise shards.Damaged("its checksum is not the one in the index")
    return facts


def _plausible(index: dict[str, Any]) -> bool:
    """Whether every field that readers use has its type."""
    names = all(isinstance(index[field], str) for field in ("encoder", "dataset", "split"))
    items = all(isinstance(item["file"], str) and isinstance(item["sha256"], str) for item in index["shards"])
    return names and items and isinstance(index["rows"], int)


def _victims(entries: Sequence[Entry], older_than: float | None, max_bytes: int | None) -> list[Entry]:
    """What `prune` removes, the one used longest ago first. entries: the one used last first."""
    oldest = time.time() - older_than * DAY if older_than is not None else float("-inf")
    held, victims = 0, []
    for entry in entries:
        over = max_bytes is not None and held + entry.bytes > max_bytes
        if over or entry.used < oldest:
            victims.append(entry)
        else:
            held += entry.bytes
    return victims[::-1]


def default_budget() -> int:
    """Bytes that one entry may take: $EVALKIT_CACHE_GB (10^9 bytes each), 20 GB where it is not set. Raises StoreError
    for a value that is no number."""
    text = os.environ.get("EVALKIT_CACHE_GB", "")
    try:
        value = float(text) if text else DEFAULT_GB
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise StoreError(f"EVALKIT_CACHE_GB is {text!r}; it is a number of gigabytes, 0 or more, such as 20")
    return int(value * 1e9)
