"""Encoders and what they saw: each photograph is encoded once and its tokens are kept, the oldest forgotten first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from evalkit.errors import UnknownName
from evalkit.reporting.demo.photos import Photo
from evalkit.reporting.looking import Eyes, Seen, fitted
from evalkit.types import Encoder, Precision

ENCODERS, TOKENS, BANKS = 3, 48, 4
"""How many encoders, photographs' tokens and banks of patches are kept."""

Made = TypeVar("Made")


class Kept(Generic[Made]):
    """The last so many things, by key."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: OrderedDict[Any, Made] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Made]) -> Made:
        """What is kept under a key, made where it is not."""
        if key not in self._held:
            self._held[key] = make()
            if len(self._held) > self._limit:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return self._held[key]

    def __len__(self) -> int:
        return len(self._held)


@dataclass(frozen=True, eq=False)
class Bank:
    """The patches of several photographs. rows: (N, D) float32, photograph by photograph, the asking one first. starts:
    the number of each photograph's first patch."""

    photos: tuple[Photo, ...]
    seen: tuple[Seen, ...]
    rows: Tensor
    starts: tuple[int, ...]

    def place(self, row: int) -> tuple[int, int, int]:
        """(photograph, row, column) of a patch by its number in the bank."""
        photo = max(i for i, start in enumerate(self.starts) if start <= row)
        return photo, *divmod(row - self.starts[photo], self.seen[photo].grid[1])


class Looker:
    """Looks at photographs for the page. Threads may share one: only one of them encodes at a time.

    names: of the encoders that may be asked. load: gives one by name. size: longer side in pixels that they are shown,
    rounded to whole patches.
    """

    def __init__(
        self,
        names: Sequence[str],
        load: Callable[[str], Encoder],
        *,
        device: torch.device | None = None,
        precision: Precision = "auto",
        size: int = 320,
    ) -> None:
        self.names, self.size = tuple(names), size
        self._load, self._device, self._precision = load, device or torch.device("cpu"), precision
        self._lock = threading.RLock()
        self._eyes: Kept[Eyes] = Kept(ENCODERS)
        self._seen: Kept[Seen] = Kept(TOKENS)
        self._banks: Kept[Bank] = Kept(BANKS)

    def eyes(self, name: str) -> Eyes:
        """An encoder, loaded where it is not. Raises UnknownName for one that the page does not offer."""
        if name not in self.names:
            raise UnknownName("encoder on this page", name, self.names)
        with self._lock:
            return self._eyes.get(name, lambda: Eyes(self._load(name).to(self._device), self._device, self._precision))

    def seen(self, name: str, photo: Photo) -> Seen:
        """A photograph as an encoder saw it. Raises UsageError for a size that the encoder's patches do not fit."""
        with self._lock:
            eyes = self.eyes(name)
            return self._seen.get((name, photo.key), lambda: eyes.see(self._fed(eyes, photo), photo.name))

    def attention(self, name: str, photo: Photo, patch: int | None) -> Tensor:
        """(heads, h, w), see Eyes.attention. Raises Unsupported."""
        with self._lock:
            eyes = self.eyes(name)
            return eyes.attention(self._fed(eyes, photo), patch)

    def bank(self, name: str, photo: Photo, others: Sequence[Photo]) -> Bank:
        """The patches of a photograph and of others; a photograph that is there twice counts once."""
        photos = tuple({one.key: one for one in (photo, *others)}.values())
        seen = tuple(
            self.seen(name, one) for one in photos
        )  # one by one, so that a click need not wait for all of them
        with self._lock:
            return self._banks.get((name, tuple(one.key for one in photos)), lambda: _collected(photos, seen))

    def _fed(self, eyes: Eyes, photo: Photo) -> Any:
        return fitted(photo.image, self.size, eyes.encoder.spec.patch)


def _collected(photos: tuple[Photo, ...], seen: tuple[Seen, ...]) -> Bank:
    starts = tuple(accumulate((len(one.tokens) for one in seen), initial=0))[:-1]
    return Bank(photos, seen, torch.cat([one.tokens for one in seen]), starts)
