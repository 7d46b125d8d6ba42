"""Oracle files on disk, and encoders loaded from them with the architecture cut to the depth of the oracle's weights."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import torch
from safetensors.torch import save_file

from evalkit import adapters
from evalkit.types import Manifest


def saved(file, folder):
    """A File as its family saves it: torch.save, or a Hugging Face folder where the content has a config."""
    if "config" not in file.content:
        torch.save(file.content, folder / "checkpoint.pth")
        return folder / "checkpoint.pth"
    target = folder / "model"
    target.mkdir()
    save_file({key: value.contiguous() for key, value in file.content["model"].items()}, target / "model.safetensors")
    for name in ("config", "preprocessor_config"):
        content = file.content.get(name.removesuffix("_config") if name != "config" else name)
        if content is not None:
            (target / f"{name}.json").write_text(json.dumps(content))
    return target


def depth(weights):
    """Blocks that the weights have."""
    return len({m[1] for key in weights if (m := re.search(r"(?:blocks(?:\.\d+)?|layer|layers)\.(\d+)\.", key))})


def shallow(oracle, arch, weights, patch):
    """Cuts the family's architecture to the depth of `weights`; families that read it from the file need nothing."""
    known = adapters.module(oracle.FAMILY).ARCHITECTURES
    if isinstance(known, dict) and hasattr(known.get(arch), "depth"):
        patch.setitem(known, arch, replace(known[arch], depth=depth(weights)))


def manifest(oracle, file):
    return Manifest("x", oracle.FAMILY, file.arch or oracle.ARCH, network=file.ask)


def load(oracle, file, path, patch):
    """The encoder that the adapter makes of a written file."""
    shallow(oracle, file.arch or oracle.ARCH, file.weights, patch)
    return adapters.load(manifest(oracle, file), path)
