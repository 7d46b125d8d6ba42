"""Opening a folder of Hugging Face's layout: `config.json` beside weights in safetensors, in one file or in several.

    config.json                      the architecture
    preprocessor_config.json         optional: mean, std
    model.safetensors                the weights; or
    model.safetensors.index.json     {"metadata": ..., "weight_map": {tensor: file}} and the files that it names

(transformers 5.23.0, utils/hub.py:960-976; huggingface_hub, "Storing models in safetensors".) What the index says is
checked against what the files hold: it names files of this folder alone, and every tensor lies where it says and nowhere
else. The digest is the sha256 of the lines that `sha256sum` prints for the files read, in the order of their names:

    sha256sum config.json model.safetensors | sha256sum
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from evalkit.adapters import files
from evalkit.errors import CheckpointError, DigestMismatch, FileTooLarge, NotARegularFile, UnsafeFile
from evalkit.files import read_regular

CONTAINER = "safetensors-folder"
LIMITS = {"config.json": 1 << 20, "preprocessor_config.json": 1 << 20, "model.safetensors.index.json": 16 << 20}
"""Bytes of the JSON files: the largest official index has less than one megabyte."""

SHARD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}\.safetensors")
SHARDS = 1000


def read_folder(path: Path, *, sha256: str = "") -> files.RawCheckpoint:
    """Opens one folder. sha256: what the digest has to be. state: {"config": dict, "model": {name: tensor}} and, where
    the folder has it, "preprocessor": dict.

    Raises CheckpointError where files are missing, damaged or no JSON, or index and files disagree; UnsafeFile where the
    index leads out of the folder or a file is larger than it can honestly be; DigestMismatch where it is another folder.
    """
    digests: dict[str, str] = {}
    state: dict[str, Any] = {"config": _json(path, "config.json", digests)}
    if _there(path / "preprocessor_config.json"):
        state["preprocessor"] = _json(path, "preprocessor_config.json", digests)
    state["model"] = _weights(path, digests)
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    digest = hashlib.sha256(lines.encode()).hexdigest()
    if sha256 and digest != sha256.lower():
        raise DigestMismatch(f"{path} is not the folder that the manifest names: sha256 {digest}, expected {sha256}")
    return files.RawCheckpoint(state=state, container=CONTAINER, sha256=digest, path=path)


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _json(folder: Path, name: str, digests: dict[str, str]) -> dict[str, Any]:
    """The object in one of the folder's JSON files; its digest is noted."""
    path, limit = folder / name, LIMITS[name]
    try:
        content = read_regular(path, limit=limit)
    except NotARegularFile:
        raise CheckpointError(f"{path} is no file") from None
    except FileTooLarge:
        raise UnsafeFile(f"{path} has more than {limit >> 20} MB, which no {name} needs") from None
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{folder} has no {name}: a folder is read in Hugging Face's layout, config.json and model.safetensors"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    digests[name] = hashlib.sha256(content).hexdigest()
    try:
        value = json.loads(content, object_pairs_hook=_table)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {str(error)[:120]}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__} and not a table of names and values")
    return value


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError where a name stands twice: readers differ in which of them counts."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands twice")
    return table


def _weights(folder: Path, digests: dict[str, str]) -> dict[str, Tensor]:
    single, index = _there(folder / "model.safetensors"), _there(folder / "model.safetensors.index.json")
    if single and index:
        raise CheckpointError(f"{folder} has model.safetensors and an index of several files: remove the one not meant")
    if single:
        return _tensors(folder, "model.safetensors", digests)
    if not index:
        others = [name for name in ("pytorch_model.bin", "pytorch_model.bin.index.json") if _there(folder / name)]
        hint = f"; {others[0]} is not read: load and save it again with save_pretrained" if others else ""
        raise CheckpointError(f"{folder} has no model.safetensors and no model.safetensors.index.json{hint}")
    return _shards(folder, _weight_map(folder, digests), digests)


def _weight_map(folder: Path, digests: dict[str, str]) -> Mapping[str, str]:
    """{tensor: file}, each a plain name of a safetensors file."""
    name = "model.safetensors.index.json"
    found = _json(folder, name, digests).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(value, str) for value in found.values()):
        raise CheckpointError(f"{folder / name} has no weight_map of tensors and the files that hold them")
    strange = next((value for value in found.values() if not SHARD.fullmatch(value)), None)
    if strange is not None:
        raise UnsafeFile(f"{folder / name} names {strange[:80]!r}, which is no .safetensors file of this folder")
    if len(set(found.values())) > SHARDS:
        raise UnsafeFile(f"{folder / name} names {len(set(found.values())):,} files; {SHARDS} are the limit")
    return found


def _shards(folder: Path, where: Mapping[str, str], digests: dict[str, str]) -> dict[str, Tensor]:
    """The tensors of all files, each where the index says and nowhere else."""
    state: dict[str, Tensor] = {}
    for name in sorted(set(where.values())):
        held = _tensors(folder, name, digests)
        said = {key for key, file in where.items() if file == name}
        if lacking := sorted(said - set(held)):
            raise CheckpointError(f"{folder / name} lacks {lacking[0][:80]!r}, which the index says it holds")
        if more := sorted(set(held) - said):
            raise CheckpointError(f"{folder / name} holds {more[0][:80]!r}, of which the index does not know here")
        state |= held
    return state


def _tensors(folder: Path, name: str, digests: dict[str, str]) -> dict[str, Tensor]:
    if (folder / name).is_dir():  # which would be opened in its turn
        raise CheckpointError(f"{folder / name} is a folder and no file of weights")
    raw = files.read(folder / name)
    if raw.container != "safetensors":
        raise CheckpointError(f"{folder / name} is no safetensors file but {raw.container}")
    digests[name] = raw.sha256
    return dict(raw.state)
