"""The control `random`: DINO's architectures with untrained, seeded weights. A score that does not beat it means
nothing. The untrained twin of any encoder's network: `twins.py`.

Weights: as pretraining starts them (`VisionTransformer.initialise`). For scale: 10-NN on 15 classes of clothing crops
gives 0.13-0.30 with such networks.
"""

from __future__ import annotations

import torch

from evalkit.adapters import dino, specs
from evalkit.adapters.encoder import ViTEncoder
from evalkit.adapters.vit import VisionTransformer
from evalkit.types import Encoder, Manifest

VERSION = 1
NEEDS_FILE = False
ARCHITECTURES = dino.ARCHITECTURES
SOURCE = "as for DINO: ImageNet mean and std"


def load(manifest: Manifest, raw: None = None) -> Encoder:
    """The untrained encoder of the manifest's seed (0 where it has none); the same weights on every machine."""
    config, seed = ARCHITECTURES[manifest.arch], manifest.seed or 0
    vit = specs.build(lambda: VisionTransformer(config)).initialise(torch.Generator().manual_seed(seed))
    origin = specs.Origin(network="untrained", version=VERSION, seed=seed)
    spec = specs.vit_spec(manifest, config, origin, parameters=specs.count(vit), projects=False, source=SOURCE)
    return ViTEncoder(vit, spec)
