"""Progress of long work on the terminal (rich): bars on standard error, gone when the work is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class RichProgress:
    """Bars that nest; quiet where standard error is no terminal, but for a line when a long step begins."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._bars = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(),
            TimeRemainingColumn(),
            console=self._console, transient=True, disable=quiet or not self._console.is_terminal,
        )  # fmt: skip

    def __enter__(self) -> RichProgress:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    @property
    def interactive(self) -> bool:
        """Whether somebody sees the bars."""
        return not self._bars.disable

    def track(self, steps: Iterable[Any], what: str, total: int | None = None, *, images: int = 0) -> Iterator[Any]:
        """The same items, counted on a bar named `what`; the bar leaves when the items end or the caller stops.

        images: of each item, where images per second are to be shown.
        """
        task = self._bars.add_task(what, total=total if total is not None else _length(steps), images=images)
        try:
            for item in steps:
                yield item
                self._bars.advance(task)
        finally:
            self._bars.remove_task(task)

    @contextmanager
    def status(self, what: str) -> Iterator[None]:
        """A spinner while something without a length is done."""
        task = self._bars.add_task(what, total=None)
        try:
            yield
        finally:
            self._bars.remove_task(task)

    def say(self, line: str) -> None:
        """One lasting line on standard error."""
        self._console.print(line, highlight=False)

    def note(self, text: str) -> None:
        """The same of a text that holds names: nothing in it is taken for markup."""
        self._console.print(text, highlight=False, markup=False)


class _Rate(ProgressColumn):
    """Images per second, of tasks that say how many an item has."""

    def render(self, task: Task) -> Text:
        images = task.fields.get("images", 0)
        return Text(f"{images * (task.speed or 0):,.0f} images/s" if images else "")


def _length(steps: Iterable[Any]) -> int | None:
    return len(steps) if isinstance(steps, Sized) else None
