"""Encoders whose right answers are known, for tests of everything above: exactly 1.0 and exactly chance.

`fake_patch8` reads the class back from the colour that `datasets/fake.py` paints: both keep the rule of `colours`.
The class token is one-hot over 27 classes, for the colour nearest to the image's mean; a patch token likewise for its
patch. Every block answers alike; the head passes the class token on; attention is uniform. `fake_blind_patch8`
answers class 0 always.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.adapters import specs
from evalkit.adapters.encoder import resolve_block
from evalkit.adapters.pixels import cut
from evalkit.errors import NoProjection
from evalkit.types import Encoder, EncoderSpec, Manifest, Tokens

VERSION = 1
NEEDS_FILE = False
ARCHITECTURES = ("fake_patch8", "fake_blind_patch8")
PATCH, SIZE, DEPTH, HEADS, CLASSES = 8, 32, 12, 2, 27
SOURCE = "evalkit: ImageNet mean and std"


def colours(n: int) -> np.ndarray:
    """(n, 3) uint8 RGB: the colour of each class; n at most 27.

    The 27 colours with channels 0, 128 or 255 in lexicographic order; class c has colour (7 c) mod 27, so that
    neighbours differ in more than one channel. Raises ValueError for more classes than colours.
    """
    if not 0 < n <= CLASSES:
        raise ValueError(f"{n} classes: there are colours for 1 to {CLASSES}")
    cube = np.array(list(product((0, 128, 255), repeat=3)), dtype=np.uint8)
    return cube[np.arange(n) * 7 % CLASSES]


class FakeEncoder(nn.Module):
    """The `Encoder` contract with known answers. blind: answers class 0 whatever it sees."""

    table: Tensor

    def __init__(self, spec: EncoderSpec, *, blind: bool = False) -> None:
        super().__init__()
        self.spec, self.blind = spec, blind
        mean, std = (torch.tensor(v) for v in (spec.preprocessing.mean, spec.preprocessing.std))
        self.register_buffer("table", (torch.from_numpy(colours(CLASSES)) / 255 - mean) / std)

    def encode(
        self, images: Tensor, blocks: Sequence[int] = (-1,), norm: bool | Sequence[bool] = True
    ) -> tuple[Tokens, ...]:
        """See `evalkit.types.Encoder`; all blocks are alike and `norm` changes nothing."""
        for block in blocks:
            resolve_block(block, DEPTH)
        pixels = cut(images, PATCH)
        patches = pixels.reshape(*pixels.shape[:3], 3, -1).mean(-1)
        tokens = Tokens(cls=self._read(images.mean((-2, -1))), patches=self._read(patches))
        return (tokens,) * len(blocks)

    def _read(self, colour: Tensor) -> Tensor:
        """(..., 3) normalised colours -> (..., 27) one-hot of the nearest class."""
        distance = (colour[..., None, :] - self.table.to(colour.dtype)).square().sum(-1)
        nearest = torch.zeros_like(distance[..., 0], dtype=torch.long) if self.blind else distance.argmin(-1)
        return F.one_hot(nearest, CLASSES).to(colour.dtype)

    def project(self, tokens: Tokens, at: Literal["output", "bottleneck"] = "output") -> Tensor:
        """(B, 27): the class token itself. Raises NoProjection where the tokens have none."""
        if tokens.cls is None:
            raise NoProjection(f"{self.spec.id}: these tokens have no class token")
        return tokens.cls

    def attention(self, images: Tensor, queries: Sequence[str | int] = ("cls",)) -> Tensor:
        """See `evalkit.types.Encoder`; every token looks at all tokens alike."""
        tokens = 1 + cut(images, PATCH)[0, ..., 0].numel()
        return images.new_full((len(images), HEADS, len(queries), tokens), 1 / tokens)


def load(manifest: Manifest, raw: None = None) -> Encoder:
    """The encoder; there is nothing to load."""
    spec = EncoderSpec(
        id=manifest.id,
        family=manifest.family,
        arch=manifest.arch,
        dim=CLASSES,
        depth=DEPTH,
        heads=HEADS,
        patch=PATCH,
        grid=(SIZE // PATCH, SIZE // PATCH),
        preprocessing=specs.preprocessing(manifest, SIZE, SOURCE),
        network="none",
        digest="",
        adapter_version=VERSION,
        offers=frozenset({"cls", "patches", "blocks", "projection", "attention"}),
    )
    return FakeEncoder(spec, blind=manifest.arch == "fake_blind_patch8")
