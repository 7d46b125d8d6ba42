"""What a stored result depends on, as one sha256: equal keys mean equal features.

Canonical JSON (sorted names, no spaces) of every field of `Key` is hashed. Prose (an encoder's id, a preprocessing's
source) is left out: the same weights under two ids share an entry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from evalkit.errors import UsageError
from evalkit.types import Dataset, EncoderSpec, Part, View

FORMAT = 1
"""Version of the layout on disk and of the arithmetic before and after the encoder; raised when either changes."""

PARTS: tuple[Part, ...] = ("cls", "mean", "patches", "projection", "bottleneck")

PROJECTED: tuple[Part, ...] = ("projection", "bottleneck")
"""Parts that the pretraining head makes: of the last block after the final norm, the only tokens that it was trained on."""

PatchDtype = Literal["float16", "float32"]


@dataclass(frozen=True)
class Request:
    """What is wanted of each image.

    parts: representations. blocks: 0-based from the input, negative from the output. norm: apply the final norm, one
    flag or one per block.
    """

    parts: tuple[Part, ...] = ("cls",)
    blocks: tuple[int, ...] = (-1,)
    norm: bool | tuple[bool, ...] = True

    def resolved(self, depth: int) -> Request:
        """The same request in its one canonical form: parts and blocks sorted, once each, negative blocks counted from
        0.

        Blocks that the depth does not hold stay as they are: the encoder decides. Raises UsageError for an empty or
        unknown part, no block, a count of flags that is not the count of blocks, one block asked both with and
        without norm, or a projection of anything but the last block with its norm.
        """
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts or not self.blocks:
            raise UsageError(f"features need parts of {', '.join(PARTS)} and at least one block; got {self}")
        norm = self.flags()
        if len(norm) != len(self.blocks):
            raise UsageError(f"{len(norm)} norm flags for {len(self.blocks)} blocks; give one flag, or one per block")
        pairs = sorted({(numbered(block, depth), flag) for block, flag in zip(self.blocks, norm, strict=True)})
        blocks, flags = tuple(block for block, _ in pairs), tuple(flag for _, flag in pairs)
        if len(set(blocks)) < len(blocks):
            raise UsageError(f"a block is asked both with and without the final norm: {self}; make two requests")
        if set(PROJECTED) & set(self.parts) and pairs != [(depth - 1, True)]:
            raise UsageError(f"the pretraining head reads the last block after the final norm and no other; got {self}")
        return Request(tuple(part for part in PARTS if part in self.parts), blocks, flags)

    def flags(self) -> tuple[bool, ...]:
        """Whether the final norm is applied, per block."""
        return (self.norm,) * len(self.blocks) if isinstance(self.norm, bool) else tuple(self.norm)

    def only(self, part: Part, block: int) -> Request:
        """The request for one part of one of its blocks."""
        return Request((part,), (block,), (self.flags()[self.blocks.index(block)],))


@dataclass(frozen=True)
class Key:
    """Everything that stored features depend on.

    weights: sha256 of the file, "" for none. preprocessing: size, mean, std. shape: dim, depth, heads, patch. dataset:
    its digest; samples: digest of the ordered samples. view_seed: of a random view, None for a fixed one. dtypes:
    stored type by part. norm: one flag per block.
    """

    weights: str
    network: str
    seed: int | None
    family: str
    arch: str
    adapter_version: int
    shape: tuple[int, int, int, int]
    preprocessing: tuple[Any, ...]
    dataset: str
    split: str
    samples: str
    view: View
    parts: tuple[Part, ...]
    blocks: tuple[int, ...]
    norm: tuple[bool, ...]
    precision: str
    dtypes: tuple[tuple[str, str], ...]
    view_seed: int | None = None
    format: int = FORMAT

    def canonical(self) -> str:
        """The JSON text that is hashed."""
        fields = asdict(self)
        if self.view.border == "black":  # the key of features that were stored before there was a choice
            del fields["view"]["border"]
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def digest(self) -> str:
        """sha256 of the canonical text, 64 hexadecimal digits: the entry's name in the store."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


def numbered(block: int, depth: int) -> int:
    """The block's 0-based number; one that the depth does not hold is returned as it came."""
    return block + depth if -depth <= block < 0 else block


def key_of(
    spec: EncoderSpec,
    dataset: Dataset,
    view: View,
    *,
    request: Request,
    samples: str,
    precision: str,
    patches: PatchDtype,
) -> Key:
    """The key of one extraction. samples: `samples_digest`. precision: resolved, "fp32" or "bf16".
    patches: stored type of patch tokens; pooled parts are always float32."""
    wanted = request.resolved(spec.depth)
    feeding = spec.preprocessing
    return Key(
        weights=spec.digest,
        network=spec.network,
        seed=spec.seed,
        family=spec.family,
        arch=spec.arch,
        adapter_version=spec.adapter_version,
        shape=(spec.dim, spec.depth, spec.heads, spec.patch),
        preprocessing=(feeding.size, feeding.mean, feeding.std),
        dataset=dataset.digest,
        split=dataset.split,
        samples=samples,
        view=view,
        parts=wanted.parts,
        blocks=wanted.blocks,
        norm=wanted.flags(),
        precision=precision,
        dtypes=tuple((part, patches if part == "patches" else "float32") for part in wanted.parts),
    )


def samples_digest(rows: Sequence[tuple[str, str, Any]]) -> str:
    """sha256 over (id, group, box) of every sample, in order: a subset or another order is another key."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()
