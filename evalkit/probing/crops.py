"""The random crops that online probes are trained on, in the size that an encoder takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from evalkit.errors import ProtocolError
from evalkit.types import Augmentation, Job

LARGEST = 224
"""Side in pixels, the largest where the encoder decides: DINOv2 is made for 518, its probe runs at 224."""


def crops(job: Job, size: int | Literal["encoder"], like: Augmentation) -> Augmentation:
    """`like` with the encoder's normalisation and the size asked for, rounded down to a multiple of the patch.

    size: in pixels; "encoder" is the encoder's own, at most 224. A rounded size is the fact "crop_size". Raises
    ProtocolError where a crop would hold no patch.
    """
    spec = job.encoder.spec
    given = spec.preprocessing
    asked = min(given.size, LARGEST) if size == "encoder" else size
    used = asked // spec.patch * spec.patch
    if used < spec.patch:
        raise ProtocolError(f"crops of {asked} px hold no patch of {spec.patch} px")
    if used != asked:
        job.fact("crop_size", {"asked": asked, "used": used, "patch": spec.patch})
    return replace(like, size=used, mean=given.mean, std=given.std)
