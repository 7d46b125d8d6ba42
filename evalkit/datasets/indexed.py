"""Label maps as indexed PNG, as DAVIS, VOC and their servers write and accept them: a pixel's palette index is its label.

The palette is that of the PASCAL VOC development kit (label 0 black, then dark red, green, olive ...): bit k of the
three lowest bits of a label, then of the next three, become bits 7, 6 ... of red, green and blue.
"""

from __future__ import annotations

import functools
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from evalkit.datasets import images
from evalkit.errors import BrokenImage

Labels = npt.NDArray[np.uint8]


def decode(data: bytes, name: str, *, binary: bool = False) -> Labels:
    """(H, W) uint8: the index of each pixel, not its colour; 0 and 1 of a black and white image.

    Grey images are taken in every mode (with alpha, three equal colours, 16 bit). binary: only 0 and the rest are told
    apart, so values beyond 8 bit become 255. Raises BrokenImage as `images.indices`, and without `binary` for such values.
    """
    values = images.indices(data, name, grey=True)
    if values.dtype != np.uint8:
        if not binary and values.size and not 0 <= int(values.min()) <= int(values.max()) <= 255:
            raise BrokenImage(
                f"{name}: holds values of more than 8 bit, up to {int(values.max())}; labels are 0 to 255"
            )
        values = values.clip(0, 255).astype(np.uint8)
    return values.copy()  # what Pillow gives cannot be written to


def encode(labels: Labels) -> bytes:
    """The PNG of a label map (H, W) uint8, with the VOC palette."""
    image = Image.fromarray(labels)
    image.putpalette(palette().tobytes())
    out = BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@functools.cache
def palette() -> npt.NDArray[np.uint8]:
    """(256, 3) uint8: the colour of each label."""
    labels = np.arange(256)
    colours = np.zeros((256, 3), np.int64)
    for bit in range(8):
        channel, place = bit % 3, bit // 3
        colours[:, channel] |= (labels >> bit & 1) << (7 - place)
    return colours.astype(np.uint8)
