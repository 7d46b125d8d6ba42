"""Label maps that a runner makes, written for other tools where somebody asked for them (`--save-masks`).

One indexed PNG per map, at the name that the runner gives it: for videos the layout of DAVIS results, <clip>/<frame>.png.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from evalkit.datasets import indexed
from evalkit.errors import ProtocolError, UsageError
from evalkit.files import write_atomically


@dataclass(frozen=True)
class Delivery:
    """folder: where the maps go; made when the first one comes."""

    folder: Path

    def check(self) -> None:
        """Before hours of work: raises UsageError where nothing could be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".{os.getpid()}.probe"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise UsageError(
                f"--save-masks {self.folder}: cannot be written ({error}); choose another folder"
            ) from None

    def put(self, name: str, labels: np.ndarray) -> None:
        """Write one map, replacing an older one only when it is whole.

        name: "<clip>/<frame>", without ending. labels: (H, W) uint8. Raises ProtocolError for a name that leaves the
        folder, UsageError where it cannot be written.
        """
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or PurePosixPath(name).is_absolute() or "\\" in name:
            raise ProtocolError(f"{name!r} cannot name a label map: it must lie inside the folder of --save-masks")
        path = self.folder.joinpath(*parts[:-1], f"{parts[-1]}.png")
        try:
            write_atomically(path, lambda part: part.write_bytes(indexed.encode(labels)))
        except OSError as error:
            raise UsageError(f"--save-masks: {path} cannot be written ({error})") from None
