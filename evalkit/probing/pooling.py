"""From stored representations to the one vector per image that k-NN and linear heads read.

"cls":      class token of the last block; with `blocks` of more than one, the class tokens of all of them, earliest
            first, concatenated (DINO's ViT-S linear probe: the last 4, each through the final norm).
"mean":     mean of the last block's patch tokens.
"cls+mean": both, concatenated: DINO's ViT-B linear probe, MMC Tables 6 and 11.
"patches":  the last block's patch tokens, each in its place, concatenated (h w D numbers): what lies where is kept, as raw
            pixels keep it (ours; no paper evaluates it).
Nothing is rescaled here: features are taken as the encoder gives them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from evalkit.errors import FeatureError, UsageError
from evalkit.types import Features, Part, Tokens

Pooling = Literal["cls", "mean", "cls+mean", "patches"]


@dataclass(frozen=True)
class Split:
    """A split as heads read it: inputs (n, D) float32 by name, labels (n,) int64, on one device."""

    inputs: Mapping[str, Tensor]
    labels: Tensor

    def rows(self, rows: Tensor) -> Split:
        """Some of the images. rows: (n,) bool or their numbers."""
        here = rows.to(self.labels.device)
        return Split({name: of[here] for name, of in self.inputs.items()}, self.labels[here])


def check(poolings: Sequence[str]) -> None:
    """Raise UsageError unless there is at least one pooling, every one known and named once."""
    known = get_args(Pooling)
    if not poolings or len(set(poolings)) < len(poolings) or not set(poolings) <= set(known):
        raise UsageError(f"poolings is {list(poolings)}; at least one is needed, each once, of {', '.join(known)}")


def inputs_of(poolings: Sequence[Pooling], depths: Sequence[int]) -> Mapping[str, tuple[Pooling, int]]:
    """Every pooling at every number of last blocks, by name: "cls", or "cls@4" where there are several numbers.

    depths: how many last blocks class tokens come from, each once. Poolings without class token read the last block alone
    and stand once.
    """
    found: dict[str, tuple[Pooling, int]] = {}
    for depth in depths:
        for pooling in poolings:
            if "cls" in pooling or depth == depths[0]:
                found[f"{pooling}@{depth}" if len(depths) > 1 else pooling] = (pooling, depth)
    return found


def parts_of(poolings: Iterable[str]) -> tuple[Part, ...]:
    """The stored representations that the poolings are made from, "cls" first."""
    asked = {part for pooling in poolings for part in pooling.split("+")}
    known: tuple[Part, ...] = ("cls", "mean", "patches")
    return tuple(part for part in known if part in asked)


def of_features(features: Features, pooling: str, blocks: Sequence[int] = (-1,)) -> Tensor:
    """(N, D') float32 on the CPU: one row per sample.

    features: with the parts and blocks that the pooling needs; blocks: ascending, the last is where patch tokens come from.
    Raises FeatureError where a row is not finite.
    """
    pieces = [features.get("cls", block) for block in blocks] if "cls" in pooling else []
    pieces += [features.get(part, blocks[-1]) for part in parts_of([pooling]) if part != "cls"]
    pieces = [piece.flatten(1).float() for piece in pieces]
    return _finite(torch.cat(pieces, dim=1), pooling)


def split_of(features: Features, inputs: Mapping[str, tuple[Pooling, int]], device: torch.device) -> Split:
    """A split's inputs, as `inputs_of` names them, on the device. Raises as `of_features`."""
    found = {name: of_features(features, pooling, range(-depth, 0)) for name, (pooling, depth) in inputs.items()}
    return Split({name: rows.to(device) for name, rows in found.items()}, features.labels.to(device))


def of_tokens(tokens: Sequence[Tokens], poolings: Iterable[str]) -> Mapping[str, Tensor]:
    """The same from freshly computed tokens of the blocks, in ascending order: (B, D') float32 per pooling.

    Raises FeatureError where there is no class token but a pooling needs it, or a value is not finite.
    """
    found: dict[str, Tensor] = {}
    for pooling in poolings:
        pieces = [_class_token(t) for t in tokens] if "cls" in pooling else []
        pieces += [tokens[-1].patches.flatten(1, 2).mean(dim=1)] if "mean" in pooling else []
        pieces += [tokens[-1].patches.flatten(1)] if pooling == "patches" else []
        found[pooling] = _finite(torch.cat(pieces, dim=1).float(), pooling)
    return found


def of_inputs(tokens: Sequence[Tokens], inputs: Mapping[str, tuple[Pooling, int]]) -> Mapping[str, Tensor]:
    """(B, D') float32 per input, as `inputs_of` names them. tokens: of the last blocks, ascending. Raises as `of_tokens`."""
    return {name: of_tokens(tokens[-depth:], [pooling])[pooling] for name, (pooling, depth) in inputs.items()}


def _class_token(tokens: Tokens) -> Tensor:
    if tokens.cls is None:
        raise FeatureError("the pooling needs a class token, and this encoder has none")
    return tokens.cls


def _finite(rows: Tensor, pooling: str) -> Tensor:
    wrong = (~torch.isfinite(rows).all(dim=1)).nonzero()
    if wrong.numel():
        raise FeatureError(
            f"{len(wrong)} of {len(rows)} rows of {pooling!r} are not finite, the first is row {wrong[0, 0]}"
        )
    return rows
