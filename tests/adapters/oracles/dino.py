"""DINO on the blackboard (facebookresearch/dino 7c446df, vision_transformer.py, utils.py, main_dino.py).

Pre-norm vision transformer with a class token and a learned table of 1 + h * w rows, eps 1e-6, exact GELU, qkv with
one bias, no LayerScale, final norm. iBOT, Mugs and MMC use its position rule and its head.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from tests.adapters.oracles import Facts, File, Truth
from tests.adapters.oracles.plain import State, attention, double, draw, gelu, layer_norm, tiles, vit_shapes

FAMILY = "dino"
ARCHS = {
    "vit_tiny_patch16": Facts(dim=192, depth=12, heads=3, patch=16),
    "vit_small_patch16": Facts(dim=384, depth=12, heads=6, patch=16),
    "vit_small_patch8": Facts(dim=384, depth=12, heads=6, patch=8),
    "vit_base_patch16": Facts(dim=768, depth=12, heads=12, patch=16),
    "vit_base_patch8": Facts(dim=768, depth=12, heads=12, patch=8),
    "vit_micro_patch8_64": Facts(dim=192, depth=6, heads=3, patch=8, size=64),
}
ARCH = "vit_small_patch16"
EPS = 1e-6
HIDDEN, BOTTLENECK, PROTOTYPES = 48, 24, 72


def weights(seed: int, depth: int = 2, arch: str = ARCH) -> State:
    """The released backbone: bare keys."""
    facts = ARCHS[arch]
    return draw(vit_shapes(facts.dim, depth, facts.patch, 1 + (facts.size // facts.patch) ** 2), seed)


def head(seed: int, dim: int = ARCHS[ARCH].dim) -> State:
    """Three linear layers, and prototypes split into length and direction by weight norm."""
    shapes = {"mlp.0": (HIDDEN, dim), "mlp.2": (HIDDEN, HIDDEN), "mlp.4": (BOTTLENECK, HIDDEN)}
    return linears(shapes, seed) | prototypes("last_layer", PROTOTYPES, BOTTLENECK, seed + 1)


def linears(shapes: dict[str, tuple[int, int]], seed: int) -> State:
    """Weights and biases of linear layers."""
    named: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in shapes.items()}
    return draw(named | {f"{name}.bias": shape[:1] for name, shape in shapes.items()}, seed, 0.2)


def prototypes(name: str, out: int, dim: int, seed: int) -> State:
    """A weight-normed layer without bias; lengths near 1, where they start, but not 1."""
    drawn = draw({f"{name}.weight_g": (out, 1), f"{name}.weight_v": (out, dim)}, seed, 0.2)
    return drawn | {f"{name}.weight_g": 1 + drawn[f"{name}.weight_g"]}


def batch_norm_head(seed: int, dim: int = ARCHS[ARCH].dim) -> State:
    """As `--use_bn_in_head` makes it: linear layers at 0, 3, 6 and batch norms at 1, 4."""
    shapes = {"mlp.0": (HIDDEN, dim), "mlp.3": (HIDDEN, HIDDEN), "mlp.6": (BOTTLENECK, HIDDEN)}
    state = linears(shapes, seed) | prototypes("last_layer", PROTOTYPES, BOTTLENECK, seed + 1)
    for place in (1, 4):
        parts = ("weight", "bias", "running_mean", "running_var")
        norm = draw({f"mlp.{place}.{part}": (HIDDEN,) for part in parts}, seed + place, 0.2)
        norm[f"mlp.{place}.running_var"] = norm[f"mlp.{place}.running_var"].abs() + 0.5
        state |= norm | {f"mlp.{place}.num_batches_tracked": torch.tensor(70)}
    return state


def forward(weights: State, images: Tensor, head: State | None = None, arch: str = ARCH) -> Truth:
    """All tokens of all blocks in float64."""
    w, x = embed(weights, images)
    blocks, maps = run(w, x, ARCHS[arch].heads)
    out = layer_norm(blocks[-1], w["norm.weight"], w["norm.bias"], EPS)
    cls, patches = out[:, 0], on_grid(out[:, 1:], images, ARCHS[arch].patch)
    bottleneck, projection = project(head, cls) if head else (None, None)
    return Truth(blocks, cls, patches, maps, projection, bottleneck)


def embed(weights: State, images: Tensor) -> tuple[State, Tensor]:
    """(the weights in float64, the tokens that enter the first block)."""
    w = double(weights)
    x = tiles(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"])
    table = positions(w["pos_embed"], (x.shape[1], x.shape[2]), images.shape[2] == images.shape[3])
    tokens = torch.cat([w["cls_token"].expand(len(x), -1, -1), x.flatten(1, 2)], 1)
    return w, tokens + table


def run(w: State, x: Tensor, heads: int) -> tuple[list[Tensor], Tensor]:
    """(tokens after each block, attention of the last block). `gamma_1`, `gamma_2` scale the branches where present."""
    found, maps, i = [], torch.empty(0), 0
    while f"blocks.{i}.norm1.weight" in w:
        b = f"blocks.{i}."
        one = w.get(f"{b}gamma_1", torch.ones((), dtype=torch.float64))
        two = w.get(f"{b}gamma_2", torch.ones((), dtype=torch.float64))
        y = layer_norm(x, w[f"{b}norm1.weight"], w[f"{b}norm1.bias"], EPS)
        y, maps = attention(linear(y, w, f"{b}attn.qkv"), heads)
        x = x + one * linear(y, w, f"{b}attn.proj")
        y = layer_norm(x, w[f"{b}norm2.weight"], w[f"{b}norm2.bias"], EPS)
        x = x + two * linear(gelu(linear(y, w, f"{b}mlp.fc1")), w, f"{b}mlp.fc2")
        found.append(x)
        i += 1
    return found, maps


def linear(x: Tensor, w: State, name: str) -> Tensor:
    """x A^T + b."""
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def on_grid(tokens: Tensor, images: Tensor, patch: int) -> Tensor:
    """(B, h * w, D) -> (B, h, w, D)."""
    return tokens.unflatten(1, (images.shape[2] // patch, images.shape[3] // patch))


def positions(table: Tensor, grid: tuple[int, int], square: bool) -> Tensor:
    """(1, 1 + h * w, D): the class row as it is, the others resized unless the image is square and of the native size.

    Cubic along rows and along columns, by the factors (h + 0.1) / h0 and (w + 0.1) / w0.
    """
    side = math.isqrt(table.shape[1] - 1)
    if square and grid == (side, side):
        return table
    patches = table[0, 1:].unflatten(0, (side, side))
    rows, columns = (cubic(n, side, (n + 0.1) / side) for n in grid)
    patches = torch.einsum("ih,jw,hwd->ijd", rows, columns, patches)
    return torch.cat([table[:, :1], patches.flatten(0, 1)[None]], 1)


def cubic(out: int, size: int, factor: float) -> Tensor:
    """(out, size) weights of cubic convolution with a = -0.75; pixel centres at halves, edges repeated."""
    matrix = torch.zeros(out, size, dtype=torch.float64)
    for i in range(out):
        centre = (i + 0.5) / factor - 0.5
        first = math.floor(centre) - 1
        for j in range(first, first + 4):
            matrix[i, min(max(j, 0), size - 1)] += keys(abs(centre - j))
    return matrix


def keys(t: float, a: float = -0.75) -> float:
    """Keys' kernel at distance t."""
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def project(head: State, cls: Tensor, mlp: str = "mlp") -> tuple[Tensor, Tensor | None]:
    """(bottleneck, logits of the prototypes); batch norm, where it is, by its running statistics."""
    h = double(head)
    places = sorted({int(key.split(".")[1]) for key in h if key.startswith(f"{mlp}.")})
    x = cls
    for place in places:
        name = f"{mlp}.{place}"
        if f"{name}.running_mean" in h:
            x = (x - h[f"{name}.running_mean"]) / (h[f"{name}.running_var"] + 1e-5).sqrt()
            x = x * h[f"{name}.weight"] + h[f"{name}.bias"]
        else:
            x = linear(x, h, name)
        activated = f"{mlp}.{place + 1}.weight" not in h and place != places[-1]
        x = gelu(x) if activated else x
    x = x / x.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-12)
    if "last_layer.weight_v" not in h:
        return x, None
    v = h["last_layer.weight_v"]
    return x, x @ (h["last_layer.weight_g"] * v / v.square().sum(1, keepdim=True).sqrt()).T


def under(prefix: str, state: State) -> State:
    """The same tensors with `prefix` before their keys."""
    return {prefix + key: value for key, value in state.items()}


def beside(**own: object) -> dict[str, object]:
    """What training files of DINO and its descendants hold beside the networks."""
    moments = {"step": torch.tensor(10.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000}
    return {
        "optimizer": {"state": {0: moments}, "param_groups": [{"lr": 0.1, "weight_decay": 0.04, "params": [0]}]},
        "epoch": 100,
        **own,
        "fp16_scaler": scaler | {"_growth_tracker": 0},
    }


def files(seed: int = 0, depth: int = 2) -> list[File]:
    """The released backbone, and the training file of main_dino.py with linear and with batch-normed heads."""
    student, teacher = (weights(seed + n, depth) for n in (1, 2))
    student_head, teacher_head = head(seed + 3), head(seed + 5)
    args = argparse.Namespace(arch="vit_small", patch_size=16, out_dim=65536, local_crops_scale=(0.05, 0.4))
    loss = {"center": torch.zeros(1, PROTOTYPES)}
    rest = beside(args=args, dino_loss=loss)
    first = under("module.backbone.", student) | under("module.head.", student_head)
    second = under("backbone.", teacher) | under("head.", teacher_head)
    training = {"student": first, "teacher": second} | rest
    student_bn, teacher_bn = batch_norm_head(seed + 7), batch_norm_head(seed + 17)
    wrapped = {
        "student": under("module.backbone.", student) | under("module.head.", student_bn),
        "teacher": under("module.backbone.", teacher) | under("module.head.", teacher_bn),
    } | rest
    return [
        File("released", teacher, teacher, network="backbone"),
        File("training", training, teacher, teacher_head, network="teacher"),
        File("training, teacher", training, teacher, teacher_head, ask="teacher", network="teacher"),
        File("training, student", training, student, student_head, ask="student", network="student"),
        File("training with batch norm", wrapped, teacher, teacher_bn, network="teacher"),
        File("training with batch norm, student", wrapped, student, student_bn, ask="student", network="student"),
    ]
