"""Vision transformers as Hugging Face's library computes them (transformers 5.23.0), from the names that its folders have.

The same DINOv2 gives other numbers here than in its own code at every size but the native one: the library resizes the
position table to the size, without the 0.1 of the original.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.adapters.oracles import Facts, File, Truth
from tests.adapters.oracles.dinov2 import antialiased_rows, bicubic_rows, resize
from tests.adapters.oracles.plain import State, attention, double, draw, gelu, layer_norm, tiles

FAMILY = "huggingface"
ARCH = "vit"
ARCHS = {
    "vit": Facts(dim=384, depth=12, heads=6, patch=16, size=224),  # facebook/dino-vits16
    "dinov2": Facts(dim=384, depth=12, heads=6, patch=14, size=518),  # facebook/dinov2-small
    "dinov2_with_registers": Facts(dim=384, depth=12, heads=6, patch=14, size=518),
}
EPS = {"vit": 1e-12, "dinov2": 1e-6, "dinov2_with_registers": 1e-6}


def config(arch: str = ARCH, depth: int = 2, **changes: Any) -> dict[str, Any]:
    """A config.json as `save_pretrained` writes it."""
    facts = ARCHS[arch]
    common = {
        "architectures": ["ViTModel"],
        "attention_probs_dropout_prob": 0.0,
        "dtype": "float32",
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": facts.dim,
        "image_size": facts.size,
        "initializer_range": 0.02,
        "layer_norm_eps": EPS[arch],
        "model_type": arch,
        "num_attention_heads": facts.heads,
        "num_channels": 3,
        "num_hidden_layers": depth,
        "patch_size": facts.patch,
        "qkv_bias": True,
        "transformers_version": "5.23.0",
    }
    if arch == "vit":
        own = {"encoder_stride": 16, "intermediate_size": 4 * facts.dim, "pooler_act": "tanh"}
        return common | own | {"pooler_output_size": facts.dim} | changes
    names = ["stem", *(f"stage{i + 1}" for i in range(depth))]
    own = {"apply_layernorm": True, "drop_path_rate": 0.0, "layerscale_value": 1.0, "mlp_ratio": 4}
    own |= {"out_features": names[-1:], "out_indices": [depth], "reshape_hidden_states": True, "stage_names": names}
    own |= {"use_mask_token": True} if arch == "dinov2" else {"num_register_tokens": 4}
    kind = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}[arch]
    return common | own | {"use_swiglu_ffn": False, "architectures": [kind]} | changes


def weights(seed: int, depth: int = 2, arch: str = ARCH, *, swiglu: bool = False) -> State:
    """The bare model without its pooler. swiglu: as the largest DINOv2, at this width."""
    facts = ARCHS[arch]
    dim, rows = facts.dim, (facts.size // facts.patch) ** 2 + 1
    e = "embeddings."
    shapes: dict[str, tuple[int, ...]] = {f"{e}cls_token": (1, 1, dim), f"{e}position_embeddings": (1, rows, dim)}
    shapes |= {f"{e}patch_embeddings.projection.weight": (dim, 3, facts.patch, facts.patch)}
    shapes |= {f"{e}patch_embeddings.projection.bias": (dim,)}
    if arch != "vit":
        shapes[f"{e}mask_token"] = (1, dim)
    if arch == "dinov2_with_registers":
        shapes[f"{e}register_tokens"] = (1, 4, dim)
    for i in range(depth):
        b = f"encoder.layer.{i}."
        for name in ("query", "key", "value"):
            shapes |= {
                f"{b}attention.attention.{name}.weight": (dim, dim),
                f"{b}attention.attention.{name}.bias": (dim,),
            }
        shapes |= {f"{b}attention.output.dense.weight": (dim, dim), f"{b}attention.output.dense.bias": (dim,)}
        for norm in ("layernorm_before", "layernorm_after") if arch == "vit" else ("norm1", "norm2"):
            shapes |= {f"{b}{norm}.weight": (dim,), f"{b}{norm}.bias": (dim,)}
        if arch != "vit":
            shapes |= {f"{b}layer_scale{n}.lambda1": (dim,) for n in (1, 2)}
        for name, (out, into) in mlp_shapes(arch, dim, swiglu).items():
            shapes |= {f"{b}{name}.weight": (out, into), f"{b}{name}.bias": (out,)}
    state = draw(shapes | {"layernorm.weight": (dim,), "layernorm.bias": (dim,)}, seed)
    scales = torch.Generator().manual_seed(seed + 99)
    return state | {k: 1 + 0.2 * torch.randn(dim, generator=scales) for k in state if k.endswith("lambda1")}


def mlp_shapes(arch: str, dim: int, swiglu: bool) -> dict[str, tuple[int, int]]:
    """Names and shapes of the two matrices of an MLP."""
    if swiglu:
        hidden = (int(4 * dim * 2 / 3) + 7) // 8 * 8
        return {"mlp.weights_in": (2 * hidden, dim), "mlp.weights_out": (dim, hidden)}
    first, second = ("intermediate.dense", "output.dense") if arch == "vit" else ("mlp.fc1", "mlp.fc2")
    return {first: (4 * dim, dim), second: (dim, 4 * dim)}


def head(seed: int) -> None:
    """The library's folders hold no pretraining head; poolers and classifiers are none."""
    del seed


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """x W' + b, b where the file has one."""
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", torch.zeros(()))


def norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    """Layer norm by its name."""
    return layer_norm(x, state[f"{name}.weight"], state[f"{name}.bias"], eps)


def positions(table: Tensor, height: int, width: int, arch: str) -> Tensor:
    """(h, w, D) for an image of height x width pixels; `table` is (side * side, D)."""
    facts = ARCHS[arch]
    side, h, w = facts.size // facts.patch, height // facts.patch, width // facts.patch
    table = table.reshape(side, side, -1)
    if h * w == side * side and height == width:
        return table
    if arch == "dinov2_with_registers":
        return resize(table, antialiased_rows(side, h), antialiased_rows(side, w))
    return resize(table, bicubic_rows(side, h, side / h), bicubic_rows(side, w, side / w))


def layer(state: State, b: str, x: Tensor, arch: str) -> tuple[Tensor, Tensor]:
    """One block of either kind, and its attention."""
    first, second = ("layernorm_before", "layernorm_after") if arch == "vit" else ("norm1", "norm2")
    y = norm(state, b + first, x, EPS[arch])
    qkv = torch.cat([linear(state, f"{b}attention.attention.{name}", y) for name in ("query", "key", "value")], -1)
    y, maps = attention(qkv, ARCHS[arch].heads)
    x = x + linear(state, b + "attention.output.dense", y) * state.get(b + "layer_scale1.lambda1", torch.ones(()))
    y = norm(state, b + second, x, EPS[arch])
    if b + "mlp.weights_in.weight" in state:
        gate, value = linear(state, b + "mlp.weights_in", y).chunk(2, -1)
        y = linear(state, b + "mlp.weights_out", gate / (1 + (-gate).exp()) * value)
    else:
        inner, outer = mlp_shapes(arch, 1, swiglu=False)
        y = linear(state, b + outer, gelu(linear(state, b + inner, y)))
    return x + y * state.get(b + "layer_scale2.lambda1", torch.ones(())), maps


def forward(weights: State, images: Tensor, head: State | None = None, arch: str = ARCH) -> Truth:
    """Class token, registers (without position), patches."""
    state = double(weights)
    name = "embeddings.patch_embeddings.projection"
    x = tiles(images, state[f"{name}.weight"], state[f"{name}.bias"])
    batch, h, w, dim = x.shape
    table = state["embeddings.position_embeddings"][0]
    x = (x + positions(table[1:], images.shape[2], images.shape[3], arch)).reshape(batch, h * w, dim)
    first = [(state["embeddings.cls_token"] + table[:1]).expand(batch, -1, -1)]
    if arch == "dinov2_with_registers":
        first.append(state["embeddings.register_tokens"].expand(batch, -1, -1))
    x = torch.cat([*first, x], 1)
    blocks, maps, i = [], None, 0
    while f"encoder.layer.{i}.attention.output.dense.weight" in state:
        x, maps = layer(state, f"encoder.layer.{i}.", x, arch)
        blocks.append(x)
        i += 1
    out = norm(state, "layernorm", x, EPS[arch])
    return Truth(blocks=blocks, cls=out[:, 0], patches=out[:, -h * w :].reshape(batch, h, w, dim), attention=maps)


def under(prefix: str, state: State) -> State:
    """The same tensors, `prefix` before each name."""
    return {prefix + key: value for key, value in state.items()}


def files(seed: int = 0, depth: int = 2) -> list[File]:
    """Folders, as {"config": config.json, "model": the tensors of model.safetensors}, of each class that holds a backbone."""
    found = []
    for arch, prefix in (("vit", "vit."), ("dinov2", "dinov2."), ("dinov2_with_registers", "dinov2_with_registers.")):
        state, dim = weights(seed + len(found), depth, arch), ARCHS[arch].dim
        bare = draw({"pooler.dense.weight": (dim, dim), "pooler.dense.bias": (dim,)}, seed) if arch == "vit" else {}
        wide = dim if arch == "vit" else 2 * dim
        classifier = draw({"classifier.weight": (2, wide), "classifier.bias": (2,)}, seed)
        for kind, model in (("Model", state | bare), ("ForImageClassification", under(prefix, state) | classifier)):
            name = config(arch)["architectures"][0].removesuffix("Model") + kind
            folder = {"config": config(arch, depth, architectures=[name]), "model": model}
            found.append(File(name, folder, state, network="backbone", arch=arch))
    gated = weights(seed + 9, depth, "dinov2", swiglu=True)
    folder = {"config": config("dinov2", depth, use_swiglu_ffn=True), "model": dict(gated)}
    found.append(File("Dinov2Model-swiglu", folder, gated, network="backbone", arch="dinov2"))
    masked = weights(seed + 10, depth)
    extra = draw({"vit.embeddings.mask_token": (1, 1, 384), "decoder.0.weight": (768, 384, 1, 1)}, seed)
    model = under("vit.", masked) | extra | draw({"decoder.0.bias": (768,)}, seed)
    folder = {"config": config("vit", depth, architectures=["ViTForMaskedImageModeling"]), "model": model}
    found.append(File("ViTForMaskedImageModeling", folder, masked, network="backbone"))
    return found
