"""A read-only view of a folder or of a .zip, which is read without unpacking.

    tree = Tree.open(Path("data/cifar10.zip"))
    tree.names((".jpg",), under="train")     # "train/airplane/0000.jpg", ...
    tree.read("train/airplane/0000.jpg")

Nothing stays open between two calls: a `Tree` can be pickled, forked and shared by threads as it is. Of a zip it keeps
the central directory (where each entry lies); entries are then read and inflated one by one, and checked by their CRC.
Hidden files and `__MACOSX` do not exist for it. Paths inside are written with "/" and sorted by code point.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from evalkit.errors import DatasetError, MissingFiles

HASHED = 1 << 30
"""Folders of at most this many bytes are digested by content, larger ones by names and sizes."""

LARGEST = 1 << 31
"""An entry of a zip that claims more bytes than this is refused before anything is inflated."""

_LISTED = 200
_LOCAL = struct.Struct("<4s22xHH")  # local file header: signature, lengths of name and of extra field


class Entry(NamedTuple):
    """Where an entry of a zip lies: offset of its local header, sizes in bytes, CRC-32, 0 stored or 8 deflated."""

    offset: int
    packed: int
    size: int
    crc: int
    method: int


@dataclass(frozen=True, eq=False)
class Tree:
    """A folder or a zip. path: it, on this machine. prefix: the part inside that is looked at, "" or ending in "/"."""

    path: Path
    prefix: str = ""
    entries: Mapping[str, Entry] | None = field(default=None, repr=False)
    empty: frozenset[str] = field(default=frozenset(), repr=False)

    @classmethod
    def open(cls, path: Path) -> Tree:
        """Looks at a folder, or at the directory of a zip.

        Raises MissingFiles where there is nothing, DatasetError where it is neither, or where the zip is broken,
        encrypted, names an entry twice, or holds names that climb out of it.
        """
        if path.is_dir():
            return cls(path)
        if not path.exists():
            raise MissingFiles(f"{path} does not exist; give a folder or a .zip")
        if path.name.lower().endswith((".tar", ".tar.gz", ".tgz")):
            raise DatasetError(f"{path} is an archive that cannot be read in place; unpack it: tar xf {path.name}")
        entries, folders = _directory(path)
        return cls(path, "", entries, folders)

    def __str__(self) -> str:
        return f"{self.path}/{self.prefix}".rstrip("/")

    def within(self, folder: str) -> Tree:
        """The same view, one or more folders further down."""
        return replace(self, prefix=f"{self.prefix}{folder.strip('/')}/")

    def rooted(self, markers: Iterable[str]) -> Tree:
        """Where one of `markers` lies: here, else inside the single top folder (a zip often has one), else here."""
        wanted = set(markers)
        if any(self.exists(marker) for marker in wanted):
            return self
        top = self.folders()
        inner = self.within(top[0]) if len(top) == 1 else self
        return inner if any(inner.exists(marker) for marker in wanted) else self

    def names(self, suffixes: Sequence[str] = (), under: str = "") -> list[str]:
        """All files below `under`, sorted; with `suffixes` (lower case) only those whose name ends in one of them."""
        found = self._walk(under) if self.entries is None else self._entries_under(under)
        ends = tuple(suffixes)
        return sorted(name for name in found if not ends or name.lower().endswith(ends))

    def folders(self, under: str = "") -> list[str]:
        """Names of the folders directly in `under`, sorted, empty ones too."""
        if self.entries is None:
            return sorted(item.name for item in _scan(self.path / self.prefix / under) if item.is_dir())
        start = self.prefix + _slashed(under)
        inside = (name[len(start) :] for name in (*self.entries, *self.empty) if name.startswith(start))
        return sorted({rest.split("/", 1)[0] for rest in inside if "/" in rest})

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        if self.entries is None:
            return (self.path / self.prefix / _contained(name)).exists()
        full = self.prefix + name.rstrip("/")
        inside = f"{full}/"
        return full in self.entries or any(other.startswith(inside) for other in (*self.entries, *self.empty))

    def read(self, name: str, limit: int | None = None) -> bytes:
        """All bytes of a file, or its first `limit` (of a file in a folder; a zip's CRC needs all of them).

        Raises MissingFiles where there is none, DatasetError where it cannot be read."""
        if self.entries is None:
            return _bytes(self.path / self.prefix / _contained(name), limit)
        entry = self.entries.get(self.prefix + name)
        if entry is None:
            raise MissingFiles(f"{self} holds no {name}")
        return _inflated(self.path, entry, name)[:limit]

    def sizes(self, names: Iterable[str]) -> list[int]:
        """Bytes of each file. Raises as `read`."""
        if self.entries is not None:
            return [self._entry(name).size for name in names]
        try:
            return [os.stat(self.path / self.prefix / _contained(name)).st_size for name in names]
        except OSError as cause:
            raise MissingFiles(f"{cause.filename} cannot be read: {cause.strerror}") from cause

    def digest(self, names: Iterable[str]) -> tuple[str, str]:
        """(sha256 over the files named, how it was made).

        A zip gives name, size and CRC-32 from its directory; a folder of at most 1 GiB the sha256 of each file; a
        larger one only names and sizes, which a changed byte does not move. Raises as `read`.
        """
        ordered = sorted(names)
        sizes = self.sizes(ordered)
        if self.entries is not None:
            how, facts = "name, size and CRC-32 of each entry", [f"{self._entry(name).crc:08x}" for name in ordered]
        elif sum(sizes) <= HASHED:
            how, facts = "sha256 of each file", [hashlib.sha256(self.read(name)).hexdigest() for name in ordered]
        else:
            how, facts = "name and size of each file", [""] * len(ordered)
        total = hashlib.sha256(how.encode())
        for name, size, fact in zip(ordered, sizes, facts, strict=True):
            total.update(f"{name}\0{size}\0{fact}\n".encode("utf-8", "surrogateescape"))
        return total.hexdigest(), how

    def _entry(self, name: str) -> Entry:
        if self.entries is None or (entry := self.entries.get(self.prefix + name)) is None:
            raise MissingFiles(f"{self} holds no {name}")
        return entry

    def _entries_under(self, under: str) -> Iterator[str]:
        start, skip = self.prefix + _slashed(under), len(self.prefix)
        return (name[skip:] for name in self.entries or () if name.startswith(start))

    def _walk(self, under: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
        folder = self.path / self.prefix / under
        here = _identity(folder)
        if here in above:  # a link to a folder above would be walked for ever
            return
        for item in _scan(folder):
            name = _slashed(under) + item.name
            if item.is_dir():
                yield from self._walk(name, (*above, here))
            else:
                yield name


def missing(what: str, names: Sequence[str], layout: str) -> MissingFiles:
    """The error for absent files: all of them (of very many the first 200 and their count) and the expected layout."""
    shown = ", ".join(names[:_LISTED])
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return MissingFiles(f"{what} lacks {len(names):,} of the files that it needs: {shown}{more}.\nExpected:\n{layout}")


def _slashed(folder: str) -> str:
    return f"{folder.strip('/')}/" if folder else ""


def _hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _contained(name: str) -> str:
    if name.startswith("/") or ".." in name.split("/"):
        raise DatasetError(f"the name {name!r} leads out of the data set")
    return name


def _identity(folder: Path) -> tuple[int, int]:
    try:
        facts = os.stat(folder)
    except OSError:
        return (0, 0)
    return facts.st_dev, facts.st_ino


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as items:
            return sorted((item for item in items if not _hidden([item.name])), key=lambda item: item.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as cause:
        raise DatasetError(f"{folder} cannot be listed: {cause.strerror}") from cause


def _bytes(path: Path, limit: int | None) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except (FileNotFoundError, NotADirectoryError) as cause:
        raise MissingFiles(f"{path} does not exist") from cause
    except OSError as cause:
        raise DatasetError(f"{path} cannot be read: {cause.strerror}") from cause


def _directory(path: Path) -> tuple[dict[str, Entry], frozenset[str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as cause:
        raise DatasetError(f"{path} is neither a folder nor a readable .zip: {cause}") from cause
    entries: dict[str, Entry] = {}
    folders: set[str] = set()
    for info in infos:
        parts = _safe_parts(path, info)
        if _hidden(parts):
            continue
        if info.is_dir():
            folders.add("/".join(parts) + "/")
            continue
        name = "/".join(parts)
        if name in entries:
            raise DatasetError(f"{path} names {name} twice; it is not defined which of them counts")
        entries[name] = Entry(info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type)
    return entries, frozenset(folders)


def _safe_parts(path: Path, info: zipfile.ZipInfo) -> list[str]:
    name = info.filename.replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or ":" in name.split("/")[0]:
        raise DatasetError(f"{path} holds the name {info.filename!r}, which leads out of the archive; it is not read")
    if info.flag_bits & 0x1:
        raise DatasetError(f"{path} is protected by a password ({info.filename}); give one without")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = info.compress_type
        raise DatasetError(f"{path}: {info.filename} is packed by method {method}; only stored and deflated are read")
    if info.file_size > LARGEST:
        raise DatasetError(f"{path}: {info.filename} claims {info.file_size:,} bytes, more than {LARGEST:,}")
    return [part for part in name.split("/") if part not in ("", ".")]


def _inflated(path: Path, entry: Entry, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(entry.offset)
            signature, name_length, extra_length = _LOCAL.unpack(file.read(_LOCAL.size))
            file.seek(name_length + extra_length, os.SEEK_CUR)
            packed = file.read(entry.packed)
        # max_length 0 would mean "no limit"; one byte more than claimed shows an entry that lies
        data = packed if entry.method == 0 else zlib.decompressobj(-15).decompress(packed, entry.size + 1)
    except FileNotFoundError as cause:
        raise MissingFiles(f"{path} does not exist any more") from cause
    except (OSError, struct.error, zlib.error) as cause:
        raise DatasetError(f"{path}: {name} cannot be read: {cause}") from cause
    if signature != b"PK\x03\x04" or len(data) != entry.size or zlib.crc32(data) != entry.crc:
        raise DatasetError(f"{path}: {name} is damaged (size or CRC-32 differ from the directory)")
    return data
