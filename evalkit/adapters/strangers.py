"""What people find under a checkpoint's name that is none: answers of web servers, pointers, texts, other formats.

Known by how they begin (signatures: the formats' own specifications; Git LFS: docs/spec.md of git-lfs/git-lfs).
"""

from __future__ import annotations

import re

WEB = "a web page (HTML), as sites send in place of a file that wants a login or a click: download it again"
XML = "XML, as servers send in place of a file that they refuse: download it again"

SIGNS: tuple[tuple[str, str], ...] = (
    (
        r"version https://git-lfs",
        "a Git LFS pointer, which names the file and is not it: run git lfs pull where it lies",
    ),
    (r"\s*<(!doctype html|html|head|body|!--)", WEB),
    (r"\s*<(\?xml|[a-z]+ xmlns)", XML),
    (r"\x93NUMPY", "an array of numpy (.npy)"),
    (r"\x89HDF\r\n", "HDF5, as Keras and MATLAB write it"),
    (r"GGUF", "GGUF, of llama.cpp"),
    (r"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP", "a picture"),
    (r"%PDF", "a PDF"),
    (r"\x7fELF|MZ", "a program"),
    (r"BZh|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd|Rar!", "a compressed archive: unpack it first"),
)
"""(regular expression of a file's first bytes as Latin-1, what it is)."""


def named(head: bytes) -> str:
    """What a file is that begins like this, "" where it may be a checkpoint. head: its first bytes."""
    begin = head.decode("latin-1")
    return next((what for sign, what in SIGNS if re.match(sign, begin, re.IGNORECASE | re.DOTALL)), "")


def text(head: bytes) -> str:
    """Which kind of text begins like this, "" for none. A pickle of protocol 0 is text too: ask where it was no pickle."""
    if not _is_text(head):
        return ""
    return "JSON" if head.lstrip()[:1] in (b"{", b"[") else "a text file"


def _is_text(head: bytes) -> bool:
    """Whether it reads as UTF-8 without control characters; the last character may be cut in two."""
    text = head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    whole = text[:-4] if len(head) > 8 else text
    return "\ufffd" not in whole and all(c.isprintable() or c in "\r\n\t\f" for c in text.rstrip("\ufffd"))
