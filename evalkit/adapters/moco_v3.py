"""Checkpoints of MoCo v3 (Chen et al. 2021, arXiv:2104.02057; facebookresearch/moco-v3 c349e6e, CC-BY-NC 4.0).

The network (vits.py:27-69,115-127): pre-norm, final norm, every eps 1e-6, exact GELU, qkv with biases, no LayerScale.
Its small ViT has 12 heads, not 6. Positions are sines and cosines of row and column, made anew at each grid; at the
native size the file's own table is used. The variants with a convolutional stem were never released.

Files: the training file of main_moco.py:310-316 ('state_dict' beside epoch, arch, optimizer, scaler), which the released
ones are, with `module.base_encoder.`, `module.momentum_encoder.` and `module.predictor.`; the file of the linear probe
(main_lincls.py:319-325: `module.` and the classifier `head.weight`); what convert_to_deit.py writes ({'model'}, bare);
evalkit's safetensors, bare keys and `head.` (`vit_micro_patch8_64` is its own).

The base encoder is taken unless the manifest or `--network` says momentum, as main_lincls.py:181 does; the class token
after the final norm is evaluated. The projection is `head`: three linear layers without biases, each with batch norm, the
last of which has neither gain nor shift (moco/builder.py:36-56,112-122), before it is normalised. Expect 73.2 % by
main_lincls.py for vit_small_patch16 (CONFIG.md). With 6 heads k-NN falls to a third of its value (issue 5).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from evalkit.adapters.family import Layout, Place, ViTFamily
from evalkit.adapters.files import RawCheckpoint
from evalkit.adapters.heads import PlainHead, layer_widths
from evalkit.adapters.loading import Rule, State
from evalkit.adapters.positions import moco_v3
from evalkit.adapters.vit import VisionTransformer, ViTConfig
from evalkit.errors import CheckpointError
from evalkit.types import Encoder, Manifest

VERSION = 1
NEEDS_FILE = True
TOLERANCE = 2e-3
"""Largest difference of a position table from its formula; half precision alone makes 5e-4, a learned table is 0.5 off."""

ARCHITECTURES: dict[str, ViTConfig] = {
    "vit_small_patch16": ViTConfig(dim=384, depth=12, heads=12, patch=16, positions="moco_v3"),
    "vit_base_patch16": ViTConfig(dim=768, depth=12, heads=12, patch=16, positions="moco_v3"),
    "vit_micro_patch8_64": ViTConfig(dim=192, depth=6, heads=3, patch=8, size=64, positions="moco_v3"),
}


def _projector(state: State, config: ViTConfig) -> PlainHead:
    """An empty head of the file's sizes: 4096, 4096 and 256 in the released ones. Raises KeyMismatch for another head."""
    dim, first, second, out = layer_widths(state, config.dim, ("0.weight", "3.weight", "6.weight"))
    layers = [
        *(nn.Linear(dim, first, bias=False), nn.BatchNorm1d(first), nn.ReLU()),
        *(nn.Linear(first, second, bias=False), nn.BatchNorm1d(second), nn.ReLU()),
        *(nn.Linear(second, out, bias=False), nn.BatchNorm1d(out, affine=False)),
    ]
    return PlainHead({str(place): layer for place, layer in enumerate(layers)})


def start(vit: VisionTransformer, generator: torch.Generator | None = None) -> None:
    """The authors' start (vits.py:31-51) after `initialise`: Xavier for q, k and v each, a class token near zero, and sines
    and cosines of the row, then of the column. generator: None for the global one."""
    config = vit.config
    bound = math.sqrt(6 / (2 * config.dim))
    with torch.no_grad():
        for block in vit.blocks:
            block.attn.qkv.weight.uniform_(-bound, bound, generator=generator)  # type: ignore[union-attr,operator]
        vit.cls_token.normal_(std=1e-6, generator=generator)
        rows = vit.pos_embed[:, 1:].reshape(1, *config.grid, -1)
        vit.pos_embed[:, 1:] = moco_v3(rows, config.grid).flatten(1, 2)


FAMILY = ViTFamily(
    version=VERSION,
    layout=Layout(
        networks={
            "base": (Place("state_dict", "base_encoder."),),
            "momentum": (Place("state_dict", "momentum_encoder."),),
        },
        entries=("state_dict", "model"),
        head="head.",
        drop=(Rule("classifier", "trained with labels on the frozen encoder", r"head\.(weight|bias)"),),
        outside=(
            Rule("the other encoder", "one network is evaluated at a time", r"(base|momentum)_encoder\..+"),
            Rule(
                "predictor",
                "maps projections of the base encoder to those of the momentum encoder",
                r"predictor\.\d\.(weight|bias|running_mean|running_var|num_batches_tracked)",
            ),
        ),
    ),
    architectures=ARCHITECTURES,
    source="facebookresearch/moco-v3 c349e6e, main_lincls.py:267-294: ImageNet mean and std",
    head=_projector,
    start=start,
)


def load(manifest: Manifest, raw: RawCheckpoint) -> Encoder:
    """The encoder in a file, with its projector where the file has one.

    Raises KeyMismatch, CheckpointError (see `loading`; also where the position table is not MoCo v3's, as in another
    family's ViT of the same keys), UsageError for a network that is neither base nor momentum.
    """
    encoder = FAMILY.load(manifest, raw)
    _check_positions(encoder.vit.pos_embed, encoder.vit.config, raw)  # type: ignore[attr-defined]
    return encoder


def _check_positions(table: Tensor, config: ViTConfig, raw: RawCheckpoint) -> None:
    rows = table[:, 1:].reshape(1, *config.grid, config.dim)
    apart = (rows - moco_v3(rows, config.grid)).abs().max().item()
    if apart > TOLERANCE:
        raise CheckpointError(
            f"{raw.path} is no file of MoCo v3: its position table is up to {apart:.2g} away from the fixed sines and "
            "cosines. Another family's file with the same keys has other heads; choose the --family that trained it"
        )
