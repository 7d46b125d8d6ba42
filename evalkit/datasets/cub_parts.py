"""Crops around the parts of birds in Caltech-UCSD Birds-200-2011 (Wah et al., CNS-TR-2011-001), labelled by the part.

    images.txt                  <image id> <folder/photo.jpg>
    parts/parts.txt             <part id> <name>                              15 parts, from 1
    parts/part_locs.txt         <image id> <part id> <x> <y> <visible>
    train_test_split.txt        <image id> <1 for training>
    images/<folder>/*.jpg       <root> is a folder or a .zip, which may hold a single top folder
    image_class_labels.txt, bounding_boxes.txt                                read by `verify` alone

One sample per crop: its part is visible, at least two of the chosen parts are, and `crops.Rule` says how large it is. Ids
are "<image id>/<part>"; samples are in the order of images.txt, then of the parts asked for. "all" is both splits.

Coordinates are taken as they are, as the released code does: the data set does not say whether the first pixel is 0 or 1,
so a crop may lie one pixel off.
Source: vision.caltech.edu/datasets/cub_200_2011; for non-commercial research. Expect: part-aware study
(arXiv:2301.11915), Table 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from evalkit.datasets import crops
from evalkit.datasets.files import Tree, missing
from evalkit.datasets.listing import Listing, Photos
from evalkit.errors import DatasetError
from evalkit.types import Dataset, Sample, SplitSize

ALIASES = {"CUB_200_2011": ("cub", "CUB", "cub200", "CUB200", "CUB-200-2011")}
IMAGES, PARTS, PLACES, SPLIT = "images.txt", "parts/parts.txt", "parts/part_locs.txt", "train_test_split.txt"
SPECIES, BOXES = "image_class_labels.txt", "bounding_boxes.txt"
LAYOUT = "".join(f"  <root>/{name}\n" for name in (IMAGES, PARTS, PLACES, SPLIT, SPECIES, BOXES)) + (
    "  <root>/images/<folder>/*.jpg"
)
SPLITS = ("train", "test", "all")


@dataclass(frozen=True)
class Config(crops.Rule):
    """parts: by name, or by number from 1; right eye, right leg, left wing and tail are the study's 11, 12, 9 and 14
    (JiePKU/understand-ssl-part-aware ffea818, retrieval-classification/pr_patch_retrieval.py:243). The rest: `crops.Rule`."""

    parts: tuple[str | int, ...] = ("right eye", "right leg", "left wing", "tail")


@dataclass(frozen=True)
class Birds:
    """The text files. photos: by image id, in the file's order. parts: names by number, from 1. places: of each image
    the visible parts, (x, y) in pixels by part number. training: ids of the training images."""

    photos: Mapping[int, str]
    parts: Sequence[str]
    places: Mapping[int, Mapping[int, tuple[float, float]]]
    training: frozenset[int]


def published(folder: str, config: Config) -> Mapping[str, SplitSize]:
    """Photos of the release (Wah et al. 2011), also those without a crop; the classes are the parts chosen."""
    return {"train": SplitSize(None, 5_994), "test": SplitSize(None, 5_794), "all": SplitSize(None, 11_788)}


def open(root: Path, split: str, config: Config) -> Dataset:
    """The crops of "train", "test" or "all".

    Raises MissingFiles, which lists every file and photo that is needed and absent; DatasetError, naming file and line,
    for text that is not as above, ids that occur twice or nowhere, places that are not finite, a part that does not
    exist, another split, or no crop at all.
    """
    if split not in SPLITS:
        raise DatasetError(f"cub_parts has no split {split!r}; allowed: {', '.join(SPLITS)}")
    tree = Tree.open(root).rooted([IMAGES])
    birds = read(tree)
    parts = crops.chosen(config.parts, birds.parts, "a bird of CUB-200-2011")
    photos = {
        image: photo
        for image, photo in birds.photos.items()
        if split == "all" or (image in birds.training) == (split == "train")
    }
    _require_photos(tree, photos.values())
    within = tree.within("images")
    needs_sizes = config.outside == "skip" or config.border == "drop"
    sizes = crops.sizes(within, list(photos.values())) if needs_sizes else {}
    samples: list[Sample] = []
    skipped: Counter[str] = Counter()
    for image, photo in photos.items():
        at = birds.places[image]
        points = [crops.Point(*at[part + 1], label, image) for label, part in enumerate(parts) if part + 1 in at]
        kept, left_out = crops.crops(points, config, sizes.get(photo))
        skipped += left_out
        for point, box in kept:
            samples.append(Sample(f"{image}/{birds.parts[parts[point.label]]}", photo, point.label, box))
    names = tuple(birds.parts[part] for part in parts)
    facts = crops.facts(config, skipped, len(samples)) | {"photos": len(photos)}
    return Listing("cub_parts", split, names, tuple(samples), Photos(within), facts)


def verify(root: Path) -> list[str]:
    """Absent text files and photos, text that is not as the layout says, boxes that cannot be."""
    tree = Tree.open(root).rooted([IMAGES])
    problems = []
    try:
        birds = read(tree, also=(SPECIES, BOXES))
        _require_photos(tree, birds.photos.values())
    except DatasetError as error:
        return [str(error)]
    for check in (_check_species, _check_boxes):
        try:
            check(tree, birds)
        except DatasetError as error:
            problems.append(str(error))
    return problems


def read(tree: Tree, also: Sequence[str] = ()) -> Birds:
    """The checked text files; also: others that must be there. Raises MissingFiles, DatasetError as `open`."""
    absent = [name for name in (IMAGES, PARTS, PLACES, SPLIT, *also) if not tree.exists(name)]
    if absent:
        raise missing(str(tree), absent, LAYOUT)
    photos: dict[int, str] = {}
    for where, image, photo in _lines(tree, IMAGES, 2):
        number = _fresh(photos, image, where, "image")
        photos[number] = photo
    if len(set(photos.values())) < len(photos):
        raise DatasetError(f"{tree}/{IMAGES}: a photo is listed under two image ids")
    training: dict[int, bool] = {}
    for where, image, flag in _lines(tree, SPLIT, 2):
        training[_fresh(training, image, where, "image")] = _flag(flag, where)
    _check_ids(training, photos, f"{tree}/{SPLIT}")
    parts = _part_names(tree)
    return Birds(photos, parts, _places(tree, photos, parts), frozenset(i for i, trains in training.items() if trains))


def _part_names(tree: Tree) -> tuple[str, ...]:
    parts: dict[int, str] = {}
    for where, part, name in _lines(tree, PARTS, 2):
        parts[_fresh(parts, part, where, "part")] = name
    if sorted(parts) != list(range(1, len(parts) + 1)):
        raise DatasetError(f"{tree}/{PARTS}: part ids must be 1 to {len(parts)}; they are {sorted(parts)}")
    return tuple(parts[number] for number in sorted(parts))


def _places(tree: Tree, photos: Mapping[int, str], parts: Sequence[str]) -> dict[int, dict[int, tuple[float, float]]]:
    places: dict[int, dict[int, tuple[float, float]]] = {image: {} for image in photos}
    seen = set()
    for where, image_text, part_text, x, y, visible in _lines(tree, PLACES, 5):
        image, part = _whole(image_text, where), _whole(part_text, where)
        if image not in photos:
            raise DatasetError(f"{where}: the image {image} is not in {IMAGES}")
        if not 1 <= part <= len(parts):
            raise DatasetError(f"{where}: there is no part {part}; {PARTS} has 1 to {len(parts)}")
        if (image, part) in seen:
            raise DatasetError(f"{where}: the part {part} of image {image} occurs twice")
        seen.add((image, part))
        place = (_number(x, where), _number(y, where))
        if _flag(visible, where):
            places[image][part] = place
    return places


def _lines(tree: Tree, name: str, fields: int) -> Iterator[tuple[str, ...]]:
    """(where, field, ...) of each line that is not empty; the last field takes the rest of the line."""
    try:
        text = tree.read(name).decode("utf-8")
    except UnicodeDecodeError as cause:
        raise DatasetError(f"{tree.where(name)} is no text: {cause}") from cause
    for number, line in enumerate(text.splitlines(), start=1):
        found = line.split(None, fields - 1)
        if not found:
            continue
        where = f"{tree.where(name)}:{number}"
        if len(found) != fields:
            raise DatasetError(f"{where}: {fields} fields are needed; what came is {line[:80]!r}")
        yield (where, *found[:-1], found[-1].strip())


def _fresh(known: Mapping[int, object], text: str, where: str, kind: str) -> int:
    number = _whole(text, where)
    if number in known:
        raise DatasetError(f"{where}: the {kind} id {number} occurs twice")
    return number


def _whole(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DatasetError(f"{where}: {text!r} is no whole number") from None


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise DatasetError(f"{where}: {text!r} is no number") from None
    if not isfinite(value):
        raise DatasetError(f"{where}: {text!r} is not finite")
    return value


def _flag(text: str, where: str) -> bool:
    if text not in ("0", "1"):
        raise DatasetError(f"{where}: {text!r} is neither 0 nor 1")
    return text == "1"


def _check_ids(found: Mapping[int, object], photos: Mapping[int, str], where: str) -> None:
    absent, strange = sorted(set(photos) - set(found)), sorted(set(found) - set(photos))
    if absent or strange:
        raise DatasetError(
            f"{where}: {len(absent)} images of {IMAGES} are absent, first {absent[:5]}; "
            f"{len(strange)} others are named, first {strange[:5]}"
        )


def _check_species(tree: Tree, birds: Birds) -> None:
    species: dict[int, int] = {}
    for where, image, label in _lines(tree, SPECIES, 2):
        species[_fresh(species, image, where, "image")] = _whole(label, where)
    _check_ids(species, birds.photos, f"{tree}/{SPECIES}")


def _check_boxes(tree: Tree, birds: Birds) -> None:
    boxes: dict[int, tuple[float, ...]] = {}
    for where, image, *box in _lines(tree, BOXES, 5):
        numbers = tuple(_number(value, where) for value in box)
        if numbers[0] < 0 or numbers[1] < 0 or numbers[2] <= 0 or numbers[3] <= 0:
            raise DatasetError(f"{where}: the box (x, y, width, height) {numbers} is negative or has no area")
        boxes[_fresh(boxes, image, where, "image")] = numbers
    _check_ids(boxes, birds.photos, f"{tree}/{BOXES}")


def _require_photos(tree: Tree, photos: Iterable[str]) -> None:
    there = set(tree.names(under="images"))
    absent = [name for name in (f"images/{photo}" for photo in photos) if name not in there]
    if absent:
        raise missing(str(tree), absent, LAYOUT)
