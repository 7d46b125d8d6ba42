"""One file on its way: attempts, ranges, what is kept of an interrupted one, and the checks before it is put in place."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import re
import shutil
from typing import Any

from evalkit.download.disk import flush
from evalkit.download.wanted import Conduct, Wanted, check_published, digest_of, record, record_path, recorded, why_not
from evalkit.download.web import READ_ERRORS, Answer, Passing, opened, validator_of
from evalkit.errors import DigestMismatch, FetchError
from evalkit.files import read_regular
from evalkit.version import __version__

BLOCK = 1 << 20
"""Bytes read, written and reported at a time."""

LONGEST_WAIT = 60.0
"""Seconds between two attempts at most, whatever the server asks for."""

PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|body|script|meta|title|\?xml|!--)", re.IGNORECASE)


class Changed(Exception):
    """The server has another file than the one whose beginning we hold."""


class Transfer:
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
        if why := why_not(self.wanted, self.part):
            self._discard()
            raise FetchError(f"{why}\nnothing of it was kept; {self.wanted.id or 'it'} needs another file")
        if not self.wanted.sha256:
            record(self.wanted.held_by, digest)
        os.replace(self.part, self.wanted.target)
        self.notes.unlink(missing_ok=True)
        flush(self.wanted.target.parent)

    def _receive(self) -> None:
        failures, furthest = 0, self._have()
        while True:
            try:
                return self._attempt()
            except Changed as change:
                self.conduct.say(f"{change}: from the beginning")
                self._discard()
            except Passing as trouble:
                have = self._have()
                failures = 1 if have > furthest else failures + 1
                furthest = max(have, furthest)
                self._pause(trouble, failures, have)

    def _pause(self, trouble: Passing, failures: int, have: int) -> None:
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
        answer = opened(self.wanted, headers, self.conduct.timeout)
        with contextlib.closing(answer.body):
            start, total = self._agree(answer, have)
            if start < 0:  # the part is already the whole
                return
            self._expect(answer, start, total)
            self._write(answer, start, total)

    def _agree(self, answer: Answer, have: int) -> tuple[int, int | None]:
        """(first byte that comes, length of the whole); (-1, length) where nothing is missing. Raises Changed."""
        if answer.status == 200:
            if have:
                self.conduct.say("the server sends no ranges, or has another file by now: from the beginning")
            length = answer.headers.get("Content-Length", "")
            return 0, int(length) if length.isdigit() else None
        found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", answer.headers.get("Content-Range", ""))
        noted = self._noted()
        total = int(found[2]) if found and found[2] != "*" else None
        then, now = noted.get("validator"), validator_of(answer.headers)
        if not found or (now and then and now != then) or noted.get("total") not in (None, total):
            raise Changed("the file on the server is not the one that was begun")
        if answer.status == 416:
            if total != have:
                raise Changed("the file on the server is shorter than what is here")
            return -1, total
        if found[1] is None or int(found[1]) != have:
            raise Changed("the server sends another range than the one asked for")
        return have, total

    def _expect(self, answer: Answer, start: int, total: int | None) -> None:
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

    def _write(self, answer: Answer, start: int, total: int | None) -> None:
        done, block = start, self._read(answer)
        if start == 0:
            if PAGE.match(block):
                self._refuse_page(block)
            self._note({"url": self.wanted.url, "validator": validator_of(answer.headers), "total": total})
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
            raise Passing(f"the connection ended after {done:,} of {end:,} bytes")
        if end and done > end:
            self._discard()
            raise FetchError(f"{self.wanted.url}: {done:,} bytes came, {end:,} were announced")

    def _read(self, answer: Answer) -> bytes:
        try:
            block: bytes = answer.body.read(BLOCK)
        except http.client.IncompleteRead as error:
            if not error.partial:
                raise Passing("the connection ended in the middle of the file") from None
            return error.partial
        except READ_ERRORS as error:
            raise Passing(f"the connection broke ({error or type(error).__name__})") from None
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
        digest = digest_of(self.part, "sha256")
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
        check_published(w, self.part, digest, w.url)
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
            content = json.loads(read_regular(self.notes))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _note(self, content: dict[str, Any]) -> None:
        self.notes.write_text(json.dumps(content), "utf-8")

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)
