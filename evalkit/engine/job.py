"""What a runner is given in this process: stored features, augmented batches, generators, a checkpoint to resume from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evalkit.datasets.subset import picked
from evalkit.engine.delivery import Delivery
from evalkit.errors import StoreError
from evalkit.features.decoding import Broken, Loading, cores, read
from evalkit.features.extract import ExtractOptions, extract
from evalkit.features.forward import casting, owned
from evalkit.features.key import Request
from evalkit.features.stream import stream
from evalkit.types import Augmentation, Batch, Dataset, Encoder, Features, Part, Progress, Read, Role, Tokens, View


@dataclass
class LocalJob:
    """The `Job` contract in this process. `facts` and `kept` fill as the runner tells and keeps."""

    encoder: Encoder
    config: Any
    device: torch.device
    seed: int
    datasets: Mapping[Role, Dataset]
    view: View
    options: ExtractOptions
    progress: Progress
    checkpoint: FileCheckpoint
    facts: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    train_view: View | None = None
    """Of stored training images, where the recipe has one of its own for them."""
    delivery: Delivery | None = None
    _skipping: Lock = field(default_factory=Lock, repr=False)

    def dataset(self, role: Role) -> Dataset:
        """The split that the recipe gives this role."""
        return self.datasets[role]

    def features(
        self,
        role: Role,
        *,
        blocks: Sequence[int] = (-1,),
        norm: bool = True,
        parts: Sequence[Part] = ("cls",),
        positions: Sequence[int] | None = None,
    ) -> Features:
        """Stored features, computed now where the store lacks them."""
        request = Request(parts=_widened(parts, self.encoder), blocks=tuple(blocks), norm=norm)
        dataset = self.datasets[role] if positions is None else picked(self.datasets[role], positions)
        view = self.train_view if role == "train" and self.train_view is not None else self.view
        found = extract(self.encoder, dataset, view, request, options=self.options)
        self._skip(role, found.skipped)
        return found

    def stream(
        self, role: Role, augmentation: Augmentation, *, epochs: int, batch_size: int, first_epoch: int = 0
    ) -> Iterator[Batch]:
        """Augmented batches of a split; what cannot be decoded is refused, or left out and put on record."""
        dataset = self.datasets[role]
        broken = Broken(dataset, self.options.skip_broken)
        try:
            yield from stream(
                dataset, augmentation, epochs=epochs, batch_size=batch_size, first_epoch=first_epoch,
                seed=self.seed, device=self.device, workers=self.options.workers, broken=broken,
            )  # fmt: skip
        finally:  # whoever has seen enough closes the stream early
            self._skip(role, [dataset[position].id for position in sorted(set(broken.positions))])

    def read(
        self, role: Role, reader: Callable[..., Read], items: Iterable[tuple[int, ...]], *, ahead: bool = True
    ) -> Iterator[tuple[tuple[int, ...], Read]]:
        """(item, reader(dataset, *item)) of each item, in order, computed ahead in workers, or here and now."""
        dataset = self.datasets[role]
        broken = Broken(dataset, self.options.skip_broken)
        workers = min(cores(), 8) if self.options.workers is None else self.options.workers
        loading = Loading(workers if ahead else 0, ahead and self.device.type == "cuda", batch=1, ahead=2)
        try:
            yield from read(dataset, reader, items, loading=loading, broken=broken)
        finally:
            self._skip(role, [dataset[position].id for position in broken.positions])

    def _skip(self, role: Role, ids: Iterable[str]) -> None:
        """Put samples that were left out on record, each once, whichever thread met them first."""
        with self._skipping:
            if found := sorted({*self.skipped.get(role, ()), *ids}):
                self.skipped[role] = found

    def encode(self, images: Tensor, blocks: Sequence[int] = (-1,), norm: bool = True) -> tuple[Tokens, ...]:
        """The encoder's tokens in the job's precision, without gradients; a class token that is kept keeps nothing else."""
        with torch.no_grad(), casting(self.device, self.options.precision):
            found = self.encoder.encode(images, blocks=blocks, norm=norm)
        return tuple(tokens if tokens.cls is None else replace(tokens, cls=owned(tokens.cls)) for tokens in found)

    def rng(self, *names: str | int) -> torch.Generator:
        """A CPU generator of its own for these names."""
        text = repr((self.seed, *names)).encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:7], "big"))

    def track(self, steps: Iterable[Any], what: str, total: int | None = None) -> Iterable[Any]:
        """The same items, with progress shown."""
        return self.progress.track(steps, what, total)

    def fact(self, name: str, value: Any) -> None:
        """A plain fact for the record."""
        self.facts[name] = value

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Tensors to lie beside the record."""
        self.kept[name] = tensors

    def deliver(self, name: str, labels: np.ndarray) -> None:
        """A label map, written where --save-masks says."""
        if self.delivery is not None:
            self.delivery.put(name, labels)


def _widened(parts: Sequence[Part], encoder: Encoder) -> tuple[Part, ...]:
    """Class token and patch mean are stored together: both are small, and the next protocol often asks for the other."""
    both: tuple[Part, ...] = ("cls", "mean")
    return both if set(parts) < set(both) and "cls" in encoder.spec.offers else tuple(parts)


@dataclass(frozen=True)
class FileCheckpoint:
    """State of unfinished training in one file, replaced atomically, read without running code."""

    path: Path

    def load(self) -> dict[str, Any] | None:
        """The last saved state, None where there is none; a damaged one counts as none."""
        if not self.path.exists():
            return None
        try:
            return torch.load(self.path, weights_only=True)  # type: ignore[no-any-return]
        except Exception:  # noqa: BLE001 - torch raises many kinds for a damaged file; starting over is right for all
            return None

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state. Raises StoreError where the cache cannot be written."""
        part = self.path.with_suffix(f".{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, part)
            part.replace(self.path)
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            raise StoreError(f"{self.path}: cannot be written ({error}); set EVALKIT_CACHE to another folder") from None

    def clear(self) -> None:
        """Forget the state: the work is done."""
        self.path.unlink(missing_ok=True)
