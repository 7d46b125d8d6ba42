"""People with keypoints, birds with parts, sports people with joints: small trees in the official layouts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from evalkit.datasets.people import NAMES
from tests.datasets.dataset_makers import encoded, folder, plain

WIDTH, HEIGHT = 300, 200
NOSE, WRIST, ANKLE = 0, 10, 15
Place = tuple[float, float] | tuple[float, float, int]


def keypoints(places: Mapping[int, Place]) -> list[float]:
    """51 numbers; a place of two numbers is visible."""
    values: list[float] = [0] * 51
    for part, place in places.items():
        values[3 * part : 3 * part + 3] = [*place, 2] if len(place) == 2 else place
    return values


def person(id: int, image: int, places: Mapping[int, Place], **changes: Any) -> dict[str, Any]:
    row = {"id": id, "image_id": image, "category_id": 1, "bbox": [10, 10, 100, 150], "area": 900.5, "iscrowd": 0}
    return {**row, "keypoints": keypoints(places), "num_keypoints": len(places), **changes}


def people_document(rows: Sequence[dict[str, Any]] | None = None, images: Iterable[int] = (1, 2)) -> dict[str, Any]:
    """By default two photos of one person each, with a nose, a wrist and an ankle."""
    photos = [{"id": n, "file_name": f"{n:012d}.jpg", "width": WIDTH, "height": HEIGHT} for n in images]
    if rows is None:
        places = {NOSE: (100, 50), WRIST: (160, 90), ANKLE: (120, 180)}
        rows = [person(10 * photo["id"], photo["id"], places) for photo in photos]
    return {
        "images": photos,
        "annotations": list(rows),
        "categories": [{"id": 1, "name": "person", "keypoints": list(NAMES), "skeleton": []}],
    }


def people(root: Path, train: dict[str, Any] | None = None, val: dict[str, Any] | None = None) -> Path:
    documents = {"train2017": train or people_document(), "val2017": val or people_document(images=(5, 6))}
    photo = encoded(plain(WIDTH, HEIGHT), "JPEG")
    files = {f"annotations/person_keypoints_{name}.json": json.dumps(doc).encode() for name, doc in documents.items()}
    for name, document in documents.items():
        files |= {f"{name}/{row['file_name']}": photo for row in document["images"]}
    return folder(root, files)


# fmt: off
PARTS = ("back", "beak", "belly", "breast", "crown", "forehead", "left eye", "left leg", "left wing", "nape",
         "right eye", "right leg", "right wing", "tail", "throat")
# fmt: on
BIRD = {11: (80.0, 40.5), 12: (120.0, 150.0), 9: (150.5, 90.0), 14: (250.0, 120.0)}


def cub_files(birds: Mapping[int, Mapping[int, Sequence[float]]], training: Iterable[int] = (1, 2)) -> dict[str, bytes]:
    """Places by image and part number, (x, y) or (x, y, visible); every image has a line for every part."""
    trains = set(training)
    names = {image: f"{image:03d}.Bird/Bird_{image:04d}.jpg" for image in birds}
    places = []
    for image, parts in birds.items():
        for part in range(1, 16):
            x, y, visible = (*parts[part], 1)[:3] if part in parts else (0.0, 0.0, 0)
            places.append(f"{image} {part} {x} {y} {visible}\n")
    texts = {
        "images.txt": [f"{image} {name}\n" for image, name in names.items()],
        "train_test_split.txt": [f"{image} {int(image in trains)}\n" for image in birds],
        "image_class_labels.txt": [f"{image} 1\n" for image in birds],
        "bounding_boxes.txt": [f"{image} 10.0 10.0 200.0 150.0\n" for image in birds],
        "parts/parts.txt": [f"{number} {name}\n" for number, name in enumerate(PARTS, start=1)],
        "parts/part_locs.txt": places,
    }
    photo = encoded(plain(WIDTH, HEIGHT), "JPEG")
    return {name: "".join(lines).encode() for name, lines in texts.items()} | {
        f"images/{name}": photo for name in names.values()
    }


def cub(
    root: Path,
    birds: Mapping[int, Mapping[int, Sequence[float]]] | None = None,
    training: Iterable[int] = (1, 2),
    **changes: bytes | None,
) -> Path:
    """By default four birds, two for training. changes: other files; None leaves one out."""
    files = cub_files(birds or dict.fromkeys((1, 2, 3, 4), BIRD), training) | {
        name.replace("__", "/") + ".txt": text for name, text in changes.items()
    }
    return folder(root, {name: text for name, text in files.items() if text is not None})


def joints_matrix(people: int = 3, seed: int = 0) -> np.ndarray:
    """(14, 3, N) as LSP Extended: places inside 300 x 200, all visible."""
    rng = np.random.default_rng(seed)
    values = np.ones((14, 3, people))
    values[:, 0], values[:, 1] = rng.uniform(20, 280, (14, people)), rng.uniform(20, 180, (14, people))
    return values


def lsp(root: Path, joints: np.ndarray | None = None, count: int | None = None) -> Path:
    """LSP Extended's layout; LSP's where the first axis of joints has three."""
    joints = joints_matrix() if joints is None else joints
    digits = 4 if joints.shape[0] == 3 else 5
    root.mkdir(parents=True, exist_ok=True)
    savemat(root / "joints.mat", {"joints": joints})
    photo = encoded(plain(WIDTH, HEIGHT), "JPEG")
    names = range(1, (joints.shape[-1] if count is None else count) + 1)
    return folder(root, {f"images/im{number:0{digits}d}.jpg": photo for number in names})
