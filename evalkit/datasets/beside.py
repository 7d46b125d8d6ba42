"""Which files of a folder are its images, and what else lies there: nothing that may be an image is left out without a word.

Used are the names of `images.SUFFIXES`. An image under any other ending (one of `images.FOREIGN`, or a file that begins
like an image) is an error. Other files (lists, notes, arrays) are passed over and counted by ending. Hidden files do not
exist for a `Tree`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from evalkit.datasets import images
from evalkit.datasets.files import Tree
from evalkit.errors import DatasetError
from evalkit.files import shown

PASSED_OVER = "files_passed_over"
"""The fact of a data set that says how many files lie beside its images, by ending."""

_NAMED = 5


def photos(
    tree: Tree,
    under: str,
    suffixes: Sequence[str] = images.SUFFIXES,
    *,
    wanted: Callable[[str], bool] = lambda name: True,
) -> tuple[list[str], Mapping[str, Any]]:
    """The images below a folder, sorted, and what `describe` says of the other files; empty where there are none.

    suffixes: the endings that are used, lower case. wanted: whether a file is looked at all; the others are not counted.
    Raises DatasetError, which names them, for images of other endings.
    """
    ends = tuple(suffixes)
    used = list(filter(wanted, tree.names(ends, under=under)))
    known, strange, passed = set(used), [], Counter[str]()
    for name in tree.names(under=under):
        if name in known or not wanted(name):
            continue
        if _is_image(tree, name):
            strange.append(name)
        else:
            passed[PurePosixPath(name).suffix.lower() or "no ending"] += 1
    if strange:
        more = f" and {len(strange) - _NAMED:,} more" if len(strange) > _NAMED else ""
        raise DatasetError(
            f"{tree}: {len(strange):,} images have endings that are not read: "
            f"{', '.join(map(shown, strange[:_NAMED]))}{more}; read are {', '.join(ends)}: convert, rename or remove them"
        )
    return used, {PASSED_OVER: dict(sorted(passed.items()))} if passed else {}


def _is_image(tree: Tree, name: str) -> bool:
    if name.lower().endswith((*images.SUFFIXES, *images.FOREIGN)):
        return True
    try:
        return images.looks_like_one(tree.read(name, 16))
    except DatasetError:  # no regular file, or unreadable: nothing says that it is an image
        return False
