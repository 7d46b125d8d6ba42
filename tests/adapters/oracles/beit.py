"""BEiT on the blackboard: one vision transformer whose attention scores carry a learned bias per relative position.

Three official layouts of one network: masked image modelling (one table shared by the blocks, final `norm`), fine-tuned
(a table in each block; `fc_norm` in place of `norm` where the classifier reads the mean of the patches), and without
relative positions (`pos_embed` added to the tokens, no LayerScale). Which one it is, the keys say.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from tests.adapters.oracles import Facts, File, Truth
from tests.adapters.oracles.plain import State, attention, double, draw, gelu, layer_norm, tiles

FAMILY = "beit"
ARCHS = {
    "vit_base_patch16": Facts(dim=768, depth=12, heads=12, patch=16, size=224),
    "vit_base_patch16_384": Facts(dim=768, depth=12, heads=12, patch=16, size=384),
    "vit_large_patch16": Facts(dim=1024, depth=24, heads=16, patch=16, size=224),
    "vit_large_patch16_384": Facts(dim=1024, depth=24, heads=16, patch=16, size=384),
    "vit_large_patch16_512": Facts(dim=1024, depth=24, heads=16, patch=16, size=512),
    "vit_base_patch16_abs": Facts(dim=768, depth=12, heads=12, patch=16, size=224),
}
ARCH = "vit_base_patch16"
ABSOLUTE = "vit_base_patch16_abs"
EPS = 1e-6
SHARED = "rel_pos_bias.relative_position_bias_table"


def weights(seed: int, depth: int = 2, arch: str = ARCH) -> State:
    """The backbone of a pretraining file: a shared table, or absolute positions for the `_abs` architecture."""
    return _weights(seed, depth, arch, table="none" if arch.endswith("_abs") else "shared")


def head(seed: int) -> State | None:
    """No paper reads a projection: the pretraining head classifies patches into visual words."""
    return None


def _weights(seed: int, depth: int, arch: str, *, table: str, norm: str = "norm") -> State:
    """table: "shared", "blocks" or "none" (absolute positions). norm: the key of the last norm."""
    facts = ARCHS[arch]
    d, side = facts.dim, facts.size // facts.patch
    rows = (2 * side - 1) ** 2 + 3
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, d)}
    shapes |= {"patch_embed.proj.weight": (d, 3, facts.patch, facts.patch), "patch_embed.proj.bias": (d,)}
    shapes |= {"pos_embed": (1, side * side + 1, d)} if table == "none" else {}
    shapes |= {SHARED: (rows, facts.heads)} if table == "shared" else {}
    for i in range(depth):
        shapes |= _block_shapes(f"blocks.{i}.", d, gamma=table != "none")
        if table == "blocks":
            shapes[f"blocks.{i}.attn.relative_position_bias_table"] = (rows, facts.heads)
    state = draw(shapes | {f"{norm}.weight": (d,), f"{norm}.bias": (d,)}, seed)
    return {key: value * 20 if key.endswith("bias_table") else value for key, value in state.items()}


def _block_shapes(b: str, d: int, *, gamma: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{b}gamma_1": (d,), f"{b}gamma_2": (d,)} if gamma else {}
    shapes |= {f"{b}norm1.weight": (d,), f"{b}norm1.bias": (d,), f"{b}norm2.weight": (d,), f"{b}norm2.bias": (d,)}
    shapes |= {f"{b}attn.q_bias": (d,), f"{b}attn.v_bias": (d,), f"{b}attn.qkv.weight": (3 * d, d)}
    shapes |= {f"{b}attn.proj.weight": (d, d), f"{b}attn.proj.bias": (d,)}
    shapes |= {f"{b}mlp.fc1.weight": (4 * d, d), f"{b}mlp.fc1.bias": (4 * d,)}
    return shapes | {f"{b}mlp.fc2.weight": (d, 4 * d), f"{b}mlp.fc2.bias": (d,)}


def forward(weights: State, images: Tensor, head: State | None = None, arch: str = ARCH) -> Truth:
    """Blocks, last norm and attention. cls and patches: every token through `norm`, or through `fc_norm` where the file
    has that one instead, as BEiT v2's code returns all tokens of such a network."""
    facts, w = ARCHS[arch], double(weights)
    patches = tiles(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"])
    batch, rows, columns, d = patches.shape
    native = facts.size // facts.patch
    x = torch.cat([w["cls_token"].expand(batch, -1, -1), patches.reshape(batch, rows * columns, d)], 1)
    if "pos_embed" in w:
        x = x + _absolute(w["pos_embed"], native, rows, columns)
    biases = {key: _bias(t, native, rows, columns) for key, t in w.items() if key.endswith("bias_table")}
    blocks, maps = [], torch.zeros(())
    for i in range(sum(key.endswith("attn.proj.bias") for key in w)):
        b = f"blocks.{i}."
        bias = biases.get(f"{b}attn.relative_position_bias_table", biases.get(SHARED))
        y = layer_norm(x, w[f"{b}norm1.weight"], w[f"{b}norm1.bias"], EPS)
        q, v = w[f"{b}attn.q_bias"], w[f"{b}attn.v_bias"]
        qkv = y @ w[f"{b}attn.qkv.weight"].T + torch.cat([q, torch.zeros_like(q), v])
        y, maps = attention(qkv, facts.heads, bias)
        y = y @ w[f"{b}attn.proj.weight"].T + w[f"{b}attn.proj.bias"]
        x = x + w.get(f"{b}gamma_1", torch.ones(())) * y
        y = layer_norm(x, w[f"{b}norm2.weight"], w[f"{b}norm2.bias"], EPS)
        y = gelu(y @ w[f"{b}mlp.fc1.weight"].T + w[f"{b}mlp.fc1.bias"])
        y = y @ w[f"{b}mlp.fc2.weight"].T + w[f"{b}mlp.fc2.bias"]
        x = x + w.get(f"{b}gamma_2", torch.ones(())) * y
        blocks.append(x)
    last = "fc_norm" if "fc_norm.weight" in w else "norm"
    y = layer_norm(x, w[f"{last}.weight"], w[f"{last}.bias"], EPS)
    return Truth(blocks, y[:, 0], y[:, 1:].reshape(batch, rows, columns, d), maps)


def _absolute(table: Tensor, native: int, rows: int, columns: int) -> Tensor:
    """(1, 1 + rows * columns, D). Another grid: bicubic by the factors (rows + 0.1) / native, (columns + 0.1) / native."""
    if rows == columns == native:
        return table
    grid = table[:, 1:].reshape(1, native, native, -1).permute(0, 3, 1, 2)
    factors = [(rows + 0.1) / native, (columns + 0.1) / native]
    grid = torch.nn.functional.interpolate(grid, scale_factor=factors, mode="bicubic")
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], 1)


def _bias(table: Tensor, native: int, rows: int, columns: int) -> Tensor:
    """(heads, T, T): what is added to the score of each query (first) and key (second), class token first."""
    sides = 2 * native - 1
    patches = table[:-3].reshape(sides, sides, -1)
    patches = _respline(patches, 2 * rows - 1)
    patches = _respline(patches.transpose(0, 1), 2 * columns - 1).transpose(0, 1)
    places = [(r, c) for r in range(rows) for c in range(columns)]
    down = torch.tensor([[a[0] - b[0] + rows - 1 for b in places] for a in places])
    right = torch.tensor([[a[1] - b[1] + columns - 1 for b in places] for a in places])
    bias = torch.empty(table.shape[1], len(places) + 1, len(places) + 1, dtype=torch.float64)
    bias[:, 1:, 1:] = patches[down, right].permute(2, 0, 1)
    bias[:, 0, 1:] = table[-3][:, None]
    bias[:, 1:, 0] = table[-2][:, None]
    bias[:, 0, 0] = table[-1]
    return bias


def _respline(table: Tensor, size: int) -> Tensor:
    """(S, ...) -> (size, ...): the first axis read at the whole numbers from -size // 2 to size // 2 from a cubic spline
    through the table, whose own places grow like a geometric progression. An axis of the right size stays."""
    if len(table) == size:
        return table
    reach = size // 2
    knots = _places(len(table) // 2, reach)
    at = torch.arange(-reach, reach + 1, dtype=torch.float64).clamp(knots[0], knots[-1])
    return _spline(torch.tensor(knots, dtype=torch.float64), table, at)


def _places(steps: int, reach: int) -> list[float]:
    """Symmetric places 0, 1, 1 + q, 1 + q + q^2 ...; q by bisection so that the last one comes close to `reach`."""
    left, right, q = 1.01, 1.5, 0.0
    while right - left > 1e-6:
        q = (left + right) / 2
        if (1 - q**steps) / (1 - q) > reach:
            right = q
        else:
            left = q
    half = [math.fsum(q**k for k in range(n + 1)) for n in range(steps)]
    return [-v for v in reversed(half)] + [0.0] + half


def _spline(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """The cubic spline through (x, y), not-a-knot at both ends: solved for the second derivatives, then evaluated."""
    n, h = len(x), x.diff()
    flat = y.reshape(n, -1)
    slope = flat.diff(dim=0) / h[:, None]
    matrix, wanted = torch.zeros(n, n, dtype=torch.float64), torch.zeros_like(flat)
    for k in range(1, n - 1):
        matrix[k, k - 1], matrix[k, k], matrix[k, k + 1] = h[k - 1], 2 * (h[k - 1] + h[k]), h[k]
        wanted[k] = 6 * (slope[k] - slope[k - 1])
    matrix[0, :3] = torch.tensor([-1 / h[0], 1 / h[0] + 1 / h[1], -1 / h[1]])
    matrix[-1, -3:] = torch.tensor([1 / h[-2], -1 / h[-2] - 1 / h[-1], 1 / h[-1]])
    bend = torch.linalg.solve(matrix, wanted)
    k = (torch.searchsorted(x, at, right=True) - 1).clamp(0, n - 2)
    a, b, step = (x[k + 1] - at)[:, None], (at - x[k])[:, None], h[k][:, None]
    out = (bend[k] * a**3 + bend[k + 1] * b**3) / (6 * step)
    out = out + (flat[k] / step - bend[k] * step / 6) * a + (flat[k + 1] / step - bend[k + 1] * step / 6) * b
    return out.reshape(len(at), *y.shape[1:])


def index(side: int) -> Tensor:
    """(T, T) int64: the rows of the table that the official files store beside it, as a buffer."""
    sides = 2 * side - 1
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    apart = places[:, None] - places[None] + side - 1
    full = torch.full((side * side + 1,) * 2, sides * sides)
    full[1:, 0], full[0, 0] = sides * sides + 1, sides * sides + 2
    full[1:, 1:] = apart[..., 0] * sides + apart[..., 1]
    return full


def _pretrained(seed: int, depth: int, *, second_head: bool) -> tuple[State, State]:
    """(the model as saved, its backbone). second_head: BEiT v2 with class token pretraining."""
    backbone, d = weights(seed, depth), ARCHS[ARCH].dim
    extra: dict[str, tuple[int, ...]] = {"mask_token": (1, 1, d), "lm_head.weight": (32, d), "lm_head.bias": (32,)}
    if second_head:
        for i in range(2):
            extra |= _block_shapes(f"cls_pt_layers.{i}.", d, gamma=True)
    saved = backbone | draw(extra, seed + 100)
    return saved | {"rel_pos_bias.relative_position_index": index(14)}, backbone


def _finetuned(seed: int, depth: int, norm: str) -> tuple[State, State]:
    backbone, d = _weights(seed, depth, ARCH, table="blocks", norm=norm), ARCHS[ARCH].dim
    saved = backbone | draw({"head.weight": (10, d), "head.bias": (10,)}, seed + 100)
    return saved | {f"blocks.{i}.attn.relative_position_index": index(14) for i in range(depth)}, backbone


def files(seed: int = 0, depth: int = 2) -> list[File]:
    """Released and training files of BEiT and BEiT v2."""
    mim, backbone = _pretrained(seed, depth, second_head=False)
    v2, backbone_v2 = _pretrained(seed + 1, depth, second_head=True)
    mean, backbone_mean = _finetuned(seed + 2, depth, "fc_norm")
    cls, backbone_cls = _finetuned(seed + 3, depth, "norm")
    averaged, backbone_averaged = _finetuned(seed + 4, depth, "fc_norm")
    both = {"model": mean, "model_ema": averaged}
    moments = {"step": 7, "exp_avg": torch.full((3, 4), 0.1), "exp_avg_sq": torch.full((3, 4), 0.01)}
    training = {
        "optimizer": {"state": {0: moments}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "epoch": 799,
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3},
        "args": argparse.Namespace(
            model="beit_base_patch16_224_8k_vocab", rel_pos_bias=True, layer_scale_init_value=0.1
        ),
    }
    deepspeed = {
        "optimizer": None,
        "lr_scheduler": None,
        "csr_tensor_module_names": set(),
        "skipped_steps": 5,
        "global_steps": 1000,
        "dp_world_size": 8,
        "mp_world_size": 1,
        "epoch": 89,
    }
    absolute = weights(seed + 5, depth, ABSOLUTE)
    words = draw({"mask_token": (1, 1, 768), "lm_head.weight": (32, 768), "lm_head.bias": (32,)}, seed + 6)
    name = "backbone"
    return [
        File("released, pretrained", {"model": mim}, backbone, network=name),
        File("released, pretrained v2", {"model": v2}, backbone_v2, network=name),
        File("released, absolute positions", {"model": absolute | words}, absolute, network=name, arch=ABSOLUTE),
        File("training", {"model": mim} | training, backbone, network=name),
        File("released, fine-tuned", {"model": mean}, backbone_mean, network=name),
        File("released, deepspeed", {"module": mean} | deepspeed, backbone_mean, network=name),
        File("fine-tuned by the class token", {"model": cls} | training, backbone_cls, network=name),
        File("fine-tuned, with an average", both | training, backbone_mean, network=name),
        File("fine-tuned, the average", both | training, backbone_averaged, network="model_ema", ask="model_ema"),
        File("bare", dict(backbone), backbone, network=name),
    ]
