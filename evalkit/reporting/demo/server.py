"""Serves the demo page to this machine: no share link, no telemetry, nothing from the network, no file but uploads."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.errors import ExtraMissing, UsageError
from evalkit.files import temporary_folder
from evalkit.reporting.demo.gate import Gate
from evalkit.reporting.demo.looker import Looker
from evalkit.reporting.demo.photos import Limits, examples

LOOPBACK = ("127.0.0.1", "localhost")

POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
)
"""What the browser may load for the page: what this server gives, and nothing from elsewhere."""


@dataclass(frozen=True)
class Address:
    """Where to listen. port: 0 takes any that is free."""

    host: str = "127.0.0.1"
    port: int = 7860

    def free(self) -> int:
        """The port, or a free one for 0. Raises UsageError for another machine's host, IPv6, or a taken port."""
        if ":" in self.host:
            raise UsageError(
                f"--host {self.host}: the page listens to a name or an IPv4 address, as 127.0.0.1 or 0.0.0.0"
            )
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
            with socket.socket(found[0], socket.SOCK_STREAM) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind(found[4])
                return int(tried.getsockname()[1])
        except OSError as error:
            raise UsageError(
                f"cannot listen on {self.host}, port {self.port} ({error.strerror}); "
                "choose another --port (0: any that is free), or the default --host"
            ) from None


def environment(folder: Path) -> dict[str, str]:
    """Settings that gradio reads when it is imported. folder: for uploads."""
    return {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(folder),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
    }


@contextmanager
def serving(looker: Looker, address: Address, limits: Limits) -> Iterator[tuple[str, Any]]:
    """Serve while the block runs: gives the page's address, and gradio's Blocks to wait for. Uploads are deleted at the end.

    Raises ExtraMissing without gradio; UsageError where the port is taken, or the looker's size fits no patch.
    """
    port = address.free()
    with temporary_folder("demo") as kept, _settings(environment(kept)):
        gr = _gradio()
        from evalkit.reporting.demo import page
        from evalkit.reporting.demo.desk import Desk

        desk = Desk(looker, tuple(examples(limits)), limits, kept)
        looker.seen(looker.names[0], desk.examples[0])  # what cannot work is said before anybody opens the page
        blocks = page.build(desk)
        blocks.queue(default_concurrency_limit=2, max_size=32, api_open=False)
        try:
            url = _launch(gr, blocks, Address(address.host, port), Path(kept), limits=limits)
            yield url, blocks
        finally:
            blocks.close(verbose=False)


def _launch(gr: Any, blocks: Any, address: Address, folder: Path, *, limits: Limits) -> str:
    from evalkit.reporting.demo.page import STYLE

    _, url, _ = blocks.launch(
        server_name=address.host, server_port=address.port, share=False, inbrowser=False, quiet=True,
        prevent_thread_lock=True, allowed_paths=[], max_file_size=int(limits.max_mb * 1e6), ssr_mode=False, pwa=False,
        mcp_server=False, enable_monitoring=False, run_history=False, footer_links=[], state_session_capacity=16,
        strict_cors=True, css=STYLE, app_kwargs={"middleware": _guards(address.host, folder, limits)},
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )  # fmt: skip
    return str(url)


def _gradio() -> Any:
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise ExtraMissing("the demo page", "demo") from error
    return gradio


@contextmanager
def _settings(wanted: dict[str, str]) -> Iterator[None]:
    """Only these settings of gradio hold: one of the surroundings could open a share link or a folder."""
    dropped = {name: "" for name in os.environ if name.startswith("GRADIO_")}
    near = {name: ",".join(filter(None, [os.environ.get(name), *LOOPBACK])) for name in ("no_proxy", "NO_PROXY")}
    changed = {**dropped, **near, **wanted}  # gradio asks its own address whether it answers, never by a proxy
    before = {name: os.environ.get(name, "") for name in changed}
    _set(changed)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str]) -> None:
    """Environment variables; "" removes one."""
    for name, value in values.items():
        os.environ.pop(name, None)
        if value:
            os.environ[name] = value


def _guards(host: str, folder: Path, limits: Limits) -> list[Any]:
    """Answers carry the policy; other sites' pages change nothing and uploads are bounded (`gate.py`); a page that listens
    to this machine only answers to this machine's names, so that no foreign page can reach it under a name of its own."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    guards = [Middleware(_Headers)]
    if host in LOOPBACK:
        guards.append(Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK]))
    return [*guards, Middleware(Gate, folder=folder, limits=limits)]


class _Headers:
    """ASGI middleware that adds headers to every answer."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = {
                    "content-security-policy": POLICY,
                    "x-content-type-options": "nosniff",
                    "referrer-policy": "no-referrer",
                }
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in extra.items())]
            await send(message)

        await self._app(scope, receive, sent)
