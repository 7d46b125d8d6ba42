"""Downloads against a server of this machine that breaks off, changes its mind, redirects, lies and stays silent.

No test sleeps: the wait is a list that notes what was asked for. The server counts requests and keeps their headers.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from evalkit.download import Conduct, Wanted, fetch, mirrored, record_path, recorded, transfer
from evalkit.download.disk import told_in_words
from evalkit.download.web import _next
from evalkit.errors import DigestMismatch, FetchError, UsageError
from tests.waiting import HANG, until

CONTENT = b"PK\x03\x04" + bytes(range(256)) * 400
OTHER = b"PK\x03\x04" + bytes(reversed(range(256))) * 400
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Plan:
    """What the server does. cuts: after how many bytes the n-th answer breaks off. statuses: to answer before it works."""

    content: bytes = CONTENT
    etag: str = '"one"'
    modified: str = ""
    ranges: bool = True
    honours_if_range: bool = True
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    says_length: bool = True
    chunked: bool = False
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    hold: threading.Event | None = None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    plan: Plan

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        plan = self.server.plan  # type: ignore[attr-defined]
        plan.asked.append((self.path, dict(self.headers)))
        self.close_connection = True
        if plan.hold is not None:
            plan.hold.wait(HANG)
        if self.path in plan.redirects:
            return self._plain(302, {"Location": plan.redirects[self.path]})
        if plan.statuses:
            return self._plain(plan.statuses.pop(0), {})
        self._file(plan)

    def _plain(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (self.server.plan.headers | headers).items():  # type: ignore[attr-defined]
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _file(self, plan: Plan) -> None:
        start = self._start(plan)
        if start >= len(plan.content):
            return self._plain(416, {"Content-Range": f"bytes */{len(plan.content)}"})
        body = plan.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(plan.content) - 1}/{len(plan.content)}")
        for name, value in {"ETag": plan.etag, "Last-Modified": plan.modified, **plan.headers}.items():
            if value:
                self.send_header(name, value)
        if plan.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif plan.says_length:
            self.send_header("Content-Length", str(plan.length if plan.length is not None else len(body)))
        self.end_headers()
        if plan.cuts:
            body = body[: plan.cuts.pop(0)]
            plan_is_cut = True
        else:
            plan_is_cut = False
        if plan.chunked:
            self.wfile.write(f"{len(body):x}\r\n".encode() + body + (b"" if plan_is_cut else b"\r\n0\r\n\r\n"))
        else:
            self.wfile.write(body)

    def _start(self, plan: Plan) -> int:
        span = self.headers.get("Range", "")
        same = self.headers.get("If-Range", plan.etag) in (plan.etag, plan.modified)
        if not span or not plan.ranges or (plan.honours_if_range and not same):
            return 0
        return int(span.removeprefix("bytes=").removesuffix("-"))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    made = []

    def start(**plan):
        web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        web.daemon_threads = True
        web.plan = Plan(**plan)
        web.url = f"http://127.0.0.1:{web.server_address[1]}"
        threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        made.append(web)
        return web

    yield start
    for web in made:
        web.shutdown()
        web.server_close()


class Watched(Conduct):
    """A conduct that never sleeps and remembers everything."""

    def __init__(self, attempts: int = 5, report=None) -> None:
        waits: list[float] = []
        lines: list[str] = []
        seen: list[tuple[int, int | None]] = []
        super().__init__(
            report=report or (lambda done, total: seen.append((done, total))), say=lines.append, wait=waits.append,
            attempts=attempts, timeout=HANG,
        )  # fmt: skip
        for name, value in (("waits", waits), ("lines", lines), ("seen", seen)):
            object.__setattr__(self, name, value)


def wanted(server, folder: Path, path: str = "/zoo/vit.pth", **fields) -> Wanted:
    return Wanted(server.url + path, folder / "vit.pth", id="vit", **fields)


def ranges(server) -> list[str | None]:
    return [headers.get("Range") for _, headers in server.plan.asked]


def part(folder: Path) -> Path:
    return folder / "vit.pth.part"


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_comes_whole_with_its_progress_and_its_digest(server, tmp_path: Path) -> None:
    web, conduct = server(), Watched()
    assert fetch(wanted(web, tmp_path / "new"), conduct)
    assert (tmp_path / "new/vit.pth").read_bytes() == CONTENT
    assert conduct.seen[0] == (0, len(CONTENT)) and conduct.seen[-1] == (len(CONTENT), len(CONTENT))
    assert left(tmp_path / "new") == ["vit.pth", "vit.pth.sha256"]
    assert recorded(tmp_path / "new/vit.pth") == DIGEST
    check = subprocess.run(["sha256sum", "--check", "vit.pth.sha256"], cwd=tmp_path / "new", capture_output=True)
    assert check.returncode == 0


def test_what_is_there_is_not_fetched_again(server, tmp_path: Path) -> None:
    web = server()
    assert fetch(wanted(web, tmp_path, sha256=DIGEST), Watched())
    assert not fetch(wanted(web, tmp_path, sha256=DIGEST), Watched())
    assert len(web.plan.asked) == 1
    assert left(tmp_path) == ["vit.pth"]  # its authors' digest needs no record


def test_a_damaged_file_is_fetched_again(server, tmp_path: Path) -> None:
    web, conduct = server(), Watched()
    fetch(wanted(web, tmp_path), conduct)
    (tmp_path / "vit.pth").write_bytes(CONTENT[:-1])
    assert fetch(wanted(web, tmp_path), conduct)
    assert (tmp_path / "vit.pth").read_bytes() == CONTENT
    assert "is not what it was" in conduct.lines[0]


def test_a_broken_connection_goes_on_where_it_stopped(server, tmp_path: Path) -> None:
    web, conduct = server(cuts=[50_000, 20_000]), Watched()
    fetch(wanted(web, tmp_path), conduct)
    assert (tmp_path / "vit.pth").read_bytes() == CONTENT
    assert ranges(web) == [None, "bytes=50000-", "bytes=70000-"]
    assert [h.get("If-Range") for _, h in web.plan.asked] == [None, '"one"', '"one"']
    assert conduct.waits == [1.0, 1.0]  # each attempt brought something, so patience begins anew
    assert "50,000 of 102,404 bytes" in conduct.lines[0]


def test_the_next_command_goes_on_too(server, tmp_path: Path) -> None:
    web = server(cuts=[50_000] + [0] * 2)
    with pytest.raises(FetchError, match=r"given up after 3 attempts. 50,000 bytes are kept; the same command goes on"):
        fetch(wanted(web, tmp_path), Watched(attempts=3))
    assert left(tmp_path) == ["vit.pth.part", "vit.pth.part.json"]
    fetch(wanted(web, tmp_path), Watched())
    assert ranges(web)[-1] == "bytes=50000-"
    assert (tmp_path / "vit.pth").read_bytes() == CONTENT


def test_last_modified_stands_in_for_a_weak_etag(server, tmp_path: Path) -> None:
    web = server(cuts=[1000], etag='W/"one"', modified="Tue, 01 Jun 2021 00:00:00 GMT")
    fetch(wanted(web, tmp_path), Watched())
    assert web.plan.asked[1][1]["If-Range"] == "Tue, 01 Jun 2021 00:00:00 GMT"
    assert (tmp_path / "vit.pth").read_bytes() == CONTENT


def test_without_validator_and_digest_nothing_is_continued(server, tmp_path: Path) -> None:
    web = server(cuts=[1000], etag="")
    fetch(wanted(web, tmp_path), Watched())
    assert ranges(web) == [None, None]


def test_with_a_digest_it_is_continued_without_validator(server, tmp_path: Path) -> None:
    web = server(cuts=[1000], etag="")
    fetch(wanted(web, tmp_path, sha256=DIGEST), Watched())
    assert ranges(web) == [None, "bytes=1000-"]


def test_a_continued_file_that_does_not_fit_is_fetched_once_more_as_a_whole(server, tmp_path: Path) -> None:
    web = server(cuts=[1000], etag="")

    def swap(done: int, total: int | None) -> None:
        if done == 1000:  # another file of the same length, and nothing says so
            web.plan.content = OTHER

    conduct = Watched(report=swap)
    fetch(wanted(web, tmp_path, sha256=hashlib.sha256(OTHER).hexdigest()), conduct)
    assert (tmp_path / "vit.pth").read_bytes() == OTHER
    assert ranges(web) == [None, "bytes=1000-", None]
    assert "does not fit together" in conduct.lines[-1]


def test_a_server_without_ranges_starts_anew(server, tmp_path: Path) -> None:
    web, conduct = server(cuts=[1000], ranges=False), Watched()
    fetch(wanted(web, tmp_path), conduct)
    assert ranges(web) == [None, "bytes=1000-"]
    assert (tmp_path / "vit.pth").read_bytes() == CONTENT
    assert any("no ranges" in line for line in conduct.lines)


@pytest.mark.parametrize("honours", [True, False], ids=["If-Range honoured", "If-Range ignored"])
def test_a_file_that_changed_between_its_halves_starts_anew(server, tmp_path: Path, honours: bool) -> None:
    web = server(cuts=[1000], honours_if_range=honours)

    def swap(done: int, total: int | None) -> None:
        if done == 1000:
            web.plan.content, web.plan.etag = OTHER, '"two"'

    fetch(wanted(web, tmp_path), Watched(report=swap))
    assert (tmp_path / "vit.pth").read_bytes() == OTHER


def test_a_part_that_is_already_whole_is_only_checked(server, tmp_path: Path) -> None:
    web = server(cuts=[0] * 5)
    with pytest.raises(FetchError):
        fetch(wanted(web, tmp_path), Watched())
    part(tmp_path).write_bytes(CONTENT)
    assert fetch(wanted(web, tmp_path), Watched())
    assert ranges(web)[-1] == f"bytes={len(CONTENT)}-"
    assert (tmp_path / "vit.pth").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_starts_anew(server, tmp_path: Path) -> None:
    web = server(cuts=[0] * 5)
    with pytest.raises(FetchError):
        fetch(wanted(web, tmp_path), Watched())
    part(tmp_path).write_bytes(CONTENT + b"x")
    fetch(wanted(web, tmp_path), Watched())
    assert (tmp_path / "vit.pth").read_bytes() == CONTENT


def test_a_part_of_another_address_is_not_continued(server, tmp_path: Path) -> None:
    one, two = server(cuts=[1000] + [0] * 4), server(content=OTHER)
    with pytest.raises(FetchError):
        fetch(wanted(one, tmp_path), Watched())
    fetch(wanted(two, tmp_path), Watched())
    assert ranges(two) == [None]
    assert (tmp_path / "vit.pth").read_bytes() == OTHER


def test_an_interrupt_keeps_the_part(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "BLOCK", 10_000)
    web = server()

    def stop(done: int, total: int | None) -> None:
        if done >= 30_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(wanted(web, tmp_path), Watched(report=stop))
    assert part(tmp_path).read_bytes() == CONTENT[:30_000]
    assert not (tmp_path / "vit.pth").exists()
    fetch(wanted(web, tmp_path), Watched())
    assert ranges(web)[-1] == "bytes=30000-"
    assert (tmp_path / "vit.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 408])
def test_a_passing_error_is_tried_again(server, tmp_path: Path, status: int) -> None:
    web, conduct = server(statuses=[status, status]), Watched()
    fetch(wanted(web, tmp_path), conduct)
    assert conduct.waits == [1.0, 2.0]
    assert (tmp_path / "vit.pth").read_bytes() == CONTENT


def test_the_wait_doubles_and_then_it_gives_up(server, tmp_path: Path) -> None:
    conduct = Watched()
    with pytest.raises(FetchError, match=r"503 .*given up after 5 attempts\.$"):
        fetch(wanted(server(statuses=[503] * 9), tmp_path), conduct)
    assert conduct.waits == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(("asked", "waited"), [("7", 7.0), ("86400", transfer.LONGEST_WAIT), ("soon", 1.0)])
def test_retry_after_is_followed_within_reason(server, tmp_path: Path, asked: str, waited: float) -> None:
    conduct = Watched()
    fetch(wanted(server(statuses=[503], headers={"Retry-After": asked}), tmp_path), conduct)
    assert conduct.waits == [waited]


@pytest.mark.parametrize(
    ("status", "said"),
    [(404, "404 Not Found .the file is not there.; see https://page"), (403, "access is refused"), (410, "any more")],
)
def test_a_lasting_error_is_not_tried_again(server, tmp_path: Path, status: int, said: str) -> None:
    web, conduct = server(statuses=[status]), Watched()
    with pytest.raises(FetchError, match=said):
        fetch(wanted(web, tmp_path, origin="https://page"), conduct)
    assert conduct.waits == []
    assert left(tmp_path) == []


def test_nobody_at_home(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/vit.pth"
    conduct = Watched(attempts=2)
    with pytest.raises(FetchError, match=r"cannot be reached .*given up after 2 attempts"):
        fetch(Wanted(url, tmp_path / "vit.pth"), conduct)
    assert conduct.waits == [1.0]


def test_a_redirect_to_another_host_is_followed(server, tmp_path: Path) -> None:
    target = server(cuts=[1000])
    first = server(redirects={"/zoo/vit.pth": f"{target.url}/store/blob?key=a%20b"})
    fetch(wanted(first, tmp_path), Watched())
    assert (tmp_path / "vit.pth").read_bytes() == CONTENT
    assert [path for path, _ in target.plan.asked] == ["/store/blob?key=a%20b"] * 2
    assert ranges(first)[1] == ranges(target)[1] == "bytes=1000-"


@pytest.mark.parametrize(
    ("redirects", "said"),
    [
        ({"/zoo/vit.pth": "/b", "/b": "/zoo/vit.pth"}, "in a circle: .*/zoo/vit.pth -> .*/b -> .*/zoo/vit.pth"),
        ({"/zoo/vit.pth": "file:///etc/passwd"}, "never to a file address"),
        ({"/zoo/vit.pth": "ftp://host/x"}, "never to a ftp address"),
        ({"/zoo/vit.pth": ""}, "without saying where to"),
        ({"/zoo/vit.pth": "/0"} | {f"/{i}": f"/{i + 1}" for i in range(20)}, "more than 10 redirects"),
    ],
    ids=["circle", "file", "ftp", "nowhere", "many"],
)
def test_a_bad_redirect_is_refused(server, tmp_path: Path, redirects: dict[str, str], said: str) -> None:
    with pytest.raises(FetchError, match=said):
        fetch(wanted(server(redirects=redirects), tmp_path), Watched())


def test_https_does_not_lead_to_http() -> None:
    assert _next(["https://a/x"], "https://b/y") == "https://b/y"
    assert _next(["http://a/x"], "https://b/y") == "https://b/y"
    with pytest.raises(FetchError, match="from https only to https"):
        _next(["https://a/x"], "http://a/x")


@pytest.mark.parametrize("url", ["ftp://host/vit.pth", "data:text/plain,hello", "vit.pth"])
def test_only_known_addresses(tmp_path: Path, url: str) -> None:
    with pytest.raises(FetchError, match="only https, http and file"):
        fetch(Wanted(url, tmp_path / "vit.pth"), Watched())


def test_a_wrong_size_is_refused_before_the_body(server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="a file of 102,404 bytes, the manifest names 7"):
        fetch(wanted(server(), tmp_path, size=7), Watched())
    assert left(tmp_path) == []


def test_a_size_of_the_manifest_ends_a_body_without_length(server, tmp_path: Path) -> None:
    web = server(says_length=False, cuts=[1000])
    fetch(wanted(web, tmp_path, size=len(CONTENT)), Watched())
    assert ranges(web) == [None, "bytes=1000-"]
    assert (tmp_path / "vit.pth").read_bytes() == CONTENT


def test_a_body_without_end_is_refused_where_nothing_could_tell(server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="does not say how long the file is"):
        fetch(wanted(server(says_length=False), tmp_path), Watched())


@pytest.mark.parametrize("cuts", [[], [1000]])
def test_a_chunked_body(server, tmp_path: Path, cuts: list[int]) -> None:
    fetch(wanted(server(chunked=True, cuts=cuts), tmp_path), Watched())
    assert (tmp_path / "vit.pth").read_bytes() == CONTENT


def test_a_compressed_body_is_refused(server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="sends it as gzip"):
        fetch(wanted(server(headers={"Content-Encoding": "gzip"}), tmp_path), Watched())


@pytest.mark.parametrize(
    "page",
    [
        b"<!DOCTYPE html><html>",
        b"\n  <html lang=en>",
        b"\xef\xbb\xbf<HTML>",
        b"<?xml version='1.0'?>",
        b"<head><title>",
    ],
)
def test_a_web_page_is_no_checkpoint(server, tmp_path: Path, page: bytes) -> None:
    web = server(content=page + b" Virus scan warning</html>")
    with pytest.raises(FetchError, match=r"a web page and not with a checkpoint .*page for people is https://page"):
        fetch(wanted(web, tmp_path, origin="https://page"), Watched())
    assert left(tmp_path) == []


@pytest.mark.parametrize("head", [b"\x3c\x00\x00\x00\x00\x00\x00\x00{}", b"<\x80\x02", b"\x80\x02}q"])
def test_what_only_looks_like_a_page_is_taken(server, tmp_path: Path, head: bytes) -> None:
    fetch(wanted(server(content=head + CONTENT), tmp_path), Watched())


def test_the_digest_of_the_manifest_is_held(server, tmp_path: Path) -> None:
    with pytest.raises(DigestMismatch, match=f"sha256 {DIGEST}, expected {'0' * 64}. Nothing of it was kept"):
        fetch(wanted(server(), tmp_path, sha256="0" * 64), Watched())
    assert left(tmp_path) == []


def test_shortened_digests_are_held(server, tmp_path: Path) -> None:
    md5 = hashlib.md5(CONTENT).hexdigest()
    fetch(wanted(server(), tmp_path / "right", sha256_prefix=DIGEST[:8], md5_prefix=md5[:6]), Watched())
    with pytest.raises(DigestMismatch, match=f"sha256 {DIGEST} does not begin with 00000000"):
        fetch(wanted(server(), tmp_path / "a", sha256_prefix="00000000"), Watched())
    with pytest.raises(DigestMismatch, match=f"md5 {md5} does not begin with 000000"):
        fetch(wanted(server(), tmp_path / "b", md5_prefix="000000"), Watched())
    assert left(tmp_path / "a") == left(tmp_path / "b") == []


def test_the_first_digest_is_recorded_and_later_ones_are_held_to_it(server, tmp_path: Path) -> None:
    web = server()
    fetch(wanted(web, tmp_path), Watched())
    (tmp_path / "vit.pth").unlink()
    web.plan.content, web.plan.etag = OTHER, '"two"'
    other = hashlib.sha256(OTHER).hexdigest()
    with pytest.raises(DigestMismatch) as caught:
        fetch(wanted(web, tmp_path), Watched())
    message = str(caught.value)
    assert "has changed since it was first fetched" in message
    assert other in message and DIGEST in message and f"remove {record_path(tmp_path / 'vit.pth')}" in message
    assert left(tmp_path) == ["vit.pth.sha256"]
    record_path(tmp_path / "vit.pth").unlink()
    fetch(wanted(web, tmp_path), Watched())
    assert recorded(tmp_path / "vit.pth") == other


def test_another_place_is_held_to_the_digest_of_the_cache(server, tmp_path: Path) -> None:
    web = server()
    fetch(wanted(web, tmp_path / "cache"), Watched())
    web.plan.content, web.plan.etag = OTHER, '"two"'
    with pytest.raises(DigestMismatch, match="has changed since it was first fetched"):
        fetch(wanted(web, tmp_path / "out", twin=tmp_path / "cache/vit.pth"), Watched())


def test_a_file_of_this_machine(tmp_path: Path) -> None:
    source = tmp_path / "a file.pth"
    source.write_bytes(CONTENT)
    assert fetch(Wanted(source.as_uri(), tmp_path / "cache/vit.pth", sha256=DIGEST), Watched())
    assert (tmp_path / "cache/vit.pth").read_bytes() == CONTENT
    with pytest.raises(FetchError, match="cannot be read: No such file"):
        fetch(Wanted((tmp_path / "none").as_uri(), tmp_path / "none.pth"), Watched())
    with pytest.raises(FetchError, match="names no other machine"):
        fetch(Wanted("file://host/vit.pth", tmp_path / "none.pth"), Watched())


def test_a_file_of_this_machine_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "BLOCK", 10_000)
    source, target = tmp_path / "source.pth", tmp_path / "cache/vit.pth"
    source.write_bytes(CONTENT)

    def stop(done: int, total: int | None) -> None:
        if done == 30_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(Wanted(source.as_uri(), target), Watched(report=stop))
    again = Watched()
    fetch(Wanted(source.as_uri(), target), again)
    assert again.seen[0] == (30_000, len(CONTENT))
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("mirror", "mirrored_url"),
    [
        ("http://10.0.0.5:8000", "http://10.0.0.5:8000/a/b%20c.pth?x=1"),
        ("http://10.0.0.5:8000/", "http://10.0.0.5:8000/a/b%20c.pth?x=1"),
        ("https://mirror/zoo/", "https://mirror/zoo/a/b%20c.pth?x=1"),
        ("file:///mnt/zoo", "file:///mnt/zoo/a/b%20c.pth"),
    ],
)
def test_a_mirror_takes_the_place_of_scheme_and_host(mirror: str, mirrored_url: str) -> None:
    assert mirrored("https://host/a/b%20c.pth?x=1", mirror) == mirrored_url


@pytest.mark.parametrize("mirror", ["host", "ftp://host", "http://", "file:zoo", "http://host?x=1", "file://host/zoo"])
def test_what_is_no_mirror(mirror: str) -> None:
    with pytest.raises(UsageError, match="mirror"):
        mirrored("https://host/a.pth", mirror)


def test_two_processes_that_want_the_same_file(server, tmp_path: Path) -> None:
    web = server(hold=threading.Event())
    code = (
        "import sys; from pathlib import Path; from evalkit.download import *\n"
        "say = lambda line: Path(sys.argv[3]).write_text(line)\n"
        "print(fetch(Wanted(sys.argv[1], Path(sys.argv[2])), Conduct(say=say)))"
    )
    command = [sys.executable, "-c", code, f"{web.url}/vit.pth", str(tmp_path / "new/vit.pth"), str(tmp_path / "said")]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
        for _ in range(2)
    ]
    until(lambda: web.plan.asked and (tmp_path / "said").exists(), "one that asks and one that waits")
    web.plan.hold.set()
    ends = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert sorted(out.strip() for out, _ in ends) == ["False", "True"]
    assert len(web.plan.asked) == 1
    assert "another process is fetching this file" in (tmp_path / "said").read_text()
    assert left(tmp_path / "new") == ["vit.pth", "vit.pth.sha256"]


def test_without_locks_each_process_has_a_part_of_its_own(
    server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", refuse)
    web = server(cuts=[0])
    with pytest.raises(FetchError):
        fetch(wanted(web, tmp_path), Watched(attempts=1))
    assert left(tmp_path)[0] == f"vit.pth.{os.getpid()}.part"
    fetch(wanted(web, tmp_path), Watched())
    assert (tmp_path / "vit.pth").read_bytes() == CONTENT


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(server, tmp_path: Path) -> None:
    part(tmp_path).symlink_to("/dev/full")
    web = server()
    going = transfer.Transfer(wanted(web, tmp_path), Watched(), locked=True)
    going._discard = lambda: None
    with pytest.raises(FetchError, match=r"no space left for .*vit.pth: No space left on device") as caught:  # noqa: SIM117
        with told_in_words(tmp_path / "vit.pth"):
            going.run()
    assert "\n" not in str(caught.value)


def test_a_disk_too_small_is_told_beforehand(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(FetchError, match="102,404 bytes are still to come, 1,000 are free"):
        fetch(wanted(server(), tmp_path), Watched())


def test_a_cache_that_cannot_be_written_is_one_line(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FetchError, match=r"file.*cannot be written: .*EVALKIT_CACHE"):
        fetch(wanted(server(), tmp_path / "file"), Watched())

    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(FetchError, match=r"new cannot be written: Read-only file system\. Choose another cache"):
        fetch(wanted(server(), tmp_path / "new"), Watched())


def test_a_read_only_cache_that_has_the_file_is_enough(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vit.pth").write_bytes(CONTENT)

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert not fetch(wanted(server(), tmp_path, sha256=DIGEST), Watched())
