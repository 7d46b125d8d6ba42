"""Only regular files are read, at once refused what is none; names are shown in one line."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from evalkit import files
from evalkit.errors import FileTooLarge, NotARegularFile
from evalkit.files import open_regular, read_regular, shown, sweep, temporary, temporary_folder, write_atomically


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


# ---------------------------------------------------------------- writing


def of_nobody(path: Path) -> Path:
    """A temporary name of a process that is no longer there."""
    return path.with_name(temporary(path).name.replace(f".{os.getpid()}.", f".{2**22 + 1}."))


def test_a_file_is_written_whole_or_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_atomically(path, lambda part: part.write_text("one"))

    def fail(part: Path) -> None:
        part.write_text("tw")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_atomically(path, fail)
    assert [p.name for p in path.parent.iterdir()] == ["a.json"] and path.read_text() == "one"
    umask = os.umask(0o022)
    try:
        write_atomically(path, lambda part: (part.unlink(), part.touch(0o600)))
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o644  # as safetensors writes it, readable by others all the same


def test_what_killed_processes_left_goes_and_what_living_ones_write_stays(tmp_path: Path) -> None:
    dead = of_nobody(tmp_path / "a.json")
    own_number = tmp_path / temporary(tmp_path / "a.json").name.replace(files._OWN, "0badcafe")  # of a process before
    elsewhere = tmp_path / ".a.json.elsewhere.1.0badcafe-0.tmp"
    silent = tmp_path / ".a.json.elsewhere.1.0badcafe-1.tmp"
    older = [tmp_path / name.format(2**22 + 1) for name in (
        ".r.0123abcd.json.{}.part", ".{}.probe", "0123456789abcdef.{}.part", "corpus-0123456789abcdef.{}.part")]  # fmt: skip
    gone = [dead, own_number, silent, *older]
    mine = [temporary(tmp_path / "a.json"), tmp_path / f".r.0123abcd.json.{os.getppid()}.part"]
    others = [tmp_path / name for name in (".holiday.2024.part", "vit.pth.part", ".notes.tmp", "a.json", ".git")]
    kept = [elsewhere, *mine, *others]
    for path in (*gone, *kept):
        path.write_text("x")
    os.utime(silent, (0, 0))
    assert sorted(sweep([tmp_path, tmp_path / "absent"])) == sorted(gone)
    assert [p for p in kept if not p.exists()] == [] and [p for p in gone if p.exists()] == []


def test_the_first_write_into_a_folder_cleans_it(tmp_path: Path) -> None:
    dead = of_nobody(tmp_path / "other.json")
    dead.write_text("half")
    write_atomically(tmp_path / "a.json", lambda part: part.write_text("x"))
    assert not dead.exists()


def test_a_temporary_folder_goes_with_its_process_and_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder("demo") as mine:
        assert str(os.getpid()) in mine.name
        dead = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-"))
        dead.mkdir()
        (dead / "upload.png").write_text("x")
        other = tmp_path / "evalkit-demo-mine"
        other.mkdir()
        with temporary_folder("demo"):
            assert mine.is_dir() and not dead.exists() and other.is_dir()
    assert list(tmp_path.iterdir()) == [other]
