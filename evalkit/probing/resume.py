"""What lies between two epochs: who looks at the heads, and the state from which a killed run goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from evalkit.probing.heads import Heads
from evalkit.types import Checkpoint

SAVED_EVERY = 10.0
"""Seconds between two saved states: heads on stored features take an epoch in less time than it takes to save them. Where a
run goes on changes nothing in its result."""


class Watch(Protocol):
    """Someone who looks at the heads after each epoch; what was seen is part of the state."""

    def look(self) -> None: ...
    def state(self) -> dict[str, Tensor]: ...
    def restore(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass
class Between:
    """checkpoint: where the state is saved between epochs, None for nowhere. watch: whom to show the heads, by name."""

    checkpoint: Checkpoint | None = None
    watch: Mapping[str, Watch] = field(default_factory=dict)
    _saved: float = field(default_factory=time.monotonic, repr=False)

    def resume(self, stacks: Mapping[str, Heads]) -> int:
        """Epochs that are done, their result taken over into the stacks. Raises UsageError for the state of others."""
        state = None if self.checkpoint is None else self.checkpoint.load()
        if state is None:
            return 0
        for key, heads in stacks.items():
            heads.restore(state["stacks"][key])
        for key, watch in self.watch.items():
            watch.restore(state["watch"][key])
        return int(state["epochs"])

    def after(self, done: int, stacks: Mapping[str, Heads], *, last: bool) -> None:
        """An epoch has ended, `done` are done. It is saved where it was the last, or the last state is `SAVED_EVERY` old."""
        for watch in self.watch.values():
            watch.look()
        if self.checkpoint is not None and (last or time.monotonic() - self._saved >= SAVED_EVERY):
            seen = {key: watch.state() for key, watch in self.watch.items()}
            trained = {key: heads.state() for key, heads in stacks.items()}
            self.checkpoint.save({"epochs": done, "stacks": trained, "watch": seen})
            self._saved = time.monotonic()


@dataclass(frozen=True)
class Share:
    """One part of a checkpoint that several runs share, such as one seed of several trained in turn."""

    whole: Checkpoint
    name: str

    def load(self) -> dict[str, Any] | None:
        """The part's last state."""
        return (self.whole.load() or {}).get(self.name)

    def save(self, state: dict[str, Any]) -> None:
        """Replace the part; the others stay."""
        self.whole.save((self.whole.load() or {}) | {self.name: state})

    def clear(self) -> None:
        """Forget the part; the others stay."""
        rest = {name: state for name, state in (self.whole.load() or {}).items() if name != self.name}
        self.whole.save(rest)
