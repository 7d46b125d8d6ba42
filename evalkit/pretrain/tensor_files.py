"""Tensors in a file, the same bytes for the same content.

Source: safetensors (huggingface/safetensors, README, "Format"): 8 bytes with the length of a JSON header, the header, the
tensors. The library keeps metadata in a hash map and writes its keys in another order each time, so that equal networks
had unequal digests; here the keys are sorted. Every file with more than one key of metadata is written here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """tensors: contiguous, none a part of another. Raises OSError, and ValueError where the library writes its header in
    a form that is not known here."""
    save_file(dict(tensors), path, dict(metadata))
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(size)
        if len(text) != size:
            raise ValueError(f"{path}: a header of {size} bytes has {len(text)} with its metadata sorted")
        file.seek(8)
        file.write(text)
