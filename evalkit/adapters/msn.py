"""Checkpoints of MSN (Assran et al. 2022, arXiv:2204.07141; facebookresearch/msn 4388dc1, CC-BY-NC 4.0).

The network (src/deit.py:163-334, sizes 376-467): pre-norm, final norm, every eps 1e-6, exact GELU, qkv with biases, no
LayerScale. Positions are learned and resized by the ratio of the grids.

Files: the training file of src/msn_train.py:284-300 ('encoder' and 'target_encoder', each with `module.` where several
processes trained, beside opt, prototypes, epoch, loss ...); the released ones hold 'target_encoder' and 'prototypes' only
(issue 7). What linear_eval.py saves lacks the final norm (lines 236-245,350-351) and is refused: take the file it read.

The target encoder is taken unless the manifest or `--network` says encoder. linear_eval.py:350-351 and the logistic
regression (src/deit.py:266-289) evaluate the class token BEFORE the final norm. The projection is `fc`: three linear
layers with batch norm and GELU between (src/msn_train.py:490-502), whose output meets the prototypes. Expect 75.7 % on
ImageNet from 1 % of its labels for vit_base_patch4 (the paper's abstract).
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from evalkit.adapters.family import Layout, Place, ViTFamily
from evalkit.adapters.heads import PlainHead, layer_widths
from evalkit.adapters.loading import State
from evalkit.adapters.vit import ViTConfig

VERSION = 1
NEEDS_FILE = True

ARCHITECTURES: dict[str, ViTConfig] = {
    "vit_small_patch16": ViTConfig(dim=384, depth=12, heads=6, patch=16, positions="bicubic"),
    "vit_base_patch16": ViTConfig(dim=768, depth=12, heads=12, patch=16, positions="bicubic"),
    "vit_large_patch16": ViTConfig(dim=1024, depth=24, heads=16, patch=16, positions="bicubic"),
    "vit_base_patch4": ViTConfig(dim=768, depth=12, heads=12, patch=4, positions="bicubic"),
    "vit_large_patch7": ViTConfig(dim=1024, depth=24, heads=16, patch=7, positions="bicubic"),
}


def _projector(state: State, config: ViTConfig) -> PlainHead:
    """An empty head of the file's sizes: 2048, 2048 and 256 as configured; batch norm where the first one is there.

    Raises KeyMismatch for another head.
    """
    widths = layer_widths(state, config.dim, ("fc1.weight", "fc2.weight", "fc3.weight"))
    layers: dict[str, nn.Module] = {}
    for n, (read, given) in enumerate(pairwise(widths), 1):
        layers[f"fc{n}"] = nn.Linear(read, given)
        if n < 3 and "bn1.weight" in state:
            layers[f"bn{n}"] = nn.BatchNorm1d(given)
        if n < 3:
            layers[f"gelu{n}"] = nn.GELU()
    return PlainHead(layers)


FAMILY = ViTFamily(
    version=VERSION,
    layout=Layout(
        networks={"target_encoder": (Place("target_encoder"),), "encoder": (Place("encoder"),)},
        head="fc.",
    ),
    architectures=ARCHITECTURES,
    source="facebookresearch/msn 4388dc1, linear_eval.py:124-131: ImageNet mean and std",
    head=_projector,
)
load = FAMILY.load
