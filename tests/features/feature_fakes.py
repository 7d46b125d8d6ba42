"""An encoder and data sets whose right answers are known, small enough to be run by the thousand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evalkit.errors import BrokenImage
from evalkit.types import Box, EncoderSpec, Preprocessing, Sample, Tokens, View

SIZE, PATCH, DIM, DEPTH = 16, 8, 3, 4
VIEW = View(SIZE, SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def spec(**changes: Any) -> EncoderSpec:
    fields: dict[str, Any] = {
        "id": "mean-colour", "family": "fake", "arch": "fake", "dim": DIM, "depth": DEPTH, "heads": 1, "patch": PATCH,
        "grid": (2, 2), "preprocessing": Preprocessing(size=SIZE), "network": "backbone", "digest": "d" * 64,
        "adapter_version": 1, "offers": frozenset({"cls", "patches", "blocks"}),
    }  # fmt: skip
    return EncoderSpec(**(fields | changes))


@dataclass
class MeanColour:
    """Tokens are mean colours; block b adds b, the final norm adds 100. Counts the images it is shown."""

    spec: EncoderSpec = field(default_factory=spec)
    has_cls: bool = True
    seen: int = 0

    def to(self, device: torch.device) -> MeanColour:
        return self

    def encode(self, images: Tensor, blocks: Sequence[int] = (-1,), norm: Any = True) -> tuple[Tokens, ...]:
        self.seen += len(images)
        flags = [norm] * len(blocks) if isinstance(norm, bool) else list(norm)
        patches = torch.nn.functional.avg_pool2d(images, PATCH).permute(0, 2, 3, 1)
        shifts = [block % DEPTH + 100.0 * flag for block, flag in zip(blocks, flags, strict=True)]
        whole = images.mean((2, 3))
        return tuple(Tokens(whole + shift if self.has_cls else None, patches + shift) for shift in shifts)

    def project(self, tokens: Tokens, at: str = "output") -> Tensor:
        raise NotImplementedError

    def attention(self, images: Tensor, queries: Sequence[str | int] = ("cls",)) -> Tensor:
        raise NotImplementedError


class Refuses(MeanColour):
    """Must not be called."""

    def encode(self, images: Tensor, blocks: Sequence[int] = (-1,), norm: Any = True) -> tuple[Tokens, ...]:
        raise AssertionError("the encoder was called")


@dataclass
class Photos:
    """Plain images of one colour each, with `boxes` samples per image. `opened`: a folder that gets one file per
    decoding."""

    images: int = 10
    boxes: int = 1
    broken: frozenset[int] = frozenset()
    opened: Path | None = None
    name: str = "photos"
    split: str = "train"
    classes: tuple[str, ...] = ("dark", "light")
    box: Box | None = None

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.images} {self.boxes}".encode()).hexdigest()

    def __len__(self) -> int:
        return self.images * self.boxes

    def __getitem__(self, index: int, /) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        image = index // self.boxes
        return Sample(f"sample-{index}", f"image-{image}", image % 2, self.box)

    def image(self, group: str) -> Image.Image:
        if self.opened is not None:
            number = len(list(self.opened.iterdir()))
            (self.opened / f"{group}.{number}.{torch.randint(1 << 40, ()).item()}").touch()
        number = int(group.removeprefix("image-"))
        if number in self.broken:
            raise BrokenImage(f"{group}.jpg is cut short")
        pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE + 4, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    def describe(self) -> dict[str, Any]:
        return {}

    def decodings(self) -> list[str]:
        assert self.opened is not None
        return sorted(path.name.split(".")[0] for path in self.opened.iterdir())
