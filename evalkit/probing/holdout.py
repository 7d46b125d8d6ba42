"""Which training images choose the head: a share of whole groups, drawn by a generator.

Source: design rule 4: test data never selects anything; sweeps choose on 5 % held out of the training split. Whole
        groups, because two crops of one image on either side would make the choice too hopeful.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from evalkit.errors import ProtocolError
from evalkit.types import Batch, Dataset


def hold_out(groups: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """(N,) bool on the CPU: true where a sample is held out.

    groups: (N,) int64. share: in (0, 1). Groups are taken in an order drawn by rng until at least share x N samples are
    out, but never the last group. Raises ProtocolError where there are fewer than two groups.
    """
    numbers, inverse = torch.unique(groups.cpu(), return_inverse=True)
    if len(numbers) < 2:
        raise ProtocolError(
            f"holding out whole images needs at least two; {len(groups)} samples come from {len(numbers)}"
        )
    order = torch.randperm(len(numbers), generator=rng)
    sizes = torch.bincount(inverse)[order]
    before = sizes.cumsum(0) - sizes
    taken = before < share * len(groups)
    taken[-1] = False
    return torch.isin(inverse, order[taken])


def groups_of(dataset: Dataset) -> Tensor:
    """(N,) int64: samples with the same number come from the same image, numbered in the order of the data set."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(dataset[index].group, len(numbers)) for index in range(len(dataset))])


def without(batches: Iterable[Batch], held: Tensor) -> Iterator[Batch]:
    """The same batches without the samples that are held out; they become smaller, perhaps empty.

    held: (N,) bool on the CPU, by position in the data set.
    """
    for batch in batches:
        kept = ~held[batch.positions]
        here = kept.to(batch.labels.device)
        yield replace(batch, images=batch.images[here], labels=batch.labels[here], positions=batch.positions[kept])
