"""What a checkpoint file is, found out from its keys and shapes alone, without loading it and without guessing.

Every family compares its layouts and architectures with the file. Where one family fits, that is the answer; where several
do (a bare ViT-S/16 of DINO, iBOT and DeiT have the same keys), entries that only one family's files have decide, and
else the person has to. Head counts cannot be seen in shapes: they come from the family's architecture.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evalkit import adapters
from evalkit.adapters import wrappers
from evalkit.adapters.family import Fit, ViTFamily
from evalkit.adapters.files import RawCheckpoint
from evalkit.adapters.mismatch import explain
from evalkit.adapters.vit import VisionTransformer, ViTConfig
from evalkit.errors import CheckpointError, KeyMismatch, UsageError
from evalkit.types import EncoderSpec, Manifest

NAMED_ONLY = {"timm"}
"""Families with hundreds of architectures that only a name tells apart; looking at them costs seconds and finds nothing."""


@dataclass(frozen=True)
class Wish:
    """What the person has said: empty strings leave it open."""

    family: str = ""
    arch: str = ""
    network: str = ""
    prefix: str = ""
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Candidate:
    """One family's reading of the file. fit: the best of its architectures. why: the evidence for it."""

    family: str
    fit: Fit
    why: str

    @property
    def differences(self) -> int:
        """Keys that do not agree; 0 where the file can be this."""
        audit = self.fit.audit
        return len(audit.missing) + len(audit.unexpected) + len(audit.misshaped)


@dataclass(frozen=True)
class Inspection:
    """raw: the opened file. candidates: readings without a difference, one per family, network and architecture.
    chosen: the one that remains, if one does. nearest: the closest reading where none fits. open: why it cannot be read
    before a person says which network is meant."""

    raw: RawCheckpoint
    candidates: tuple[Candidate, ...]
    chosen: Candidate | None
    nearest: Candidate | None
    open: wrappers.Ambiguous | None = None


def inspect(path: str | Path, wish: Wish | None = None) -> Inspection:
    """Opens a file and reads it as every family that may be meant.

    Raises what `adapters.read` does, UnknownName for a family that does not exist, UsageError for a network it lacks.
    """
    wish, raw = wish or Wish(), adapters.read(path)
    left_open: list[wrappers.Ambiguous] = []
    found = sorted(_readings(raw, wish, left_open), key=lambda reading: reading.differences)
    clean = tuple(reading for reading in found if not reading.differences)
    nearest = None if clean or not found else found[0]
    return Inspection(raw, clean, _choose(raw, clean), nearest, None if clean else next(iter(left_open), None))


def identify(path: str | Path, wish: Wish) -> Manifest:
    """A manifest for a bare file with family and architecture as the file shows them.

    Raises UsageError where several families or architectures fit, KeyMismatch where none does.
    """
    seen = inspect(path, wish)
    if seen.chosen is None:
        raise undecided(seen)
    return manifest(seen.chosen, wish)


def manifest(chosen: Candidate, wish: Wish) -> Manifest:
    """What the chosen reading asks an adapter to load."""
    return Manifest(
        id="", family=chosen.family, arch=chosen.fit.arch, network=wish.network, prefix=wish.prefix, grid=wish.grid
    )


def undecided(seen: Inspection) -> CheckpointError | UsageError | KeyMismatch:
    """The error for a file that is not exactly one thing."""
    path = seen.raw.path
    if seen.candidates:
        families = sorted({reading.family for reading in seen.candidates})
        if len(families) > 1:
            return UsageError(f"{path} fits several families: {', '.join(families)}. Say which with --family")
        archs = sorted({reading.fit.arch for reading in seen.candidates})
        return UsageError(f"{path} fits several architectures: {', '.join(archs)}. Say which with --arch")
    if seen.open is not None:
        return seen.open
    if seen.nearest is None:
        return CheckpointError(
            f"{path} fits no family that evalkit finds by its keys; it holds {_entries(seen.raw)}. What timm itself "
            "trained or released loads with --family timm --arch NAME (its networks resize positions in their own way: "
            "another family's file has other numbers there); a new family is one file (docs/add-a-family.md)"
        )
    near = seen.nearest
    with torch.device("meta"):
        expected = VisionTransformer(near.fit.config).state_dict()
    what = f"{near.fit.arch} ({near.family}, the nearest)"
    return KeyMismatch(f"{path} fits no family exactly: {explain(what, near.fit.audit, expected)}")


def _readings(raw: RawCheckpoint, wish: Wish, left_open: list[wrappers.Ambiguous]) -> Iterator[Candidate]:
    """Of every family that may be meant; what leaves one open is noted, as another may know the file's names."""
    for name in [wish.family] if wish.family else sorted(set(adapters.names()) - NAMED_ONLY):
        family = _family(name, raw)
        if family is None:
            continue
        default = next(iter(family.layout.networks), "")
        try:
            fits = _fits(family, raw, wish)
        except wrappers.Ambiguous as error:
            left_open.append(error)
            continue
        for fit in fits:
            yield Candidate(name, fit, _evidence(family, raw, fit, default))


def _family(name: str, raw: RawCheckpoint) -> ViTFamily | None:
    """The family's declaration, or the one that the file itself makes (a folder with a config); None for the others."""
    module = adapters.module(name)
    of_file = getattr(module, "of_file", lambda _: None)
    return getattr(module, "FAMILY", None) or of_file(raw)


def _fits(family: ViTFamily, raw: RawCheckpoint, wish: Wish) -> list[Fit]:
    """Of the network that is wanted, or else of the first in the family's order that the file has."""
    fits = [fit for fit in family.fits(raw, prefix=wish.prefix, grid=wish.grid) if wish.arch in ("", fit.arch)]
    network = wish.network or (fits[0].parts.network if fits else "")
    return [fit for fit in fits if fit.parts.network == network]


def _evidence(family: ViTFamily, raw: RawCheckpoint, fit: Fit, default: str) -> str:
    network = fit.parts.network
    sign = _sign(family, raw)
    proof = f"{sign!r} is only in this family's files" if sign else f"all {len(fit.audit.used)} keys fit"
    if not default or network == "backbone":
        return f"{proof}; the file holds one network"
    return f"{proof}; the {network} is " + ("what its papers evaluate" if network == default else "what the file has")


def _sign(family: ViTFamily, raw: RawCheckpoint) -> str:
    """An entry or key that only this family's files have, "" where there is none."""
    for key in _names(raw.state):
        if any(re.fullmatch(sign, key) for sign in family.layout.signs):
            return key
    return ""


def _names(state: Mapping[str, Any]) -> Iterator[str]:
    for key, value in state.items():
        yield str(key)
        if isinstance(value, Mapping):
            yield from map(str, value)


def _choose(raw: RawCheckpoint, clean: Sequence[Candidate]) -> Candidate | None:
    """The only reading; or, of several families', the only one with a sign of its own."""
    if len(clean) > 1:
        signed = [c for c in clean if (family := _family(c.family, raw)) and _sign(family, raw)]
        clean = signed or clean
    return clean[0] if len(clean) == 1 else None


def _entries(raw: RawCheckpoint) -> str:
    listed = [f"{str(key)[:60]} ({_kind(value)})" for key, value in raw.state.items()]
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return "x".join(map(str, value.shape)) or "number"
    if isinstance(value, Mapping):
        tensors = sum(isinstance(inner, Tensor) for inner in value.values())
        return f"{tensors} tensors" if tensors else f"dictionary of {len(value)}"
    return type(value).__name__


def file_facts(seen: Inspection) -> dict[str, Any]:
    """What is true of the file, whatever family it belongs to: plain values for printing and JSON."""
    raw = seen.raw
    tensors = [t for value in raw.state.values() for t in _tensors(value)]
    size = sum(f.stat().st_size for f in raw.path.rglob("*")) if raw.path.is_dir() else raw.path.stat().st_size
    return {
        "file": str(raw.path),
        "bytes": size,
        "sha256": raw.sha256,
        "container": raw.container,
        "entries": _entries(raw) if any(isinstance(v, Mapping) for v in raw.state.values()) else "bare state dict",
        "tensors": len(tensors),
        "precision": dict(Counter(str(t.dtype).removeprefix("torch.") for t in tensors)),
    }


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (inner for inner in value.values() if isinstance(inner, Tensor))


def network_facts(chosen: Candidate, spec: EncoderSpec) -> dict[str, Any]:
    """What is known of the network once the family is. spec: of the encoder loaded from the file."""
    config, parts, audit = chosen.fit.config, chosen.fit.parts, chosen.fit.audit
    return {
        "family": chosen.family,
        "arch": chosen.fit.arch,
        "why": chosen.why,
        "wrapper": parts.entry or "none",
        "network": parts.network,
        "beside": list(parts.beside),
        "unwrapped": {rule: f"{count} keys" for rule, count in parts.unwrapped.items()},
        "blocks": config.depth,
        "dim": config.dim,
        "heads": f"{config.heads}, known from {chosen.family}'s {chosen.fit.arch} (shapes do not show it)",
        "patch": config.patch,
        "grid": list(config.grid),
        "tokens": _tokens(config),
        "positions": _positions(config),
        "layer_scale": "yes" if config.layer_scale is not None else "no",
        "relative_position_bias": {"": "no", "shared": "one table for all blocks", "blocks": "a table per block"}[
            config.relative
        ],
        "final_norm": "yes" if config.final_norm else "no",
        "projection_head": f"yes, {len(parts.head)} tensors" if parts.head else "no",
        "preprocessing": {
            "size": spec.preprocessing.size,
            "mean": list(spec.preprocessing.mean),
            "std": list(spec.preprocessing.std),
            "source": spec.preprocessing.source,
        },
        "parameters": spec.parameters,
        "keys": {
            "used": len(audit.used) + len(parts.head),
            "dropped": {rule: list(keys) for rule, keys in audit.dropped.items()},
            "missing": list(audit.missing),
            "unexpected": list(audit.unexpected),
        },
        "offers": sorted(spec.offers),
    }


def _tokens(config: ViTConfig) -> str:
    parts = ["class token"] * config.cls + [f"{config.registers} register(s)"] * bool(config.registers)
    return " and ".join(parts) or "patches only"


def _positions(config: ViTConfig) -> str:
    if config.rotary:
        return "rotary, inside the attention"
    if not config.positions:
        return "relative bias inside the attention only"
    h, w = config.grid
    return f"table of {config.prefix_rows} + {h} x {w} rows; other sizes by the rule {config.positions!r}"
