"""Revisited Oxford 5k and Paris 6k (Radenović et al. 2018, arXiv:1803.11285): photos of landmarks, queries judged by
people against every photo of the gallery.

    gnd_roxford5k.pkl (or gnd_rparis6k.pkl)
    jpg/*.jpg                                  <root> is a folder or a .zip, which may hold a single top folder

Splits: "gallery" (4,993 or 6,322 photos) and "query" (70 photos each, with the box of the landmark). Samples carry no
class: label 0 is "landmark"; who shows what is in `judgements` of the queries (`evalkit.types.Judged`), which names
photos of the gallery. The benchmark crops queries to their box; DINO's script does not (facebookresearch/dino 7c446df,
eval_image_retrieval.py:60-71), which is the option `crop_queries`.

Layout and meaning: filipradenovic/revisitop be39832, python/dataset.py and python/example_evaluate.py; the .pkl holds
'imlist', 'qimlist' and 'gnd', a list of {'bbx', 'easy', 'hard', 'junk'} with positions in imlist. It goes through
`pickles.loads`, which runs nothing; the original could not be fetched here, so lists and arrays of any number type are
taken. Boxes are in pixels of the stored photo; a photo with an EXIF rotation would be turned and its box left behind.
Annotations: cmp.felk.cvut.cz/revisitop; the photos are their owners'.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evalkit.datasets import pickles
from evalkit.datasets.files import Tree, missing
from evalkit.datasets.listing import Listing, Photos
from evalkit.errors import DatasetError
from evalkit.types import Box, Dataset, Judgement, Sample, SplitSize

ALIASES = {
    "roxford5k": ("ROxford5k", "roxford", "oxford5k", "revisitop/roxford5k"),
    "rparis6k": ("RParis6k", "rparis", "paris6k", "revisitop/rparis6k"),
}
VARIANTS = ("roxford5k", "rparis6k")
SPLITS = ("gallery", "query")
LAYOUT = "  <root>/gnd_roxford5k.pkl (or gnd_rparis6k.pkl)\n  <root>/jpg/*.jpg"


@dataclass(frozen=True)
class Config:
    """variant: which of the two. crop_queries: cut queries to their box, as the benchmark; False: whole photos, as
    DINO's script."""

    variant: Literal["roxford5k", "rparis6k"] = "roxford5k"
    crop_queries: bool = True


@dataclass(frozen=True, eq=False)
class Queries(Listing):
    """The query photos. judgements: by query id; photos of the gallery by id."""

    judgements: Mapping[str, Judgement] = field(default_factory=dict, repr=False)

    @property
    def digest(self) -> str:
        """sha256 over the digest of the photos and all judgements."""
        text = repr([(name, *map(sorted, vars(one).values())) for name, one in sorted(self.judgements.items())])
        return hashlib.sha256(f"{super().digest}\n{text}".encode()).hexdigest()


@dataclass(frozen=True)
class _Truth:
    """What the .pkl says, checked. boxes: one per query."""

    gallery: tuple[str, ...]
    queries: tuple[str, ...]
    boxes: tuple[Box, ...]
    judgements: Mapping[str, Judgement]


def published(folder: str, config: Config) -> Mapping[str, SplitSize]:
    """See the module."""
    return {"gallery": SplitSize(1, 4_993 if config.variant == "roxford5k" else 6_322), "query": SplitSize(1, 70)}


def open(root: Path, split: str, config: Config) -> Dataset:
    """The photos of "gallery" or "query", in the order of the .pkl; ids are file names without ".jpg".

    Raises MissingFiles for an absent .pkl, and for absent photos, all of them; DatasetError for another split, a .pkl
    that would need code, or contents that cannot be: names twice, positions outside the gallery, an image judged twice
    for one query, boxes without area.
    """
    if split not in SPLITS:
        raise DatasetError(f"revisited has no split {split!r}; allowed: {', '.join(SPLITS)}")
    tree = Tree.open(root).rooted([_name(variant) for variant in VARIANTS])
    truth = _truth(tree, config.variant)
    _require_photos(tree, (*truth.gallery, *truth.queries))
    photos = Photos(tree.within("jpg"), "{}.jpg")
    facts = {"variant": config.variant}
    if split == "gallery":
        samples = tuple(Sample(name, name, 0) for name in truth.gallery)
        return Listing("revisited", split, ("landmark",), samples, photos, facts)
    boxes = truth.boxes if config.crop_queries else (None,) * len(truth.queries)
    samples = tuple(Sample(name, name, 0, box) for name, box in zip(truth.queries, boxes, strict=True))
    facts_of_queries = {**facts, "crop_queries": config.crop_queries}
    return Queries("revisited", split, ("landmark",), samples, photos, facts_of_queries, truth.judgements)


def verify(root: Path) -> list[str]:
    """An absent or unusable .pkl, and every photo that one of those present names and that is absent."""
    tree = Tree.open(root).rooted([_name(variant) for variant in VARIANTS])
    present = [variant for variant in VARIANTS if tree.exists(_name(variant))]
    problems = [] if present else [str(missing(str(tree), [_name(VARIANTS[0])], LAYOUT))]
    for variant in present:
        try:
            truth = _truth(tree, variant)
            _require_photos(tree, (*truth.gallery, *truth.queries))
        except DatasetError as error:
            problems.append(str(error))
    return problems


def _name(variant: str) -> str:
    return f"gnd_{variant}.pkl"


def _truth(tree: Tree, variant: str) -> _Truth:
    name = _name(variant)
    if not tree.exists(name):
        raise missing(str(tree), [name], LAYOUT)
    where = tree.where(name)
    found = pickles.loads(tree.read(name), where, pickles.NUMBERS)
    try:
        content = _texts(found)
        gallery, queries = (tuple(map(_text, content[key])) for key in ("imlist", "qimlist"))
        judged = [_judgement(_texts(row), gallery) for row in content["gnd"]]
        boxes = tuple(_box(_texts(row)["bbx"]) for row in content["gnd"])
        doubled = len(set(gallery)) < len(gallery) or len(set(queries)) < len(queries)
        if doubled or not gallery or len(judged) != len(queries):
            raise ValueError(
                f"{len(gallery)} photos, {len(queries)} queries, {len(judged)} judgements; names once each"
            )
    except (KeyError, TypeError, ValueError, IndexError) as cause:
        raise DatasetError(f"{where} is no ground truth of {variant}: {type(cause).__name__}: {cause}") from cause
    return _Truth(gallery, queries, boxes, dict(zip(queries, judged, strict=True)))


def _texts(content: Any) -> dict[str, Any]:
    """A dict with its keys as text, whichever Python wrote it."""
    if not isinstance(content, dict):
        raise TypeError(f"a {type(content).__name__} where a dict should be")
    return {_text(key): value for key, value in content.items()}


def _text(value: Any) -> str:
    if not isinstance(value, str | bytes):
        raise TypeError(f"{value!r} is no name")
    return value.decode() if isinstance(value, bytes) else value


def _judgement(row: Mapping[str, Any], gallery: Sequence[str]) -> Judgement:
    kinds = [[_position(value, len(gallery)) for value in row[kind]] for kind in ("easy", "hard", "junk")]
    positions = [position for kind in kinds for position in kind]
    if len(set(positions)) < len(positions):
        raise ValueError("a photo is judged twice for one query")
    easy, hard, junk = (tuple(gallery[position] for position in kind) for kind in kinds)
    return Judgement(easy, hard, junk)


def _position(value: Any, count: int) -> int:
    if isinstance(value, bool) or int(value) != value or not 0 <= value < count:
        raise ValueError(f"{value!r} is no position in a gallery of {count}")
    return int(value)


def _box(values: Any) -> Box:
    x0, y0, x1, y1 = (float(value) for value in values)
    if not (np.isfinite([x0, y0, x1, y1]).all() and x0 < x1 and y0 < y1):
        raise ValueError(f"the box {values} has no area")
    return (x0, y0, x1, y1)


def _require_photos(tree: Tree, names: Sequence[str]) -> None:
    there = set(tree.names((".jpg",), under="jpg"))
    absent = sorted({f"jpg/{name}.jpg" for name in names} - there)
    if absent:
        raise missing(str(tree), absent, LAYOUT)
