"""One pass of a batch through the encoder, giving every part and block that was asked for.

Pooled parts are float32; the mean of patch tokens is taken in float32 whatever the compute precision; the pretraining
head runs in float32 on the class token as it is stored, so that its output can be had from stored features too. Results
are fetched one batch late on a GPU, so that it never waits for the copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from evalkit.errors import FeatureError, NoProjection, Unsupported
from evalkit.features import view as views
from evalkit.features.decoding import Pack
from evalkit.features.key import PROJECTED, PatchDtype, Request
from evalkit.features.stored import Rows
from evalkit.types import Encoder, Part, Precision, Tokens, View


def casting(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """The arithmetic in which encoders run: bf16 under autocast, or fp32 as it is."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@dataclass(frozen=True)
class Forward:
    """Images to rows. encoder: already on `device`. request: resolved. precision: "fp32" or "bf16"."""

    encoder: Encoder
    view: View
    request: Request
    device: torch.device
    precision: Precision
    patches: PatchDtype = "float16"

    def __call__(self, images: Tensor) -> Rows:
        """Rows of (B, 3, S, S) uint8 images, on the device; B = 0 gives empty rows without a call of the encoder.
        Raises Unsupported, FeatureError."""
        if not len(images):
            return self._empty()
        with torch.no_grad():  # not inference mode: rows kept in memory may take part in training
            batch = views.normalise(images.to(self.device, non_blocking=True), self.view)
            with casting(self.device, self.precision):
                answers = self.encoder.encode(batch, self.request.blocks, self.request.norm)
            rows: Rows = {}
            for block, tokens in zip(self.request.blocks, answers, strict=True):
                rows |= self._of_block(block, tokens, len(images))
        return rows

    def _of_block(self, block: int, tokens: Tokens, images: int) -> Rows:
        rows: Rows = {}
        if tuple(tokens.patches.shape[::3]) != (images, self.encoder.spec.dim):
            spec, came = self.encoder.spec, tuple(tokens.patches.shape)
            wanted = f"({images}, h, w, {spec.dim})"
            raise FeatureError(f"{spec.id} gave patch tokens {came} for block {block}; its spec says {wanted}")
        for part in self.request.parts:
            rows |= self._part(part, block, tokens)
        return rows

    def _part(self, part: Part, block: int, tokens: Tokens) -> Rows:
        if part == "mean":
            return {f"mean.{block}": tokens.patches.float().mean((1, 2))}
        if part == "patches":
            count, height, width, _ = tokens.patches.shape
            grids = torch.tensor([[height, width]], dtype=torch.int32).expand(count, 2)
            return {f"patches.{block}": tokens.patches.flatten(0, 2).to(self._stored), "grids": grids}
        if part in PROJECTED:
            return {f"{part}.{block}": project(self.encoder, tokens.cls, part)}
        if tokens.cls is None:
            raise Unsupported(
                f"{self.encoder.spec.id} has no class token in block {block}; use the mean of its patches"
            )
        return {f"cls.{block}": tokens.cls.float()}

    def _empty(self) -> Rows:
        rows: Rows = {}
        for part in self.request.parts:
            kind = self._stored if part == "patches" else torch.float32
            for block in self.request.blocks:
                rows[f"{part}.{block}"] = torch.empty((0, width(self.encoder, part)), dtype=kind)
        return rows | ({"grids": torch.empty((0, 2), dtype=torch.int32)} if "patches" in self.request.parts else {})

    @property
    def _stored(self) -> torch.dtype:
        return torch.float16 if self.patches == "float16" else torch.float32


def owned(rows: Tensor) -> Tensor:
    """The same values in memory of their own. A class token is a view of all tokens of its batch, and `.float()` of float32
    is one too: whoever keeps such a view keeps every token."""
    alone = rows.untyped_storage().nbytes() <= rows.nbytes
    return rows if alone else rows.clone(memory_format=torch.contiguous_format)


def project(encoder: Encoder, cls: Tensor | None, part: Part) -> Tensor:
    """(B, D') float32: output or bottleneck of the pretraining head on class tokens (B, D) of the last block after the
    final norm, in float32 whatever the caller's arithmetic. part: "projection" or "bottleneck". Raises NoProjection."""
    if cls is None:
        raise NoProjection(f"{encoder.spec.id} has no class token for a pretraining head to read")
    at: Literal["output", "bottleneck"] = "bottleneck" if part == "bottleneck" else "output"
    with torch.no_grad(), torch.autocast(cls.device.type, enabled=False):
        tokens = Tokens(cls.float(), cls.new_zeros((len(cls), 1, 1, cls.shape[1]), dtype=torch.float32))
        return encoder.project(tokens, at).float()


def width(encoder: Encoder, part: Part) -> int:
    """Values per token, or per image, of a part; that of the head is asked of the head. Raises NoProjection."""
    if part not in PROJECTED:
        return encoder.spec.dim
    return project(encoder, torch.zeros((1, encoder.spec.dim), device=_device(encoder)), part).shape[1]


def _device(encoder: Encoder) -> torch.device:
    """Where the weights lie; the contract has no word for it."""
    first = next(iter(encoder.parameters()), None) if isinstance(encoder, nn.Module) else None
    return torch.device("cpu") if first is None else first.device


def pipelined(forward: Forward, packs: Iterable[Pack]) -> Iterator[tuple[Pack, Rows]]:
    """Each batch with its rows in main memory. On a GPU the next batch is under way before the rows of one are waited
    for; on a CPU nothing is held back."""
    waiting: tuple[Pack, _Fetch] | None = None
    for pack in packs:
        fetch = _Fetch(forward(pack.images), forward.device)
        if waiting is not None:
            yield waiting[0], waiting[1].wait()
        waiting = (pack, fetch)
        if forward.device.type != "cuda":
            yield pack, fetch.wait()
            waiting = None
    if waiting is not None:
        yield waiting[0], waiting[1].wait()


class _Fetch:
    """Rows on their way to main memory."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self.rows = {name: owned(tensor).to("cpu", non_blocking=cuda) for name, tensor in rows.items()}
        self.done: Any = torch.cuda.Event() if cuda else None  # type: ignore[no-untyped-call]
        if self.done is not None:
            self.done.record(torch.cuda.current_stream(device))

    def wait(self) -> Rows:
        if self.done is not None:
            self.done.synchronize()
        return self.rows


def check_finite(rows: Rows, ids: list[str], encoder: str) -> None:
    """Raises FeatureError naming part, block and the first sample whose features hold NaN or infinity. ids: of the
    rows."""
    for name, values in rows.items():
        if name == "grids" or bool(torch.isfinite(values).all()):
            continue
        bad = int((~torch.isfinite(values)).any(1).nonzero()[0])
        part, block = name.split(".")
        if part == "patches":
            counts = rows["grids"].to(torch.int64).prod(1).cumsum(0)
            bad = int(torch.searchsorted(counts, bad, right=True))
        hint = " or store patch tokens as float32 (float16 ends at 65,504)" if values.dtype == torch.float16 else ""
        raise FeatureError(
            f"{encoder} gave features that are not finite: sample {ids[bad]!r}, part {part!r}, block {block}. "
            f"Check the weights, try --precision fp32{hint}."
        )


def check_length(rows: Rows, encoder: str) -> None:
    """Raises FeatureError naming part and block where every feature of a batch is 0: no similarity is defined between them.
    A network whose last norm has no gain, or whose weights a file left at 0, gives such features."""
    for name, values in rows.items():
        if name != "grids" and values.numel() and not bool(values.any()):
            part, block = name.split(".")
            raise FeatureError(
                f"{encoder} gave features of length 0 for every sample of a batch: part {part!r}, block {block}. Nothing "
                "can be measured with them; check the weights (evalkit inspect FILE)"
            )
