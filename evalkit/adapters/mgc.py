"""Checkpoints of MGC, multi-grained contrast (Shen et al. 2024, arXiv:2407.02014; visresearch/mgc fa5ddea, CC-BY-NC-4.0:
its weights may not be used commercially).

The ViT-S/16 has EIGHT heads (main_pretrain.py:184-186, and all evaluation configurations), eps 1e-6, a final norm, and a
fixed table of sines and cosines, rows before columns and zeros for the class token; it is stored in the file and resized
by DINO's rule (module/model.py). The detection and segmentation code builds its norms with eps 1e-5 instead
(evaluation/*/backbones/ViT.py); pretraining's value is used here. No loss reads the class token: projectors and
predictors see single patches and means over squares of patches, so there is no projection to offer.

Files: the checkpoint of an epoch ('state_dict' beside epoch, optimizer, scaler; main_pretrain.py:286-293), the last file
of a run, `last.pth` (the same keys without a wrapper, 295-299), one encoder with bare keys, which is what the evaluation
code reads, and evalkit's own: the base encoder and its projectors. The released files (COCO, VOC, ADE20K) were not seen.
`base_encoder.` is taken unless the manifest says momentum; which of the two the paper evaluates is not said. No frozen
number is published.
"""

from __future__ import annotations

from evalkit.adapters.family import Layout, Place, ViTFamily
from evalkit.adapters.files import RawCheckpoint
from evalkit.adapters.loading import Rule
from evalkit.adapters.positions import moco_v3
from evalkit.adapters.vit import ViTConfig
from evalkit.errors import CheckpointError
from evalkit.types import Encoder, Manifest

VERSION = 1
NEEDS_FILE = True
TOLERANCE = 2e-3
"""Largest difference of the stored table from its formula; half precision alone makes 5e-4."""

ARCHITECTURES: dict[str, ViTConfig] = {
    "vit_small_patch16": ViTConfig(dim=384, depth=12, heads=8, patch=16),
    "vit_base_patch16": ViTConfig(dim=768, depth=12, heads=12, patch=16),
    "vit_micro_patch8_64": ViTConfig(dim=192, depth=6, heads=3, patch=8, size=64),
}

MLPS = (
    r"predictor_(patch|divide_\d{1,3})",
    r"projector_(patch|patch_momentum|divide_\d{1,3}|divide_momentum_\d{1,3})",
)
"""One for each granularity; the number is the side of its squares of patches in pixels (officially 32 and 112)."""


def _places(name: str) -> tuple[Place, ...]:
    """Both encoders lie side by side, under 'state_dict' or at the top level."""
    return tuple(Place(entry, f"{name}_encoder.") for entry in ("state_dict", ""))


FAMILY = ViTFamily(
    version=VERSION,
    layout=Layout(
        networks={"base": _places("base"), "momentum": _places("momentum")},
        outside=(
            Rule("the other encoder", "one network is evaluated at a time", r"(base|momentum)_encoder\..+"),
            Rule(
                "projectors and predictors",
                "they read patches and means of patches, never the class token",
                rf"({'|'.join(MLPS)})\.[0-7]\.(weight|bias|running_mean|running_var|num_batches_tracked)",
            ),
        ),
        signs=(r"(module\.)?projector_divide_\d{1,3}\..+",),
    ),
    architectures=ARCHITECTURES,
    source="visresearch/mgc fa5ddea, module/augmentation.py:97: ImageNet mean and std",
)


def load(manifest: Manifest, raw: RawCheckpoint) -> Encoder:
    """The encoder in a file.

    Raises KeyMismatch, CheckpointError (see `loading`; also where the position table is not the fixed one: any ViT-S with a
    class token has these keys, and other families have 6 or 12 heads), UsageError for a network that is neither base nor
    momentum.
    """
    encoder = FAMILY.load(manifest, raw)
    table = encoder.vit.pos_embed[:, 1:].unflatten(1, encoder.spec.grid)  # type: ignore[attr-defined]
    apart = (table - moco_v3(table, encoder.spec.grid)).abs().max().item()
    if apart > TOLERANCE:
        raise CheckpointError(
            f"{raw.path} is no file of MGC: its position table is up to {apart:.2g} away from the fixed sines and cosines. "
            "Another family's file with the same keys has another number of heads; choose the --family that trained it"
        )
    return encoder
