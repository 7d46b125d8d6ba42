"""What is to be fetched and how, and the digests that a file is held to."""

from __future__ import annotations

import hashlib
import re
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evalkit.errors import DigestMismatch, EvalkitError, UsageError
from evalkit.files import open_regular, read_regular, shown, write_atomically


@dataclass(frozen=True)
class Wanted:
    """One file. url: https, http or file. target: where it shall lie. id: what messages call it. origin: a page for people.

    sha256, sha256_prefix, md5_prefix: what its authors publish, in hexadecimal, "" where they do not. size: in bytes,
    0 where it is not known. twin: another place of the same file, whose recorded digest counts here too. opens: raises an
    EvalkitError for a file that is not what is wanted, where no digest says so. given: the file at `url`, got by hand.
    """

    url: str
    target: Path
    id: str = ""
    origin: str = ""
    sha256: str = ""
    sha256_prefix: str = ""
    md5_prefix: str = ""
    size: int = 0
    twin: Path | None = None
    opens: Callable[[Path], object] | None = None
    given: Path | None = None

    @property
    def held_by(self) -> Path:
        """The file beside which the digest of the first download lies, or will lie."""
        return self.twin if self.twin is not None and recorded(self.twin) else self.target


@dataclass(frozen=True)
class Conduct:
    """How to go about it. report: called with (bytes there, bytes in all or None). say: called with one line of news.

    wait: sleeps so many seconds. attempts: in a row without a new byte before giving up. timeout: seconds of silence.
    """

    report: Callable[[int, int | None], None] = lambda done, total: None
    say: Callable[[str], None] = lambda line: None
    wait: Callable[[float], None] = time.sleep
    attempts: int = 5
    timeout: float = 30.0


def mirrored(url: str, mirror: str) -> str:
    """The address under a mirror: scheme and host are replaced by `mirror`, path and query are appended unchanged.

    https://host/a/b.pth under http://10.0.0.5:8000/zoo is http://10.0.0.5:8000/zoo/a/b.pth; under file:///mnt/zoo it is
    file:///mnt/zoo/a/b.pth. Raises UsageError for a mirror that is no http, https or file address, or has a query.
    """
    try:
        given = urllib.parse.urlsplit(mirror)
        hosted = bool(given.scheme in ("http", "https") and given.hostname and given.port != 0)
    except ValueError as error:  # half an IPv6 address, a port that is none
        raise UsageError(f"mirror {mirror!r}: no address ({error})") from None
    local = given.scheme == "file" and given.netloc in ("", "localhost") and given.path.startswith("/")
    if not (hosted or local) or given.query or given.fragment:
        raise UsageError(f"mirror {mirror!r}: it is http://HOST[/PATH], https://HOST[/PATH] or file:///PATH")
    asked = urllib.parse.urlsplit(url)
    query = f"?{asked.query}" if asked.query and hosted else ""
    return mirror.rstrip("/") + asked.path + query


def record_path(target: Path) -> Path:
    """Where the digest of the first download of a file is kept."""
    return target.with_name(target.name + ".sha256")


def recorded(target: Path) -> str:
    """The sha256 that the first download of this file had, "" where there was none."""
    try:
        digest = read_regular(record_path(target)).decode("utf-8").split()[:1]
    except (OSError, UnicodeDecodeError):
        return ""
    return digest[0] if digest and re.fullmatch(r"[0-9a-f]{64}", digest[0]) else ""


def record(target: Path, digest: str) -> None:
    """Keeps the digest of a first download, whole or not at all."""
    write_atomically(record_path(target), lambda part: part.write_text(f"{digest}  {target.name}\n", "utf-8"))


def digest_of(path: Path, algorithm: str) -> str:
    """Of a file, in hexadecimal; algorithm: a name that hashlib knows."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def why_not(wanted: Wanted, path: Path) -> str:
    """Why a file does not open as what is wanted, in a line; "" where it does, or a digest says that it is right."""
    if wanted.opens is None or wanted.sha256:
        return ""
    try:
        wanted.opens(path)
    except EvalkitError as error:
        called = shown(wanted.given) if wanted.given is not None else wanted.url
        said = str(error).replace(str(path), called)
        return said if called in said else f"{called}: {said}"
    return ""


def check_published(wanted: Wanted, path: Path, digest: str, what: str) -> None:
    """Holds a file to the shortened digests that its authors publish."""
    if not digest.startswith(wanted.sha256_prefix):
        raise DigestMismatch(
            f"{what}: its sha256 {digest} does not begin with {wanted.sha256_prefix}, which its authors publish; "
            "it is another file, do not use it"
        )
    if wanted.md5_prefix and not (md5 := digest_of(path, "md5")).startswith(wanted.md5_prefix):
        raise DigestMismatch(
            f"{what}: its md5 {md5} does not begin with {wanted.md5_prefix}, which its authors publish; "
            "it is another file, do not use it"
        )
