"""Small data sets on disk, made by tests in their own folder."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def plain(width: int = 8, height: int = 6, colour: tuple[int, int, int] = (200, 30, 90)) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def folder(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def zipped(path: Path, files: Mapping[str, bytes], folders: Iterable[str] = ()) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in folders:
            archive.writestr(name.rstrip("/") + "/", b"")
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def class_tree(classes: Iterable[str] = ("cat", "dog"), images: int = 2, top: str = "") -> dict[str, bytes]:
    names = [
        f"{top}{split}/{name}/{row}.png" for split in ("train", "test") for name in classes for row in range(images)
    ]
    return {name: encoded(plain(colour=(index, 0, 0))) for index, name in enumerate(names)}


def cifar_batch(rows: int, labels: bytes = b"labels", classes: int = 10, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, 3072), dtype=np.uint8)
    return pickle.dumps({b"data": pixels, labels: [row % classes for row in range(rows)]}, protocol=4)


def cifar10_files(rows: int = 10) -> dict[str, bytes]:
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    files = {f"cifar-10-batches-py/{name}": cifar_batch(rows, seed=seed) for seed, name in enumerate(names)}
    meta = pickle.dumps({b"label_names": [f"class{number}".encode() for number in range(10)]}, protocol=4)
    return {**files, "cifar-10-batches-py/batches.meta": meta}


def coco_document(images: int = 2, first: int = 1) -> dict[str, Any]:
    """Each 100 x 80 photo holds a cat (40 x 20), a dog (30 x 30), a dog too small, and a crowd of cats."""
    photos = [{"id": n, "file_name": f"{n:012d}.jpg", "width": 100, "height": 80} for n in range(first, first + images)]
    boxes = [(7, [10, 10, 40, 20], 0), (3, [60, 5, 30, 30], 0), (3, [0, 0, 5, 5], 0), (7, [0, 0, 90, 70], 1)]
    rows = [
        {
            "id": photo["id"] * 10 + index,
            "image_id": photo["id"],
            "category_id": category,
            "bbox": box,
            "iscrowd": crowd,
        }
        for photo in photos
        for index, (category, box, crowd) in enumerate(boxes)
    ]
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 9, "name": "unseen"}]
    return {"images": photos, "annotations": rows, "categories": categories}


def coco(root: Path, train: dict[str, Any] | None = None, val: dict[str, Any] | None = None) -> Path:
    """A COCO folder of these documents; every photo that they list is there."""
    documents = {"train2017": train or coco_document(), "val2017": val or coco_document(first=5)}
    photo = encoded(plain(100, 80), "JPEG")
    files = {f"annotations/instances_{name}.json": json.dumps(doc).encode() for name, doc in documents.items()}
    for name, document in documents.items():
        files |= {f"{name}/{row['file_name']}": photo for row in document.get("images", [])}
    return folder(root, files)


def ccp(root: Path, masks: Mapping[str, np.ndarray], names: Iterable[str] = ("null", "hat", "shoes", "belt")) -> Path:
    """A Clothing Co-Parsing folder with one photo per mask, of the same size."""
    pixel_level = root / "annotations" / "pixel-level"
    pixel_level.mkdir(parents=True)
    cells = np.empty((1, len(list(names))), object)
    cells[0, :] = list(names)
    savemat(root / "label_list.mat", {"label_list": cells})
    for photo, mask in masks.items():
        savemat(pixel_level / f"{photo}.mat", {"groundtruth": mask})
        folder(root, {f"photos/{photo}.jpg": encoded(plain(mask.shape[1], mask.shape[0]), "JPEG")})
    return root


def ccp_mask(hat: bool = True, shoes: bool = True) -> np.ndarray:
    """(120, 100): a hat of 40 x 30 px at (10, 20), two shoes of 24 x 24 px at the lower corners, a belt of 90 x 4."""
    mask = np.zeros((120, 100), np.uint8)
    if hat:
        mask[20:50, 10:50] = 1
    if shoes:
        mask[90:114, 0:24] = mask[90:114, 70:94] = 2
    mask[70:74, 5:95] = 3
    return mask
