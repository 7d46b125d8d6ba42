"""Training images: small corpora packed into one uint8 tensor, so that an epoch decodes nothing; large ones decoded ahead.

A source is a folder or a zip of photographs, COCO's and ImageNet's layouts among them, or a file that was packed before.
Where it has folders of its own for training (`train`, `train2017` ...), only those are taken: what an encoder is evaluated
on stays unseen. Among what is taken, an image of a kind that is not read is an error (`datasets.beside`), as is what is no
regular file; both are told before anything is decoded. An image is resized (antialiased bicubic, short side) and its centre
square kept; a large photograph may give many random square windows instead, since at 64 pixels one square would show no
detail.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evalkit.datasets import beside, images
from evalkit.datasets.files import Tree
from evalkit.errors import BrokenImage, DatasetError, EvalkitError, PretrainError
from evalkit.files import open_regular, write_atomically
from evalkit.pretrain import tensor_files

TRAINING = ("train", "train2017", "train2014", "training")
PACKED = ".safetensors"
AT_ONCE = 256
"""Encoded images in memory."""

AHEAD = 4
"""Batches that are decoded before they are asked for."""

LARGE = 4
"""A photograph whose short side is at least this many times the training size is cut into windows."""


class Corpus(Protocol):
    """Images by number. digest: of the sources and the options that made it."""

    digest: str

    def __len__(self) -> int: ...

    def batches(self, order: Iterable[Tensor]) -> Iterator[Tensor]:
        """For each (B,) int64 tensor of numbers, the images (B, 3, S, S) uint8 on the device."""


@dataclass
class Packed:
    """All images in one tensor (N, 3, S, S) uint8, on the device that trains."""

    images: Tensor
    digest: str

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, order: Iterable[Tensor]) -> Iterator[Tensor]:
        """See `Corpus`."""
        return (self.images[rows.to(self.images.device)] for rows in order)


@dataclass
class Streamed:
    """Images decoded by threads, `AHEAD` batches before they are asked for. The digest is of names and sizes."""

    members: list[tuple[Tree, str]]
    size: int
    digest: str
    device: torch.device

    def __len__(self) -> int:
        return len(self.members)

    def batches(self, order: Iterable[Tensor]) -> Iterator[Tensor]:
        """See `Corpus`."""
        pending: deque[list[Future[np.ndarray]]] = deque()
        rows = iter(order)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                while True:
                    for batch in islice(rows, AHEAD - len(pending)):
                        pending.append([pool.submit(self._one, int(i)) for i in batch])
                    if not pending:
                        return
                    images = torch.from_numpy(np.stack([job.result() for job in pending.popleft()]))
                    yield images.to(self.device, non_blocking=True)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _one(self, number: int) -> np.ndarray:
        return _squares(*self.members[number], self.size, 1, 0)[0]


def open_corpus(
    sources: Sequence[str],
    size: int,
    cache: Path,
    *,
    windows: int = 1,
    stream: bool = False,
    device: torch.device | str,
) -> Corpus:
    """The corpus of the sources, packed under `cache` (and found there again) or streamed.

    sources: see `split_source`; one file that ends in .safetensors is taken as packed. windows: squares that a large
    photograph gives. Raises PretrainError where a source is absent, holds no image or is packed at another size.
    """
    place = torch.device(device)
    if not sources:
        raise PretrainError("no training images: name folders, zips or one packed file by --data")
    if sources[0].endswith(PACKED):
        if len(sources) > 1:
            raise PretrainError(f"{sources[0]} is packed: it must be the only --data")
        return _packed(Path(sources[0]), size, place)
    listing = [_listing(text) for text in sources]
    if not stream:
        return _packed(pack(listing, size, cache, windows=windows), size, place)
    members = [(tree, name) for tree, names in listing for name in names]
    found = hashlib.sha256(f"{size}".encode())
    for tree, names in listing:
        for name, length in zip(names, tree.sizes(names), strict=True):
            found.update(_bytes(f"{tree.path.name}/{name} {length} "))
    return Streamed(members, size, found.hexdigest(), place)


def _packed(path: Path, size: int, device: torch.device) -> Packed:
    try:
        open_regular(path).close()
        with safe_open(path, "pt") as file:
            pixels, digest = file.get_tensor("images"), (file.metadata() or {})["digest"]
    except (OSError, SafetensorError, KeyError, EvalkitError) as error:
        raise PretrainError(f"{path}: no packed corpus that can be read ({error})") from None
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (3, size, size):
        raise PretrainError(
            f"{path} holds {pixels.dtype} {tuple(pixels.shape)}; (N, 3, {size}, {size}) uint8 is needed"
        )
    return Packed(pixels.to(device), digest)


def split_source(text: str) -> tuple[Path, str]:
    """`path` or `path:pattern`: of a folder or zip, only the members whose name matches the shell pattern."""
    path, _, pattern = text.rpartition(":")
    return (Path(path), pattern) if path else (Path(text), "")


Members = tuple[Tree, list[str]]


def _listing(text: str) -> Members:
    """A source and the names of its images, sorted. Raises PretrainError, for images that cannot be opened too."""
    path, pattern = split_source(text)
    if not path.exists():
        raise PretrainError(f"{path}: no such folder or zip of training images")
    try:
        tree = Tree.open(path)
        names = _members(tree, pattern)
        for name, length in zip(names, tree.sizes(names), strict=True):
            if length < 0:
                tree.read(name)  # says why it cannot be
    except DatasetError as error:
        raise PretrainError(str(error)) from None
    if not names:
        raise PretrainError(f"{path}: no {', '.join(images.SUFFIXES)} file whose name matches {pattern or '*'!r}")
    return tree, names


def _members(tree: Tree, pattern: str) -> list[str]:
    """Sorted names; without a pattern those in a folder for training, where there is one."""
    if pattern:
        return beside.photos(tree, "", wanted=lambda name: fnmatch.fnmatchcase(name, pattern))[0]
    inside = any(map(_for_training, tree.names(images.SUFFIXES)))
    return beside.photos(tree, "", wanted=_for_training if inside else lambda name: True)[0]


def _for_training(name: str) -> bool:
    return bool(set(PurePosixPath(name).parts[:-1]) & set(TRAINING))


def _digest(listing: Sequence[Members], options: str) -> str:
    """Of options, names and the bytes of every image: other pixels make another corpus."""
    found = hashlib.sha256(options.encode())
    for tree, names in listing:
        for name in names:
            data = _read(tree, name)
            found.update(_bytes(f"{tree.path.name}/{name} {len(data)} "))
            found.update(data)
    return found.hexdigest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _read(tree: Tree, name: str) -> bytes:
    try:
        return tree.read(name)
    except DatasetError as error:
        raise PretrainError(str(error)) from None


def pack(listing: list[Members], size: int, cache: Path, *, windows: int = 1) -> Path:
    """The file of all images of the listing in order, made where it is not there yet."""
    digest = _digest(listing, f"{size} {windows}")
    target = cache / f"corpus-{digest[:16]}{PACKED}"
    if not target.exists():
        pixels = torch.from_numpy(np.stack(list(_decode(listing, size, windows))))
        metadata = {"format": "pt", "digest": digest}
        write_atomically(target, lambda part: tensor_files.write(part, {"images": pixels}, metadata))
    return target


def _decode(listing: list[Members], size: int, windows: int) -> Iterator[np.ndarray]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for tree, names in listing:
            jobs = enumerate(names)
            while part := list(islice(jobs, AT_ONCE)):
                for squares in pool.map(lambda job: _squares(tree, job[1], size, windows, job[0]), part):  # noqa: B023
                    yield from squares


def _squares(tree: Tree, name: str, size: int, windows: int, seed: int) -> list[np.ndarray]:
    """What an image gives for training. Raises PretrainError where it cannot be read or decoded."""
    try:
        image = images.decode(_read(tree, name), tree.where(name))
    except BrokenImage as error:
        raise PretrainError(str(error)) from None
    if windows < 2 or min(image.size) < LARGE * size:
        return [_pixels(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))]
    boxes = _boxes(image, size, windows, seed)
    return [_pixels(image.resize((size, size), Image.Resampling.BICUBIC, box=b)) for b in boxes]


def _boxes(image: Image.Image, size: int, windows: int, seed: int) -> Iterator[tuple[float, float, float, float]]:
    """Square windows anywhere inside, log-uniform from five eighths of the training size to four fifths of the short
    side: things and parts of them rather than whole scenes."""
    rng = np.random.default_rng(seed)
    for _ in range(windows):
        side = math.exp(rng.uniform(math.log(0.625 * size), math.log(0.8 * min(image.size))))
        x, y = rng.uniform(0, image.width - side), rng.uniform(0, image.height - side)
        yield x, y, x + side, y + side


def _pixels(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
