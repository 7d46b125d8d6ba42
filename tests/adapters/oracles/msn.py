"""MSN (Assran et al. 2022, arXiv:2204.07141), after facebookresearch/msn 4388dc1.

src/deit.py:163-334 (network), 376-467 (sizes), src/msn_train.py:277-300,474-515 (what a training file holds, the head),
README.md:33-53 (the released files; they hold 'target_encoder' and 'prototypes' only: issue 7).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.adapters.oracles import Facts, File, Truth
from tests.adapters.oracles.mae import optimiser, resize, transform
from tests.adapters.oracles.moco_v3 import batch_norm, prefixed, running
from tests.adapters.oracles.plain import State, double, draw, gelu, tiles, vit_shapes

FAMILY = "msn"
ARCHS = {
    "vit_small_patch16": Facts(dim=384, depth=12, heads=6, patch=16),
    "vit_base_patch16": Facts(dim=768, depth=12, heads=12, patch=16),
    "vit_large_patch16": Facts(dim=1024, depth=24, heads=16, patch=16),
    "vit_base_patch4": Facts(dim=768, depth=12, heads=12, patch=4),
    "vit_large_patch7": Facts(dim=1024, depth=24, heads=16, patch=7),
}
ARCH = "vit_small_patch16"


def weights(seed: int, depth: int = 2, arch: str = ARCH) -> State:
    """One of the two encoders without its head; positions are learned."""
    facts = ARCHS[arch]
    side = facts.size // facts.patch
    return draw(vit_shapes(facts.dim, depth, facts.patch, side * side + 1), seed)


def head(seed: int) -> State:
    """`fc`, 384 -> 2048 -> 2048 -> 256 in the original."""
    dim, width, out = ARCHS[ARCH].dim, 24, 16
    shapes: dict[str, tuple[int, ...]] = {}
    for n, (rows, columns) in enumerate(((width, dim), (width, width), (out, width)), 1):
        shapes |= {f"fc{n}.weight": (rows, columns), f"fc{n}.bias": (rows,)}
        if n < 3:
            shapes |= {f"bn{n}.weight": (rows,), f"bn{n}.bias": (rows,)}
    state = draw(shapes, seed, 0.1)
    running(state, "bn1", width, seed)
    running(state, "bn2", width, seed + 1)
    return state


def project(cls: Tensor, head: State) -> Tensor:
    """(B, D) -> (B, D')."""
    x = gelu(batch_norm(cls @ head["fc1.weight"].T + head["fc1.bias"], head, "bn1"))
    x = gelu(batch_norm(x @ head["fc2.weight"].T + head["fc2.bias"], head, "bn2"))
    return x @ head["fc3.weight"].T + head["fc3.bias"]


def forward(weights: State, images: Tensor, head: State | None = None, arch: str = ARCH) -> Truth:
    """Positions are resized by the factors h / h0 and w / w0, src/deit.py:307-334 (`interpolate_pos_encoding`, for
    squares, takes the root of the ratio of the areas: the same number)."""
    w = double(weights)
    x = tiles(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"])
    b, rows, columns, dim = x.shape
    table = w["pos_embed"][0]
    x = x.flatten(1, 2) + resize(table[1:], rows, columns)
    x = torch.cat([(w["cls_token"][0] + table[:1]).expand(b, 1, dim), x], 1)
    blocks, normed, maps = transform(x, w, ARCHS[arch].heads)
    out = project(normed[:, 0], double(head)) if head else None
    return Truth(blocks, normed[:, 0], normed[:, 1:].reshape(b, rows, columns, dim), maps, out)


def files(seed: int = 0, depth: int = 2) -> list[File]:
    """The released file, the training file of one and of several processes, and the target encoder alone."""
    target, anchor, heads = weights(seed, depth), weights(seed + 1, depth), (head(seed + 2), head(seed + 3))
    networks = {
        "encoder": anchor | prefixed(heads[1], "fc."),
        "target_encoder": target | prefixed(heads[0], "fc."),
    }
    wrapped = {name: prefixed(state, "module.") for name, state in networks.items()}
    prototypes = torch.randn(8, 16, generator=torch.Generator().manual_seed(seed))
    beside = {"opt": optimiser(seed), "prototypes": prototypes, "epoch": 800, "loss": 1.5, "batch_size": 64}
    beside |= {"world_size": 16, "lr": 0.001, "temperature": 0.1}
    released = {"target_encoder": wrapped["target_encoder"], "prototypes": prototypes}
    return [
        File("vits16_800ep", released, target, heads[0], network="target_encoder"),
        File("training file", beside | wrapped, target, heads[0], network="target_encoder"),
        File("training file, encoder", beside | wrapped, anchor, heads[1], ask="encoder", network="encoder"),
        File("one process", beside | networks, target, heads[0], network="target_encoder"),
        File("no head", {"target_encoder": prefixed(target, "module.")}, target, network="target_encoder"),
    ]


def probed(seed: int = 0, depth: int = 2) -> dict:
    """linear_eval.py:236-245: the encoder of its probe was stripped of `fc` and `norm` (lines 350-351)."""
    state = {key: value for key, value in weights(seed, depth).items() if not key.startswith("norm.")}
    shapes: dict[str, tuple[int, ...]] = {"norm.weight": (384,), "norm.bias": (384,), "linear.weight": (10, 384)}
    classifier = draw(shapes | {"linear.bias": (10,)}, seed)
    beside = {"epoch": 1, "world_size": 1, "best_top1_acc": torch.tensor(70.0), "batch_size": 256, "lr": 6.4}
    return {"target_encoder": state, "classifier": classifier, "opt": optimiser(seed)} | beside
