"""Fetches one file from an address into the cache, so that what lies there is whole, is the right file, or is not there.

A download goes to `<name>.part`, with `<name>.part.json` (address, ETag or Last-Modified, length) beside it, is checked,
flushed and renamed. What an interrupted one left is continued by a Range request (RFC 9110, sections 13.1.5 and 14),
and started anew where the server sends no ranges or has another file by now. Two processes that want the same file take
turns by a lock on its folder. Where nobody publishes a sha256, the digest of the first download is written to
`<name>.sha256` (the form that `sha256sum --check` reads) and later downloads are held to it.

    fetch(Wanted("https://host/vit.pth", Path("cache/vit.pth"), sha256="..."))

Standard library only; proxies are those of the environment (https_proxy, no_proxy).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from evalkit.errors import DigestMismatch, FetchError, UsageError
from evalkit.version import __version__

BLOCK = 1 << 20
"""Bytes read, written and reported at a time."""

HOPS = 10
"""Redirects that are followed."""

LONGEST_WAIT = 60.0
"""Seconds between two attempts at most, whatever the server asks for."""

POLL = 0.2
"""Seconds between two looks at a lock that another process holds."""

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Status codes that may be gone at the next attempt."""

REDIRECTS = frozenset({301, 302, 303, 307, 308})
PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|body|script|meta|title|\?xml|!--)", re.IGNORECASE)
READ_ERRORS = (OSError, http.client.HTTPException)


@dataclass(frozen=True)
class Wanted:
    """One file. url: https, http or file. target: where it shall lie. id: what messages call it. origin: a page for people.

    sha256, sha256_prefix, md5_prefix: what its authors publish, in hexadecimal, "" where they do not. size: in bytes,
    0 where it is not known. twin: another place of the same file, whose recorded digest counts here too.
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


class _Passing(Exception):
    """What may be gone at the next attempt. after: seconds that the server asks to wait."""

    def __init__(self, what: str, after: float = 0.0) -> None:
        super().__init__(what)
        self.after = after


class _Changed(Exception):
    """The server has another file than the one whose beginning we hold."""


@dataclass
class _Answer:
    """What came back: status 200, 206 or 416, headers, and the body."""

    status: int
    headers: Message
    body: Any


def mirrored(url: str, mirror: str) -> str:
    """The address under a mirror: scheme and host are replaced by `mirror`, path and query are appended unchanged.

    https://host/a/b.pth under http://10.0.0.5:8000/zoo is http://10.0.0.5:8000/zoo/a/b.pth; under file:///mnt/zoo it is
    file:///mnt/zoo/a/b.pth. Raises UsageError for a mirror that is no http, https or file address, or has a query.
    """
    given = urllib.parse.urlsplit(mirror)
    hosted = given.scheme in ("http", "https") and given.netloc
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
        digest = record_path(target).read_text("utf-8").split()[:1]
    except (OSError, UnicodeDecodeError):
        return ""
    return digest[0] if digest and re.fullmatch(r"[0-9a-f]{64}", digest[0]) else ""


def fetch(wanted: Wanted, conduct: Conduct | None = None) -> bool:
    """Sees to it that `wanted.target` is there and right; False where it was already.

    Raises FetchError (address, network, disk, a web page in place of a file), DigestMismatch where another file came.
    A KeyboardInterrupt keeps what has arrived; the next call goes on from there.
    """
    conduct = conduct or Conduct()
    with _disk(wanted.target):
        if _is_there(wanted, conduct):
            return False
        wanted.target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(wanted.target.parent, conduct) as locked:
            if _is_there(wanted, conduct):  # another process was faster
                return False
            _Transfer(wanted, conduct, locked).run()
    return True


def _is_there(wanted: Wanted, conduct: Conduct) -> bool:
    if not wanted.target.is_file():
        return False
    expected = wanted.sha256 or recorded(wanted.held_by)
    digest = _digest(wanted.target, "sha256")
    if expected and digest != expected:
        conduct.say(f"{wanted.target} is not what it was (sha256 {digest}, expected {expected}): fetching it again")
        return False
    _check_published(wanted, wanted.target, digest, str(wanted.target))
    if not expected:
        _record(wanted.target, digest)
    return True


class _Transfer:
    """One file on its way, while nobody else writes it."""

    def __init__(self, wanted: Wanted, conduct: Conduct, locked: bool) -> None:
        self.wanted, self.conduct = wanted, conduct
        own = "" if locked else f".{os.getpid()}"
        self.part = wanted.target.with_name(f"{wanted.target.name}{own}.part")
        self.notes = self.part.with_name(self.part.name + ".json")
        self.resumed = False

    def run(self) -> None:
        """Download, check, rename. A continued file that turns out wrong is fetched once more as a whole."""
        self._receive()
        try:
            digest = self._check()
        except DigestMismatch as mismatch:
            self._discard()
            if not self.resumed:
                raise
            self.conduct.say(f"{mismatch}\nwhat was continued does not fit together: once more from the beginning")
            self.resumed = False
            self._receive()
            try:
                digest = self._check()
            except DigestMismatch:
                self._discard()
                raise
        if not self.wanted.sha256:
            _record(self.wanted.held_by, digest)
        os.replace(self.part, self.wanted.target)
        self.notes.unlink(missing_ok=True)
        _flush_folder(self.wanted.target.parent)

    def _receive(self) -> None:
        failures, furthest = 0, self._have()
        while True:
            try:
                return self._attempt()
            except _Changed as change:
                self.conduct.say(f"{change}: from the beginning")
                self._discard()
            except _Passing as trouble:
                have = self._have()
                failures = 1 if have > furthest else failures + 1
                furthest = max(have, furthest)
                self._pause(trouble, failures, have)

    def _pause(self, trouble: _Passing, failures: int, have: int) -> None:
        if failures >= self.conduct.attempts:
            kept = f" {have:,} bytes are kept; the same command goes on from there." if have else ""
            raise FetchError(f"{self.wanted.url}: {trouble}; given up after {failures} attempts.{kept}") from None
        seconds = min(max(trouble.after, 2.0 ** (failures - 1)), LONGEST_WAIT)
        self.conduct.say(f"{trouble}; next attempt in {seconds:.0f} s")
        self.conduct.wait(seconds)

    def _attempt(self) -> None:
        """One request, and its body into the part."""
        have = self._resumable()
        validator = self._noted().get("validator", "")
        headers = {"User-Agent": f"evalkit/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        if have and validator:
            headers["If-Range"] = validator
        answer = _open(self.wanted, headers, self.conduct.timeout)
        with contextlib.closing(answer.body):
            start, total = self._agree(answer, have)
            if start < 0:  # the part is already the whole
                return
            self._expect(answer, start, total)
            self._write(answer, start, total)

    def _agree(self, answer: _Answer, have: int) -> tuple[int, int | None]:
        """(first byte that comes, length of the whole); (-1, length) where nothing is missing. Raises _Changed."""
        if answer.status == 200:
            if have:
                self.conduct.say("the server sends no ranges, or has another file by now: from the beginning")
            length = answer.headers.get("Content-Length", "")
            return 0, int(length) if length.isdigit() else None
        found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", answer.headers.get("Content-Range", ""))
        noted = self._noted()
        total = int(found[2]) if found and found[2] != "*" else None
        then, now = noted.get("validator"), _validator(answer.headers)
        if not found or (now and then and now != then) or noted.get("total") not in (None, total):
            raise _Changed("the file on the server is not the one that was begun")
        if answer.status == 416:
            if total != have:
                raise _Changed("the file on the server is shorter than what is here")
            return -1, total
        if found[1] is None or int(found[1]) != have:
            raise _Changed("the server sends another range than the one asked for")
        return have, total

    def _expect(self, answer: _Answer, start: int, total: int | None) -> None:
        """Refuses a body that cannot become the file: wrong length, encoded, without an end that can be told, too large."""
        w = self.wanted
        if answer.headers.get("Content-Encoding", "identity").lower() not in ("identity", ""):
            raise FetchError(f"{w.url}: the server sends it as {answer.headers['Content-Encoding']}, unasked")
        if w.size and total is not None and total != w.size:
            raise FetchError(f"{w.url}: the server has a file of {total:,} bytes, the manifest names {w.size:,}")
        chunked = answer.headers.get("Transfer-Encoding", "").lower() == "chunked"
        if total is None and not (chunked or w.size or w.sha256 or recorded(w.held_by)):
            raise FetchError(
                f"{w.url}: the server does not say how long the file is, so a truncated one could not be told; "
                "give size (bytes) or sha256 in the manifest"
            )
        free = shutil.disk_usage(self.part.parent).free
        if total is not None and total - start > free:
            raise OSError(errno.ENOSPC, f"{total - start:,} bytes are still to come, {free:,} are free")

    def _write(self, answer: _Answer, start: int, total: int | None) -> None:
        done, block = start, self._read(answer)
        if start == 0:
            if PAGE.match(block):
                self._refuse_page(block)
            self._note({"url": self.wanted.url, "validator": _validator(answer.headers), "total": total})
        self.resumed = self.resumed or start > 0
        self.conduct.report(done, total)
        with self.part.open("ab" if start else "wb") as file:
            while block:
                file.write(block)
                done += len(block)
                self.conduct.report(done, total)
                block = self._read(answer)
            file.flush()
            os.fsync(file.fileno())
        end = total if total is not None else self.wanted.size
        if end and done < end:
            raise _Passing(f"the connection ended after {done:,} of {end:,} bytes")
        if end and done > end:
            self._discard()
            raise FetchError(f"{self.wanted.url}: {done:,} bytes came, {end:,} were announced")

    def _read(self, answer: _Answer) -> bytes:
        try:
            block: bytes = answer.body.read(BLOCK)
        except http.client.IncompleteRead as error:
            if not error.partial:
                raise _Passing("the connection ended in the middle of the file") from None
            return error.partial
        except READ_ERRORS as error:
            raise _Passing(f"the connection broke ({error or type(error).__name__})") from None
        return block

    def _refuse_page(self, block: bytes) -> None:
        begin = " ".join(block[:200].decode("utf-8", "replace").split())[:60]
        page = f" The page for people is {self.wanted.origin}" if self.wanted.origin else ""
        raise FetchError(
            f"{self.wanted.url} answers with a web page and not with a checkpoint (it begins {begin!r}): it may need a "
            f"login, a permission or a click.{page}"
        )

    def _check(self) -> str:
        """The sha256 of the part. Raises DigestMismatch with both digests and what to do."""
        w = self.wanted
        digest = _digest(self.part, "sha256")
        first = recorded(w.held_by)
        if w.sha256 and digest != w.sha256:
            raise DigestMismatch(
                f"{w.url} is not the file that the manifest of {w.id or w.target.name} names: sha256 {digest}, expected "
                f"{w.sha256}. Nothing of it was kept. If its authors replaced it ({w.origin or 'see their page'}), correct "
                "sha256 in the manifest; if not, do not use it"
            )
        if not w.sha256 and first and digest != first:
            raise DigestMismatch(
                f"{w.url} has changed since it was first fetched: sha256 {digest} now, {first} then. Nothing of it was kept. "
                f"If its authors replaced it on purpose, remove {record_path(w.held_by)} and run the same command again"
            )
        _check_published(w, self.part, digest, w.url)
        return digest

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _resumable(self) -> int:
        """Bytes to continue from: only of the same address, and where a changed file would be noticed."""
        have, noted = self._have(), self._noted()
        safe = noted.get("validator") or self.wanted.sha256 or recorded(self.wanted.held_by)
        if have and safe and noted.get("url") == self.wanted.url:
            return have
        self._discard()
        return 0

    def _noted(self) -> dict[str, Any]:
        try:
            content = json.loads(self.notes.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _note(self, content: dict[str, Any]) -> None:
        self.notes.write_text(json.dumps(content), "utf-8")

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)


def _check_published(wanted: Wanted, path: Path, digest: str, what: str) -> None:
    """Holds a file to the shortened digests that its authors publish."""
    if not digest.startswith(wanted.sha256_prefix):
        raise DigestMismatch(
            f"{what}: its sha256 {digest} does not begin with {wanted.sha256_prefix}, which its authors publish; "
            "it is another file, do not use it"
        )
    if wanted.md5_prefix and not (md5 := _digest(path, "md5")).startswith(wanted.md5_prefix):
        raise DigestMismatch(
            f"{what}: its md5 {md5} does not begin with {wanted.md5_prefix}, which its authors publish; "
            "it is another file, do not use it"
        )


# ---------------------------------------------------------------- the network


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are followed by `_open`, which looks at each."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _open(wanted: Wanted, headers: dict[str, str], timeout: float) -> _Answer:
    if urllib.parse.urlsplit(wanted.url).scheme == "file":
        return _open_file(wanted.url, headers)
    opener = urllib.request.build_opener(_NoRedirect)
    trail = [wanted.url]
    while True:
        answer = _request(opener, urllib.request.Request(_web(trail[-1]), headers=headers), timeout, wanted)
        if isinstance(answer, _Answer):
            return answer
        trail.append(_next(trail, answer))


def _request(
    opener: urllib.request.OpenerDirector, request: urllib.request.Request, timeout: float, wanted: Wanted
) -> _Answer | str:
    """The answer, or the Location of a redirect."""
    try:
        response = opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            return _refused(error, request.full_url, wanted)
    except (urllib.error.URLError, *READ_ERRORS, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, (ssl.SSLCertVerificationError, ValueError)):
            raise FetchError(f"{request.full_url}: {reason}") from None
        raise _Passing(f"{urllib.parse.urlsplit(request.full_url).netloc} cannot be reached ({reason})") from None
    if response.status not in (200, 206):
        response.close()
        raise FetchError(f"{request.full_url}: the server answers {response.status} {response.reason}")
    return _Answer(response.status, response.headers, response)


def _refused(error: urllib.error.HTTPError, url: str, wanted: Wanted) -> _Answer | str:
    if error.code in REDIRECTS:
        return str(error.headers.get("Location", ""))
    if error.code == 416:
        return _Answer(416, error.headers, io.BytesIO())
    if error.code in PASSING:
        raise _Passing(f"the server answers {error.code} {error.reason}", _retry_after(error.headers))
    told = {404: "the file is not there", 410: "the file is not there any more"}
    hint = told.get(error.code, "access is refused" if error.code in (401, 403) else "")
    page = f"; see {wanted.origin}" if wanted.origin else ""
    raise FetchError(f"{url}: the server answers {error.code} {error.reason}{f' ({hint})' if hint else ''}{page}")


def _web(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise FetchError(f"{url}: only https, http and file addresses are fetched")
    return url


def _next(trail: list[str], location: str) -> str:
    """The address that a redirect leads to. Raises FetchError for a circle, too many, or less safety than before."""
    here = trail[-1]
    target = urllib.parse.urljoin(here, urllib.parse.quote(location, safe="%/:=&?~#+!$,;'@()*[]"))
    if not location:
        raise FetchError(f"{here} redirects without saying where to")
    scheme = urllib.parse.urlsplit(target).scheme
    if scheme not in ("http", "https") or (here.startswith("https:") and scheme == "http"):
        raise FetchError(f"{here} redirects to {target}: from https only to https, and never to a {scheme} address")
    if target in trail:
        raise FetchError(f"the redirects go in a circle: {' -> '.join([*trail, target])}")
    if len(trail) > HOPS:
        raise FetchError(f"{trail[0]}: more than {HOPS} redirects, the last to {target}")
    return target


def _open_file(url: str, headers: dict[str, str]) -> _Answer:
    """A file of this machine, answered as a server with ranges would."""
    parts = urllib.parse.urlsplit(url)
    path = Path(urllib.request.url2pathname(parts.path))
    if parts.netloc not in ("", "localhost"):
        raise FetchError(f"{url}: a file address names no other machine (file:///path)")
    try:
        body = path.open("rb")
    except OSError as error:
        raise FetchError(f"{path} cannot be read: {error.strerror}") from None
    state = os.fstat(body.fileno())
    told = Message()
    told["ETag"] = f'"{state.st_mtime_ns:x}-{state.st_size:x}"'
    start = int(headers.get("Range", "bytes=0-")[6:-1])
    if start and start >= state.st_size:
        told["Content-Range"] = f"bytes */{state.st_size}"
        return _Answer(416, told, body)
    body.seek(start)
    told["Content-Length"] = str(state.st_size - start)
    told["Content-Range"] = f"bytes {start}-{state.st_size - 1}/{state.st_size}"
    return _Answer(206 if start else 200, told, body)


def _validator(headers: Message) -> str:
    """A strong ETag, else Last-Modified, else "": what If-Range may carry."""
    tag = headers.get("ETag", "")
    return str(tag if tag.startswith('"') else headers.get("Last-Modified", ""))


def _retry_after(headers: Message) -> float:
    """Seconds, from a number or a date."""
    text = headers.get("Retry-After", "")
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


# ---------------------------------------------------------------- the disk


@contextlib.contextmanager
def _disk(target: Path) -> Iterator[None]:
    """Turns what the disk says into one line."""
    try:
        yield
    except OSError as error:
        where = error.filename or target.parent
        what = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FetchError(
                f"no space left for {target}: {what}. What has arrived is kept; make room, or choose another cache with "
                "EVALKIT_CACHE, and run the same command again"
            ) from None
        raise FetchError(
            f"{where} cannot be written: {what}. Choose another cache with EVALKIT_CACHE or --out"
        ) from None


@contextlib.contextmanager
def _alone(folder: Path, conduct: Conduct) -> Iterator[bool]:
    """Holds the folder's lock; yields False where there are no locks (then each process has a part of its own)."""
    try:
        import fcntl
    except ImportError:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(handle, fcntl, conduct)
    finally:
        os.close(handle)


def _lock(handle: int, fcntl: Any, conduct: Conduct) -> bool:
    told = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                conduct.say("another process is fetching this file: waiting for it")
            told = True
            conduct.wait(POLL)
        except OSError:  # a file system without locks
            return False
        else:
            return True


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _record(target: Path, digest: str) -> None:
    path = record_path(target)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(f"{digest}  {target.name}\n", "utf-8")
    os.replace(temporary, path)


def _flush_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system lets folders be flushed
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
