"""Vision transformers in folders of Hugging Face's layout: ViTModel and its relatives, Dinov2Model, Dinov2WithRegistersModel
(transformers 5.23.0, Apache-2.0). The licence of the weights is their author's.

The folder (`folders.py`) holds config.json, from which the architecture is read, and the weights under the library's names,
bare or, in classes with a classifier, under `vit.`, `dinov2.` or `dinov2_with_registers.`; `--arch` names the model type and
has to be the config's. Query, key and value are separate matrices. Version 5 of the library uses other names in memory and
still writes these (conversion_mapping.py:466-507).

We compute as the library does (models/vit/modeling_vit.py, models/dinov2/modeling_dinov2.py,
models/dinov2_with_registers/modeling_dinov2_with_registers.py): eps from the config (ViT: 1e-12), exact GELU, the final norm
`layernorm` on all tokens, registers between class token and patches. Positions at other sizes are resized to the size,
bicubic, antialiased with registers only. DINOv2's own code adds 0.1 there: the same weights give other numbers by
`--family dinov2`.
Left out: ViTModel's pooler, classifiers, the decoder and the mask token of ViTForMaskedImageModeling. There is no
projection. Mean and std are those of preprocessor_config.json; where the folder has none, ImageNet's are assumed, which
DINO's and DINOv2's folders mean and Google's (0.5) do not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from evalkit.adapters.family import Layout, ViTFamily
from evalkit.adapters.files import RawCheckpoint
from evalkit.adapters.loading import Rule, State
from evalkit.adapters.vit import ViTConfig
from evalkit.errors import CheckpointError, Unsupported
from evalkit.types import Encoder, Manifest, Preprocessing

VERSION = 1
NEEDS_FILE = True

ARCHITECTURES: tuple[str, ...] = ("dinov2", "dinov2_with_registers", "vit")
"""Model types; the sizes are in each folder's config.json."""

SOURCE = "no preprocessor_config.json in the folder: ImageNet mean and std assumed"

DROP = (
    Rule("pooler", "a layer that classification was trained with", r"(vit\.)?pooler\.dense\.(weight|bias)"),
    Rule("classifier", "gives class scores, not features", r"classifier\.(weight|bias)"),
    Rule("decoder", "of masked image modelling", r"decoder\.0\.(weight|bias)"),
)
MASK = Rule("mask-token", "stands for masked patches in training only", r"(vit\.)?embeddings\.mask_token")

NAMES = (
    (r"embeddings\.(cls_token|mask_token)", r"\1"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"encoder\.layer\.(\d+)\.(?:layernorm_before|norm1)\.(\w+)", r"blocks.\1.norm1.\2"),
    (r"encoder\.layer\.(\d+)\.(?:layernorm_after|norm2)\.(\w+)", r"blocks.\1.norm2.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.(?:intermediate\.dense|mlp\.fc1)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.(?:output\.dense|mlp\.fc2)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.layer\.(\d+)\.mlp\.weights_in\.(\w+)", r"blocks.\1.mlp.w12.\2"),
    (r"encoder\.layer\.(\d+)\.mlp\.weights_out\.(\w+)", r"blocks.\1.mlp.w3.\2"),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
)
"""Regular expressions of the library's names, and the shared transformer's."""


def load(manifest: Manifest, raw: RawCheckpoint) -> Encoder:
    """The encoder in a folder.

    Raises CheckpointError for a file instead of a folder and for a config that is no such network's, Unsupported for a
    network that differs from the shared transformer, KeyMismatch where config and weights disagree.
    """
    config = _config(raw)
    if config.get("model_type") != manifest.arch:
        raise CheckpointError(
            f"{raw.path}: config.json says model_type {_brief(config.get('model_type'))}, not {manifest.arch!r}"
        )
    architecture, layout = read_config(config), _layout(manifest.arch)
    if manifest.preprocessing == Preprocessing() and "preprocessor" in raw.state:
        manifest = replace(manifest, preprocessing=read_preprocessor(raw.state["preprocessor"], architecture.size))
    return ViTFamily(VERSION, layout, {manifest.arch: architecture}, SOURCE, sized=True).load(manifest, raw)


def of_file(raw: RawCheckpoint) -> ViTFamily | None:
    """The family that a folder's config.json describes, for inspection; None for what is no such folder."""
    config = raw.state.get("config")
    if not isinstance(config, Mapping) or (kind := config.get("model_type")) not in ARCHITECTURES:
        return None
    return ViTFamily(VERSION, _layout(kind), {kind: read_config(config)}, SOURCE, sized=True)


def _config(raw: RawCheckpoint) -> Mapping[str, Any]:
    config, model = raw.state.get("config"), raw.state.get("model")
    if not isinstance(config, Mapping) or not isinstance(model, Mapping):
        raise CheckpointError(
            f"{raw.path} is one file; the family 'huggingface' reads a folder with config.json and model.safetensors"
        )
    return config


def _layout(kind: str) -> Layout:
    mask = (MASK,) if kind == "vit" else ()
    return Layout(entries=("model",), backbone=f"{kind}.", rename=rename, drop=(*DROP, *mask))


def rename(state: State) -> State:
    """The shared transformer's names; query, key and value below each other where all three are there."""
    out: State = {}
    for key, value in state.items():
        name = next((re.sub(old, new, key) for old, new in NAMES if re.fullmatch(old, key)), key)
        out[key if name in out else name] = value
    for key in state:
        if match := re.fullmatch(r"encoder\.layer\.(\d+)\.attention\.attention\.query\.(weight|bias)", key):
            three = [key.replace(".query.", f".{name}.") for name in ("query", "key", "value")]
            if all(name in out and out[name].ndim and out[name].shape == out[key].shape for name in three):
                out[f"blocks.{match[1]}.attn.qkv.{match[2]}"] = torch.cat([out.pop(name) for name in three])
    return out


def read_config(config: Mapping[str, Any]) -> ViTConfig:
    """The architecture that a config.json describes, by the library's own defaults where it says nothing.

    Raises CheckpointError for values that are none, Unsupported for a network that the shared transformer is not.
    """
    kind = config["model_type"]
    if (activation := config.get("hidden_act", "gelu")) != "gelu":
        raise Unsupported(
            f"config.json: hidden_act {_brief(activation)}; networks with the exact GELU ('gelu') are read"
        )
    if (channels := config.get("num_channels", 3)) != 3:
        raise Unsupported(f"config.json: num_channels {_brief(channels)}; images have 3")
    dim, heads = _whole(config, "hidden_size", 1 << 16), _whole(config, "num_attention_heads", 1 << 10)
    if dim % heads:
        raise CheckpointError(f"config.json: hidden_size {dim} is no multiple of num_attention_heads {heads}")
    patch, size = _side(config, "patch_size", 1 << 10), _side(config, "image_size", 1 << 14)
    if patch > size:
        raise CheckpointError(f"config.json: patch_size {patch} is larger than image_size {size}")
    plain = ViTConfig(
        dim=dim,
        depth=_whole(config, "num_hidden_layers", 256),
        heads=heads,
        patch=patch,
        size=size,
        eps=_real(config, "layer_norm_eps", 1e-12 if kind == "vit" else 1e-6),
        qkv_bias=_flag(config, "qkv_bias", default=True),
        positions="bicubic",
    )
    if kind == "vit":
        return replace(plain, hidden=_whole(config, "intermediate_size", 1 << 18))
    hidden = int(dim * _real(config, "mlp_ratio", 4.0))
    gated = _flag(config, "use_swiglu_ffn", default=False)
    registers = _whole(config, "num_register_tokens", 1 << 10) if kind == "dinov2_with_registers" else 0
    return replace(
        plain,
        mlp="swiglu" if gated else "gelu",
        hidden=(int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden,
        layer_scale=1.0,
        mask_token=kind == "dinov2_with_registers" or _flag(config, "use_mask_token", default=True),
        registers=registers,
        positions="timm" if registers else "bicubic",
    )


def read_preprocessor(content: Mapping[str, Any], size: int) -> Preprocessing:
    """Mean and std of a preprocessor_config.json. Raises CheckpointError where they are none; Unsupported where pixels
    are not normalised from [0, 1]."""
    scale = content.get("rescale_factor", 1 / 255)
    switched = [key for key in ("do_rescale", "do_normalize") if content.get(key, True) is not True]
    if switched or not isinstance(scale, float) or not abs(scale * 255 - 1) <= 1e-6:
        what = f"{switched[0]} {_brief(content[switched[0]])}" if switched else f"rescale_factor {_brief(scale)}"
        raise Unsupported(f"preprocessor_config.json: {what}; pixels in [0, 1] are normalised by mean and std")
    mean, std = (_triple(content, key) for key in ("image_mean", "image_std"))
    if min(std) <= 0:
        raise CheckpointError(f"preprocessor_config.json: image_std {std} has a value that is not above 0")
    return Preprocessing(size, mean, std, "preprocessor_config.json in the folder")


def _whole(config: Mapping[str, Any], key: str, limit: int) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 < value <= limit:
        said = "lacks it" if key not in config else f"says {_brief(value)}"
        raise CheckpointError(f"config.json: {key} has to be a whole number from 1 to {limit:,}; it {said}")
    return value


def _side(config: Mapping[str, Any], key: str, limit: int) -> int:
    """One number, or two equal ones."""
    value = config.get(key)
    if isinstance(value, list) and len(value) == 2:
        if value[0] != value[1]:
            raise Unsupported(f"config.json: {key} {_brief(value)}; tables of square images are read")
        config = {key: value[0]}
    return _whole(config, key, limit)


def _real(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if type(value) not in (int, float) or not 0 < value < 1 << 10:
        raise CheckpointError(f"config.json: {key} has to be a number above 0; it says {_brief(value)}")
    return float(value)


def _flag(config: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"config.json: {key} has to be true or false; it says {_brief(value)}")
    return value


def _triple(content: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    value = content.get(key)
    if (
        not isinstance(value, list)
        or len(value) != 3
        or any(type(n) not in (int, float) or not abs(n) <= 1e3 for n in value)
    ):
        raise CheckpointError(f"preprocessor_config.json: {key} has to be three numbers; it says {_brief(value)}")
    return float(value[0]), float(value[1]), float(value[2])


def _brief(value: Any) -> str:
    return repr(value)[:80]
