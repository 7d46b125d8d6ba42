"""DINOv3 on a blackboard (facebookresearch/dinov3 6876159): turned queries and keys, storage tokens, SwiGLU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.adapters.oracles import Facts, File, Truth
from tests.adapters.oracles.plain import State, attention, double, draw, gelu, layer_norm, tiles, vit_shapes

FAMILY = "dinov3"
ARCH = "vit_small_patch16"
SIZES = {
    "vit_small_patch16": (384, 12, 6),
    "vit_small_patch16_plus": (384, 12, 6),
    "vit_base_patch16": (768, 12, 12),
    "vit_large_patch16": (1024, 24, 16),
    "vit_large_patch16_plus": (1024, 24, 16),
    "vit_huge_patch16_plus": (1280, 32, 20),
    "vit_7b_patch16": (4096, 40, 32),
    "vit_large_patch16_sat493m": (1024, 24, 16),
    "vit_7b_patch16_sat493m": (4096, 40, 32),
}
SIZES["vit_large_patch16_im1k"] = SIZES["vit_large_patch16"]  # configs/train/vitl_im1k_lin834.yaml, to be trained
ARCHS = {name: Facts(dim=d, depth=n, heads=h, patch=16, size=224) for name, (d, n, h) in SIZES.items()}


def eps(arch: str) -> float:
    """Of every norm."""
    return 1e-6 if "im1k" in arch else 1e-5


def hidden(arch: str) -> int:
    """Width of the MLP: SwiGLU of the `plus` models has two thirds of 6 dims, of 7B two thirds of 3 dims."""
    dim = ARCHS[arch].dim
    if "plus" in arch or "7b" in arch:
        wide, step = (6 * dim, 8) if "plus" in arch else (3 * dim, 64)
        return math.ceil(int(wide * 2 / 3) / step) * step
    return 4 * dim


def weights(seed: int, depth: int = 2, arch: str = ARCH) -> State:
    """The released backbone. The periods are the official ones rounded to bfloat16, as training files hold them; the
    bias of the keys is not zero, so that the mask shows."""
    facts = ARCHS[arch]
    dim, wide = facts.dim, hidden(arch)
    shapes = vit_shapes(dim, depth, facts.patch, 1) | {"mask_token": (1, dim), "storage_tokens": (1, 4, dim)}
    del shapes["pos_embed"]
    if "im1k" in arch:
        del shapes["storage_tokens"]
    for i in range(depth):
        b = f"blocks.{i}."
        shapes |= {f"{b}ls1.gamma": (dim,), f"{b}ls2.gamma": (dim,)}
        if "7b" in arch:
            del shapes[f"{b}attn.qkv.bias"]
        if "plus" in arch or "7b" in arch:
            for key in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
                del shapes[f"{b}mlp.{key}"]
            for name, (out, into) in {"w1": (wide, dim), "w2": (wide, dim), "w3": (dim, wide)}.items():
                shapes |= {f"{b}mlp.{name}.weight": (out, into), f"{b}mlp.{name}.bias": (out,)}
    if "sat493m" in arch or "7b" in arch:
        shapes |= {"local_cls_norm.weight": (dim,), "local_cls_norm.bias": (dim,)}
    state = draw(shapes, seed)
    quarter = dim // facts.heads // 4
    periods = torch.tensor([100 ** (i / quarter) for i in range(quarter)])
    state["rope_embed.periods"] = periods.bfloat16().float()
    masks = {}
    for key in state:
        if key.endswith("attn.qkv.bias") and "im1k" not in arch:
            masks[key + "_mask"] = torch.cat([torch.ones(dim), torch.zeros(dim), torch.ones(dim)])
    return state | masks


def head(seed: int) -> State:
    """The `dino_head` of a training file for 384 dimensions, at a small size; its prototypes are a plain matrix."""
    shapes: dict[str, tuple[int, ...]] = {}
    for place, (out, into) in {0: (48, 384), 2: (48, 48), 4: (24, 48)}.items():
        shapes |= {f"mlp.{place}.weight": (out, into), f"mlp.{place}.bias": (out,)}
    return draw(shapes | {"last_layer.weight": (40, 24)}, seed, scale=0.2)


def project(state: State, cls: Tensor) -> tuple[Tensor, Tensor]:
    """(logits, unit vectors before the prototypes)."""
    x = cls
    for place in (0, 2, 4):
        x = x @ state[f"mlp.{place}.weight"].T + state[f"mlp.{place}.bias"]
        x = gelu(x) if place < 4 else x
    x = x / x.square().sum(-1, keepdim=True).sqrt()
    return x @ state["last_layer.weight"].T, x


def angles(h: int, w: int, periods: Tensor) -> Tensor:
    """(h * w, 2 P): for each patch the angles of its row, then of its column; centres of patches in [-1, 1]."""
    rows = []
    for i in range(h):
        for j in range(w):
            y, x = 2 * (i + 0.5) / h - 1, 2 * (j + 0.5) / w - 1
            rows.append(torch.cat([2 * math.pi * y / periods, 2 * math.pi * x / periods]))
    return torch.stack(rows)


def turn(x: Tensor, by: Tensor) -> Tensor:
    """Number c of a head's channels and number c + half are one point in the plane, turned by angle c."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * by.cos() - second * by.sin(), second * by.cos() + first * by.sin()], -1)


def turn_patches(qkv: Tensor, heads: int, by: Tensor) -> Tensor:
    """Queries and keys of the last len(by) tokens turned, head by head; class and storage tokens as they are."""
    q, k, v = qkv.chunk(3, -1)
    before = qkv.shape[1] - len(by)
    turned = []
    for x in (q, k):
        parts = [torch.cat([part[:, :before], turn(part[:, before:], by)], 1) for part in x.chunk(heads, -1)]
        turned.append(torch.cat(parts, -1))
    return torch.cat([*turned, v], -1)


def mlp(state: State, b: str, x: Tensor) -> Tensor:
    """Two layers with GELU; SwiGLU where the weights say so."""
    if b + "mlp.w1.weight" in state:
        gate = x @ state[b + "mlp.w1.weight"].T + state[b + "mlp.w1.bias"]
        value = x @ state[b + "mlp.w2.weight"].T + state[b + "mlp.w2.bias"]
        return (gate / (1 + (-gate).exp()) * value) @ state[b + "mlp.w3.weight"].T + state[b + "mlp.w3.bias"]
    x = gelu(x @ state[b + "mlp.fc1.weight"].T + state[b + "mlp.fc1.bias"])
    return x @ state[b + "mlp.fc2.weight"].T + state[b + "mlp.fc2.bias"]


def forward(weights: State, images: Tensor, head: State | None = None, arch: str = ARCH) -> Truth:
    """Class token, storage tokens, patches. With a `cls_norm`, class and storage tokens have that final norm."""
    state, heads = double(weights), ARCHS[arch].heads
    x = tiles(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"])
    batch, h, w, dim = x.shape
    by = angles(h, w, state["rope_embed.periods"])
    first = [state[name].expand(batch, -1, -1) for name in ("cls_token", "storage_tokens") if name in state]
    x = torch.cat([*first, x.reshape(batch, h * w, dim)], 1)
    blocks, maps, i = [], None, 0
    while f"blocks.{i}.norm1.weight" in state:
        b = f"blocks.{i}."
        y = layer_norm(x, state[b + "norm1.weight"], state[b + "norm1.bias"], eps(arch))
        qkv = y @ state[b + "attn.qkv.weight"].T
        if b + "attn.qkv.bias" in state:
            qkv = qkv + state[b + "attn.qkv.bias"] * state.get(b + "attn.qkv.bias_mask", torch.ones(()))
        y, maps = attention(turn_patches(qkv, heads, by), heads)
        x = x + state[b + "ls1.gamma"] * (y @ state[b + "attn.proj.weight"].T + state[b + "attn.proj.bias"])
        y = layer_norm(x, state[b + "norm2.weight"], state[b + "norm2.bias"], eps(arch))
        x = x + state[b + "ls2.gamma"] * mlp(state, b, y)
        blocks.append(x)
        i += 1
    name = "cls_norm" if "cls_norm.weight" in state else "norm"
    cls = layer_norm(x[:, 0], state[name + ".weight"], state[name + ".bias"], eps(arch))
    patches = layer_norm(x[:, -h * w :], state["norm.weight"], state["norm.bias"], eps(arch))
    logits, unit = project(double(head), cls) if head else (None, None)
    return Truth(
        blocks=blocks,
        cls=cls,
        patches=patches.reshape(batch, h, w, dim),
        attention=maps,
        projection=logits,
        bottleneck=unit,
    )


def under(prefix: str, state: State) -> State:
    """The same tensors, `prefix` before each name."""
    return {prefix + key: value for key, value in state.items()}


def whole(backbone: State, dino: State, ibot: State) -> State:
    """One of the networks of SSLMetaArch."""
    return under("backbone.", backbone) | under("dino_head.", dino) | under("ibot_head.", ibot)


def files(seed: int = 0, depth: int = 2) -> list[File]:
    """hub/backbones.py (released), train/train.py:256-264 (evaluation file), checkpointer/checkpointer.py:116-121
    (training state, gathered from its folder into one file by torch's own converter)."""
    student, teacher, plus = weights(seed, depth), weights(seed + 1, depth), weights(seed + 5, depth, PLUS)
    big, anchor = weights(seed + 6, depth), weights(seed + 7, depth)
    s_head, t_head, ibot = head(seed + 2), head(seed + 3), head(seed + 4)
    norm = draw({"local_cls_norm.weight": (384,), "local_cls_norm.bias": (384,)}, seed + 8)
    loss = {"dino_loss.center": torch.full((1, 40), math.nan), "ibot_patch_loss.center": torch.full((1, 1, 40), 0.1)}
    optimizer = {
        "state": {"student.backbone.cls_token": {"step": torch.tensor(7.0), "exp_avg": torch.zeros(1, 1, 384)}},
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.99), "params": ["student.backbone.cls_token"]}],
    }
    ema = under("model_ema.", whole(teacher, t_head, ibot))
    networks = under("student.", whole(student, s_head, ibot)) | ema | loss
    training = {"iteration": 3749, "model": networks | under("teacher.", whole(teacher, t_head, ibot))}
    training["optimizer"] = optimizer
    distilled = networks | under("teacher.", whole(big, s_head, ibot)) | under("gram_teacher.backbone.", anchor)
    taught = {"weights": teacher, "head": t_head, "network": "teacher"}
    return [
        File("released", dict(teacher), teacher, network="backbone"),
        File("released-plus", dict(plus), plus, network="backbone", arch=PLUS),
        File("released-local-norm", teacher | norm, teacher, network="backbone"),
        File("evaluation", {"teacher": whole(teacher, t_head, ibot)}, **taught),
        File("training", training, **taught),
        File("training-student", training, student, s_head, ask="student", network="student"),
        File("distillation", {"iteration": 3749, "model": distilled, "optimizer": optimizer}, **taught),
    ]


PLUS = "vit_small_patch16_plus"
