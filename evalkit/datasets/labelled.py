"""The part of a training split whose labels may be used: a stored list of names, or a seeded share of every class.

Stored lists lie in `lists/` with their origin; the sha256 of each is checked when it is read. A seeded share takes, of
each label, ceil(share x count) samples: those that come first when the label's ids are sorted by sha256("<seed> <id>").
It depends on ids and labels alone, not on their order, on numpy or on torch, and a smaller share is part of a larger one.
"""

from __future__ import annotations

import hashlib
import lzma
import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evalkit.datasets.selection import Selection
from evalkit.errors import DatasetError
from evalkit.types import LabelledRef, Sample

LISTS = {
    "imagenet-1pct": "71e82a48ba78252683ae334c4d019ebd5c6e855b9599c1389fbe83eb9549cf17",
    "imagenet-10pct": "6d09de11e7bdaf5b1f3b1f249b6183695f97310cdd20f0c03e7235b6b9392091",
}
"""sha256 of each list's text (google-research/simclr 383d414, imagenet_subsets)."""


def names(which: str) -> tuple[str, ...]:
    """The file names of a stored list, as it orders them. Raises DatasetError for an unknown list, or one that is damaged."""
    if which not in LISTS:
        raise DatasetError(f"there is no list of labelled images {which!r}; there are {', '.join(LISTS)}")
    path = Path(__file__).parent / "lists" / f"{which}.txt.xz"
    try:
        text = lzma.decompress(path.read_bytes())
    except (OSError, lzma.LZMAError) as error:
        raise DatasetError(f"{path}: the list cannot be read: {error}") from None
    if (found := hashlib.sha256(text).hexdigest()) != LISTS[which]:
        raise DatasetError(f"{path}: its text has sha256 {found}, not {LISTS[which]}")
    return tuple(text.decode("ascii").split())


@dataclass(frozen=True, eq=False)
class Labelled(Selection):
    """The chosen samples of `whole`, in its order; itself a `Dataset`.

    Raises DatasetError, when first used, where a listed image is not there, or twice, or a share is none.
    """

    ref: LabelledRef

    @cached_property
    def indices(self) -> tuple[int, ...]:
        """Positions in `whole`, ascending."""
        samples = [self.whole[index] for index in range(len(self.whole))]
        chosen = _listed(samples, self.ref.list) if self.ref.list else _share(samples, self.ref)
        return tuple(sorted(chosen))

    @cached_property
    def digest(self) -> str:
        """sha256 over the digest of the whole and the ids chosen."""
        return hashlib.sha256(f"{self.whole.digest} {self._ids}".encode()).hexdigest()

    @cached_property
    def _ids(self) -> str:
        ids = "\n".join(self.whole[index].id for index in self.indices)
        return hashlib.sha256(ids.encode("utf-8", "surrogateescape")).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Of the whole, with the samples chosen and the sha256 of their ids."""
        how: dict[str, Any] = {"share": self.ref.share, "seed": self.ref.seed}
        if self.ref.list:
            how = {"list": self.ref.list, "list_sha256": LISTS[self.ref.list]}
        return super().describe() | {"labelled": how | {"ids_sha256": self._ids, "of": len(self.whole)}}


def _listed(samples: list[Sample], which: str) -> list[int]:
    by_name = defaultdict(list)
    for index, sample in enumerate(samples):
        by_name[sample.id.rsplit("/", 1)[-1]].append(index)
    listed = names(which)
    for problem, wrong in (
        ("not there", [name for name in listed if name not in by_name]),
        ("there more than once", [name for name in listed if len(by_name.get(name, ())) > 1]),
    ):
        if wrong:
            raise DatasetError(
                f"{len(wrong):,} of the {len(listed):,} images of the list {which!r} are {problem}, the first is {wrong[0]}"
            )
    return [by_name[name][0] for name in listed]


def _share(samples: list[Sample], ref: LabelledRef) -> list[int]:
    if not 0 < ref.share <= 1:
        raise DatasetError(f"the labelled share is {ref.share}; it is a share of every class: above 0, at most 1")
    members = defaultdict(list)
    for index, sample in enumerate(samples):
        mark = hashlib.sha256(f"{ref.seed} {sample.id}".encode("utf-8", "surrogateescape")).digest()
        members[sample.label].append((mark, index))
    # the margin keeps 0.01 x 5000 at 50
    counts = {label: math.ceil(ref.share * len(of) - 1e-9) for label, of in members.items()}
    return [index for label, of in members.items() for _, index in sorted(of)[: counts[label]]]
