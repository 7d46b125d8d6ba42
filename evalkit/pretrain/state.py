"""What a run leaves on disk: the checkpoint that it goes on from, and the encoder that comes out, both written whole or not.

Everything random in a step depends on seed and step alone, so that networks, optimiser and step number are all there is
to keep.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from evalkit import state
from evalkit.errors import PretrainError, StateError
from evalkit.files import write_atomically
from evalkit.pretrain import tensor_files
from evalkit.pretrain.method import Method
from evalkit.version import __version__

CHECKPOINT = "checkpoint.pt"
ENCODER = "encoder.safetensors"
MANIFEST = "encoder.toml"


def save(path: Path, step: int, method: Method, optimizer: torch.optim.Optimizer, question: str) -> None:
    """question: what the run is; another run must not go on from this file."""
    content = {"step": step, "method": method.state_dict(), "optimizer": optimizer.state_dict(), "question": question}
    for left in (CHECKPOINT, ENCODER):  # what killed runs of earlier versions left
        path.with_name(left).with_suffix(".part").unlink(missing_ok=True)
    state.save(path, content)


def restore(path: Path, method: Method, optimizer: torch.optim.Optimizer, question: str, steps: int) -> int:
    """The step from which the run of so many goes on.

    Raises PretrainError where the file is another run's, damaged, or not of this method; networks are then as they were.
    """
    try:
        content = state.load(path)
    except (StateError, FileNotFoundError) as error:
        raise PretrainError(f"{error}; delete it to begin anew") from None
    whole = {"step": int, "method": dict, "optimizer": dict, "question": str}
    why = state.misfit(content, whole, "the file")
    if not why and content["question"] != question:
        raise PretrainError(
            f"{path} belongs to another run ({differences(content['question'], question)}); choose another --out"
        )
    form = {
        **whole,
        "step": range(1, steps + 1),
        "method": method.state_dict(),
        "optimizer": state.Optimiser(optimizer),
    }
    if why := why or state.misfit(content, form, "the file"):
        raise PretrainError(f"{path}: damaged or of another version ({why}); delete it to begin anew")
    method.load_state_dict(content["method"])
    optimizer.load_state_dict(content["optimizer"])
    return int(content["step"])


def differences(found: str, question: str) -> str:
    """Which options of two runs differ, `was -> is`."""
    try:
        was, now = (_flat(json.loads(text)) for text in (found, question))
    except (ValueError, AttributeError, RecursionError):
        return "its question cannot be read"
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
    tensors = {k: v.detach().cpu() for k, v in method.export().items()}
    tensors = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in tensors.items()}
    metadata = {"format": "pt", "evalkit": __version__, "training": json.dumps(facts)}
    write_atomically(path, lambda part: tensor_files.write(part, tensors, metadata))
    manifest = (
        f'title = "{facts["method"]}, {facts["step"]} steps of {facts["run"]["batch"]} images, by evalkit pretrain"\n'
        f'family = "{method.family}"\narch = "{arch}"\nfile = "{ENCODER}"\n'
        'licence = "of your data"\norigin = "evalkit pretrain"\n'
    )
    write_atomically(folder / MANIFEST, lambda part: part.write_text(manifest))
    return path
