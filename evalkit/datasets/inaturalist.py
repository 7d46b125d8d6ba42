"""iNaturalist 2018 and 2019 (Van Horn et al., CVPR 2018): species in the wild, many of them with few photos.

    {train,val}<year>.json      COCO's tables `images`, `annotations` (one per image), `categories`
    train_val<year>/...         photos at the paths that `images` names, e.g. train_val2018/Plantae/7477/....jpg

One sample per photo, in the order of the JSON; the label is the category's place among all ids in ascending order, as
both splits list them. 2018: 8,142 species, 437,513 + 24,426 photos; 2019: 1,010 species, 265,213 + 3,030. The test
splits of the competitions have no labels: "val" is what papers report.
Source: github.com/visipedia/inat_comp 4ea5638, for non-commercial research and education; each photo has its own licence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evalkit.datasets.files import Tree, missing
from evalkit.datasets.listing import Listing, Photos
from evalkit.errors import DatasetError
from evalkit.types import Dataset, Sample, SplitSize

ALIASES = {
    "inaturalist18": ("inaturalist2018", "iNaturalist2018", "inat2018", "inat18", "iNat2018", "inaturalist"),
    "inaturalist19": ("inaturalist2019", "iNaturalist2019", "inat2019", "inat19", "iNat2019", "inaturalist"),
}
SPLITS = ("train", "val")
_NEEDS: Mapping[str, Mapping[str, type]] = {
    "images": {"id": int, "file_name": str},
    "annotations": {"image_id": int, "category_id": int},
    "categories": {"id": int, "name": str},
}


@dataclass(frozen=True)
class Config:
    """year: of the competition, 2018 or 2019; two data sets, which share no label."""

    year: Literal[2018, 2019] = 2018


def published(folder: str, config: Config) -> Mapping[str, SplitSize]:
    """See the module."""
    if config.year == 2018:
        return {"train": SplitSize(8_142, 437_513), "val": SplitSize(8_142, 24_426)}
    return {"train": SplitSize(1_010, 265_213), "val": SplitSize(1_010, 3_030)}


def open(root: Path, split: str, config: Config) -> Dataset:
    """The photos of "train" or "val". Both JSON files are read, so that labels mean the same in both.

    Raises MissingFiles, which lists absent photos of the split; DatasetError for another split, a file of another task,
    photos with no category or several, and splits whose categories differ.
    """
    if split not in SPLITS:
        raise DatasetError(f"inaturalist has no split {split!r} with labels; allowed: {', '.join(SPLITS)}")
    tree = _tree(root, config.year)
    documents = {name: _document(tree, _json(name, config.year)) for name in SPLITS}
    classes = _classes(tree, documents, config.year)
    labels = {id: label for label, id in enumerate(classes)}
    samples = tuple(_samples(documents[split], labels, f"{tree}/{_json(split, config.year)}"))
    _require_photos(tree, config.year, (sample.group for sample in samples))
    return Listing("inaturalist", split, tuple(classes.values()), samples, Photos(tree), {"year": config.year})


def verify(root: Path) -> list[str]:
    """Absent or wrong JSON files and every listed photo that is absent, for each year of which a file is there."""
    tree = Tree.open(root).rooted([_json(split, year) for year in (2018, 2019) for split in SPLITS])
    there = [year for year in (2018, 2019) if any(tree.exists(_json(split, year)) for split in SPLITS)]
    if not there:
        return [str(missing(str(tree), [_json(split, 2018) for split in SPLITS], _layout("<year>")))]
    problems = []
    for year in there:
        for split in SPLITS:
            try:
                open(root, split, Config(year))  # type: ignore[arg-type]
            except DatasetError as error:
                problems.append(str(error))
    return list(dict.fromkeys(problems))


def _layout(year: int | str) -> str:
    return f"  <root>/{{train,val}}{year}.json\n  <root>/train_val{year}/**/*.jpg"


def _json(split: str, year: int) -> str:
    return f"{split}{year}.json"


def _tree(root: Path, year: int) -> Tree:
    names = [_json(split, year) for split in SPLITS]
    tree = Tree.open(root).rooted(names)
    absent = [name for name in names if not tree.exists(name)]
    if absent:
        raise missing(str(tree), absent, _layout(year))
    return tree


def _document(tree: Tree, name: str) -> dict[str, Any]:
    where = tree.where(name)
    try:
        document: dict[str, Any] = json.loads(tree.read(name))
    except (ValueError, RecursionError) as cause:
        raise DatasetError(f"{where} is no JSON: {cause}") from cause
    for part, keys in _NEEDS.items():
        rows = document.get(part) if isinstance(document, dict) else None
        if not isinstance(rows, list):
            raise DatasetError(f"{where} lacks the table {part!r} (a competition's test file has no labels)")
        for row in rows:
            if not isinstance(row, dict) or any(not isinstance(row.get(key), kind) for key, kind in keys.items()):
                wanted = ", ".join(f"{key} ({kind.__name__})" for key, kind in keys.items())
                raise DatasetError(f"{where}: an entry of {part!r} lacks one of {wanted}: {str(row)[:120]}")
    return document


def _classes(tree: Tree, documents: Mapping[str, dict[str, Any]], year: int) -> dict[int, str]:
    """Names by category id, ascending, as the training file has them: those of 2018 can be replaced by the real ones."""
    where = f"{tree}/{_json('train', year)}"
    names = {row["id"]: row["name"] for row in documents["train"]["categories"]}
    if len(names) < len(documents["train"]["categories"]):
        raise DatasetError(f"{where}: a category's id occurs more than once")
    if names.keys() != {row["id"] for row in documents["val"]["categories"]}:
        raise DatasetError(f"{where} lists other categories than {_json('val', year)}")
    return dict(sorted(names.items()))


def _samples(document: Mapping[str, Any], labels: Mapping[int, int], where: str) -> Iterable[Sample]:
    categories: dict[int, int] = {}
    for row in document["annotations"]:
        if row["category_id"] not in labels:
            raise DatasetError(
                f"{where}: image {row['image_id']} has category {row['category_id']}, which is not listed"
            )
        if row["image_id"] in categories:
            raise DatasetError(f"{where}: image {row['image_id']} has several annotations; one category is expected")
        categories[row["image_id"]] = row["category_id"]
    names = [row["file_name"] for row in document["images"]]
    if len(set(names)) < len(names):
        raise DatasetError(f"{where}: {len(names) - len(set(names))} photos are listed more than once")
    for row in document["images"]:
        if row["id"] not in categories:
            raise DatasetError(f"{where}: image {row['id']} ({row['file_name']}) has no annotation")
        yield Sample(row["file_name"], row["file_name"], labels[categories[row["id"]]])


def _require_photos(tree: Tree, year: int, names: Iterable[str]) -> None:
    there = set(tree.names(under=f"train_val{year}"))
    absent = sorted(name for name in names if name not in there)
    if absent:
        raise missing(str(tree), absent, _layout(year))
