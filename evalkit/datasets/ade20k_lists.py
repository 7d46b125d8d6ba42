"""The objects and parts of ADE20K that are classes: a list made from the full release by a stated rule, kept as JSON.

The part-aware paper (arXiv:2301.11915) evaluates 59 objects and 209 parts and prints neither list. Its released code
(JiePKU/understand-ssl-part-aware ffea818) names 59 objects (lists/ade20k-object59.names) and, for the 209 parts, only
placeholders, with masks that are already numbered. The rule here: a pair of object and part counts where the part is of
level 1 ("part_level": a part of an object, not of a part), its object is one of the list of objects, and the pair is
annotated in at least `least` photos of the training split and of the validation split. Pairs are ordered by the numbers
of object and part. Whether that gives 209 can only be seen with the release: the list holds the counts, and
`evalkit data classes` prints them beside the paper's.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from evalkit.datasets import ade_names
from evalkit.datasets.files import Tree
from evalkit.errors import DatasetError, MissingFiles

FORMAT = 1
DEFAULT = "ade20k-part209"
OBJECTS = "ade20k-object59"
SPLITS = ("training", "validation")
LAYOUT = (
    "  <root>/images/ADE/{training,validation}/SCENE/NAME.jpg, NAME.json, NAME_seg.png, NAME_parts_1.png\n"
    "  (<root> is the folder ADE20K_2021_17_01)"
)


class Part(NamedTuple):
    """A pair of object and part: names (first synonyms) and numbers in the release, and photos of each split that have
    it."""

    object: str
    object_number: int
    part: str
    part_number: int
    training: int
    validation: int

    @property
    def title(self) -> str:
        """As a class is called: "bed headboard"."""
        return f"{self.object} {self.part}"


@dataclass(frozen=True)
class PartList:
    """parts: the classes in their order. rule: what they were made by, and from how many photos."""

    parts: tuple[Part, ...]
    rule: Mapping[str, Any]

    @cached_property
    def objects(self) -> tuple[tuple[str, int], ...]:
        """(name, number) of the objects with a part in the list, by number."""
        return tuple(sorted({(part.object, part.object_number) for part in self.parts}, key=lambda item: item[1]))

    def text(self) -> str:
        """The list as JSON, one part a line."""
        rows = ",\n".join(f"    {json.dumps(part._asdict())}" for part in self.parts)
        head = json.dumps({"format": FORMAT, "rule": dict(self.rule)}, indent=2)
        return f'{head[:-2]},\n  "parts": [\n{rows}\n  ]\n}}\n'


@dataclass(frozen=True)
class Rule:
    """By what a list was made: the release's folder, the list of objects ("" for all), photos per split that must have a
    pair, the photos that were read, and parts left out because the annotation does not say of which object."""

    release: str
    objects: str
    least: int
    training: int
    validation: int
    unplaced: int
    level: int = 1


def folder(split: str) -> str:
    """Where the files of a split lie."""
    return f"images/ADE/{split}"


def path(which: str) -> Path:
    """The file of a list: a path as it is, a name in the folder `lists`."""
    return Path(which) if "/" in which or which.endswith(".json") else ade_names.LISTS / f"{which}.json"


def read(which: str) -> PartList:
    """A generated list. Raises MissingFiles, which says how it is made; DatasetError where the file is none."""
    file = path(which)
    if not file.exists():
        raise MissingFiles(
            f"the list of classes {which!r} is not there ({file}). It is generated once from the full release of ADE20K: "
            f"evalkit data classes ade20k_parts --data-root DIR --out {file}"
        )
    try:
        document = json.loads(file.read_text("utf-8"))
        parts = tuple(Part(**row) for row in document["parts"])
        if document["format"] != FORMAT or not parts:
            raise ValueError(f"format {document['format']} with {len(parts)} parts; this evalkit reads format {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise DatasetError(f"{file} is no list that `evalkit data classes ade20k_parts` wrote: {cause}") from cause
    return PartList(parts, document.get("rule", {}))


def generate(tree: Tree, *, objects: str = OBJECTS, least: int = 1) -> PartList:
    """The list of a release. objects: a list of object names, "" for every object that has parts.

    Raises MissingFiles where a split has no annotations; DatasetError for an annotation that is none, for a name with two
    numbers, and where no pair is left.
    """
    wanted = set(ade_names.named(objects)) if objects else None
    counts = {split: Counter[tuple[int, int]]() for split in SPLITS}
    scan = _Scan(tree)
    names, photos = scan.names, {}
    for split in SPLITS:
        files = tree.names((".json",), under=folder(split))
        if not files:
            raise MissingFiles(f"{tree} has no annotations in {folder(split)}.\nExpected:\n{LAYOUT}")
        photos[split] = len(files)
        for file in files:
            counts[split].update(scan.pairs(file))
    kept = sorted(pair for pair in counts["training"] if min(counts[split][pair] for split in SPLITS) >= least)
    parts = tuple(
        Part(names[whole], whole, names[part], part, counts["training"][whole, part], counts["validation"][whole, part])
        for whole, part in kept
        if wanted is None or names[whole] in wanted
    )
    if not parts:
        raise DatasetError(f"{tree}: no part of {objects or 'any object'} is in {least} photos of both splits")
    rule = Rule(tree.path.name, objects, least, photos["training"], photos["validation"], scan.unplaced)
    return PartList(parts, asdict(rule))


class _Scan:
    """Reads annotations one by one. names: by number. unplaced: parts whose object is not in their annotation."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.names: dict[int, str] = {}
        self.unplaced = 0

    def pairs(self, file: str) -> set[tuple[int, int]]:
        """(number of the object, number of the part) of every part of level 1."""
        where = self.tree.where(file)
        try:
            rows = json.loads(_text(self.tree.read(file)))["annotation"]["object"]
            objects = {row["id"]: row for row in rows}
            parts = [row for row in rows if row["parts"]["part_level"] == 1]
            placed = [row for row in parts if _owner(row) in objects]
            self.unplaced += len(parts) - len(placed)
            return {(self._number(objects[_owner(row)], where), self._number(row, where)) for row in placed}
        except (ValueError, KeyError, TypeError, RecursionError) as cause:
            raise DatasetError(f"{where} is no annotation of this release: {type(cause).__name__} {cause}") from cause

    def _number(self, row: Mapping[str, Any], where: str) -> int:
        number, name = int(row["name_ndx"]), ade_names.first(row["name"])
        if self.names.setdefault(number, name) != name:
            raise DatasetError(f"{where}: number {number} is {name!r}, elsewhere {self.names[number]!r}")
        return number


def _owner(row: Mapping[str, Any]) -> int | None:
    """The id of the object that a part belongs to; the release writes an empty list where there is none."""
    owner = row["parts"]["ispartof"]
    return owner if isinstance(owner, int) else None


def _text(data: bytes) -> str:
    """Some annotations hold names in ISO 8859-1."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("iso-8859-1")
