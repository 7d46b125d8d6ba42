"""Folders of photos and of index masks of the same names: most private segmentation data look so.

    <root>/images/<split>/**/NAME.jpg | png | ...
    <root>/masks/<split>/**/NAME.png              one channel, a class number per pixel
    <root>/classes.txt                            names of the classes 0, 1 ..., one a line

Where the folders or the endings have other names, `Config` says so; <root> is a folder or a .zip, which may hold a
single top folder. The layout is that of mmsegmentation's custom data sets (docs "Add new datasets"); 255 does not count,
as there. A mask has the size of its upright photo. A photo without mask and a mask without photo are errors: both would
change the number without a word. The licence is that of the images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from evalkit.datasets import beside, dense, images
from evalkit.datasets.files import Tree, missing
from evalkit.datasets.listing import Photos
from evalkit.errors import CatalogError, DatasetError, MissingFiles
from evalkit.types import Dataset

CLASSES = "classes.txt"
LAYOUT = "  <root>/images/<split>/NAME.jpg\n  <root>/masks/<split>/NAME.png\n  <root>/classes.txt"


@dataclass(frozen=True)
class Config:
    """images, masks: the folders of a split, "{split}" standing for its name. photo_ending, mask_ending: what follows
    NAME in the file names (Cityscapes: "_leftImg8bit.png"), "" for any ending of an image.

    classes: names by class number, or how many there are where they have no names; () where classes.txt has them.
    zero_ignored: 0 does not count and 1 is the first class (mmsegmentation's `reduce_zero_label`). ignored: values that
    do not count. Raises CatalogError for folders that are the same, names that occur twice, and values that are no
    numbers of a mask.
    """

    images: str = "images/{split}"
    masks: str = "masks/{split}"
    photo_ending: str = ""
    mask_ending: str = ".png"
    classes: tuple[str, ...] | int = ()
    zero_ignored: bool = False
    ignored: tuple[int, ...] = (255,)

    def __post_init__(self) -> None:
        if (self.images, self.photo_ending) == (self.masks, self.mask_ending):
            raise CatalogError(f"masked_folder: images and masks are both {self.images!r}; masks need their own folder")
        if isinstance(self.classes, int):
            if not 1 <= self.classes <= 65535:
                raise CatalogError(f"masked_folder: classes is {self.classes}; a mask can hold 1 to 65535")
        elif len(set(self.classes)) < len(self.classes):
            raise CatalogError(f"masked_folder: a name occurs twice in classes: {self.classes}")
        if any(not 0 <= value <= 65535 for value in self.ignored):
            raise CatalogError(f"masked_folder: ignored is {self.ignored}; a mask holds numbers from 0 to 65535")


def open(root: Path, split: str, config: Config) -> Dataset:
    """The photos of a split, sorted by path: a `Segmented` data set whose groups are the paths below the split's folder.

    Raises MissingFiles where the split, classes.txt or the mask of a photo is absent; DatasetError for masks without
    photo, two photos of one name, class names that are none, and, where no ending is asked for, images that are not read.
    """
    folders = [folder.replace("{split}", split).strip("/") for folder in (config.images, config.masks)]
    tree = Tree.open(root).rooted(folders)
    for folder in folders:
        if not split or not tree.exists(folder):
            raise MissingFiles(f"{tree} has no {folder}, where the split {split!r} lies.\nExpected:\n{LAYOUT}")
    classes = _classes(tree, config)
    photos, facts = _photos(tree, folders[0], config.photo_ending)
    masks = _by_name(tree, folders[1], config.mask_ending)
    _require_pairs(tree, photos, masks, folders)
    groups = {photo: masks[name] for name, photo in photos.items()}
    first = int(config.zero_ignored)
    ignored = (*config.ignored, *([0] if config.zero_ignored else []))
    return dense.label_maps(
        "masked_folder",
        split,
        classes,
        sorted(groups),
        photos=Photos(tree.within(folders[0])),
        maps=dense.IndexMasks(
            tree.within(folders[1]), groups, dense.numbered(len(classes), first=first, ignored=ignored)
        ),
        facts=facts,
    )


def verify(root: Path) -> list[str]:
    """Of every split below images/: photos without mask, masks without photo, and each mask that is no index mask, has
    another size than its photo, or holds a number that classes.txt does not name."""
    tree = Tree.open(root).rooted(["images"])
    splits = tree.folders("images")
    if not splits:
        return [f"{tree} has no images/<split>.\nExpected:\n{LAYOUT}"]
    return dense.problems(partial(open, root, split, Config()) for split in splits)


def _classes(tree: Tree, config: Config) -> tuple[str, ...]:
    if isinstance(config.classes, int):
        first = int(config.zero_ignored)
        return tuple(f"class {first + number}" for number in range(config.classes))
    if config.classes:
        return config.classes
    if not tree.exists(CLASSES):
        raise MissingFiles(
            f"{tree} has no {CLASSES}, which names the classes, one a line (or give them as the option `classes`)"
        )
    names = dense.lines(tree, CLASSES)
    if not names or len(set(names)) < len(names):
        raise DatasetError(f"{tree}/{CLASSES}: needs one name a line, none of them twice; it holds {len(names)} names")
    return tuple(names)


def _photos(tree: Tree, folder: str, ending: str) -> tuple[dict[str, str], Mapping[str, Any]]:
    """As `_by_name`, and the facts of `beside`. An ending that is asked for says itself which images are meant."""
    facts = {} if ending else beside.photos(tree, folder)[1]
    return _by_name(tree, folder, ending), facts


def _by_name(tree: Tree, folder: str, ending: str) -> dict[str, str]:
    """Paths below the folder by NAME, which is the path without its ending. Raises DatasetError for a doubled one."""
    found: dict[str, str] = {}
    for full in tree.names((ending.lower(),) if ending else images.SUFFIXES, under=folder):
        path = full[len(folder) + 1 :]
        name = path[: -len(ending)] if ending else path.rpartition(".")[0]
        if name in found:
            raise DatasetError(f"{tree}/{folder}: {found[name]} and {path} have the same name; a mask belongs to one")
        found[name] = path
    return found


def _require_pairs(tree: Tree, photos: Mapping[str, str], masks: Mapping[str, str], folders: list[str]) -> None:
    unmasked = sorted(set(photos) - set(masks))
    if unmasked:
        raise missing(str(tree), [f"{folders[1]}/{name}.*" for name in unmasked], LAYOUT)
    lone = sorted(set(masks) - set(photos))
    if lone:
        shown = ", ".join(masks[name] for name in lone[:10]) + (" ..." if len(lone) > 10 else "")
        raise DatasetError(
            f"{tree}/{folders[1]}: {len(lone):,} masks have no photo in {folders[0]}: {shown}; add or remove them"
        )
