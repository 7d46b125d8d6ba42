"""Make the two clips of `mini/video/` out of photos of `mini/coco/`: cut-out objects move over a moving photo.

    python mini/make_video.py [FOLDER]        (default: mini/video beside this file)

Every layer is a photo, or an object of one, that moves along key frames; later layers hide earlier ones. A pixel is
sampled 4 x 4 times: its colour is the mean, its label that of most samples. All arithmetic is plain numpy on whole
samples, so masks come out the same on every machine; frames are JPEG and may differ in the last bit of a decoder.

Photos: only test photos (COCO val2017) whose licence is Attribution (licence id 4), so that no encoder that was
pretrained on the training part has seen them and the clips may be shared under the same terms.
"""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as polygons

from evalkit.datasets import indexed

COCO = Path(__file__).resolve().parent / "coco"
PHOTOS = "val2017"
WIDTH, HEIGHT, FRAMES = 192, 128, 12
SAMPLES = 4
"""Samples of a pixel along each side."""
QUALITY = 92


@dataclass(frozen=True)
class Key:
    """Where a layer is at `time` (0 first frame, 1 last): its centre and height in pixels, and its turn in degrees."""

    time: float
    x: float
    y: float
    height: float
    turn: float = 0.0


@dataclass(frozen=True)
class Layer:
    """A whole photo (annotation 0), or one annotated object of it."""

    photo: str
    annotation: int
    path: tuple[Key, ...]


@dataclass(frozen=True)
class Clip:
    """The first layer is the background; the others are objects 1, 2 ... from back to front."""

    name: str
    layers: tuple[Layer, ...]


CLIPS = (
    # A cow walks right, a man walks left in front of it, and a gull leaves the picture and comes back.
    Clip("pasture", (
        Layer("000000500663.jpg", 0, (Key(0, 104, 60, 170), Key(1, 88, 66, 178))),
        Layer("000000418281.jpg", 72652, (Key(0, 52, 86, 50), Key(1, 112, 88, 56))),
        Layer("000000252219.jpg", 495624, (Key(0, 158, 84, 74), Key(1, 44, 88, 78))),
        Layer("000000126107.jpg", 36307, (Key(0, 128, 24, 34, -4), Key(0.45, 246, 18, 34, 6), Key(1, 112, 32, 40, -8))),
    )),
    # Two suitcases pass each other, a clock swings across the front and is as large as they are.
    Clip("luggage", (
        Layer("000000403353.jpg", 0, (Key(0, 90, 66, 168, 0), Key(1, 104, 60, 160, 2))),
        Layer("000000475678.jpg", 1185290, (Key(0, 44, 74, 74), Key(1, 138, 70, 82, 6))),
        Layer("000000475678.jpg", 1182773, (Key(0, 146, 76, 80), Key(1, 58, 78, 70, -8))),
        Layer("000000551780.jpg", 334814, (Key(0, 96, 14, 26), Key(0.5, 122, 64, 36, 25), Key(1, 166, 104, 44, 60))),
    )),
)  # fmt: skip


@dataclass(frozen=True)
class Cutting:
    """Colours (H, W, 3) uint8 of a layer's rectangle and which of its pixels (H, W) bool belong to it."""

    colours: np.ndarray
    inside: np.ndarray


def document() -> dict[str, Any]:
    """The annotations that the photos came with."""
    found: dict[str, Any] = json.loads((COCO / f"annotations/instances_{PHOTOS}.json").read_text("utf-8"))
    return found


def cutting(layer: Layer, coco: dict[str, Any]) -> Cutting:
    """The pixels of a layer. Raises ValueError for a photo that may not be changed, or another photo's object."""
    row = next(image for image in coco["images"] if image["file_name"] == layer.photo)
    if row["license"] != 4:
        raise ValueError(f"{layer.photo} has the licence id {row['license']}, not 4 (Attribution)")
    colours = np.array(Image.open(COCO / PHOTOS / layer.photo).convert("RGB"))
    if not layer.annotation:
        return Cutting(colours, np.ones(colours.shape[:2], bool))
    found = next(item for item in coco["annotations"] if item["id"] == layer.annotation)
    if found["image_id"] != row["id"]:
        raise ValueError(f"annotation {layer.annotation} is not of {layer.photo}")
    runs = polygons.merge(polygons.frPyObjects(found["segmentation"], row["height"], row["width"]))
    inside = polygons.decode(runs).astype(bool)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return Cutting(colours[box], inside[box])


def place(layer: Layer, time: float) -> Key:
    """The layer's key at a time, on straight lines between the given ones."""
    times = [key.time for key in layer.path]
    values = [[getattr(key, name) for key in layer.path] for name in ("x", "y", "height", "turn")]
    x, y, height, turn = (float(np.interp(time, times, row)) for row in values)
    return Key(time, x, y, height, turn)


def render(clip: Clip, cuttings: list[Cutting], number: int) -> tuple[np.ndarray, np.ndarray]:
    """A frame: colours (H, W, 3) uint8 and labels (H, W) uint8."""
    steps = (np.arange(WIDTH * SAMPLES) + 0.5) / SAMPLES
    x, y = np.meshgrid(steps, steps[: HEIGHT * SAMPLES])
    colours, labels = np.zeros((*x.shape, 3), np.uint8), np.zeros(x.shape, np.uint8)
    for label, (layer, cut) in enumerate(zip(clip.layers, cuttings, strict=True)):
        column, row = source(x, y, place(layer, number / (FRAMES - 1)), cut.inside.shape)
        height, width = cut.inside.shape
        if not label:  # a photo that does not reach an edge goes on with its last pixel
            row, column = row.clip(0, height - 1), column.clip(0, width - 1)
        seen = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        seen[seen] = cut.inside[row[seen], column[seen]]
        colours[seen], labels[seen] = cut.colours[row[seen], column[seen]], label
    blocks = (HEIGHT, SAMPLES, WIDTH, SAMPLES)
    mean = colours.reshape(*blocks, 3).astype(np.int64).sum(axis=(1, 3)) / SAMPLES**2
    votes = [(labels == label).reshape(blocks).sum(axis=(1, 3)) for label in range(len(clip.layers))]
    return mean.round().astype(np.uint8), np.argmax(votes, axis=0).astype(np.uint8)


def source(x: np.ndarray, y: np.ndarray, key: Key, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Column and row of a layer that lie at points of the picture; outside the layer they are outside its shape."""
    scale, angle = shape[0] / key.height, np.deg2rad(key.turn)
    right, down = (x - key.x) * scale, (y - key.y) * scale
    column = np.cos(angle) * right + np.sin(angle) * down + shape[1] / 2
    row = np.cos(angle) * down - np.sin(angle) * right + shape[0] / 2
    return np.floor(column).astype(np.int64), np.floor(row).astype(np.int64)


def attribution(coco: dict[str, Any]) -> str:
    """The text that names every photo, where it comes from, and what was done to it."""
    rows = {image["file_name"]: image for image in coco["images"]}
    used = {layer.photo: [] for clip in CLIPS for layer in clip.layers}
    for clip in CLIPS:
        for label, layer in enumerate(clip.layers):
            used[layer.photo].append(f"{clip.name}, {f'object {label}' if label else 'background'}")
    lines = []
    for photo, roles in sorted(used.items()):
        address = rows[photo]["flickr_url"]
        number = address.rsplit("/", 1)[1].split("_")[0]
        page = f"[{number}](https://www.flickr.com/photo.gne?id={number})"
        lines.append(f"| {photo} | {'; '.join(roles)} | {page} | {address} |")
    return ATTRIBUTION + "\n".join(lines) + "\n"


ATTRIBUTION = """# Attribution

The clips of this folder are made by `mini/make_video.py` from photos of COCO 2017 (cocodataset.org, part `val2017`) that
their authors share under the [Attribution licence](http://creativecommons.org/licenses/by/2.0/) (CC BY 2.0). The photos
were changed: objects were cut out along COCO's outlines, and photos and objects were scaled, turned, moved and laid over
each other. The clips and their masks may be used under the same licence, with this file. COCO's outlines are by the COCO
Consortium under [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/).

COCO names no photographers. Each author stands on the photo's page at Flickr, by the number that the address holds.

| photo | where it is seen | author's page | file |
|---|---|---|---|
"""


def make(folder: Path) -> None:
    """Write the clips in the layout of DAVIS-2017, and the attribution."""
    coco = document()
    for clip in CLIPS:
        cuttings = [cutting(layer, coco) for layer in clip.layers]
        for number in range(FRAMES):
            colours, labels = render(clip, cuttings, number)
            picture = io.BytesIO()
            Image.fromarray(colours).save(picture, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
            _write(folder / f"JPEGImages/480p/{clip.name}/{number:05d}.jpg", picture.getvalue())
            _write(folder / f"Annotations/480p/{clip.name}/{number:05d}.png", indexed.encode(labels))
    _write(folder / "ImageSets/2017/val.txt", "".join(f"{clip.name}\n" for clip in CLIPS).encode())
    _write(folder / "ATTRIBUTION.md", attribution(coco).encode())


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent / "video")
