"""Work side by side in threads: what comes of it, how it ends, and what it leaves behind."""

from __future__ import annotations

import threading

import pytest
import torch

from evalkit.probing.lanes import SMALL, lanes, one_thread
from tests.waiting import HANG


def alive():
    return [thread for thread in threading.enumerate() if thread.name.startswith("lane")]


def test_every_piece_is_done_and_as_many_at_a_time_as_asked():
    together = threading.Barrier(3, timeout=HANG)

    def work(piece, stop):
        together.wait()  # passes only when three are at it
        return piece * piece

    assert sorted(lanes(work, range(9), 3)) == [n * n for n in range(9)]
    assert not alive()


def test_torchs_threads_are_shared_and_given_back():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert set(lanes(lambda piece, stop: torch.get_num_threads(), range(4), 2)) == {2}
        assert set(lanes(lambda piece, stop: torch.get_num_threads(), range(4), 3)) == {1}
        assert torch.get_num_threads() == 4
        assert next(lanes(lambda piece, stop: torch.get_num_threads(), [0], 1)) == 4
    finally:
        torch.set_num_threads(before)


def test_an_error_ends_the_others_and_is_the_one_that_is_raised():
    begun, ended = [], []

    def work(piece, stop):
        begun.append(piece)
        if piece == 0:
            raise ValueError("piece 0 cannot be")
        assert stop.wait(HANG), "nobody told this piece to stop"
        ended.append(piece)

    with pytest.raises(ValueError, match="piece 0 cannot be"):
        list(lanes(work, range(50), 2))
    assert sorted(ended) == sorted(begun)[1:] and len(begun) <= 3 and not alive()


def test_whoever_leaves_early_leaves_no_thread():
    def work(piece, stop):
        return piece if piece == 0 else stop.wait(HANG)

    found = lanes(work, range(20), 2)
    assert next(found) == 0
    found.close()  # tells the piece that waits to stop
    assert not alive()


def test_results_are_not_hoarded():
    class Result:
        held = 0

        def __init__(self):
            Result.held += 1

        def __del__(self):
            Result.held -= 1

    asked, most = threading.Semaphore(1), 0
    for result in lanes(lambda piece, stop: asked.acquire() and Result(), range(30), 1):
        del result
        most = max(most, Result.held)
        asked.release()
    assert most <= 1 and Result.held == 0


def test_no_piece_is_no_result():
    assert list(lanes(lambda piece, stop: piece, [], 2)) == []


@pytest.mark.parametrize(("multiplications", "threads"), [(SMALL - 1, 1), (SMALL, 2)])
def test_small_steps_run_on_one_thread_and_what_was_set_comes_back(multiplications, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread(multiplications):
            inside = torch.get_num_threads()
        assert (inside, torch.get_num_threads()) == (threads, 2)
    finally:
        torch.set_num_threads(before)
