"""What the files under protocols/ say: recipes, suites, tables of papers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evalkit.types.words import Border, Interpolation, Need


@dataclass(frozen=True)
class Source:
    """Where a protocol comes from: paper and table, and the code that was read."""

    paper: str
    table: str = ""
    code: str = ""
    note: str = ""


@dataclass(frozen=True)
class LabelledRef:
    """Which training samples have labels: those of a stored list (`datasets/lists`), or with list "" a seeded share of
    every class."""

    list: str = ""
    share: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class DatasetRef:
    """Which data a recipe uses: the dataset module, its folder under the data root, splits by role, and its options.

    shipped: the data travel with evalkit (`mini/`) and need no data root. labelled: the part of the training split that
    is used; None for all of it.
    """

    name: str
    folder: str
    train: str = "train"
    test: str = "test"
    shipped: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    labelled: LabelledRef | None = None


@dataclass(frozen=True)
class ViewRef:
    """A recipe's view before an encoder is known. size "encoder": the manifest's own size, but at most `at_most` pixels
    (a DINOv2 is made for 518; evaluated at 224 as its paper does).

    crop: share of the short side that the centre crop keeps: 0.875 is 256 -> 224. train_crop: that of stored training
    images, None for the same. border: of boxes that leave the image, in stored features (online crops are black there).
    """

    size: int | Literal["encoder"] = "encoder"
    at_most: int | None = None
    crop: float = 1.0
    fit: Literal["crop", "squash"] = "crop"
    interpolation: Interpolation = "bicubic"
    train_crop: float | None = None
    border: Border = "black"


@dataclass(frozen=True)
class Recipe:
    """`protocols/<id>.toml`: one published way to get one number.

    headline: the name of the score that stands in tables; best: whether higher or lower is better.
    published: rows {encoder, score, value, unit, paper, table, note}.
    """

    id: str
    version: int
    title: str
    runner: str
    headline: str
    source: Source
    dataset: DatasetRef
    view: ViewRef = field(default_factory=ViewRef)
    needs: tuple[Need, ...] = ()
    best: Literal["max", "min"] = "max"
    config: Mapping[str, Any] = field(default_factory=dict)
    published: tuple[Mapping[str, Any], ...] = ()
    digest: str = ""


@dataclass(frozen=True)
class Column:
    """One column of a suite's table: a recipe and one of its scores ("" for the headline)."""

    recipe: str
    score: str = ""
    title: str = ""


@dataclass(frozen=True)
class Suite:
    """`protocols/suites/<id>.toml`: the columns of one table, and the encoders that stand in it by default."""

    id: str
    title: str
    columns: tuple[Column, ...]
    encoders: tuple[str, ...] = ()
    notes: str = ""


@dataclass(frozen=True)
class Measure:
    """What measures cells of a paper's table: a recipe and one of its scores ("" for the headline).

    methods, archs: of which rows, () for all. variant: parts that the cell's variant must have. score may hold `{k}`: the
    value of that key in the cell's variant ("cls;k=10"). differs: why the recipe is not what was printed, "" where the
    two correspond: only then is a difference shown.
    """

    recipe: str
    score: str = ""
    methods: tuple[str, ...] = ()
    archs: tuple[str, ...] = ()
    variant: tuple[str, ...] = ()
    differs: str = ""


@dataclass(frozen=True)
class PaperColumn:
    """A column of a paper's table: which rows of papers.csv stand in it, and what measures them, the best match first."""

    title: str
    protocol: str
    dataset: str
    metric: str
    variant: tuple[str, ...] = ()
    measures: tuple[Measure, ...] = ()


@dataclass(frozen=True)
class PaperRow:
    """A row of a paper's table: which rows of papers.csv stand in it.

    method, arch, pretrain_data, pretrain_epochs: None for any. variant: its parts and the column's together are all the
    parts of a cell's `split_or_variant`. blank: titles of the columns where the paper prints nothing.
    """

    method: str | None = None
    arch: str | None = None
    pretrain_data: str | None = None
    pretrain_epochs: str | None = None
    variant: tuple[str, ...] = ()
    blank: tuple[str, ...] = ()


@dataclass(frozen=True)
class PaperNetwork:
    """An encoder of the zoo that stands for cells in place of the one whose `published_as` selects them, and why.

    variant: only for cells whose variant has these parts. certain: it is the paper's network; otherwise no difference is
    shown.
    """

    encoder: str
    method: str
    why: str
    variant: tuple[str, ...] = ()
    certain: bool = False


@dataclass(frozen=True)
class PaperTable:
    """`protocols/suites/<id>.toml` with the key `paper`: a table of a paper in its own layout.

    paper, table: as in reports/published/papers.csv, which alone holds the values. stubs: what labels a row: columns of
    papers.csv, keys of the variant ("losses"), or "variant" for its words without a value. section: the stub whose value
    stands above its rows.
    """

    id: str
    title: str
    paper: str
    table: str
    stubs: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    columns: tuple[PaperColumn, ...]
    networks: tuple[PaperNetwork, ...] = ()
    section: str = ""
    notes: str = ""
