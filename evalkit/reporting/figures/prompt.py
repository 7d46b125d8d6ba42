"""One patch as a prompt: the image with the prompt, the heat map of its similarities, the mask above the threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from evalkit.reporting.figures import canvas

TILE = 420
"""Longer side in pixels of each of the pictures."""


@dataclass(frozen=True, eq=False)
class Prompted:
    """What was asked and what came.

    image: RGB. at: (x, y) in its pixels. cosines: (h, w) of the grid of patches. threshold: of the mask. prompt: (row,
    column) of the patch. truth: (H, W) bool, the object that the prompt lies on; None where there is none or nobody knows.
    title, note: what stands above.
    """

    image: Image.Image
    at: tuple[int, int]
    cosines: npt.NDArray[np.float32]
    threshold: float
    prompt: tuple[int, int]
    truth: npt.NDArray[np.bool_] | None = None
    title: str = ""
    note: str = ""

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(H, W): pixels whose patch is more similar than the threshold."""
        (height, width), (h, w) = self.image.size[::-1], self.cosines.shape
        rows, columns = ((2 * np.arange(n) + 1) * parts // (2 * n) for n, parts in ((height, h), (width, w)))
        kept: npt.NDArray[np.bool_] = (self.cosines > np.float32(self.threshold))[rows[:, None], columns]
        return kept

    @property
    def iou(self) -> float | None:
        """With the object, in pixels; None without one."""
        if self.truth is None:
            return None
        return float((self.mask & self.truth).sum() / (self.mask | self.truth).sum())


def draw(found: Prompted) -> Image.Image:
    """The pictures side by side, captioned, under a title: prompt, heat map with its scale, mask, mask over the image."""
    scale = TILE / max(found.image.size)
    size = (max(1, round(found.image.width * scale)), max(1, round(found.image.height * scale)))
    image = found.image.resize(size, Image.Resampling.LANCZOS)
    mask = _resized(found.mask, size)
    low = float(np.floor(min(0.0, float(found.cosines.min())) * 10) / 10)
    heat = canvas.heat(found.cosines, size, low=low, high=1.0)
    legend = canvas.scale(size[0], low=low, high=1.0, label="cosine")
    white = Image.fromarray(np.where(mask[..., None], np.uint8(255), np.uint8(40)).repeat(3, axis=2))
    ImageDraw.Draw(white).rectangle((0, 0, size[0] - 1, size[1] - 1), outline=canvas.FADED)  # the page is white too
    over = canvas.contour(canvas.overlay(image, mask, canvas.BLUE, alpha=0.45), mask, canvas.BLUE)
    first = image
    if found.truth is not None:
        first, over = (canvas.contour(one, _resized(found.truth, size), canvas.ORANGE) for one in (image, over))
    share = f"{100 * found.mask.mean():.0f} % of the image"
    score = "" if found.iou is None else f", IoU {100 * found.iou:.0f} %"
    truth = "" if found.truth is None else "; its object orange"
    parts = [
        canvas.captioned(_marked(first, found, scale), f"prompt at {found.at[0]}, {found.at[1]}{truth}", lines=2),
        canvas.below([_marked(heat, found, scale), legend], gap=3),
        canvas.captioned(_marked(white, found, scale), f"cosine > {found.threshold:g}: {share}", lines=2),
        canvas.captioned(over, f"mask over the image{score}", lines=2),
    ]
    return canvas.bordered(canvas.titled(canvas.beside(parts), found.title, found.note))


def _resized(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)).astype(bool)


def _marked(image: Image.Image, found: Prompted, scale: float) -> Image.Image:
    """A copy with the prompt's patch framed and a cross at the prompt."""
    out = image.convert("RGB")
    pen = ImageDraw.Draw(out)
    (h, w), (row, column) = found.cosines.shape, found.prompt
    corners = (column * out.width / w, row * out.height / h, (column + 1) * out.width / w, (row + 1) * out.height / h)
    pen.rectangle(corners, outline=canvas.PAPER, width=4)
    pen.rectangle(corners, outline=canvas.VERMILION, width=2)
    x, y = ((at + 0.5) * scale for at in found.at)
    for colour, thick, arm in ((canvas.PAPER, 5, 11), (canvas.VERMILION, 3, 10)):
        pen.line((x - arm, y, x + arm, y), colour, thick)
        pen.line((x, y - arm, x, y + arm), colour, thick)
    return out
