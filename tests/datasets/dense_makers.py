"""Small data sets with a label per pixel, in their official layouts; labels are vertical stripes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from tests.datasets.dataset_makers import coco_document, encoded, folder, indexed, photos, plain


def coco_outlines(images: int = 2, first: int = 1) -> dict[str, Any]:
    """Photos of 100 x 80 with a cat (columns 10-49, rows 10-29), a dog over its right half (columns 30-69), a second cat
    of two triangles as a run-length code of rows 40-49, a crowd of dogs (columns 0-39, rows 20-59)."""
    rectangles = [(10, 10, 50, 30), (30, 5, 70, 35), (20, 40, 60, 50), (0, 20, 40, 60)]
    document = coco_document(images, first)
    rows = []
    for photo in document["images"]:
        for index, ((x0, y0, x1, y1), category) in enumerate(zip(rectangles, (7, 3, 7, 3), strict=True)):
            mask = np.zeros((80, 100), np.uint8)
            mask[y0:y1, x0:x1] = 1
            ring = [x0, y0, x1, y0, x1, y1, x0, y1]
            region = [ring] if index < 2 else {"size": [80, 100], "counts": runs(mask)}
            row = {"id": photo["id"] * 10 + index, "image_id": photo["id"], "category_id": category}
            box = [x0, y0, x1 - x0, y1 - y0]
            rows.append(row | {"bbox": box, "iscrowd": int(index == 3), "segmentation": region})
    return document | {"annotations": rows}


def runs(mask: np.ndarray) -> list[int]:
    """The lengths of the runs of a mask, column by column, the first of zeros."""
    lengths, last = [0], 0
    for value in mask.T.ravel().tolist():
        if value != last:
            lengths.append(0)
            last = value
        lengths[-1] += 1
    return lengths


def grey(labels: np.ndarray) -> bytes:
    """A PNG of one 8-bit channel."""
    return encoded(Image.fromarray(np.asarray(labels, np.uint8)))


def stripes(height: int = 18, width: int = 24, values: Iterable[int] = (0, 1, 255)) -> np.ndarray:
    """(H, W): so many vertical stripes of these values."""
    found = list(values)
    return np.repeat([found], height, 0)[:, np.arange(width) * len(found) // width]


def masked_folder(root: Path, masks: Mapping[str, bytes] | None = None) -> Path:
    """Photos of 24 x 18 and their masks, two for training and two for the test; two classes."""
    names = {"train": ("a", "b"), "test": ("c", "d")}
    paths = [f"{split}/{name}" for split, of in names.items() for name in of]
    files = photos(*(f"images/{path}.jpg" for path in paths))
    files |= {f"masks/{path}.png": grey(stripes()) for path in paths}
    return folder(root, files | {"classes.txt": b"sky\nground\n"} | {f"masks/{k}": v for k, v in (masks or {}).items()})


def pairs(photo: str, mask: str, names: Mapping[str, Iterable[str]], masks: Mapping[str, bytes]) -> dict[str, bytes]:
    """Files of photos of 24 x 18 and of masks, the paths with {split} and {name}; masks: by name, else the one of ""."""
    files = {}
    for split, of in names.items():
        for row, name in enumerate(of):
            format = "PNG" if photo.endswith("png") else "JPEG"
            files[photo.format(split=split, name=name)] = encoded(plain(24, 18, (20 * row, 40, 90)), format)
            files[mask.format(split=split, name=name)] = masks.get(name, masks[""])
    return files


def ade20k(root: Path, **masks: bytes) -> Path:
    """Two photos for training, one for validation; stripes of 0, 1 (wall) and 150 (flag)."""
    names = {"training": ("ADE_train_1", "ADE_train_2"), "validation": ("ADE_val_1",)}
    usual = {"": grey(stripes(values=(0, 1, 150)))}
    return folder(root, pairs("images/{split}/{name}.jpg", "annotations/{split}/{name}.png", names, usual | masks))


def cityscapes(root: Path, **masks: bytes) -> Path:
    """One photo of two cities for training, one for validation; stripes of 0, 7 (road), 33 (bicycle) and 1."""
    names = {"train": ("bonn/bonn_1", "ulm/ulm_1"), "val": ("jena/jena_1",)}
    files = pairs(
        "leftImg8bit/{split}/{name}_leftImg8bit.png",
        "gtFine/{split}/{name}_gtFine_labelIds.png",
        names,
        {"": grey(stripes(values=(0, 7, 33, 1)))} | masks,
    )
    return folder(root, files)


def lip(root: Path, top: str = "TrainVal_images/", **masks: bytes) -> Path:
    """Two photos for training, one for validation; stripes of 0, 1 (Hat) and 19 (Right-shoe)."""
    names = {"train": ("b_2", "a_1"), "val": ("c_3",)}
    usual = {"": grey(stripes(values=(0, 1, 19)))}
    photo = top + "{split}_images/{name}.jpg"
    files = pairs(photo, "TrainVal_parsing_annotations/{split}_segmentations/{name}.png", names, usual | masks)
    lists = {f"{top}{split}_id.txt": "\n".join(of).encode() for split, of in names.items()}
    return folder(root, files | lists)


def voc(root: Path, **masks: bytes) -> Path:
    """VOC2012: train a b, val c, and the further photo d; stripes of 0, 1 (aeroplane), 20 (tvmonitor), 255."""
    names = {"train": ("a", "b"), "val": ("c",)}
    usual = {"": indexed(stripes(values=(0, 1, 20, 255)))}
    files = pairs("JPEGImages/{name}.jpg", "SegmentationClass/{name}.png", names, usual | masks)
    files |= pairs("JPEGImages/{name}.jpg", "SegmentationClassAug/{name}.png", {"": ("d",)}, usual | masks)
    lists = {f"ImageSets/Segmentation/{split}.txt": "\n".join(of).encode() for split, of in names.items()}
    return folder(root, files | lists | {"ImageSets/Segmentation/aug.txt": b"d\n"})


Parts = Sequence[tuple[str, np.ndarray]]


def structs(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """A MATLAB struct array, (1, N); an empty matrix where there are none, as MATLAB writes it."""
    if not rows:
        return np.zeros((0, 0))
    records = np.empty((1, len(rows)), [(name, object) for name in rows[0]])
    for place, row in enumerate(rows):
        records[0, place] = tuple(row.values())
    return records


def annotation(objects: Sequence[tuple[str, np.ndarray, Parts]]) -> dict[str, Any]:
    """The variables of a Pascal-Part file: objects with class, mask and parts."""
    rows = [
        {
            "class": name,
            "class_ind": np.uint8(1),
            "mask": mask.astype(np.uint8),
            "parts": structs([{"part_name": part, "mask": inside.astype(np.uint8)} for part, inside in parts]),
        }
        for name, mask, parts in objects
    ]
    return {"anno": structs([{"imname": "a", "objects": structs(rows)}])}


def area(x0: int, x1: int, y0: int = 0, y1: int = 18) -> np.ndarray:
    """(18, 24) bool: columns x0 to x1, rows y0 to y1, the ends excluded."""
    mask = np.zeros((18, 24), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def car() -> dict[str, Any]:
    """A car of columns 2-19 whose plate lies on its back side, two wheels, and a chair of columns 16-23 before it."""
    parts = [
        ("bliplate", area(8, 11, 6, 9)),
        ("backside", area(4, 14)),
        ("wheel_1", area(2, 5, 12)),
        ("wheel_2", area(13, 20)),
    ]
    return annotation([("car", area(2, 20), parts), ("chair", area(16, 24), [])])


def pascal_part(root: Path, **annotations: dict[str, Any]) -> Path:
    """VOC2010 with its parts: train a b, val c."""
    names = {"train": ("a", "b"), "val": ("c",)}
    files = {f"JPEGImages/{name}.jpg": photo for of in names.values() for name, photo in photos(*of).items()}
    files |= {f"ImageSets/Main/{split}.txt": "\n".join(of).encode() for split, of in names.items()}
    (root / "Annotations_Part").mkdir(parents=True, exist_ok=True)
    for name in "abc":
        savemat(root / f"Annotations_Part/{name}.mat", annotations.get(name, car()))
    return folder(root, files)


def coded(numbers: np.ndarray, blue: int = 0) -> bytes:
    """A mask of the full ADE20K release: number = R // 10 * 256 + G, the instance in blue."""
    numbers = np.asarray(numbers)
    layers = [numbers // 256 * 10, numbers % 256, np.full_like(numbers, blue)]
    return encoded(Image.fromarray(np.stack(layers, -1).astype(np.uint8)))


def ade_annotation(*parts: tuple[str, int, str, int], level: int = 1) -> bytes:
    """The JSON of a photo with these parts: names and numbers of object and part."""
    rows: list[dict[str, Any]] = []
    for whole, whole_number, part, part_number in parts:
        owner = len(rows)
        rows.append({"id": owner, "name": whole, "name_ndx": whole_number, "parts": {"ispartof": [], "part_level": 0}})
        belongs = {"ispartof": owner, "part_level": level}
        rows.append({"id": owner + 1, "name": part, "name_ndx": part_number, "parts": belongs})
    return json.dumps({"annotation": {"object": rows}}).encode()


BED = ("bed", 165, "headboard", 1212)
CAR = ("car, auto, automobile", 401, "wheel", 3035)
CAR_DOOR = ("car, auto, automobile", 401, "door", 774)


def ade20k_parts(root: Path, training: Sequence[tuple[str, int, str, int]] = (BED, CAR, CAR_DOOR)) -> Path:
    """Two photos for training (the second without parts) and one for validation that has a bed's headboard and a car's
    wheel. Columns 0-11 are a bed, 12-23 a car; rows 0-5 have a headboard, 6-11 a wheel, both across."""
    objects = np.where(area(0, 12), 165, 401)
    parts = np.select([area(0, 24, 0, 6), area(0, 24, 6, 12)], [1212, 3035], 0)
    files = {}
    for split, name, found in (
        ("training", "home/bedroom/T1", training),
        ("training", "home/bedroom/T2", ()),
        ("validation", "home/bedroom/V1", (BED, CAR)),
    ):
        start = f"images/ADE/{split}/{name}"
        files[f"{start}.jpg"] = encoded(plain(24, 18, (len(found), 40, 9)), "JPEG")
        files[f"{start}.json"] = ade_annotation(*found)
        files[f"{start}_seg.png"] = coded(objects, blue=3)
        if found:
            files[f"{start}_parts_1.png"] = coded(parts)
    return folder(root, files)
