"""The untrained twin of an encoder: the same network, fed the same way, with the weights that pretraining starts from.

    twin = twins.of(encoder)      # twin.spec.id is twins.name(encoder.spec)

A score says something of training only beside the score of the same network untrained. One twin serves every encoder whose
network is the same: width, depth, heads, patch, native size, tokens, position rule, norms, LayerScale, mean and std. Weights
are drawn from a seed as `VisionTransformer.initialise` says, where a family's pretraining starts otherwise as its `start`
says; MGC and CAE order the channels of their position table otherwise, which a network of random weights cannot tell. The
pretraining head is left out, except for what makes SelfPatch's class token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from evalkit import adapters
from evalkit.adapters import specs
from evalkit.adapters.family import ViTFamily
from evalkit.errors import UsageError
from evalkit.types import Encoder, EncoderSpec, Preprocessing

PLAIN, FIRST = "dino", ("dino", "mae")
"""The family whose networks are the plain ones, and the families that a network which several have is named by."""

MICRO = "vit_micro_patch8_64"
"""The architecture of the shipped encoders; the twin of the plain one is the zoo's `random`."""


def name(spec: EncoderSpec) -> str:
    """The id of an encoder's twin, decided by its network alone; "" for what has none: controls, unknown networks.

    `random-ARCH` for one of DINO's, `random-FAMILY-ARCH` for those of other families, without ARCH for the shipped micro
    size; "patches" follows where there is no class token, the input size and digits where size, mean, std or network are not
    the family's own.
    """
    if not spec.built or spec.network == "untrained":
        return ""
    family, own = _home(spec)
    parts = ["random", "" if family == PLAIN else family, "" if spec.arch == MICRO else spec.arch]
    parts += [
        "" if own else _digits(spec.built),
        "" if "cls" in spec.offers or spec.built.get("cls", True) else "patches",
    ]
    return "-".join(part for part in (*parts, *_fed(spec, family)) if part)


def of(encoder: Encoder, seed: int = 0) -> Encoder:
    """The twin, with the same weights whenever it is made.

    Raises UsageError for a control, and for an encoder whose adapter does not say how it starts (`untrained`).
    """
    spec, make = encoder.spec, getattr(encoder, "untrained", None)
    called = name(spec)
    if not called or make is None:
        what = "it is a control itself" if not spec.digest else f"the family {spec.family!r} does not say how it starts"
        raise UsageError(f"{spec.id} has no untrained twin: {what}")
    random = adapters.module("random")
    made = replace(
        spec, id=called, family="random", arch=MICRO if called == "random" else called.removeprefix("random-"),
        network="untrained", digest="", seed=seed, adapter_version=random.VERSION, offers=spec.offers - {"projection"},
        audit={"untrained twin of": _facts(spec)},
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    twin: Any = make(made, generator)
    start = getattr(getattr(adapters.module(spec.family), "FAMILY", None), "start", None)
    if start is not None:
        start(twin.vit, generator)
    twin.spec = replace(made, parameters=specs.count(twin))
    return twin  # type: ignore[no-any-return]


def _facts(spec: EncoderSpec) -> dict[str, Any]:
    """Of whose network it is, for the record."""
    return {"id": spec.id, "family": spec.family, "arch": spec.arch, "file": spec.audit.get("file", "")}


def _home(spec: EncoderSpec) -> tuple[str, bool]:
    """The family that the network is named by, and whether it is one of that family's own."""
    for candidate, family in _families(spec.family):
        config = family.architectures.get(spec.arch)
        if config is not None and specs.built(config) == dict(spec.built):
            return candidate, True
    return spec.family, "timm" in spec.built and "grid" not in spec.built


def _families(own: str) -> Iterator[tuple[str, ViTFamily]]:
    for candidate in dict.fromkeys((*FIRST, *adapters.names())):
        if candidate != "timm" and (family := getattr(adapters.module(candidate), "FAMILY", None)) is not None:
            yield candidate, family


def _fed(spec: EncoderSpec, family: str) -> list[str]:
    """What is not as the family feeds it: the input size, digits for mean and std."""
    fed, usual = spec.preprocessing, _usual(spec, family)
    size = [] if fed.size == usual.size else [f"{fed.size}px"]
    same = (tuple(fed.mean), tuple(fed.std)) == (tuple(usual.mean), tuple(usual.std))
    return size if same else [*size, _digits([*fed.mean, *fed.std])]


def _usual(spec: EncoderSpec, family: str) -> Preprocessing:
    if "timm" in spec.built:
        return Preprocessing(*(spec.built[key] for key in ("size", "mean", "std")))
    module: Any = getattr(adapters.module(family), "FAMILY", None)
    config = None if module is None else module.architectures.get(spec.arch)
    if config is None or module.preprocessing is None:
        return Preprocessing(int(spec.built["size"]))
    return module.preprocessing(config)  # type: ignore[no-any-return]


def _digits(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:6]
