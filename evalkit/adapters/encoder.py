"""The `Encoder` contract over the shared `VisionTransformer`: frozen, in evaluation mode, with the pretraining head where
the file has one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from evalkit.adapters.vit import VisionTransformer
from evalkit.errors import FeatureError, NoProjection, Unsupported
from evalkit.types import EncoderSpec, Tokens


class ViTEncoder(nn.Module):
    """vit: the network. head: callable as `head(cls, bottleneck=...)`, None where the file holds none."""

    def __init__(self, vit: VisionTransformer, spec: EncoderSpec, head: nn.Module | None = None) -> None:
        super().__init__()
        self.vit, self.spec, self.head = vit, spec, head
        self.eval().requires_grad_(False)

    def encode(
        self, images: Tensor, blocks: Sequence[int] = (-1,), norm: bool | Sequence[bool] = True
    ) -> tuple[Tokens, ...]:
        """See `evalkit.types.Encoder`."""
        numbers = [resolve_block(b, self.vit.config.depth) for b in blocks]
        flags = norm_flags(norm, len(numbers))
        h, w = (side // self.vit.config.patch for side in images.shape[-2:])
        return tuple(self._tokens(x, h, w) for x in self.vit.intermediate(images, numbers, flags))

    def _tokens(self, x: Tensor, h: int, w: int) -> Tokens:
        config = self.vit.config
        patches = x[:, config.prefix :].reshape(len(x), h, w, -1)
        return Tokens(cls=x[:, 0] if config.cls else None, patches=patches)

    def project(self, tokens: Tokens, at: Literal["output", "bottleneck"] = "output") -> Tensor:
        """See `evalkit.types.Encoder`: the pretraining head on the class token."""
        if self.head is None:
            raise NoProjection(f"{self.spec.id}: the file holds no pretraining head")
        if tokens.cls is None:
            raise NoProjection(f"{self.spec.id}: the head reads a class token and the network has none")
        return self.head(tokens.cls, bottleneck=at == "bottleneck")  # type: ignore[no-any-return]

    def attention(self, images: Tensor, queries: Sequence[str | int] = ("cls",)) -> Tensor:
        """See `evalkit.types.Encoder`."""
        config = self.vit.config
        if "cls" in queries and not config.cls:
            raise Unsupported(f"{self.spec.id}: the network has no class token to look from")
        h, w = (side // config.patch for side in images.shape[-2:])
        return self.vit.attention(images, query_rows(queries, h * w, config.prefix))


class PooledEncoder(ViTEncoder):
    """The mean of the patch tokens, normed, in place of the class token."""

    def encode(
        self, images: Tensor, blocks: Sequence[int] = (-1,), norm: bool | Sequence[bool] = True
    ) -> tuple[Tokens, ...]:
        """See `evalkit.types.Encoder`; patches have no final norm in either case."""
        found = super().encode(images, blocks, norm)
        return tuple(self._pooled(tokens, n) for tokens, n in zip(found, norm_flags(norm, len(blocks)), strict=True))

    def _pooled(self, tokens: Tokens, norm: bool) -> Tokens:
        mean = tokens.patches.mean((1, 2))
        return replace(tokens, cls=self.vit.cls_norm(mean) if norm else mean)


def by_its_norm(vit: VisionTransformer, spec: EncoderSpec, head: nn.Module | None) -> ViTEncoder:
    """By the mean of the patches where the network has a norm for it, as fine-tuning on that mean leaves files."""
    return (PooledEncoder if vit.config.cls_norm else ViTEncoder)(vit, spec, head)


def resolve_block(block: int, depth: int) -> int:
    """A block number counted from 0; negative numbers count from the output. Raises FeatureError outside the depth."""
    number = block + depth if block < 0 else block
    if not 0 <= number < depth:
        raise FeatureError(
            f"block {block} does not exist: the encoder has {depth} blocks (0 to {depth - 1}, or -1 ...)"
        )
    return number


def norm_flags(norm: bool | Sequence[bool], blocks: int) -> list[bool]:
    """One flag per block. Raises FeatureError where there are neither one nor as many as blocks."""
    flags = [norm] * blocks if isinstance(norm, bool) else list(norm)
    if len(flags) != blocks:
        raise FeatureError(f"{len(flags)} norm flags for {blocks} blocks: give one for all, or one for each")
    return flags


def query_rows(queries: Sequence[str | int], patches: int, prefix: int) -> list[int]:
    """Token numbers of attention queries. Raises FeatureError for what is neither "cls" nor a patch of the image."""
    wrong = [q for q in queries if q != "cls" and not (isinstance(q, int) and 0 <= q < patches)]
    if wrong:
        raise FeatureError(f"attention query {wrong[0]!r}: allowed are 'cls' and patch numbers 0 to {patches - 1}")
    return [0 if q == "cls" else prefix + int(q) for q in queries]
