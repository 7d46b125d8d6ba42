"""The loops that train stacked heads: over features in memory, and over a stream of augmented images.

What:   both step every stack of heads with the same batches, in the published order: shuffled anew for each epoch, the
        last batch smaller (or left out), its gradient the mean over its own images. `measure` counts what the heads get
        right.
How:    a stack is named by a key; for each batch it is given the features that its key asks for. The stream's form
        encodes each image once for all courses, without gradients, in pieces that fit the memory; a course leaves out the
        images that it holds out and steps when a whole batch of the others is there. State is saved between epochs, so
        that a run that was killed goes on with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from evalkit.errors import ProtocolError
from evalkit.probing import schedules
from evalkit.probing.heads import Heads
from evalkit.probing.lanes import one_thread
from evalkit.probing.resume import Between, Watch
from evalkit.types import Batch, Checkpoint

CHUNK = 1 << 24
"""Logits held at once when heads are measured (64 MB)."""

ENCODED = 256
"""Images encoded at once, at most: a batch of 16,384 is 9.9 GB of pixels."""


@dataclass(frozen=True)
class Plan:
    """epochs: passes over the data. batch: images per step. schedule: how the rate falls (see `schedules`). warmup: epochs
    of growth before. lowest: share of the peak rate at the end. drop_last: leave out an epoch's last batch where it is
    not whole. iterations: steps in all, over as many passes as they take, in place of `epochs`; 0 for none.
    """

    epochs: int
    batch: int
    schedule: schedules.Schedule = "epoch"
    warmup: float = 0.0
    lowest: float = 0.0
    drop_last: bool = False
    iterations: int = 0

    def steps(self, images: int) -> int:
        """Of one pass over so many images."""
        return max(1, images // self.batch) if self.drop_last else -(-images // self.batch)

    def passes(self, images: int) -> int:
        """Over the data; the last one may end early."""
        return -(-self.iterations // self.steps(images)) if self.iterations else self.epochs

    def left(self, epoch: int, images: int) -> int:
        """Steps of an epoch."""
        steps = self.steps(images)
        return min(steps, self.iterations - epoch * steps) if self.iterations else steps

    def factor(self, epoch: int, step: int, images: int) -> float:
        """Of the peak rate, at a step of an epoch over so many images."""
        steps = self.steps(images)
        epochs = self.iterations / steps if self.iterations else self.epochs
        return schedules.factor(
            self.schedule, epoch=epoch, epochs=epochs, step=step, steps=steps, warmup=self.warmup, lowest=self.lowest
        )


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
    track: Callable[[range], Iterable[int]] = iter,
    between: Between | None = None,
) -> None:
    """Train the stacks in place on features in memory.

    features: (N, D) per key of stacks, all rows in one order, on the device of the heads. labels: (N,) int64 there.
    order: (N,) permutation for an epoch. track: shows the epochs go by. between: takes up a saved state and saves
    between epochs. Raises ProtocolError for N = 0.
    """
    if len(labels) == 0:
        raise ProtocolError("there is no image to train on")
    between, passes = between or Between(), plan.passes(len(labels))
    for epoch in track(range(between.resume(stacks, passes), passes)):
        shuffled = order(epoch).to(labels.device)
        with one_thread(plan.batch * max(len(of) * of.classes * of.dim for of in stacks.values())):
            for step in range(plan.left(epoch, len(labels))):
                rows = shuffled[step * plan.batch : (step + 1) * plan.batch]
                factor = plan.factor(epoch, step, len(labels))
                for key, heads in stacks.items():
                    heads.step(features[key][rows], labels[rows], factor)
        between.after(epoch + 1, stacks, last=epoch + 1 == passes)


@dataclass(frozen=True)
class Course:
    """Stacks of heads that are trained on the same images of a stream, as if they were alone with it.

    stacks: by the key of the features that they read. plan: of its batches and rates. images: per epoch, as the schedule
    counts them. held: (N,) bool on the CPU, by position in the data set: the images left out; None for none.
    """

    stacks: Mapping[str, Heads]
    plan: Plan
    images: int
    held: Tensor | None = None

    @property
    def passes(self) -> int:
        """Over the stream."""
        return self.plan.passes(self.images)


def fit_stream(
    courses: Mapping[str, Course],
    batches: Callable[[int], Iterable[Batch]],
    encode: Callable[[Tensor], Mapping[str, Tensor]],
    *,
    checkpoint: Checkpoint,
    watch: Mapping[str, Watch] | None = None,
) -> None:
    """Train the stacks of all courses in place on augmented images, each encoded once for all of them.

    batches: the stream from a first epoch on; its batches may have any size, also none, and are put together to those
    of each plan. encode: images to (B, D) features per key of stacks. State is saved between epochs and taken up where
    there is one; whoever owns the checkpoint clears it. Raises ProtocolError where the stream ends before the last epoch.
    """
    between = Between(checkpoint, watch or {})
    stacks = {f"{name}/{key}": heads for name, course in courses.items() for key, heads in course.stacks.items()}
    passes = max(course.passes for course in courses.values())
    done = between.resume(stacks, passes)
    going = [_Going(course) for course in courses.values()]
    for batch in batches(done) if done < passes else ():
        with torch.no_grad():
            features = encode(batch.images) if len(batch.labels) else {}
        for one in going:
            one.take(batch, features)
        over = all(one.over(batch.epoch) for one in going)
        if batch.last_of_epoch or over:
            done, going = batch.epoch + 1, [_Going(course) for course in courses.values()]
            between.after(done, stacks, last=done == passes)
        if over and not batch.last_of_epoch:
            break  # else the stream ends by itself, and tells which images it could not decode
    if done < passes:
        raise ProtocolError(f"the stream of images ended after {done} of {passes} epochs")


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


class _Going:
    """A course within an epoch."""

    def __init__(self, course: Course) -> None:
        self.course, self.waiting, self.step = course, _Waiting(), 0

    def take(self, batch: Batch, features: Mapping[str, Tensor]) -> None:
        """Some images of the stream have come, with their features by key: step as often as there is a whole batch."""
        plan, images = self.course.plan, self.course.images
        if features and not self.over(batch.epoch):
            self.waiting.add(*self._kept(batch, features))
        # where images are broken, no batch of an epoch may be whole; then the rest is one
        rest = batch.last_of_epoch and (not plan.drop_last or (self.step == 0 and len(self.waiting) < plan.batch))
        for rows, labels in self.waiting.take(plan.batch, rest):
            if self.over(batch.epoch) or self.step == plan.left(batch.epoch, images):
                break
            factor = plan.factor(batch.epoch, self.step, images)
            for key, heads in self.course.stacks.items():
                heads.step(rows[key], labels, factor)
            self.step += 1

    def over(self, epoch: int) -> bool:
        """Whether all steps of all epochs are done."""
        last = self.course.passes - 1
        return epoch > last or (epoch == last and self.step == self.course.plan.left(epoch, self.course.images))

    def _kept(self, batch: Batch, features: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], Tensor]:
        if self.course.held is None:
            return features, batch.labels
        here = (~self.course.held[batch.positions]).to(batch.labels.device)
        return {key: rows[here] for key, rows in features.items()}, batch.labels[here]


class _Waiting:
    """Encoded images in the order in which they came, until there are enough for a step."""

    def __init__(self) -> None:
        self.pieces: list[tuple[Mapping[str, Tensor], Tensor]] = []

    def __len__(self) -> int:
        return sum(len(labels) for _, labels in self.pieces)

    def add(self, features: Mapping[str, Tensor], labels: Tensor) -> None:
        self.pieces.append((features, labels))

    def take(self, size: int, rest: bool) -> Iterator[tuple[Mapping[str, Tensor], Tensor]]:
        """Whole batches, and with `rest` what is left after them."""
        while len(self) >= size or (rest and len(self)):
            features, labels = self._joined()
            self.pieces = []
            if len(labels) > size:
                self.add({key: rows[size:] for key, rows in features.items()}, labels[size:])
            yield {key: rows[:size] for key, rows in features.items()}, labels[:size]

    def _joined(self) -> tuple[Mapping[str, Tensor], Tensor]:
        if len(self.pieces) == 1:
            return self.pieces[0]
        joined = {key: torch.cat([features[key] for features, _ in self.pieces]) for key in self.pieces[0][0]}
        return joined, torch.cat([labels for _, labels in self.pieces])
