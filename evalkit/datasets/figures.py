"""What the data sets of poses share: people as samples, and the region in which a pose is looked for.

No data set of its own: `coco_pose` and `lsp_pose` are made of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from evalkit.datasets.listing import Listing
from evalkit.errors import DatasetError
from evalkit.types import Box, Figure, Skeleton


def region(box: Box, *, aspect: float, padding: float) -> Box:
    """The box widened around its centre to width / height = `aspect`, then both sides times `padding`.

    Parts outside the photo stay. Xiao et al. 2018 and all that follow: 3 / 4 and 1.25.
    """
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    width, height = max(width, height * aspect) * padding, max(height, width / aspect) * padding
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


@dataclass(frozen=True, eq=False)
class FigureListing(Listing):
    """A `Posed` of samples; people holds the figure of each sample, everybody those of each photo.

    Keypoints, boxes and areas decide the digest beside what decides a listing's.
    """

    skeleton: Skeleton = field(default_factory=lambda: Skeleton((), ()), repr=False)
    people: tuple[Figure, ...] = field(default=(), repr=False)
    everybody: Mapping[str, tuple[Figure, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.people) != len(self.samples):
            raise DatasetError(f"{self.name}: {len(self.people)} figures for {len(self.samples)} samples")

    def figure(self, index: int) -> Figure:
        """The person of a sample."""
        return self.people[index]

    def figures(self, group: str) -> tuple[Figure, ...]:
        """Everybody in a photo."""
        return self.everybody[group]

    @cached_property
    def _digests(self) -> tuple[str, str]:
        content, how = super()._digests
        total = hashlib.sha256(f"{content}\n{self.skeleton!r}\n".encode())
        for group in self.groups:
            for one in self.everybody[group]:
                total.update(f"{group}\0{one.id}\0{one.box!r}\0{one.area!r}\0{one.crowd!r}\0".encode())
                total.update(np.ascontiguousarray(one.keypoints, np.float64).tobytes())
        return total.hexdigest(), f"{how}; of the people: keypoints, boxes, areas"
