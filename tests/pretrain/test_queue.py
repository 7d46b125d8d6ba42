"""The queue against a list: what is oldest is overwritten first, whatever the sizes of the batches."""

from __future__ import annotations

import pytest
import torch

from evalkit.pretrain.queue import Queue


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("batches", [(1, 1, 1, 1), (3, 3, 3), (2, 5, 4, 1), (7, 1), (9, 2), (20,)])
def test_rows_are_the_last_that_were_pushed(size: int, batches: tuple[int, ...]) -> None:
    queue = Queue(size, 4)
    held = [row.clone() for row in queue.rows]
    for i, n in enumerate(batches):
        new = torch.randn(n, 4, generator=torch.Generator().manual_seed(i))
        queue.push(new)
        held = (held + list(new))[-size:]
        oldest = int(queue.place)
        assert torch.equal(queue.rows.roll(-oldest, 0), torch.stack(held))


def test_it_begins_with_unit_vectors_and_its_keys_are_a_copy() -> None:
    queue = Queue(5, 4)
    assert torch.allclose(queue.rows.norm(dim=1), torch.ones(5))
    keys = queue.keys()
    queue.push(torch.zeros(2, 4))
    assert not torch.equal(keys, queue.rows)


def test_gradients_flow_to_queries_after_the_queue_has_moved() -> None:
    queue, query = Queue(5, 4), torch.randn(2, 4, requires_grad=True)
    loss = (query @ queue.keys().T).logsumexp(1).sum()
    queue.push(query)
    loss.backward()
    assert query.grad is not None
    assert not queue.rows.requires_grad
