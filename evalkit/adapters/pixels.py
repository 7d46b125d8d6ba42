"""The control `pixels`: no network at all. A score that does not beat it means nothing.

Patch token: the 8 x 8 x 3 normalised pixels of the patch (192 numbers, channel by channel, rows from top to bottom).
Class token: the whole image averaged down to 8 x 8 (192 numbers in the same order). Every block answers with these
same tokens, and there is no final norm to apply. For scale: 10-NN on 15 classes of clothing crops gives 0.38.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.adapters import specs
from evalkit.adapters.encoder import resolve_block
from evalkit.errors import FeatureError, NoProjection, Unsupported
from evalkit.types import Encoder, EncoderSpec, Manifest, Tokens

VERSION = 1
NEEDS_FILE = False
ARCHITECTURES = ("pixels_patch8_64",)
PATCH, SIZE, DEPTH = 8, 64, 12
SOURCE = "evalkit: ImageNet mean and std"


class PixelsEncoder(nn.Module):
    """The `Encoder` contract over plain pixels."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec

    def encode(
        self, images: Tensor, blocks: Sequence[int] = (-1,), norm: bool | Sequence[bool] = True
    ) -> tuple[Tokens, ...]:
        """See `evalkit.types.Encoder`; all blocks are alike and `norm` changes nothing."""
        for block in blocks:
            resolve_block(block, DEPTH)
        tokens = Tokens(cls=F.adaptive_avg_pool2d(images, PATCH).flatten(1), patches=cut(images, PATCH))
        return (tokens,) * len(blocks)

    def project(self, tokens: Tokens, at: Literal["output", "bottleneck"] = "output") -> Tensor:
        """Raises NoProjection: there is no head."""
        raise NoProjection(f"{self.spec.id}: plain pixels have no pretraining head")

    def attention(self, images: Tensor, queries: Sequence[str | int] = ("cls",)) -> Tensor:
        """Raises Unsupported: there is no attention."""
        raise Unsupported(f"{self.spec.id}: plain pixels have no attention")


def cut(images: Tensor, patch: int) -> Tensor:
    """(B, 3, H, W) to the pixels of each patch, (B, H / patch, W / patch, 3 * patch * patch).

    Raises FeatureError where the size is no multiple of the patch.
    """
    height, width = images.shape[-2:]
    if height % patch or width % patch or not height or not width:
        raise FeatureError(f"image size {height} x {width} is not a multiple of the patch size {patch}")
    rows = F.unfold(images, patch, stride=patch).transpose(1, 2)
    return rows.reshape(len(images), height // patch, width // patch, -1)


def load(manifest: Manifest, raw: None = None) -> Encoder:
    """The encoder; there is nothing to load."""
    spec = EncoderSpec(
        id=manifest.id,
        family=manifest.family,
        arch=manifest.arch,
        dim=3 * PATCH * PATCH,
        depth=DEPTH,
        heads=0,
        patch=PATCH,
        grid=(SIZE // PATCH, SIZE // PATCH),
        preprocessing=specs.preprocessing(manifest, SIZE, SOURCE),
        network="none",
        digest="",
        adapter_version=VERSION,
        offers=frozenset({"cls", "patches", "blocks"}),
    )
    return PixelsEncoder(spec)
