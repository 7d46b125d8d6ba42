"""DINOv2 on a blackboard (facebookresearch/dinov2 b8931f7): plain, with registers, and SwiGLU in the largest one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.adapters.oracles import Facts, File, Truth
from tests.adapters.oracles.plain import State, attention, double, draw, gelu, layer_norm, tiles, vit_shapes

FAMILY = "dinov2"
ARCH = "vit_small_patch14"
SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16), "giant": (1536, 40, 24)}
ARCHS = {
    f"vit_{name}_patch14{registers}": Facts(dim=dim, depth=depth, heads=heads, patch=14, size=518)
    for name, (dim, depth, heads) in SIZES.items()
    for registers in ("", "_reg4")
}
ARCHS |= {  # what the recipes of configs/train make, at 224 pixels: released for nobody, trained by many
    "vit_large_patch16": Facts(dim=1024, depth=24, heads=16, patch=16),
    "vit_large_patch14_swiglu_224": Facts(dim=1024, depth=24, heads=16, patch=14),
    "vit_giant_patch14_224": Facts(dim=1536, depth=40, heads=24, patch=14),
}
EPS = 1e-6


def weights(seed: int, depth: int = 2, arch: str = ARCH) -> State:
    """The released backbone: no chunks of blocks, a mask token, LayerScale, a table of 37 x 37 + 1 positions."""
    facts = ARCHS[arch]
    dim, grid = facts.dim, facts.size // facts.patch
    shapes = vit_shapes(dim, depth, facts.patch, grid * grid + 1) | {"mask_token": (1, dim)}
    if "reg4" in arch:
        shapes["register_tokens"] = (1, 4, dim)
    for i in range(depth):
        shapes |= {f"blocks.{i}.ls1.gamma": (dim,), f"blocks.{i}.ls2.gamma": (dim,)}
        if "giant" in arch or "swiglu" in arch:
            hidden = (int(4 * dim * 2 / 3) + 7) // 8 * 8
            for key in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
                del shapes[f"blocks.{i}.mlp.{key}"]
            shapes |= {f"blocks.{i}.mlp.w12.weight": (2 * hidden, dim), f"blocks.{i}.mlp.w12.bias": (2 * hidden,)}
            shapes |= {f"blocks.{i}.mlp.w3.weight": (dim, hidden), f"blocks.{i}.mlp.w3.bias": (dim,)}
    return draw(shapes, seed)


def head(seed: int) -> State:
    """The `dino_head` of a training file for 384 dimensions, at a small size: three linear layers, prototypes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for place, (out, into) in {0: (48, 384), 2: (48, 48), 4: (24, 48)}.items():
        shapes |= {f"mlp.{place}.weight": (out, into), f"mlp.{place}.bias": (out,)}
    state = draw(shapes | {"last_layer.weight_v": (40, 24)}, seed, scale=0.2)
    gains = torch.rand(40, 1, generator=torch.Generator().manual_seed(seed + 1)) + 0.5
    return state | {"last_layer.weight_g": gains}


def project(state: State, cls: Tensor) -> tuple[Tensor, Tensor]:
    """(logits, unit vectors before the prototypes)."""
    x = cls
    for place in (0, 2, 4):
        x = x @ state[f"mlp.{place}.weight"].T + state[f"mlp.{place}.bias"]
        x = gelu(x) if place < 4 else x
    x = x / x.square().sum(-1, keepdim=True).sqrt()
    rows = state["last_layer.weight_v"]
    rows = rows / rows.square().sum(1, keepdim=True).sqrt() * state["last_layer.weight_g"]
    return x @ rows.T, x


def cubic(t: float, a: float) -> float:
    """Keys' kernel: 1 at 0, 0 at the other whole numbers and beyond 2."""
    t = abs(t)
    if t < 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def bicubic_rows(old: int, new: int, step: float) -> Tensor:
    """(new, old) weights of torch's bicubic resizing along one axis, a = -0.75, the border repeated. step: old pixels
    per new pixel; the size is what matters to the number of rows, the step to where they look."""
    rows = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        centre = (i + 0.5) * step - 0.5
        left = math.floor(centre)
        for j in range(left - 1, left + 3):
            rows[i, min(max(j, 0), old - 1)] += cubic(centre - j, -0.75)
    return rows


def antialiased_rows(old: int, new: int) -> Tensor:
    """(new, old) weights with the kernel (a = -0.5) widened when shrinking, normalised over what lies inside."""
    step = old / new
    wide = max(step, 1.0)
    rows = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        centre = (i + 0.5) * step
        first, last = max(int(centre - 2 * wide + 0.5), 0), min(int(centre + 2 * wide + 0.5), old)
        for j in range(first, last):
            rows[i, j] = cubic((j + 0.5 - centre) / wide, -0.5)
        rows[i] /= rows[i].sum()
    return rows


def resize(table: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(h0, w0, D) -> (h, w, D)."""
    return torch.einsum("ij,kl,jld->ikd", rows, columns, table)


def positions(table: Tensor, height: int, width: int, arch: str) -> Tensor:
    """(h, w, D) for an image of height x width pixels; `table` is (37 * 37, D)."""
    patch, side = ARCHS[arch].patch, math.isqrt(len(table))
    h, w = height // patch, width // patch
    table = table.reshape(side, side, -1)
    if h * w == side * side and height == width:
        return table
    if "reg4" in arch:
        return resize(table, antialiased_rows(side, h), antialiased_rows(side, w))
    return resize(table, *(bicubic_rows(side, n, side / (n + 0.1)) for n in (h, w)))


def mlp(state: State, b: str, x: Tensor) -> Tensor:
    """Two layers with GELU; SwiGLU where the weights say so, its gate in the first half of `w12`."""
    if b + "mlp.w12.weight" in state:
        both = x @ state[b + "mlp.w12.weight"].T + state[b + "mlp.w12.bias"]
        gate, value = both.chunk(2, -1)
        return (gate / (1 + (-gate).exp()) * value) @ state[b + "mlp.w3.weight"].T + state[b + "mlp.w3.bias"]
    x = gelu(x @ state[b + "mlp.fc1.weight"].T + state[b + "mlp.fc1.bias"])
    return x @ state[b + "mlp.fc2.weight"].T + state[b + "mlp.fc2.bias"]


def forward(weights: State, images: Tensor, head: State | None = None, arch: str = ARCH) -> Truth:
    """Class token, registers, patches; the registers have no position."""
    state = double(weights)
    x = tiles(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"])
    batch, h, w, dim = x.shape
    table = state["pos_embed"][0]
    x = (x + positions(table[1:], images.shape[2], images.shape[3], arch)).reshape(batch, h * w, dim)
    first = [(state["cls_token"] + table[:1]).expand(batch, -1, -1)]
    if "register_tokens" in state:
        first.append(state["register_tokens"].expand(batch, -1, -1))
    x = torch.cat([*first, x], 1)
    blocks, maps, i = [], None, 0
    while f"blocks.{i}.norm1.weight" in state:
        b = f"blocks.{i}."
        y = layer_norm(x, state[b + "norm1.weight"], state[b + "norm1.bias"], EPS)
        qkv = y @ state[b + "attn.qkv.weight"].T + state[b + "attn.qkv.bias"]
        y, maps = attention(qkv, ARCHS[arch].heads)
        x = x + state[b + "ls1.gamma"] * (y @ state[b + "attn.proj.weight"].T + state[b + "attn.proj.bias"])
        y = layer_norm(x, state[b + "norm2.weight"], state[b + "norm2.bias"], EPS)
        x = x + state[b + "ls2.gamma"] * mlp(state, b, y)
        blocks.append(x)
        i += 1
    out = layer_norm(x, state["norm.weight"], state["norm.bias"], EPS)
    logits, unit = project(double(head), out[:, 0]) if head else (None, None)
    return Truth(
        blocks=blocks,
        cls=out[:, 0],
        patches=out[:, -h * w :].reshape(batch, h, w, dim),
        attention=maps,
        projection=logits,
        bottleneck=unit,
    )


def chunked(state: State, chunks: int) -> State:
    """Names of a network trained with `block_chunks`: the chunk, then the block's number in the whole network."""
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    size = depth // chunks
    out = {}
    for key, value in state.items():
        parts = key.split(".")
        number = [str(int(parts[1]) // size)] if parts[0] == "blocks" else []
        out[".".join([parts[0], *number, *parts[1:]])] = value
    return out


def under(prefix: str, state: State) -> State:
    """The same tensors, `prefix` before each name."""
    return {prefix + key: value for key, value in state.items()}


def whole(backbone: State, dino: State, ibot: State | None = None) -> State:
    """One of the two networks of SSLMetaArch."""
    state = under("backbone.", backbone) | under("dino_head.", dino)
    return state | (under("ibot_head.", ibot) if ibot else {})


def optimizer(state: State) -> dict[str, object]:
    """What AdamW's state_dict holds for the first two parameters."""
    moments = {
        i: {"step": torch.tensor(7.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.ones_like(p)}
        for i, p in enumerate(list(state.values())[:2])
    }
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.04, "foreach": True, "params": [0, 1]}
    return {"state": moments, "param_groups": [group]}


def files(seed: int = 0, depth: int = 2) -> list[File]:
    """hub/backbones.py (released), train/train.py:122-131 (evaluation file), fsdp/__init__.py:86-114 (training file,
    its weights gathered from the ranks), train/ssl_meta_arch.py:45-48 (weights to start from)."""
    student, teacher = weights(seed, depth), weights(seed + 1, depth)
    s_head, t_head, ibot = head(seed + 2), head(seed + 3), head(seed + 4)
    registers = weights(seed + 5, depth, "vit_small_patch14_reg4")
    start = weights(seed + 6, 1)
    loss = {"dino_loss.center": torch.zeros(1, 40), "ibot_patch_loss.center": torch.zeros(1, 1, 40)}
    training = {
        "model": under("student.", whole(chunked(student, 2), s_head, ibot))
        | under("teacher.", whole(chunked(teacher, 2), t_head, ibot))
        | loss,
        "optimizer": optimizer(student),
        "iteration": 37499,
    }
    taught = {"weights": teacher, "head": t_head, "network": "teacher"}
    return [
        File("released", dict(teacher), teacher, network="backbone"),
        File("released-registers", dict(registers), registers, network="backbone", arch="vit_small_patch14_reg4"),
        File("evaluation", {"teacher": whole(chunked(teacher, 2), t_head, ibot)}, **taught),
        File("evaluation-shared-head", {"teacher": under("module.", whole(chunked(teacher, 1), t_head))}, **taught),
        File("training", training, **taught),
        File("training-student", training, student, s_head, ask="student", network="student"),
        File("model-only", {"model": dict(start)}, start, network="backbone"),
    ]
