"""One request: redirects looked at one by one, and what the server says as words or as something that may pass."""

from __future__ import annotations

import http.client
import io
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from evalkit.download.wanted import Wanted
from evalkit.errors import FetchError
from evalkit.files import open_regular

HOPS = 10
"""Redirects that are followed."""

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Status codes that may be gone at the next attempt."""

REDIRECTS = frozenset({301, 302, 303, 307, 308})
READ_ERRORS = (OSError, http.client.HTTPException)


class Passing(Exception):
    """What may be gone at the next attempt. after: seconds that the server asks to wait."""

    def __init__(self, what: str, after: float = 0.0) -> None:
        super().__init__(what)
        self.after = after


@dataclass
class Answer:
    """What came back: status 200, 206 or 416, headers, and the body."""

    status: int
    headers: Message
    body: Any


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are followed by `opened`, which looks at each."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def opened(wanted: Wanted, headers: dict[str, str], timeout: float) -> Answer:
    """The answer to a request with these headers, after redirects. Raises Passing, or FetchError where trying again is idle."""
    if urllib.parse.urlsplit(wanted.url).scheme == "file":
        return _open_file(wanted.url, headers)
    opener = urllib.request.build_opener(_NoRedirect)
    trail = [wanted.url]
    while True:
        answer = _request(opener, urllib.request.Request(_web(trail[-1]), headers=headers), timeout, wanted)
        if isinstance(answer, Answer):
            return answer
        trail.append(_next(trail, answer))


def _request(
    opener: urllib.request.OpenerDirector, request: urllib.request.Request, timeout: float, wanted: Wanted
) -> Answer | str:
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
        raise Passing(f"{urllib.parse.urlsplit(request.full_url).netloc} cannot be reached ({reason})") from None
    if response.status not in (200, 206):
        response.close()
        raise FetchError(f"{request.full_url}: the server answers {response.status} {response.reason}")
    return Answer(response.status, response.headers, response)


def _refused(error: urllib.error.HTTPError, url: str, wanted: Wanted) -> Answer | str:
    if error.code in REDIRECTS:
        return str(error.headers.get("Location", ""))
    if error.code == 416:
        return Answer(416, error.headers, io.BytesIO())
    if error.code in PASSING:
        raise Passing(f"the server answers {error.code} {error.reason}", _retry_after(error.headers))
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


def _open_file(url: str, headers: dict[str, str]) -> Answer:
    """A file of this machine, answered as a server with ranges would."""
    parts = urllib.parse.urlsplit(url)
    path = Path(urllib.request.url2pathname(parts.path))
    if parts.netloc not in ("", "localhost"):
        raise FetchError(f"{url}: a file address names no other machine (file:///path)")
    try:
        body = open_regular(path)
    except OSError as error:
        raise FetchError(f"{path} cannot be read: {error.strerror}") from None
    state = os.fstat(body.fileno())
    told = Message()
    told["ETag"] = f'"{state.st_mtime_ns:x}-{state.st_size:x}"'
    start = int(headers.get("Range", "bytes=0-")[6:-1])
    if start and start >= state.st_size:
        told["Content-Range"] = f"bytes */{state.st_size}"
        return Answer(416, told, body)
    body.seek(start)
    told["Content-Length"] = str(state.st_size - start)
    told["Content-Range"] = f"bytes {start}-{state.st_size - 1}/{state.st_size}"
    return Answer(206 if start else 200, told, body)


def validator_of(headers: Message) -> str:
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
