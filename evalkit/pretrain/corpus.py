"""Training images packed into one uint8 tensor, so that an epoch decodes nothing.

A source is a folder or a zip of photographs. An image is resized (antialiased bicubic, short side) and its centre square
kept; a large photograph gives many random square windows instead, since at 64 pixels one square would show no detail.
The tensor lies under a digest of the sources' names and bytes and is reused when they are the same.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from evalkit.errors import PretrainError

SUFFIXES = (".jpg", ".jpeg", ".png")
AT_ONCE = 256
"""Encoded images in memory."""

LARGE = 4
"""A photograph whose short side is at least this many times the training size is cut into windows."""


def _members(source: Path, pattern: str) -> list[str]:
    if source.is_dir():
        names = [p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()]
    else:
        with zipfile.ZipFile(source) as archive:
            names = archive.namelist()
    return sorted(n for n in names if fnmatch.fnmatchcase(n, pattern) and n.lower().endswith(SUFFIXES))


def _read(source: Path, names: Sequence[str]) -> Iterator[bytes]:
    if source.is_dir():
        yield from ((source / name).read_bytes() for name in names)
        return
    with zipfile.ZipFile(source) as archive:
        yield from (archive.read(name) for name in names)


def _listing(text: str) -> tuple[Path, list[str]]:
    path, pattern = split_source(text)
    if not path.exists():
        raise PretrainError(f"{path}: no such folder or zip of training images")
    try:
        names = _members(path, pattern)
    except (OSError, zipfile.BadZipFile) as error:
        raise PretrainError(f"{path}: neither a folder nor a zip that can be read ({error})") from None
    if not names:
        raise PretrainError(f"{path}: no {', '.join(SUFFIXES)} file whose name matches {pattern!r}")
    return path, names


def _digest(listing: Sequence[tuple[Path, list[str]]], options: str) -> str:
    """Of options, names and the bytes of every image: other pixels make another corpus."""
    found = hashlib.sha256(options.encode())
    for path, names in listing:
        for name, data in zip(names, _read(path, names), strict=True):
            found.update(f"{path.name}/{name} {len(data)} ".encode())
            found.update(data)
    return found.hexdigest()


def _squares(data: bytes, size: int, windows: int, seed: int) -> list[np.ndarray]:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    if windows < 2 or min(image.size) < LARGE * size:
        return [_pixels(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))]
    return [
        _pixels(image.resize((size, size), Image.Resampling.BICUBIC, box=b)) for b in _boxes(image, size, windows, seed)
    ]


def _boxes(image: Image.Image, size: int, windows: int, seed: int) -> Iterator[tuple[float, float, float, float]]:
    """Square windows anywhere inside, log-uniform from five eighths of the training size to four fifths of the short
    side: things and parts of them rather than whole scenes."""
    rng = np.random.default_rng(seed)
    for _ in range(windows):
        side = math.exp(rng.uniform(math.log(0.625 * size), math.log(0.8 * min(image.size))))
        x, y = rng.uniform(0, image.width - side), rng.uniform(0, image.height - side)
        yield x, y, x + side, y + side


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)


def split_source(text: str) -> tuple[Path, str]:
    """`path` or `path:pattern`: of a folder or zip, only the members whose name matches the shell pattern."""
    path, _, pattern = text.rpartition(":")
    return (Path(path), pattern) if path else (Path(text), "*")


def pack(sources: Iterable[str], size: int, cache: Path, *, windows: int = 1) -> tuple[Tensor, str]:
    """All images of the sources in order: ((N, 3, size, size) uint8, digest of sources and options).

    windows: squares that a large photograph gives. Raises PretrainError where a source is absent or holds no image.
    """
    listing = [_listing(text) for text in sources]
    digest = _digest(listing, f"{size} {windows}")
    target = cache / f"corpus-{digest[:16]}.pt"
    if not target.exists():
        _write(target, torch.from_numpy(_decode(listing, size, windows)))
    return torch.load(target, weights_only=True, mmap=True), digest


def _decode(listing: list[tuple[Path, list[str]]], size: int, windows: int) -> np.ndarray:
    found: list[np.ndarray] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, names in listing:
            jobs = enumerate(zip(names, _read(path, names), strict=True))
            while part := list(islice(jobs, AT_ONCE)):
                for squares in pool.map(lambda job: _named(path, *job[1], size, windows, job[0]), part):  # noqa: B023
                    found += squares
    return np.stack(found)


def _named(path: Path, name: str, data: bytes, *how: int) -> list[np.ndarray]:
    try:
        return _squares(data, *how)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise PretrainError(f"{path}/{name}: no image that can be decoded ({error})") from None


def _write(target: Path, images: Tensor) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.part")
    torch.save(images, partial)
    partial.replace(target)
