"""What the demo page answers, as plain functions: a question goes in, numbers come out; drawing.py draws them.

Each takes a point in the pixels of the photograph as it is shown; the patch under it asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from evalkit import runners
from evalkit.metrics import maps
from evalkit.reporting import search
from evalkit.reporting.demo.looker import Bank, Looker
from evalkit.reporting.demo.photos import Photo
from evalkit.reporting.looking import Seen, patch_at

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Question:
    """Which encoder is asked about which patch. at: (x, y) in pixels of `photo.shown`."""

    encoder: str
    photo: Photo
    at: tuple[int, int]

    def patch(self, grid: tuple[int, int]) -> int:
        """The flat number of the patch under the point. Raises UsageError for a point outside."""
        return patch_at(self.photo.shown.size, grid, self.at)


@dataclass(frozen=True, eq=False)
class Similar:
    """cosines: (h, w) of all patches to the one that asks. prompt: its row and column."""

    cosines: Floats
    prompt: tuple[int, int]


@dataclass(frozen=True)
class Near:
    """A patch like the one that asks: in the bank's photograph of that number, at row and column."""

    photo: int
    row: int
    column: int
    similarity: float


@dataclass(frozen=True, eq=False)
class Heads:
    """weights: (heads, h, w) attention. kept: the same shape, bool, the fewest patches with most of a head's weight."""

    weights: Floats
    kept: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two photographs as they were seen; matches between them; and of the patch that asks, how similar each patch of the
    other is: (h, w), and the row and column of the most similar, the first of equals."""

    seen: tuple[Seen, Seen]
    matches: maps.Matches
    cosines: Floats
    best: tuple[int, int]


def similar(looker: Looker, asked: Question) -> Similar:
    """Cosines of the patch under the point to all patches of the photograph: one product of a row with a matrix."""
    seen = looker.seen(asked.encoder, asked.photo)
    patch = asked.patch(seen.grid)
    cosines = runners.module("prompt").similarity(seen.patches, torch.tensor([patch]))[0]
    return Similar(cosines.numpy(), divmod(patch, seen.grid[1]))


def nearest(
    looker: Looker, asked: Question, others: Sequence[Photo], *, own: bool = False, top: int = 12
) -> tuple[Bank, list[Near]]:
    """The patches of other photographs, with `own` of this one too, that are most similar to the one that asks.

    A patch that touches one already taken, or the one that asks, is passed over: beside a patch that fits lie others
    that fit nearly as well. Fewer than `top` where no more are left.
    """
    bank = looker.bank(asked.encoder, asked.photo, others)
    count, query = len(bank.seen[0].tokens), asked.patch(bank.seen[0].grid)
    gone = torch.zeros(len(bank.rows), dtype=torch.bool)
    gone[:count] = not own
    ranked = search.ranked(bank.rows, query, top=len(bank.rows), left_out=gone)
    taken = [bank.place(query)]
    found: list[Near] = []
    for row, similarity in zip(ranked.rows, ranked.similarity, strict=True):
        if len(found) == top:
            break
        place = bank.place(row)
        if not any(_touch(place, other) for other in taken):
            taken.append(place)
            found.append(Near(*place, similarity))
    return bank, found


def _touch(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
    return one[0] == other[0] and max(abs(one[1] - other[1]), abs(one[2] - other[2])) <= 1


def heads(looker: Looker, asked: Question, *, of_patch: bool = False, mass: float = 0.6) -> Heads:
    """Where each head of the last block looks from the class token, or from the patch under the point.

    mass: share of a head's attention that its kept patches hold. Raises Unsupported where the encoder has no attention,
    or no class token.
    """
    patch = asked.patch(looker.seen(asked.encoder, asked.photo).grid) if of_patch else None
    weights = looker.attention(asked.encoder, asked.photo, patch)
    kept = maps.attended(weights.flatten(1), mass=mass).view(weights.shape)
    return Heads(weights.numpy(), kept.numpy())


def pair(looker: Looker, asked: Question, other: Photo, *, top: int = 20) -> Pair:
    """The `top` pairs of patches of two photographs that choose each other, and what the patch under the point finds."""
    seen = looker.seen(asked.encoder, asked.photo), looker.seen(asked.encoder, other)
    query, (rows, columns) = asked.patch(seen[0].grid), seen[1].grid
    both = torch.cat([seen[0].tokens[query][None], seen[1].tokens])[:, None]
    cosines = runners.module("prompt").similarity(both, torch.tensor([0]))[0, 1:, 0].view(rows, columns).numpy()
    best = divmod(int(cosines.argmax()), columns)
    return Pair(seen, maps.matches(seen[0].tokens, seen[1].tokens, top=top), cosines, best)
