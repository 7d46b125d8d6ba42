"""A read-only view of a folder or of a .zip, which is read without unpacking.

    tree = Tree.open(Path("data/cifar10.zip"))
    tree.names((".jpg",), under="train")     # "train/airplane/0000.jpg", ...
    tree.read("train/airplane/0000.jpg")

Nothing stays open between two calls: a `Tree` can be pickled, forked and shared by threads as it is. Of a zip it keeps
the central directory (where each entry lies); entries are then read and inflated one by one, and checked by their CRC.
Hidden files (a name that begins with ".", as .DS_Store and the ._NAME of macOS), `__MACOSX`, Thumbs.db and desktop.ini do
not exist for it. Only regular files are read, of at most 2 GiB each (`evalkit.files`). Paths inside are written with "/"
and sorted by code point.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from evalkit.errors import DatasetError, FileTooLarge, MissingFiles, NotARegularFile
from evalkit.files import kind, open_regular, read_regular, shown

HASHED = 1 << 30
"""Folders of at most this many bytes are digested by content, larger ones by names and sizes."""

LARGEST = 1 << 31
"""Bytes of the largest file that is read; an entry of a zip that claims more is refused before anything is inflated."""

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
        return shown(f"{self.path}/{self.prefix}".rstrip("/"))

    def where(self, name: str) -> str:
        """What messages call a file: its whole path, in one line."""
        return shown(f"{self.path}/{self.prefix}{name}")

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
        """All files below `under`, sorted; with `suffixes` (lower case) only those whose name ends in one of them.

        A folder that is named like such a file is among them, since whoever named it so meant a file: reading it says what
        it is.
        """
        ends = tuple(suffixes)
        found = self._walk(under) if self.entries is None else self._entries_under(under)
        if not ends:
            return sorted(name for name in found if not name.endswith("/"))
        return sorted(name for name in (each.rstrip("/") for each in found) if name.lower().endswith(ends))

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
        if self.prefix + name not in self.entries and self.exists(name):
            raise DatasetError(f"{self.where(name)} is a folder; only regular files are read")
        return _inflated(self.path, self._entry(name), name)[:limit]

    def sizes(self, names: Iterable[str]) -> list[int]:
        """Bytes of each file, -1 for what cannot be read, whatever the reason. Raises MissingFiles where one has gone."""
        return [size for size, _ in map(self._facts, names)]

    def digest(self, names: Iterable[str]) -> tuple[str, str]:
        """(sha256 over the files named, how it was made).

        A zip gives name, size and CRC-32 from its directory; a folder of at most 1 GiB the sha256 of each file; a
        larger one only names and sizes, which a changed byte does not move. What cannot be read (a FIFO, a link to
        nothing) stands there as such: whoever opens it says so. Raises MissingFiles where a file has gone.
        """
        ordered = sorted(names)
        known = [self._facts(name) for name in ordered]
        if self.entries is not None:
            how = "name, size and CRC-32 of each entry"
        elif sum(max(size, 0) for size, _ in known) <= HASHED:
            how = "sha256 of each file"
            known = [(size, fact or self._sha256(name)) for name, (size, fact) in zip(ordered, known, strict=True)]
        else:
            how = "name and size of each file"
        total = hashlib.sha256(how.encode())
        for name, (size, fact) in zip(ordered, known, strict=True):
            total.update(f"{name}\0{size}\0{fact}\n".encode("utf-8", "surrogateescape"))
        return total.hexdigest(), how

    def _facts(self, name: str) -> tuple[int, str]:
        """(bytes, CRC-32 of a zip's entry, "" of a file), or (-1, what it is) of what cannot be read."""
        if self.entries is not None:
            if self.prefix + name not in self.entries and self.exists(name):
                return -1, "a folder"
            entry = self._entry(name)
            return entry.size, f"{entry.crc:08x}"
        path = self.path / self.prefix / _contained(name)
        try:
            facts = os.stat(path)
        except OSError as cause:
            if os.path.lexists(path):
                return -1, "unreadable"
            raise MissingFiles(f"{shown(path)} cannot be read: {cause.strerror}") from cause
        found = kind(facts.st_mode) or ("too large" if facts.st_size > LARGEST else "")
        return (-1, found) if found else (facts.st_size, "")

    def _sha256(self, name: str) -> str:
        try:
            return hashlib.sha256(self.read(name)).hexdigest()
        except MissingFiles:
            raise
        except DatasetError:
            return "unreadable"

    def _entry(self, name: str) -> Entry:
        if self.entries is None or (entry := self.entries.get(self.prefix + name)) is None:
            raise MissingFiles(f"{self} holds no {name}")
        return entry

    def _entries_under(self, under: str) -> Iterator[str]:
        start, skip = self.prefix + _slashed(under), len(self.prefix)
        inside = [name[skip:] for name in (*(self.entries or ()), *self.empty) if name.startswith(start)]
        above = {f"{name[:place]}/" for name in inside for place in _slashes(name) if place >= len(start) - skip}
        return iter({name for name in inside if name != _slashed(under)} | above)

    def _walk(self, under: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
        folder = self.path / self.prefix / under
        here = _identity(folder)
        if here in above:  # a link to a folder above would be walked for ever
            return
        for item in _scan(folder):
            name = _slashed(under) + item.name
            if item.is_dir():
                yield f"{name}/"
                yield from self._walk(name, (*above, here))
            else:
                yield name


def missing(what: str, names: Sequence[str], layout: str) -> MissingFiles:
    """The error for absent files: all of them (of very many the first 200 and their count) and the expected layout."""
    listed = ", ".join(map(shown, names[:_LISTED]))
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return MissingFiles(f"{what} lacks {len(names):,} of the files that it needs: {listed}{more}.\nExpected:\n{layout}")


def in_number_order(name: str) -> tuple[list[tuple[str, int]], str]:
    """The key that sorts names with the numbers in them as numbers: 2.png before 10.png, as 02.png before 10.png.

    The one rule for whatever follows each other in time: frames and their masks.
    """
    pieces = re.split(r"(\d+)", name)
    numbers = [int(piece) for piece in pieces[1::2]]
    return list(zip(pieces[::2], [*numbers, -1], strict=True)), name


def _slashes(name: str) -> list[int]:
    return [place for place, letter in enumerate(name) if letter == "/"]


def _slashed(folder: str) -> str:
    return f"{folder.strip('/')}/" if folder else ""


def _hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in parts)


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
        if limit is None:
            return read_regular(path, limit=LARGEST)
        with open_regular(path, limit=LARGEST) as file:
            return file.read(limit)
    except (FileNotFoundError, NotADirectoryError) as cause:
        if os.path.islink(path):
            raise DatasetError(f"{shown(path)} is a link to {shown(os.readlink(path))}, which is not there") from cause
        raise MissingFiles(f"{shown(path)} does not exist") from cause
    except (NotARegularFile, FileTooLarge) as cause:
        raise DatasetError(str(cause)) from cause
    except OSError as cause:
        raise DatasetError(f"{shown(path)} cannot be read: {cause.strerror}") from cause


def _directory(path: Path) -> tuple[dict[str, Entry], frozenset[str]]:
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            infos, length = archive.infolist(), os.fstat(file.fileno()).st_size
    except NotARegularFile as cause:
        raise DatasetError(str(cause)) from cause
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as cause:
        raise DatasetError(f"{shown(path)} is neither a folder nor a readable .zip: {cause}") from cause
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
            raise DatasetError(f"{path} names {shown(name)} twice; it is not defined which of them counts")
        if info.header_offset < 0 or info.header_offset + info.compress_size > length:
            raise DatasetError(
                f"{path}: {shown(name)} claims {info.compress_size:,} bytes, more than the archive holds"
            )
        entries[name] = Entry(info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type)
    return entries, frozenset(folders)


def _safe_parts(path: Path, info: zipfile.ZipInfo) -> list[str]:
    name = info.filename.replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or ":" in name.split("/")[0]:
        raise DatasetError(
            f"{path} holds the name {shown(info.filename)!r}, which leads out of the archive; it is not read"
        )
    if info.flag_bits & 0x1:
        raise DatasetError(f"{path} is protected by a password ({shown(info.filename)}); give one without")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = info.compress_type
        raise DatasetError(
            f"{path}: {shown(info.filename)} is packed by method {method}; only stored and deflated are read"
        )
    if info.file_size > LARGEST:
        raise DatasetError(f"{path}: {shown(info.filename)} claims {info.file_size:,} bytes, more than {LARGEST:,}")
    return [part for part in name.split("/") if part not in ("", ".")]


def _inflated(path: Path, entry: Entry, name: str) -> bytes:
    try:
        with open_regular(path) as file:
            file.seek(entry.offset)
            signature, name_length, extra_length = _LOCAL.unpack(file.read(_LOCAL.size))
            file.seek(name_length + extra_length, os.SEEK_CUR)
            packed = file.read(entry.packed)
        # max_length 0 would mean "no limit"; one byte more than claimed shows an entry that lies
        data = packed if entry.method == 0 else zlib.decompressobj(-15).decompress(packed, entry.size + 1)
    except FileNotFoundError as cause:
        raise MissingFiles(f"{path} does not exist any more") from cause
    except (OSError, struct.error, zlib.error) as cause:
        raise DatasetError(f"{path}: {shown(name)} cannot be read: {cause}") from cause
    if signature != b"PK\x03\x04" or len(data) != entry.size or zlib.crc32(data) != entry.crc:
        raise DatasetError(f"{path}: {shown(name)} is damaged (size or CRC-32 differ from the directory)")
    return data
