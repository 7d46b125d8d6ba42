"""The loops that train stacked heads: over features in memory, and over a stream of augmented images.

What:   both step every stack of heads with the same batches, in the published order: shuffled anew for each epoch, the
        last batch smaller, its gradient the mean over its own images. `measure` counts what the heads get right.
How:    a stack is named by a key; for each batch it is given the features that its key asks for. The stream's form
        encodes each batch once for all stacks, without gradients, and saves its state after each epoch, so that a run
        that was killed goes on with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from evalkit.errors import ProtocolError
from evalkit.probing import schedules
from evalkit.probing.heads import Heads
from evalkit.types import Batch, Checkpoint

CHUNK = 1 << 24
"""Logits held at once when heads are measured (64 MB)."""


@dataclass(frozen=True)
class Plan:
    """epochs: passes over the data. batch: images per step. schedule: how the rate falls (see `schedules`)."""

    epochs: int
    batch: int
    schedule: schedules.Schedule = "epoch"

    def factor(self, epoch: int, step: int, images: int) -> float:
        """Of the peak rate, at a step of an epoch over so many images."""
        steps = -(-images // self.batch)
        return schedules.factor(self.schedule, epoch=epoch, epochs=self.epochs, step=step, steps=steps)


@dataclass(frozen=True)
class Measured:
    """correct: (H, n) bool, top-1 with ties to the lowest class. loss: (H,) mean cross-entropy. alive: (H,) bool."""

    correct: Tensor
    loss: Tensor
    alive: Tensor


def fit(
    stacks: Mapping[str, Heads],
    features: Mapping[str, Tensor],
    labels: Tensor,
    *,
    plan: Plan,
    order: Callable[[int], Tensor],
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> None:
    """Train the stacks in place on features in memory.

    features: (N, D) per key of stacks, all rows in one order, on the device of the heads. labels: (N,) int64 there.
    order: (N,) permutation for an epoch. track: shows the epochs go by. Raises ProtocolError for N = 0.
    """
    if len(labels) == 0:
        raise ProtocolError("there is no image to train on")
    for epoch in track(range(plan.epochs)):
        shuffled = order(epoch).to(labels.device)
        for step, start in enumerate(range(0, len(labels), plan.batch)):
            rows = shuffled[start : start + plan.batch]
            factor = plan.factor(epoch, step, len(labels))
            for key, heads in stacks.items():
                heads.step(features[key][rows], labels[rows], factor)


def fit_stream(
    stacks: Mapping[str, Heads],
    batches: Callable[[int], Iterable[Batch]],
    encode: Callable[[Tensor], Mapping[str, Tensor]],
    *,
    plan: Plan,
    images: int,
    checkpoint: Checkpoint,
) -> None:
    """Train the stacks in place on augmented batches, each encoded once for all of them.

    batches: the stream from a first epoch on. encode: images to (B, D) features per key of stacks. images: per epoch,
    as the schedule counts them. State is saved after each epoch and taken up where there is one; whoever owns the
    checkpoint clears it.
    Raises ProtocolError where the stream ends before the last epoch.
    """
    done = _resume(stacks, checkpoint.load())
    step = 0
    for batch in batches(done) if done < plan.epochs else ():
        with torch.no_grad():
            features = encode(batch.images)
        factor = plan.factor(batch.epoch, step, images)
        for key, heads in stacks.items():
            heads.step(features[key], batch.labels, factor)
        step += 1
        if batch.last_of_epoch:
            done, step = batch.epoch + 1, 0
            checkpoint.save({"epochs": done, "stacks": {key: heads.state() for key, heads in stacks.items()}})
    if done < plan.epochs:
        raise ProtocolError(f"the stream of images ended after {done} of {plan.epochs} epochs")


def measure(heads: Heads, features: Tensor, labels: Tensor) -> Measured:
    """What each head gets right, in pieces of bounded size.

    features: (n, D) and labels: (n,) int64 in [0, C), on the device of the heads; n = 0 gives an infinite loss. Results
    lie on the CPU. A head that is not alive gets nothing right and its loss is infinite.
    """
    alive = heads.alive()
    piece = max(1, CHUNK // (len(heads) * heads.classes))
    correct, loss = [], torch.zeros(len(heads), dtype=torch.float64)
    for start in range(0, max(1, len(labels)), piece):
        truth = labels[start : start + piece]
        logits = heads.logits(features[start : start + piece])
        correct.append((logits.argmax(dim=2) == truth.unsqueeze(1)).T & alive.unsqueeze(1))
        each = F.cross_entropy(logits.transpose(1, 2), truth.unsqueeze(1).expand(-1, len(heads)), reduction="none")
        loss += each.double().sum(dim=0).cpu()
    mean = torch.where(alive.cpu(), loss / len(labels), torch.inf).nan_to_num(nan=torch.inf, posinf=torch.inf)
    return Measured(torch.cat(correct, dim=1).cpu(), mean, alive.cpu())


def _resume(stacks: Mapping[str, Heads], state: dict[str, Any] | None) -> int:
    if state is None:
        return 0
    for key, heads in stacks.items():
        heads.restore(state["stacks"][key])
    return int(state["epochs"])
