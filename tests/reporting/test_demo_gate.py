"""The demo page's gate: other sites change nothing, uploads are bounded, the oldest files go."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from evalkit.reporting.demo import gate
from evalkit.reporting.demo.photos import Limits

HOST = "127.0.0.1:7860"
SMALL = Limits(max_mb=0.01)


class Behind:
    """The application behind the gate: reads everything, keeps it as a file, says 200."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bodies = folder, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", scope.get("method") == "POST"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RuntimeError("the other side went away")
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies += 1
        if body:
            (self.folder / f"{self.bodies}.bin").write_bytes(body)
            os.utime(self.folder / f"{self.bodies}.bin", ns=(self.bodies, self.bodies))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def asked(app: Any, method: str, path: str, body: tuple[bytes, ...] = (b"",), **headers: str) -> int:
    """The status of an answer. body: in the pieces in which it comes."""
    sent: list[Any] = []
    pieces = [{"type": "http.request", "body": b, "more_body": i < len(body) - 1} for i, b in enumerate(body)]
    coming = iter([*pieces, {"type": "http.disconnect"}])
    raw = [(k.replace("_", "-").encode(), v.encode()) for k, v in ({"host": HOST} | headers).items()]

    async def receive() -> Any:
        return next(coming)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app({"type": "http", "method": method, "path": path, "headers": raw}, receive, send))
    return int(sent[0]["status"])


@pytest.fixture
def app(tmp_path: Path) -> gate.Gate:
    return gate.Gate(Behind(tmp_path), tmp_path, SMALL)


ROUTES = (
    "/gradio_api/upload",
    "/gradio_api/queue/join",
    "/gradio_api/run/predict",
    "/gradio_api/cancel",
    "/gradio_api/reset",
)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://127.0.0.1:8000"},  # another server of this machine
        {"origin": "http://127.0.0.1.evil.example:7860"},
        {"origin": "null"},
        {"origin": "http://[::1"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ],
)
def test_other_sites_change_nothing(app: gate.Gate, tmp_path: Path, path: str, headers: dict[str, str]) -> None:
    assert asked(app, "POST", path, (b"x",), **headers) == 403
    assert not list(tmp_path.iterdir())


def test_the_page_itself_tools_and_links_are_let_in(app: gate.Gate) -> None:
    assert asked(app, "POST", ROUTES[0], (b"x",), origin=f"http://{HOST}", sec_fetch_site="same-origin") == 200
    assert asked(app, "POST", ROUTES[1], (b"x",)) == 200
    assert asked(app, "GET", "/", sec_fetch_site="cross-site") == 200
    assert asked(app, "GET", "/config", origin="https://evil.example") == 403


def test_an_upload_that_is_too_large_is_refused_by_what_it_says_and_by_what_it_is(
    app: gate.Gate, tmp_path: Path
) -> None:
    assert asked(app, "POST", ROUTES[0], (b"x",), content_length=str(10**9)) == 413
    assert asked(app, "POST", ROUTES[0], (b"x",), content_length="-5") == 413
    assert asked(app, "POST", ROUTES[0], (b"x" * 50_000, b"x" * 50_000), content_length="10") == 413
    assert not list(tmp_path.iterdir())


def test_uploads_at_a_time_are_bounded(tmp_path: Path) -> None:
    async def run() -> list[int]:
        opened, statuses = asyncio.Event(), []

        async def waits(scope: Any, receive: Any, send: Any) -> None:
            await opened.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        app = gate.Gate(waits, tmp_path, SMALL)

        async def nothing() -> Any:
            return {"type": "http.request", "body": b""}

        async def one() -> None:
            async def send(message: Any) -> None:
                if "status" in message:
                    statuses.append(message["status"])

            await app({"type": "http", "method": "POST", "path": ROUTES[0], "headers": []}, nothing, send)

        tasks = [asyncio.create_task(one()) for _ in range(gate.AT_ONCE + 2)]
        while len(statuses) < 2:
            await asyncio.sleep(0)
        opened.set()
        await asyncio.gather(*tasks)
        return statuses

    assert asyncio.run(run()) == [429, 429] + [200] * gate.AT_ONCE


def test_the_oldest_uploads_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "KEPT", 3)
    app = gate.Gate(Behind(tmp_path), tmp_path, SMALL)
    for _ in range(5):
        assert asked(app, "POST", ROUTES[0], (b"x",)) == 200
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3.bin", "4.bin", "5.bin"]
    monkeypatch.setattr(gate, "KEPT", 99)
    for _ in range(20):
        asked(app, "POST", ROUTES[0], (b"x" * 10_000,))
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= gate.TIMES * SMALL.max_mb * 1e6
    assert "25.bin" in {p.name for p in tmp_path.iterdir()}
