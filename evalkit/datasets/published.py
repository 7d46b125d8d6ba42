"""What published numbers were measured on: the classes and photos of each split, and whether some data are those.

published.splits(recipe.dataset)            # {"train": SplitSize(1000, 1281167), "val": SplitSize(1000, 50000)}
published.differences(recipe.dataset, record.data)      # ["train: 3 of 1,000 classes", ...]; [] where they are the same

A layout states them itself, `published(folder, config)` beside `ALIASES`, once for all recipes. Sizes are of whole
splits: which part has labels (`labelled`) is the recipe's own. Photos are those that the release has or names, also where
only some of them give samples (`describe` then says "photos").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evalkit import datasets
from evalkit.errors import DatasetError
from evalkit.types import DatasetRef, SplitSize

UNKNOWN = "it is not known which data the printed numbers were measured on"


def splits(ref: DatasetRef) -> Mapping[str, SplitSize]:
    """By split; empty for data that travel with evalkit and where a layout does not know."""
    stated = getattr(datasets.module(ref.name), "published", None)
    if ref.shipped or stated is None:
        return {}
    found: Mapping[str, SplitSize] = stated(ref.folder, datasets.configure(ref))
    return found


def differences(ref: DatasetRef, data: Mapping[str, Any]) -> list[str]:
    """How a record's `data` are not what papers measured, a sentence each; empty where they are.

    A split that does not say its classes and photos (older records), and one that broken images were left out of, is
    not the published one.
    """
    sizes = splits(ref)
    asked = {"train": ref.train, "test": ref.test}
    if not all(split in sizes for split in asked.values()):
        return [UNKNOWN]
    return [line for role, split in asked.items() for line in _told(split, sizes[split], data.get(role) or {})]


def problems(ref: DatasetRef, path: Path) -> Iterator[str]:
    """What `data verify` says of the splits that can be opened: other numbers of classes or photos than published."""
    for split, size in splits(ref).items():
        try:
            found = datasets.module(ref.name).open(path, split, datasets.configure(ref))
        except DatasetError:
            continue  # the layout's own check has said so
        photos = getattr(found, "facts", {}).get("photos", len({found[index].group for index in range(len(found))}))
        if size.classes is not None and len(found.classes) != size.classes:
            yield f"the split {split!r} has {len(found.classes):,} classes; {size.classes:,} are published"
        if photos != size.photos:
            yield f"the split {split!r} has {photos:,} {size.unit}; {size.photos:,} are published"


def _told(split: str, size: SplitSize, facts: Mapping[str, Any]) -> Iterator[str]:
    classes, photos = facts.get("classes"), facts.get("photos", facts.get("images"))
    photos = (facts.get("labelled") or {}).get("of", photos)
    if classes is None or photos is None:
        yield f"{split}: the record does not say how many classes and {size.unit} it has"
        return
    if size.classes is not None and len(classes) != size.classes:
        yield f"{split}: {len(classes):,} classes, published {size.classes:,}"
    if photos != size.photos:
        yield f"{split}: {photos:,} {size.unit}, published {size.photos:,}"
    if skipped := len(facts.get("skipped") or ()):
        yield f"{split}: {skipped:,} that could not be read are left out"
