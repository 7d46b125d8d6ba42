"""What the adapters say of an encoder: `EncoderSpec` filled from the shared transformer's configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from evalkit.adapters.files import RawCheckpoint
from evalkit.adapters.vit import ViTConfig
from evalkit.types import IMAGENET_MEAN, IMAGENET_STD, EncoderSpec, Manifest, Need, Preprocessing

VIT_OFFERS: frozenset[Need] = frozenset({"cls", "patches", "blocks", "attention"})
"""What a vision transformer with a class token can always give."""

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Origin:
    """Where an encoder's weights come from. network: which of the file's networks. audit: what loading did."""

    network: str
    version: int
    digest: str = ""
    seed: int | None = None
    audit: Mapping[str, Any] = field(default_factory=dict)


def opened(raw: RawCheckpoint, entry: str, beside: Sequence[str]) -> dict[str, Any]:
    """The audit of a loaded file begins with where it lay and what in it was taken."""
    path = str(raw.path.resolve())
    return {"file": path, "container": raw.container, "entry": entry, "beside": list(beside)}


def asked(manifest: Manifest) -> dict[str, Any]:
    """What a person said of a file that leaves it open, for the audit: `evalkit repeat` says it again."""
    told = {"network": manifest.network, "prefix": manifest.prefix, "grid": list(manifest.grid or ())}
    return {"asked": told} if manifest.prefix or manifest.grid else {}


def told(network: str, path: str, manifest: Manifest) -> str:
    """The network's name with what a person said of it: two prefixes, or two grids, of one file are two networks, whose
    features and records must not be taken for each other's."""
    name = path if manifest.prefix else network
    return f"{name} {manifest.grid[0]}x{manifest.grid[1]}" if manifest.grid else name


def build(make: Callable[[], M]) -> M:
    """What `make` makes, without touching the global random state that default weights are drawn from."""
    with torch.random.fork_rng(devices=[]):
        return make()


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def preprocessing(manifest: Manifest, size: int, source: str) -> Preprocessing:
    """The manifest's preprocessing where it states one, else ImageNet's mean and std at `size` pixels, by `source`.

    A manifest that leaves everything at its default states nothing.
    """
    if manifest.preprocessing != Preprocessing():
        return manifest.preprocessing
    return Preprocessing(size, IMAGENET_MEAN, IMAGENET_STD, source)


def vit_spec(
    manifest: Manifest, config: ViTConfig, origin: Origin, *, parameters: int, projects: bool, source: str
) -> EncoderSpec:
    """The spec of a `VisionTransformer`. source: of the preprocessing, where the manifest states none."""
    lacks = set() if config.cls else {"cls"}
    return EncoderSpec(
        id=manifest.id,
        family=manifest.family,
        arch=manifest.arch,
        dim=config.dim,
        depth=config.depth,
        heads=config.heads,
        patch=config.patch,
        grid=config.grid,
        preprocessing=preprocessing(manifest, config.size, source),
        network=origin.network,
        digest=origin.digest,
        adapter_version=origin.version,
        offers=(VIT_OFFERS - lacks) | ({"projection"} if projects else set()),
        seed=origin.seed,
        parameters=parameters,
        audit=origin.audit,
        built=built(config),
    )


def built(config: ViTConfig) -> dict[str, Any]:
    """What decides a `VisionTransformer` but its weights; drop path is of training alone."""
    return {key: value for key, value in asdict(config).items() if key != "drop_path"}
