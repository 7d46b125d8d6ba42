"""Training images packed into one uint8 tensor, so that an epoch decodes nothing.

A source is a folder or a zip of photographs; every image is resized (antialiased bicubic, short side) and its centre
square kept. The tensor lies beside a digest of names and sizes and is reused when the sources are the same.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from evalkit.errors import PretrainError

SUFFIXES = (".jpg", ".jpeg", ".png")


def _members(source: Path, prefix: str) -> list[str]:
    if source.is_dir():
        names = [p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()]
    else:
        with zipfile.ZipFile(source) as archive:
            names = archive.namelist()
    return sorted(n for n in names if n.startswith(prefix) and n.lower().endswith(SUFFIXES))


def _read(source: Path, names: Sequence[str]) -> Iterator[bytes]:
    if source.is_dir():
        yield from ((source / name).read_bytes() for name in names)
        return
    with zipfile.ZipFile(source) as archive:
        yield from (archive.read(name) for name in names)


def _square(data: bytes, size: int) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def split_source(text: str) -> tuple[Path, str]:
    """`path` or `path:prefix`: of a folder or zip, only the members whose name begins with prefix."""
    path, _, prefix = text.rpartition(":")
    return (Path(path), prefix) if path else (Path(text), "")


def pack(sources: Iterable[str], size: int, cache: Path) -> tuple[Tensor, str]:
    """All images of the sources in order: ((N, 3, size, size) uint8, digest of sources and size).

    Raises PretrainError where a source is absent or holds no image.
    """
    listing = []
    for path, prefix in map(split_source, sources):
        if not path.exists():
            raise PretrainError(f"{path}: no such folder or zip of training images")
        names = _members(path, prefix)
        if not names:
            raise PretrainError(f"{path}: no {', '.join(SUFFIXES)} file whose name begins with {prefix!r}")
        listing.append((path, names))
    facts = repr([(p.name, sum(1 for _ in n), n) for p, n in listing]) + str(size)
    digest = hashlib.sha256(facts.encode()).hexdigest()
    target = cache / f"corpus-{digest[:16]}.pt"
    if not target.exists():
        _write(target, torch.from_numpy(_decode(listing, size)))
    return torch.load(target, weights_only=True, mmap=True), digest


def _decode(listing: list[tuple[Path, list[str]]], size: int) -> np.ndarray:
    out = np.empty((sum(len(names) for _, names in listing), 3, size, size), np.uint8)
    row = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, names in listing:
            for pixels in pool.map(lambda data: _square(data, size), _read(path, names)):
                out[row] = pixels
                row += 1
    return out


def _write(target: Path, images: Tensor) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.part")
    torch.save(images, partial)
    partial.replace(target)
