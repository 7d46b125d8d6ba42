"""Checkpoints of DINO (Caron et al. 2021, arXiv:2104.14294; facebookresearch/dino 7c446df) and of our own pretraining.

Files: the released backbone (bare keys); the training file of main_dino.py:338-349 ('student' with `module.backbone.`
and `module.head.`, 'teacher' with `backbone.` and `head.`, beside optimizer, epoch, args, dino_loss, fp16_scaler);
evalkit's safetensors with `backbone.` and optionally `head.`. The teacher is taken unless the manifest or `--network`
says student, as the paper evaluates it. Expect 74.5 % k-NN on ImageNet for vit_small_patch16 (its Table 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from evalkit.adapters import loading, specs
from evalkit.adapters.files import RawCheckpoint
from evalkit.adapters.heads import dino_head
from evalkit.adapters.vit import VisionTransformer, ViTConfig, ViTEncoder
from evalkit.errors import CheckpointError, UsageError
from evalkit.types import Encoder, Manifest

VERSION = 1
NEEDS_FILE = True
NETWORKS = ("teacher", "student")
SOURCE = "facebookresearch/dino 7c446df, eval_knn.py: ImageNet mean and std"

ARCHITECTURES: Mapping[str, ViTConfig] = {
    "vit_tiny_patch16": ViTConfig(dim=192, depth=12, heads=3, patch=16),
    "vit_small_patch16": ViTConfig(dim=384, depth=12, heads=6, patch=16),
    "vit_small_patch8": ViTConfig(dim=384, depth=12, heads=6, patch=8),
    "vit_base_patch16": ViTConfig(dim=768, depth=12, heads=12, patch=16),
    "vit_base_patch8": ViTConfig(dim=768, depth=12, heads=12, patch=8),
    "vit_micro_patch8_64": ViTConfig(dim=192, depth=6, heads=3, patch=8, size=64),
}


def load(manifest: Manifest, raw: RawCheckpoint) -> Encoder:
    """The encoder in a file, with its head where the file has one.

    Raises KeyMismatch, CheckpointError (see `loading`), UsageError for a network that is neither teacher nor student.
    """
    config = ARCHITECTURES[manifest.arch]
    network = _choose(manifest, raw)
    state = loading.strip(network.state, "module.")
    backbone, rest = loading.split(state, "backbone.")
    projection, rest = loading.split(rest, "head.") if backbone else ({}, rest)
    vit = specs.build(lambda: VisionTransformer(config))
    audit: dict[str, Any] = {"container": raw.container, "entry": network.name, "beside": list(network.beside)}
    audit["backbone"] = loading.assign(vit, backbone | rest, what=manifest.arch).facts()
    head: nn.Module | None = None
    if projection:
        head = specs.build(lambda: dino_head(projection, config.dim))
        audit["head"] = loading.assign(head, projection, what="DINO's head").facts()
    name = network.name or manifest.network or "backbone"
    origin = specs.Origin(network=name, version=VERSION, digest=raw.sha256, audit=audit)
    spec = specs.vit_spec(
        manifest, config, origin, parameters=specs.count(vit), projects=head is not None, source=SOURCE
    )
    return ViTEncoder(vit, spec, head)


def _choose(manifest: Manifest, raw: RawCheckpoint) -> loading.Network:
    wanted = manifest.network or "teacher"
    if wanted not in NETWORKS:
        raise UsageError(f"network {wanted!r}: DINO's files have {' and '.join(NETWORKS)}")
    network = loading.unwrap(raw, [wanted])
    if not network.name and wanted == "student":
        raise CheckpointError(
            f"{raw.path} holds one network only and does not say that it is the student; leave --network out"
        )
    return network
