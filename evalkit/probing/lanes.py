"""Independent pieces of work done several at a time, in threads that share torch's processors.

How:    torch gives the interpreter's lock back while it computes, so threads of one process keep all cores busy, share the
        encoder's weights and end with the process. A large piece on one core wastes less than the same piece cut up among
        all of them: nobody waits for the slowest part of every product (bench/video.py).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

import torch

Found = TypeVar("Found")
"""What comes of a piece of work."""

SMALL = 1 << 26
"""Multiplications of a step below which a second thread brings a third at best (192 features, 45 heads of 15 classes, 128
images on an idle machine), and makes it 3 to 4 times as slow where other work holds the cores."""


@contextmanager
def one_thread(multiplications: int) -> Iterator[None]:
    """Many steps of so many multiplications each: on one thread where they are `SMALL`, since threads wait for each other in
    every step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if multiplications < SMALL else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def lanes(work: Callable[[int, Event], Found], pieces: Sequence[int], count: int) -> Generator[Found]:
    """work(piece, stop) of each piece as it is done, in no particular order.

    work: computes in a thread with its share of torch's threads; what it touches may be shared by threads. It ends early,
    with whatever result, once `stop` is set: nobody reads it. count: pieces at a time, at least 1. Raises the first error
    of a piece. However the iterator ends (error, Ctrl-C, `close`), no thread is left behind it; whoever may leave early
    closes it, so that this happens at once.
    """
    stop, threads = Event(), torch.get_num_threads()
    share = max(1, threads // count)
    pool = ThreadPoolExecutor(count, "lane", torch.set_num_threads, (share,))
    try:
        # as_completed forgets what it has given away, and nobody else holds the results
        for done in as_completed([pool.submit(work, piece, stop) for piece in pieces]):
            yield done.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # new threads take the number that was set last, whichever thread set it
