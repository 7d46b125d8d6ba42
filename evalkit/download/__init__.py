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

from dataclasses import replace

from evalkit.download.disk import alone, told_in_words
from evalkit.download.transfer import Transfer
from evalkit.download.wanted import (
    Conduct,
    Wanted,
    check_published,
    digest_of,
    mirrored,
    record,
    record_path,
    recorded,
    why_not,
)
from evalkit.errors import DigestMismatch

__all__ = ["Conduct", "Wanted", "fetch", "mirrored", "record_path", "recorded"]


def fetch(wanted: Wanted, conduct: Conduct | None = None) -> bool:
    """Sees to it that `wanted.target` is there and right; False where it was already.

    Raises FetchError (address, network, disk, a web page in place of a file), DigestMismatch where another file came.
    A KeyboardInterrupt keeps what has arrived; the next call goes on from there.
    """
    conduct = conduct or Conduct()
    with told_in_words(wanted.target):
        if _is_there(wanted, conduct):
            return False
        wanted.target.parent.mkdir(parents=True, exist_ok=True)
        with alone(wanted.target.parent, conduct) as locked:
            if _is_there(wanted, conduct):  # another process was faster
                return False
            Transfer(wanted, conduct, locked).run()
    return True


def _is_there(wanted: Wanted, conduct: Conduct) -> bool:
    if not wanted.target.is_file():
        return False
    expected = wanted.sha256 or recorded(wanted.held_by)
    digest = digest_of(wanted.target, "sha256")
    if expected and digest != expected:
        conduct.say(f"{wanted.target} is not what it was (sha256 {digest}, expected {expected}): fetching it again")
        return False
    check_published(wanted, wanted.target, digest, str(wanted.target))
    if why := why_not(replace(wanted, given=wanted.target), wanted.target):
        conduct.say(f"{why}\nwhat is there is not what is wanted: fetching it again")
        record_path(wanted.target).unlink(missing_ok=True)
        return False
    if wanted.given is not None and (other := digest_of(wanted.given, "sha256")) != digest:
        beside = "" if wanted.sha256 else f" and {record_path(wanted.target)}"
        raise DigestMismatch(
            f"{wanted.given} (sha256 {other}) is not the file that is already there, {wanted.target} (sha256 {digest}), which "
            f"is kept; to take the other one, remove {wanted.target}{beside}, and run the same command again"
        )
    if not expected:
        record(wanted.target, digest)
    return True
