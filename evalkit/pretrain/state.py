"""What a run leaves on disk: the checkpoint that it goes on from, and the encoder that comes out, both written whole or not.

Everything random in a step depends on seed and step alone, so that networks, optimiser and step number are all there is
to keep.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from evalkit.errors import PretrainError
from evalkit.pretrain.method import Method
from evalkit.version import __version__

CHECKPOINT = "checkpoint.pt"
ENCODER = "encoder.safetensors"
MANIFEST = "encoder.toml"


def save(path: Path, step: int, method: Method, optimizer: torch.optim.Optimizer, question: str) -> None:
    """question: what the run is; another run must not go on from this file."""
    state = {"step": step, "method": method.state_dict(), "optimizer": optimizer.state_dict(), "question": question}
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def restore(path: Path, method: Method, optimizer: torch.optim.Optimizer, question: str) -> int:
    """The step from which the run goes on. Raises PretrainError where the file is another run's, or damaged."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        found, step = str(state["question"]), int(state["step"])
        if found == question:
            method.load_state_dict(state["method"])
            optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, KeyError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise PretrainError(f"{path}: damaged or of another version ({error}); delete it to begin anew") from None
    if found != question:
        raise PretrainError(f"{path} belongs to another run ({differences(found, question)}); choose another --out")
    return step


def differences(found: str, question: str) -> str:
    """Which options of two runs differ, `was -> is`."""
    was, now = (_flat(json.loads(text)) for text in (found, question))
    names = [name for name in sorted(was | now) if was.get(name) != now.get(name)]
    return ", ".join(f"{name}: {was.get(name, 'absent')} -> {now.get(name, 'absent')}" for name in names[:4])


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in nested.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def export(method: Method, folder: Path, arch: str, facts: Mapping[str, Any]) -> Path:
    """The encoder with its heads in half precision, the training manifest as JSON in its metadata and a zoo manifest beside it.

    facts: what the training manifest tells.
    """
    path = folder / ENCODER
    state = {k: v.detach().cpu() for k, v in method.export().items()}
    state = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()}
    partial = path.with_suffix(".part")
    save_file(state, partial, {"format": "pt", "evalkit": __version__, "training": json.dumps(facts)})
    partial.chmod(0o644)  # safetensors writes for the owner alone
    partial.replace(path)
    (folder / MANIFEST).write_text(
        f'title = "{facts["method"]}, {facts["step"]} steps of {facts["run"]["batch"]} images, by evalkit pretrain"\n'
        f'family = "{method.family}"\narch = "{arch}"\nfile = "{ENCODER}"\n'
        'licence = "of your data"\norigin = "evalkit pretrain"\n'
    )
    return path
