"""SelfPatch (Yun et al. 2022, arXiv:2206.07990): patches only, no final norm. The class token comes after the backbone:
two blocks in which it looks at the patches, and a norm. `head` holds that part (`ca_head.`) and DINO's head (`c_head.`)."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from tests.adapters.oracles import Facts, File, Truth, sit
from tests.adapters.oracles.plain import State, attention, double, draw, gelu, vit_shapes

FAMILY = "selfpatch"
ARCHS = {
    "vit_tiny_patch16": Facts(dim=192, depth=12, heads=3, patch=16),
    "vit_small_patch16": Facts(dim=384, depth=12, heads=6, patch=16),
    "vit_base_patch16": Facts(dim=768, depth=12, heads=12, patch=16),
    "vit_micro_patch8_64": Facts(dim=192, depth=6, heads=3, patch=8, size=64),
}
ARCH = "vit_small_patch16"


def forward(weights: State, images: Tensor, head: State | None = None, arch: str = ARCH) -> Truth:
    """With a head, the attention has the class token in front: what it looked at in the head's last block; patches never
    look at it."""
    w, facts = double(weights), ARCHS[arch]
    outputs, maps = sit.run(w, sit.embed(w, images, (), 0.1), facts.heads)
    x = outputs[-1]
    patches = x.unflatten(1, sit.grid_of(images, facts))
    if head is None:
        return Truth(outputs, None, patches, maps)
    top = double(head)
    cls, row = class_token(top, x, facts.heads)
    full = torch.zeros(*maps.shape[:2], maps.shape[2] + 1, maps.shape[3] + 1, dtype=maps.dtype)
    full[:, :, 1:, 1:], full[:, :, :1] = maps, row
    logits, unit = prototypes(top, cls)
    return Truth(outputs, cls, patches, full, logits, unit)


def class_token(top: State, x: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """((B, D) class token after the head's norm, (B, heads, 1, 1 + N) what it looked at last)."""
    cls = top["ca_head.cls_token"].expand(len(x), -1, -1)
    for i in (0, 1):
        b = f"ca_head.cls_blocks.{i}."
        seen = sit.norm(top, f"{b}norm1", torch.cat([cls, x], 1))
        mixed, maps = attention(torch.cat([sit.linear(top, f"{b}attn.{n}", seen) for n in "qkv"], -1), heads)
        cls = cls + sit.linear(top, f"{b}attn.proj", mixed[:, :1])
        inner = gelu(sit.linear(top, f"{b}mlp.fc1", sit.norm(top, f"{b}norm2", cls)))
        cls = cls + sit.linear(top, f"{b}mlp.fc2", inner)
    return sit.norm(top, "ca_head.norm", cls)[:, 0], maps[:, :, :1]


def prototypes(top: State, cls: Tensor) -> tuple[Tensor, Tensor]:
    """(logits, the unit vectors before them) of the class token."""
    x = gelu(sit.linear(top, "c_head.mlp.2", gelu(sit.linear(top, "c_head.mlp.0", cls))))
    x = sit.linear(top, "c_head.mlp.4", x)
    x = x / x.square().sum(-1, keepdim=True).sqrt()
    rows = top["c_head.last_layer.weight_v"]
    rows = top["c_head.last_layer.weight_g"] * rows / rows.square().sum(1, keepdim=True).sqrt()
    return x @ rows.T, x


def weights(seed: int, depth: int = 2, arch: str = ARCH) -> State:
    """The backbone: no class token, no final norm, one position per patch."""
    facts = ARCHS[arch]
    shapes = vit_shapes(facts.dim, depth, facts.patch, (facts.size // facts.patch) ** 2)
    return draw({key: s for key, s in shapes.items() if key not in ("cls_token", "norm.weight", "norm.bias")}, seed)


def head(seed: int, width: int = 384) -> State:
    """`ca_head.` in its official widths, `c_head.` in small ones (2048, 256 and 65536)."""
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width), "norm.weight": (width,), "norm.bias": (width,)}
    for i in (0, 1):
        b = f"cls_blocks.{i}."
        shapes |= {f"{b}norm{n}.{k}": (width,) for n in (1, 2) for k in ("weight", "bias")}
        for name in ("q", "k", "v", "proj"):
            shapes |= {f"{b}attn.{name}.weight": (width, width), f"{b}attn.{name}.bias": (width,)}
        shapes |= {f"{b}mlp.fc1.weight": (4 * width, width), f"{b}mlp.fc1.bias": (4 * width,)}
        shapes |= {f"{b}mlp.fc2.weight": (width, 4 * width), f"{b}mlp.fc2.bias": (width,)}
    return sit.under("ca_head.", draw(shapes, seed)) | sit.under("c_head.", _dino(seed + 100, width, 40))


def _dino(seed: int, width: int, out: int) -> State:
    shapes: dict[str, tuple[int, ...]] = {"last_layer.weight_g": (out, 1), "last_layer.weight_v": (out, 24)}
    for i, (n, m) in zip((0, 2, 4), ((width, 48), (48, 48), (48, 24)), strict=True):
        shapes |= {f"mlp.{i}.weight": (m, n), f"mlp.{i}.bias": (m,)}
    state = draw(shapes, seed, 0.2)
    return {key: 1 + value if key.endswith("_g") else value for key, value in state.items()}


def files(seed: int = 0, depth: int = 2) -> list[File]:
    """The backbone alone, the training file, the teacher's entry alone, and what the converter for mmsegmentation
    writes from a training file."""
    (teacher, student), heads = (weights(seed, depth), weights(seed + 1, depth)), (head(seed + 2), head(seed + 3))
    nets = [
        sit.under("backbone.", net) | top | sit.under("p_head.", _dino(seed + 4, 384, 32))
        for net, top in zip((teacher, student), heads, strict=True)
    ]
    content = {
        "student": sit.under("module.", nets[1]),
        "teacher": nets[0],
        "optimizer": sit.adamw(student),
        "epoch": 200,
        "args": argparse.Namespace(arch="vit_small", patch_size=16, out_dim=65536, out_dim_selfpatch=4096, k_num=4),
        "dino_loss": {"center": torch.zeros(1, 1, 65536), "patch_center": torch.zeros(1, 4096)},
        "fp16_scaler": dict(sit.SCALER),
    }
    converted = {_converted(key): value for key, value in nets[0].items()}
    return [
        File("bare backbone", dict(teacher), teacher, network="backbone"),
        File("training file", content, teacher, heads[0], network="teacher"),
        File("training file, student", content, student, heads[1], ask="student", network="student"),
        File("the teacher's entry alone", dict(nets[0]), teacher, heads[0], network="backbone"),
        File("converted for mmsegmentation", converted, teacher, heads[0], network="backbone"),
    ]


CONVERTED = {
    "norm": "ln",
    "mlp.fc1": "ffn.layers.0.0",
    "mlp.fc2": "ffn.layers.1",
    "attn.qkv.": "attn.attn.in_proj_",
    "attn.proj": "attn.attn.out_proj",
}


def _converted(key: str) -> str:
    """The converter's names: it takes `backbone.` away and renames what begins with `blocks` or `patch_embed`."""
    key = key.removeprefix("backbone.")
    if key.startswith("patch_embed"):
        return key.replace("proj", "projection")
    if key.startswith("blocks"):
        old, new = next(pair for pair in CONVERTED.items() if pair[0] in key)
        return key.replace(old, new).replace("blocks.", "layers.")
    return key
