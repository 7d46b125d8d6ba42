"""DeiT, DeiT distilled (Touvron et al. 2020, arXiv:2012.12877) and DeiT III (Touvron et al. 2022, arXiv:2204.07118),
after facebookresearch/deit 7e160fe.

models.py:20-165 on timm 0.3.2, models_v2.py:62-83,171-257,272-383, main.py:276-308 (other sizes), 436-444 (what a
training file holds). The parallel networks (norm11, attn1 ...) were never released.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from tests.adapters.oracles import Facts, File, Truth
from tests.adapters.oracles.mae import optimiser, resize, scaler, transform
from tests.adapters.oracles.plain import State, double, draw, tiles, vit_shapes

FAMILY = "deit"
ARCHS = {
    "vit_tiny_patch16": Facts(dim=192, depth=12, heads=3, patch=16),
    "vit_small_patch16": Facts(dim=384, depth=12, heads=6, patch=16),
    "vit_base_patch16": Facts(dim=768, depth=12, heads=12, patch=16),
    "vit_base_patch16_384": Facts(dim=768, depth=12, heads=12, patch=16, size=384),
    "vit_tiny_patch16_distilled": Facts(dim=192, depth=12, heads=3, patch=16),
    "vit_small_patch16_distilled": Facts(dim=384, depth=12, heads=6, patch=16),
    "vit_base_patch16_distilled": Facts(dim=768, depth=12, heads=12, patch=16),
    "vit_base_patch16_distilled_384": Facts(dim=768, depth=12, heads=12, patch=16, size=384),
    "vit_small_patch16_deit3": Facts(dim=384, depth=12, heads=6, patch=16),
    "vit_small_patch16_deit3_384": Facts(dim=384, depth=12, heads=6, patch=16, size=384),
    "vit_medium_patch16_deit3": Facts(dim=512, depth=12, heads=8, patch=16),
    "vit_base_patch16_deit3": Facts(dim=768, depth=12, heads=12, patch=16),
    "vit_base_patch16_deit3_384": Facts(dim=768, depth=12, heads=12, patch=16, size=384),
    "vit_large_patch16_deit3": Facts(dim=1024, depth=24, heads=16, patch=16),
    "vit_large_patch16_deit3_384": Facts(dim=1024, depth=24, heads=16, patch=16, size=384),
    "vit_huge_patch14_deit3": Facts(dim=1280, depth=32, heads=16, patch=14),
}
ARCH = "vit_tiny_patch16"
DISTILLED, THIRD = "vit_tiny_patch16_distilled", "vit_small_patch16_deit3"


def weights(seed: int, depth: int = 2, arch: str = ARCH) -> State:
    """Without the classifiers. Distilled: a second token and its position; DeiT III: gammas, no position of the class."""
    facts = ARCHS[arch]
    rows = (facts.size // facts.patch) ** 2 + (2 if "distilled" in arch else 0 if "deit3" in arch else 1)
    shapes = vit_shapes(facts.dim, depth, facts.patch, rows)
    if "distilled" in arch:
        shapes["dist_token"] = (1, 1, facts.dim)
    if "deit3" in arch:
        shapes |= {f"blocks.{i}.gamma_{n}": (facts.dim,) for i in range(depth) for n in (1, 2)}
    return draw(shapes, seed)


def head(seed: int) -> State | None:
    """None: what these networks were trained with is a classifier."""
    return None


def forward(weights: State, images: Tensor, head: State | None = None, arch: str = ARCH) -> Truth:
    """Tokens: class, distillation, patches. Each of the first two has its own row of positions, which is not resized;
    in DeiT III the class token joins after the positions and has none."""
    w = double(weights)
    x = tiles(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"])
    b, rows, columns, dim = x.shape
    first = [w[key][0] for key in ("cls_token", "dist_token") if key in w]
    own = 0 if "deit3" in arch else len(first)
    table = w["pos_embed"][0]
    first = [token + table[i] if own else token for i, token in enumerate(first)]
    x = x.flatten(1, 2) + resize(table[own:], rows, columns)
    x = torch.cat([*(token.expand(b, 1, dim) for token in first), x], 1)
    blocks, normed, maps = transform(x, w, ARCHS[arch].heads)
    patches = normed[:, len(first) :].reshape(b, rows, columns, dim)
    return Truth(blocks, normed[:, 0], patches, maps)


def classifiers(arch: str, seed: int) -> State:
    """1000 classes in the original."""
    names = ("head", "head_dist") if "distilled" in arch else ("head",)
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:
        shapes |= {f"{name}.weight": (10, ARCHS[arch].dim), f"{name}.bias": (10,)}
    return draw(shapes, seed)


def training(model: State, average: State, arch: str) -> dict:
    """A file of main.py:436-444; both networks are saved without their wrappers."""
    args = argparse.Namespace(model=arch, batch_size=128, epochs=300, opt_betas=None, device="cuda", distributed=True)
    schedule = {"last_epoch": 299, "base_values": [5e-4], "t_initial": 300}
    content = {"model": model, "optimizer": optimiser(2), "lr_scheduler": schedule, "epoch": 299, "model_ema": average}
    return content | {"scaler": scaler(), "args": args}


def files(seed: int = 0, depth: int = 2) -> list[File]:
    """For the three layouts: the released file, the training file, of which the average can be asked for, bare keys."""
    found = []
    for n, arch in enumerate((ARCH, DISTILLED, THIRD)):
        state, average = weights(seed + n, depth, arch), weights(seed + n + 10, depth, arch)
        full = training(state | classifiers(arch, seed), average | classifiers(arch, seed + 1), arch)
        found += [
            File(f"{arch}, released", {"model": full["model"]}, state, network="model", arch=arch),
            File(f"{arch}, training file", full, state, network="model", arch=arch),
            File(f"{arch}, average", full, average, ask="model_ema", network="model_ema", arch=arch),
            File(f"{arch}, bare", dict(state), state, network="backbone", arch=arch),
        ]
    return found
