"""Who may change something at the demo page, and how much: ASGI middleware in front of gradio.

A page of another site can post to this machine from a person's browser without being asked (a "simple" request needs no
permission); it cannot keep the browser from saying where it comes from, in `Origin` and `Sec-Fetch-Site`. Uploads are
bounded in bytes, in number at a time, and in what stays on the disk: the oldest files go first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from evalkit.reporting.demo.photos import Limits

App = Callable[[Any, Any, Any], Awaitable[None]]

AT_ONCE = 4
"""Uploads that arrive at the same time."""

KEPT, TIMES = 256, 10
"""What stays in the folder of uploads and of drawn pictures: so many files, and so many times the largest upload."""

FRAME = 64 << 10
"""Bytes of a form around its file."""


class Gate:
    """Refuses what comes from other sites, and uploads beyond the limits. folder: where uploads lie."""

    def __init__(self, app: App, folder: Path, limits: Limits) -> None:
        self._app, self._folder = app, folder
        self._most = int(limits.max_mb * 1e6)
        self._arriving = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        if is_foreign(headers, reads=scope.get("method") in ("GET", "HEAD")):
            return await _refuse(scope, send, 403, "this page answers to itself only")
        if scope.get("method") == "POST" and scope["path"].rstrip("/").endswith("/upload"):
            return await self._upload(headers, scope, receive, send)
        return await self._app(scope, receive, send)

    async def _upload(self, headers: Mapping[str, str], scope: Any, receive: Any, send: Any) -> None:
        said = headers.get("content-length", "0")
        if not said.isdecimal() or int(said) > self._most + FRAME:
            await _drain(receive, TIMES * self._most)
            return await _refuse(scope, send, 413, f"an upload has at most {self._most / 1e6:g} MB")
        if self._arriving >= AT_ONCE:
            await _drain(receive, TIMES * self._most)
            return await _refuse(scope, send, 429, f"{AT_ONCE} uploads are arriving; try again")
        self._arriving += 1
        try:
            await self._counted(scope, receive, send)
        finally:
            self._arriving -= 1
            tidy(self._folder, KEPT, TIMES * self._most)

    async def _counted(self, scope: Any, receive: Any, send: Any) -> None:
        """The upload, cut off where more comes than its length said or than is allowed."""
        left, over = self._most + FRAME, False

        async def measured() -> Any:
            nonlocal left, over
            message = await receive()
            left -= len(message.get("body", b""))
            over = over or left < 0
            return {"type": "http.disconnect"} if over else message

        async def sent(message: Any) -> None:
            if not over:
                await send(message)

        try:
            await self._app(scope, measured, sent)
        except Exception:
            if not over:
                raise
        if over:
            await _drain(receive, TIMES * self._most)
            await _refuse(scope, send, 413, f"an upload has at most {self._most / 1e6:g} MB")


def is_foreign(headers: Mapping[str, str], *, reads: bool) -> bool:
    """Whether a request comes from a page of another site, port or scheme-less place. reads: it changes nothing, and a link
    may lead here. headers: names in small letters. A tool that is no browser says nothing of where it comes from."""
    origin = headers.get("origin")
    if origin is not None:
        return _place(origin) != headers.get("host", "").lower() or origin == "null"
    return not reads and headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


def _place(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


async def _drain(receive: Any, most: int) -> None:
    """Read what still comes and forget it: a browser that is not listened to shows no answer."""
    while most > 0:
        message = await receive()
        most -= len(message.get("body", b"")) or 1
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


def tidy(folder: Path, files: int, size: int) -> None:
    """Remove the oldest files until so many, and so many bytes, are left."""
    held = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file():
                held.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    total = sum(weight for _, weight, _ in held)
    for count, (_, weight, path) in zip(range(len(held), 0, -1), sorted(held), strict=True):
        if count <= files and total <= size:
            return
        path.unlink(missing_ok=True)
        total -= weight


async def _refuse(scope: Any, send: Any, status: int, why: str) -> None:
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008})  # type: ignore[no-any-return]
    body = why.encode()
    head = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*head, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
