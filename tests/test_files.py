"""Only regular files are read, at once refused what is none; names are shown in one line."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from evalkit.errors import FileTooLarge, NotARegularFile
from evalkit.files import open_regular, read_regular, shown


def odd(folder: Path, what: str) -> Path:
    path = folder / what
    if what == "a FIFO":
        os.mkfifo(path)
    elif what == "a socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    elif what == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    return path


@pytest.mark.parametrize("what", ["a FIFO", "a socket", "a device", "a folder"])
def test_what_is_no_regular_file_is_refused_by_name_without_waiting(tmp_path: Path, what: str) -> None:
    path = odd(tmp_path, what)
    link = tmp_path / "link"
    link.symlink_to(path)
    for asked in (path, link):
        with pytest.raises(NotARegularFile, match=f"^{asked} is {what}; only regular files are read$"):
            open_regular(asked)


def test_a_regular_file_and_a_link_to_one_are_read_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)
    assert read_regular(tmp_path / "link") == read_regular(path, limit=5) == b"12345"
    with pytest.raises(FileTooLarge, match=r"/f has 5 bytes; at most 4 are read"):
        open_regular(path, limit=4)


def test_a_file_that_grows_while_it_is_read_stops_at_the_limit() -> None:
    """The files of /proc say that they have 0 bytes, and hold more."""
    with pytest.raises(FileTooLarge, match="more than 3 bytes"):
        read_regular(Path("/proc/self/status"), limit=3)


def test_what_the_system_refuses_passes_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("absent", "link"):
        with pytest.raises(FileNotFoundError):
            open_regular(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("usual name_1.jpg", "usual name_1.jpg"),
        ("Käse 雪", "Käse 雪"),
        ("a\nb\x1b[2J", r"a\nb\x1b[2J"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("right\u202eleft", r"right\u202eleft"),
    ],
)
def test_a_name_is_shown_in_one_printable_line(name: str, text: str) -> None:
    assert shown(name) == shown(Path(name)) == text
    assert shown(name).encode("utf-8").decode().isprintable()


def test_of_a_very_long_name_the_middle_is_left_out() -> None:
    assert len(shown("a" * 5000 + "end")) < 1010 and shown("a" * 5000 + "end").endswith("aend")
