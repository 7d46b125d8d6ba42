"""Names of weights in other code bases, in the shared transformer's names. A key that no rule knows stays as it is, so that
a mistake is reported as a missing and an unexpected key."""

from __future__ import annotations

import re

import torch

from evalkit.adapters.loading import State

MMSEG = (
    (r"patch_embed\.projection\.", "patch_embed.proj."),
    (r"layers\.(\d+)\.ln([12])\.", r"blocks.\1.norm\2."),
    (r"layers\.(\d+)\.attn\.attn\.in_proj_", r"blocks.\1.attn.qkv."),
    (r"layers\.(\d+)\.attn\.attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
    (r"layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
    (r"ln1\.", "norm."),
)
"""Beginnings of mmsegmentation 0.x's names, as tools/model_converters/vit2mmseg.py of open-mmlab writes them."""


def from_mmseg(state: State) -> State:
    """mmsegmentation's names -> the shared transformer's; other states come back as they are."""
    return {_renamed(key): value for key, value in state.items()}


def _renamed(key: str) -> str:
    for old, new in MMSEG:
        if match := re.match(old, key):
            return match.expand(new) + key[match.end() :]
    return key


def renamed(state: State, key: str, name: str) -> State:
    """Keys that the regular expression `key` matches as a whole, by the template `name`; a name that is taken stays so."""
    names = {old: match.expand(name) for old in state if (match := re.fullmatch(key, old))}
    return {old if (new := names.get(old, old)) in state else new: value for old, value in state.items()}


def layer_scale_names(state: State) -> State:
    """`blocks.N.gamma_1`, `gamma_2` (BEiT, CAE, DeiT III) -> `blocks.N.ls1.gamma`, `ls2.gamma`."""
    return renamed(state, r"(blocks\.\d+)\.gamma_([12])", r"\1.ls\2.gamma")


def fuse_qv_bias(state: State) -> State:
    """`q_bias` and `v_bias` of an attention (BEiT, CAE), both there and of one shape, -> `qkv.bias`, zeros for the keys."""
    fused = dict(state)
    for key in (key for key in state if key.endswith(".attn.q_bias")):
        stem = key.removesuffix("q_bias")
        q, v = state[key], state.get(f"{stem}v_bias")
        if v is not None and v.shape == q.shape and f"{stem}qkv.bias" not in state:
            fused[f"{stem}qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
            del fused[key], fused[f"{stem}v_bias"]
    return fused
