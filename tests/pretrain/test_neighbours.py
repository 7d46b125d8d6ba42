"""Local groups against loops: who is nearest, what the queue keeps, and that nobody is his own neighbour unawares."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evalkit.pretrain.neighbours import Means


def rows(n: int, dim: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def means(size: int, dim: int = 5) -> Means:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Means(size, dim).double()


def cosine(a: Tensor, b: Tensor) -> float:
    return (sum(x * y for x, y in zip(a, b, strict=True)) / (a.norm() * b.norm())).item()


def by_loop(query: Tensor, queue: list[Tensor], k: int) -> list[Tensor]:
    return sorted(queue, key=lambda row: -cosine(query, row))[:k]


def test_the_nearest_are_those_of_a_loop_over_all_rows():
    queue, queries = means(40), rows(7, seed=1)
    found = queue.nearest(queries, 6)
    for query, near in zip(queries, found, strict=True):
        assert torch.equal(near, torch.stack(by_loop(query, list(queue.rows), 6)))


def test_length_does_not_matter_but_is_kept():
    """Cosine similarity chooses; the row comes as it was pushed."""
    queue = means(3, 2)
    queue.rows.copy_(torch.tensor([[9.0, 0.125], [0.0, 0.25], [-1.0, 0.0]]))
    near = queue.nearest(torch.tensor([[1.0, 0.0]], dtype=torch.float64), 2)
    assert near.tolist() == [[[9.0, 0.125], [0.0, 0.25]]]


def test_rows_that_are_alike_give_one_answer():
    queue = means(6, 2)
    queue.rows.copy_(torch.tensor([[1.0, 1], [0, 1], [1, 1], [1, 1], [-1, 0], [1, 1]]))
    near = queue.nearest(torch.tensor([[1.0, 1.0]], dtype=torch.float64), 3)
    assert near.tolist() == [[[1.0, 1.0]] * 3]


def test_an_image_is_no_neighbour_of_itself_before_it_is_pushed():
    queue, own = means(8), rows(2, seed=3)
    before = queue.nearest(own, 8)
    assert not any(torch.equal(row, one) for near, one in zip(before, own, strict=True) for row in near)
    queue.push(own, torch.ones(2, dtype=torch.bool))
    assert torch.equal(queue.nearest(own, 1)[:, 0], own)


def test_what_is_read_does_not_change_with_the_queue():
    queue = means(4)
    near = queue.nearest(rows(1), 4)
    kept = near.clone()
    queue.push(rows(4, seed=2), torch.ones(4, dtype=torch.bool))
    assert torch.equal(near, kept)


@pytest.mark.parametrize("batch", [1, 3, 7, 8, 19])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_queue_is_a_list_that_is_written_round_and_round(batch, share):
    """Batches that pass its end, that are longer than it, of which all, some or no rows are wanted."""
    size = 8
    queue = means(size)
    expected, place = list(queue.rows.clone()), 0
    for step in range(6):
        new = rows(batch, seed=10 + step)
        wanted = torch.rand(batch, generator=torch.Generator().manual_seed(step)) < share
        queue.push(new, wanted)
        for row in new[wanted]:
            expected[place] = row
            place = (place + 1) % size
        assert torch.equal(queue.rows, torch.stack(expected))
        assert queue.place.item() == place
