"""A job whose features are given, for runners: right answers are known beforehand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from evalkit.types import Batch, Preprocessing, Sample, Tokens


@dataclass
class FakeFeatures:
    """rows: (N, D) per part; block b is the rows times (10 + b), so that the block that was read can be told."""

    rows: dict[str, torch.Tensor]
    labels: torch.Tensor
    groups: torch.Tensor
    skipped: tuple[str, ...] = ()
    positions: Any = None

    @property
    def ids(self):
        return [str(i) for i in (range(len(self)) if self.positions is None else self.positions)]

    def __len__(self):
        return len(self.labels)

    def get(self, part, block=-1):
        return self.rows[part] * (10 + block) / 9

    def at(self, positions):
        rows = torch.as_tensor(positions)
        of_part = {part: of[rows] for part, of in self.rows.items()}
        return FakeFeatures(of_part, self.labels[rows], self.groups[rows], positions=rows.tolist())


def features(labels, cls=None, mean=None, groups=None):
    """Features of labelled images; without `cls` every class is a corner of a cube: perfect features."""
    labels = torch.as_tensor(labels)
    perfect = torch.eye(max(16, int(labels.max()) + 1 if len(labels) else 1))[labels]
    cls = perfect if cls is None else cls
    groups = torch.arange(len(labels)) if groups is None else torch.as_tensor(groups)
    return FakeFeatures({"cls": cls, "mean": perfect if mean is None else mean}, labels, groups)


class Memory:
    """A checkpoint in memory."""

    def __init__(self):
        self.state = None

    def load(self):
        return self.state

    def save(self, state):
        self.state = state

    def clear(self):
        self.state = None


@dataclass
class FakeDataset:
    labels: torch.Tensor
    groups: torch.Tensor

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)
        return Sample(str(index), str(int(self.groups[index])), int(self.labels[index]))


class FakeEncoder:
    """An "image" (3, H, W) is a feature row written into its first channel, row by row; the encoder reads it back."""

    def __init__(self, dim):
        self.dim = dim
        self.calls = 0
        self.spec = SimpleNamespace(dim=dim, patch=4, preprocessing=Preprocessing(size=8))

    def encode(self, images, blocks=(-1,), norm=True):
        assert not torch.is_grad_enabled()
        self.calls += 1
        rows = images[:, 0].flatten(1)[:, : self.dim]
        return tuple(Tokens(rows * (10 + b) / 9, rows[:, None, None, :].expand(-1, 2, 2, -1)) for b in blocks)


@dataclass
class FakeJob:
    """train, test: what `features` returns by role. stop_after: the stream is cut after so many batches. unreadable:
    training images that are left out where features of some positions are asked for."""

    config: Any
    train: FakeFeatures
    test: FakeFeatures
    seed: int = 0
    stop_after: int | None = None
    unreadable: tuple[int, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    checkpoint: Memory = field(default_factory=Memory)
    facts: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    encoder: Any = None

    def __post_init__(self):
        self.encoder = self.encoder or FakeEncoder(self.train.rows["cls"].shape[1])

    def dataset(self, role):
        given = self.train if role == "train" else self.test
        return FakeDataset(given.labels, given.groups)

    def features(self, role, *, blocks=(-1,), norm=True, parts=("cls",), positions=None):
        self.asked.append((role, tuple(blocks), norm, tuple(parts)))
        given = self.train if role == "train" else self.test
        return given if positions is None else given.at([p for p in positions if p not in self.unreadable])

    def stream(self, role, augmentation, *, epochs, batch_size, first_epoch=0):
        self.augmentation = augmentation
        given, count = self.train, 0
        for epoch in range(first_epoch, epochs):
            order = torch.randperm(len(given), generator=self.rng("stream", epoch))
            for start in range(0, len(given), batch_size):
                if count == self.stop_after:
                    return
                count += 1
                rows = order[start : start + batch_size]
                images = torch.zeros(len(rows), 3, 8, 8)
                images[:, 0].view(len(rows), 64)[:, : self.encoder.dim] = given.rows["cls"][rows]
                yield Batch(images, given.labels[rows], rows, epoch, start + batch_size >= len(given))

    def read(self, role, reader, items):
        dataset = self.dataset(role)
        return ((tuple(item), reader(dataset, *item)) for item in items)

    def encode(self, images, blocks=(-1,), norm=True):
        return self.encoder.encode(images, blocks=blocks, norm=norm)

    def rng(self, *names):
        digest = hashlib.sha256(repr((self.seed, *names)).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def track(self, steps: Iterable[Any], what: str, total: int | None = None):
        return steps

    def fact(self, name, value):
        self.facts[name] = value

    def keep(self, name, tensors):
        self.kept[name] = dict(tensors)
