"""Joints of Leeds Sports Pose (Johnson and Everingham, BMVC 2010) and of its extended training set (CVPR 2011).

    joints.mat          `joints`: LSP (3, 14, 2000), LSP Extended (14, 3, 10000)
    images/*.jpg        LSP im0001.jpg ..., LSP Extended im00001.jpg ...; <root> is a folder or a .zip

No data set of its own: crops around joints (`lsp`) and poses are made of it. What is not alike in the two files:

- the order of the axes, by which they are told apart;
- the third value: LSP 1 = hidden, LSP Extended 1 = visible (akanazawa/hmr 2cc921e, src/datasets/lsp_to_tfrecords.py:38-46).
  Both become 1 = visible here. A joint that nobody saw in LSP Extended has no meaningful place.

Coordinates are taken as they are; neither README says whether the first pixel is 0 or 1.
Source: sam.johnson.io/research/lsp.html and lspet.html; no licence is stated, the papers are to be cited.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evalkit.datasets.files import Tree, missing
from evalkit.datasets.mat import array
from evalkit.errors import DatasetError

JOINTS = "joints.mat"
LAYOUT = "  <root>/joints.mat\n  <root>/images/im0001.jpg ... (LSP Extended: im00001.jpg ...)"

# fmt: off
NAMES = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist", "right_elbow",
    "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "neck", "head_top",
)
# fmt: on
"""The 14 joints, in the order of both files (README of LSP Extended)."""


@dataclass(frozen=True, eq=False)
class Joints:
    """One file. extended: of LSP Extended. photos: file names in `images`, by the number of the person, in order.
    keypoints: (N, 14, 3) float64: x, y in pixels, finite, inside the photo or not, and 1 visible or 0 not."""

    extended: bool
    photos: Sequence[str]
    keypoints: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.photos)


def joints(tree: Tree) -> Joints:
    """The checked joints, and the photos that belong to them.

    Raises MissingFiles, which lists every absent photo; DatasetError where `joints` has another shape, values that are
    not finite, or a third value other than 0 and 1.
    """
    if not tree.exists(JOINTS):
        raise missing(str(tree), [JOINTS], LAYOUT)
    where = f"{tree}/{JOINTS}"
    extended, values = _people_first(array(tree, JOINTS, "joints").astype(np.float64), where)
    if not np.isfinite(values).all():
        person, joint, _ = np.argwhere(~np.isfinite(values))[0].tolist()
        raise DatasetError(f"{where}: the {NAMES[joint]} of person {person + 1} is not finite: {values[person, joint]}")
    if not np.isin(values[:, :, 2], (0, 1)).all():
        raise DatasetError(f"{where}: the third value of a joint must be 0 or 1; others came")
    if not extended:
        values[:, :, 2] = 1 - values[:, :, 2]
    values.flags.writeable = False
    digits = 5 if extended else 4
    photos = tuple(f"im{number:0{digits}d}.jpg" for number in range(1, len(values) + 1))
    there = set(tree.names(under="images"))
    absent = [name for name in (f"images/{photo}" for photo in photos) if name not in there]
    if absent:
        raise missing(str(tree), absent, LAYOUT)
    return Joints(extended, photos, values)


def _people_first(values: npt.NDArray[np.float64], where: str) -> tuple[bool, npt.NDArray[np.float64]]:
    """(whether it is LSP Extended's layout, (N, 14, 3))."""
    shape = values.shape if values.ndim == 3 else (*values.shape, 1)  # MATLAB drops a last axis of one person
    values = values.reshape(shape) if len(shape) == 3 else values
    if shape[:2] == (14, 3):
        return True, np.ascontiguousarray(values.transpose(2, 0, 1))
    if shape[:2] == (3, 14):
        return False, np.ascontiguousarray(values.transpose(2, 1, 0))
    raise DatasetError(
        f"{where}: 'joints' has the shape {values.shape}; allowed: (3, 14, N) as LSP, (14, 3, N) as LSP Extended"
    )
