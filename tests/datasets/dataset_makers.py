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


def photos(*names: str) -> dict[str, bytes]:
    """JPEG files that differ from each other."""
    return {name: encoded(plain(24, 18, (9 * row % 256, 40, 90)), "JPEG") for row, name in enumerate(names)}


PETS = ("Abyssinian", "american_bulldog", "Bengal")


def pets(root: Path, breeds: Iterable[str] = PETS, each: int = 2) -> Path:
    """Oxford-IIIT Pets: so many photos of every breed in trainval (numbers from 1) and in test (numbers from 101)."""
    names = list(breeds)
    lists = {
        split: [(f"{breed}_{first + row}", number) for number, breed in enumerate(names, 1) for row in range(each)]
        for split, first in (("trainval", 1), ("test", 101))
    }
    files = {
        f"annotations/{split}.txt": "".join(
            f"{name} {number} {1 + name.islower()} 1\n" for name, number in rows
        ).encode()
        for split, rows in lists.items()
    }
    return folder(root, files | photos(*(f"images/{name}.jpg" for rows in lists.values() for name, _ in rows)))


FLOWERS = {"trnid": (5, 1), "valid": (6, 2), "tstid": (3, 4, 7, 8)}


def flowers(root: Path, labels: Iterable[int] = (1, 1, 1, 1, 2, 2, 2, 2), **sets: Iterable[int]) -> Path:
    """Oxford Flowers-102: labels (from 1) of images 1, 2, 3 ..., and the images of each set."""
    found = list(labels)
    folder(root, photos(*(f"jpg/image_{number:05d}.jpg" for number in range(1, len(found) + 1))))
    savemat(root / "imagelabels.mat", {"labels": np.array([found], np.uint8)})
    savemat(root / "setid.mat", {key: np.array([list(ids)], np.uint16) for key, ids in (FLOWERS | sets).items()})
    return root


def cars_annotations(rows: Iterable[tuple[str, int]], labelled: bool = True) -> np.ndarray:
    """The struct array of an annotation file, (1, N), fields in the order of the release."""
    rows = list(rows)
    names = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", *(["class"] if labelled else []), "fname"]
    records = np.empty((1, len(rows)), [(name, object) for name in names])
    for place, (file, label) in enumerate(rows):
        box = dict.fromkeys(names[:4], np.uint16(3))
        values = box | {"class": np.uint8(label), "fname": file}
        records[0, place] = tuple(values[name] for name in names)
    return records


CARS = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012")


def cars(root: Path, labels: str = "cars_test_annos_withlabels.mat", classes: Iterable[str] = CARS) -> Path:
    """Stanford Cars: five training images of classes 1 2 3 1 2, four test images of classes 3 2 1 1."""
    rows = {
        "train": [(f"{number:05d}.jpg", label) for number, label in enumerate((1, 2, 3, 1, 2), 1)],
        "test": [(f"{number:05d}.jpg", label) for number, label in enumerate((3, 2, 1, 1), 1)],
    }
    folder(root, photos(*(f"cars_{split}/{name}" for split, of in rows.items() for name, _ in of)))
    (root / "devkit").mkdir()
    cells = np.empty((1, len(list(classes))), object)
    cells[0, :] = list(classes)
    savemat(root / "devkit/cars_meta.mat", {"class_names": cells})
    savemat(root / "devkit/cars_train_annos.mat", {"annotations": cars_annotations(rows["train"])})
    savemat(root / "devkit/cars_test_annos.mat", {"annotations": cars_annotations(rows["test"], labelled=False)})
    savemat(root / labels, {"annotations": cars_annotations(rows["test"])})
    return root


def inaturalist_document(split: str, year: int = 2018, species: int = 3, each: int = 2) -> dict[str, Any]:
    """Photos of species whose ids fall while the photos' rise, annotated in the reverse order."""
    kingdom = {"train": "Plantae", "val": "Aves"}[split]
    rows = [(1000 + place, species - 1 - place % species) for place in range(species * each)]
    return {
        "info": {"year": year},
        "images": [
            {"id": id, "file_name": f"train_val{year}/{kingdom}/{category}/{id}.jpg", "width": 24, "height": 18}
            for id, category in rows
        ],
        "annotations": [{"id": id, "image_id": id, "category_id": category} for id, category in reversed(rows)],
        "categories": [
            {"id": id, "name": f"species {id}", "supercategory": "Plantae"} for id in reversed(range(species))
        ],
    }


def inaturalist(root: Path, year: int = 2018, **documents: dict[str, Any]) -> Path:
    """iNaturalist of a year; every photo that the documents list is there."""
    found = {split: inaturalist_document(split, year) for split in ("train", "val")} | documents
    files = {f"{split}{year}.json": json.dumps(document).encode() for split, document in found.items()}
    listed = [row["file_name"] for document in found.values() for row in document.get("images", []) if row["file_name"]]
    return folder(root, files | photos(*dict.fromkeys(listed)))


def revisited_truth(**changes: Any) -> dict[str, Any]:
    """Two queries over four photos: q has an easy, a hard and a junk one, r a hard one."""
    judged = [
        {"bbx": [1, 1, 5, 4], "easy": [0], "hard": [2], "junk": [3]},
        {"bbx": [0, 0, 8.0, 6.0], "easy": [], "hard": [1], "junk": []},
    ]
    return {"imlist": ["a", "b", "c", "d"], "qimlist": ["q", "r"], "gnd": judged, **changes}


def revisited(root: Path, truth: Any = None, protocol: int = 4) -> Path:
    """A folder of revisited Oxford with the photos a, b, c, d, q and r."""
    blob = pickle.dumps(revisited_truth() if truth is None else truth, protocol)
    photos = {f"jpg/{n}.jpg": encoded(plain(colour=(40 * i, 9, 9)), "JPEG") for i, n in enumerate("abcdqr")}
    return folder(root, {"gnd_roxford5k.pkl": blob, **photos})


MINIIMAGENET = {"train": ("n01", "n02", "n03"), "val": ("n05", "n06"), "test": ("n07", "n08")}


def miniimagenet(root: Path, each: int = 2, **lists: str) -> Path:
    """miniImageNet: so many images of every class; `lists` replaces the text of a split's list."""
    texts = {
        split: "filename,label\n"
        + "".join(f"{wnid}{row:08d}.jpg,{wnid}\n" for wnid in of for row in range(1, each + 1))
        for split, of in MINIIMAGENET.items()
    } | lists
    names = [line.split(",")[0] for text in texts.values() for line in text.split()[1:]]
    files = {f"{split}.csv": text.encode() for split, text in texts.items()}
    return folder(root, files | photos(*dict.fromkeys(f"images/{name}" for name in names)))


def indexed(labels: np.ndarray) -> bytes:
    """A PNG whose palette index is the label; each label has a colour of its own."""
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette([(97 * entry + 5 * channel) % 256 for entry in range(256) for channel in range(3)])
    return encoded(image)


def davis_mask(number: int = 0, size: tuple[int, int] = (24, 18)) -> np.ndarray:
    """(H, W): object 1 walks two columns a frame, object 2 stands, one row is void; size is (width, height)."""
    mask = np.zeros(size[::-1], np.uint8)
    mask[2:8, 2 + 2 * number : 8 + 2 * number] = 1
    mask[10:15, 12:20] = 2
    mask[-1] = 255
    return mask


def davis(
    root: Path, sets: Mapping[str, Iterable[str]], frames: int = 3, year: int = 2017, resolution: str = "480p"
) -> Path:
    """A DAVIS folder: lists, and for every clip so many frames and masks; those of 2016 are grey, 0 and 255."""
    files = {
        f"ImageSets/{year}/{name}.txt": "".join(f"{clip}\n" for clip in clips).encode() for name, clips in sets.items()
    }
    for row, clip in enumerate(sorted({clip for clips in sets.values() for clip in clips})):
        for number in range(frames):
            mask = davis_mask(number)
            stored = (
                indexed(mask)
                if year == 2017
                else encoded(Image.fromarray(np.isin(mask, (1, 2)).astype(np.uint8) * 255))
            )
            files[f"Annotations/{resolution}/{clip}/{number:05d}.png".replace("//", "/")] = stored
            picture = encoded(plain(24, 18, (40 * row, 60 * number, 9)), "JPEG")
            files[f"JPEGImages/{resolution}/{clip}/{number:05d}.jpg".replace("//", "/")] = picture
    return folder(root, files)
