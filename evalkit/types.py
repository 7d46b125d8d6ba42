"""The words of the house as frozen records and small contracts: shapes, units and ranges are stated here, once.

Nothing heavy is imported at run time, so that `evalkit --help` stays fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image
    from torch import Tensor

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels, origin top left, x1 and y1 exclusive; parts outside the image are black."""

Need = Literal["cls", "patches", "blocks", "projection", "attention"]
"""What a recipe can ask of an encoder."""

Part = Literal["cls", "mean", "patches", "projection", "bottleneck"]
"""A representation: class token (N, D); mean of the patch tokens (N, D); all patch tokens (N, h, w, D); output of the
pretraining head on the last block's class token after the final norm (N, D'), or what enters its last layer (N, D'')."""

Interpolation = Literal["bicubic", "bilinear"]
Fitting = Literal["again", "cut"]
Border = Literal["black", "edge"]
Precision = Literal["auto", "fp32", "bf16"]
Role = Literal["train", "test"]
Read = TypeVar("Read")
"""What a reader makes of a sample."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


# ---------------------------------------------------------------- encoders


@dataclass(frozen=True)
class Tokens:
    """What one block of an encoder says of a batch.

    cls: (B, D) float, or None where the network has no class token.
    patches: (B, h, w, D) float, rows from top to bottom. Register and mask tokens never appear here.
    """

    cls: Tensor | None
    patches: Tensor


@dataclass(frozen=True)
class Preprocessing:
    """How the encoder's authors feed it. size: side in pixels. mean, std: per channel, of pixels in [0, 1]."""

    size: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    source: str = ""


@dataclass(frozen=True)
class EncoderSpec:
    """What is known of a loaded encoder.

    dim, depth, heads: width, number of blocks, attention heads. patch: side of a patch in pixels.
    grid: (h, w) patches at the native size. network: which of the file's networks was taken
    ("teacher", "momentum", "backbone", "untrained" ...). digest: sha256 of the weights file, "" where
    there is none. seed: of an untrained encoder. offers: the needs it can meet. audit: what loading did with each key.
    """

    id: str
    family: str
    arch: str
    dim: int
    depth: int
    heads: int
    patch: int
    grid: tuple[int, int]
    preprocessing: Preprocessing
    network: str
    digest: str
    adapter_version: int
    offers: frozenset[Need]
    seed: int | None = None
    parameters: int = 0
    audit: Mapping[str, Any] = field(default_factory=dict)


class Encoder(Protocol):
    """A frozen network: normalised images in, `Tokens` out. Threads may share it: `encode` leaves nothing in it that
    another call could take for its own."""

    @property
    def spec(self) -> EncoderSpec: ...

    def to(self, device: torch.device) -> Encoder: ...

    def encode(
        self, images: Tensor, blocks: Sequence[int] = (-1,), norm: bool | Sequence[bool] = True
    ) -> tuple[Tokens, ...]:
        """One `Tokens` per block asked for, in the order asked for.

        images: (B, 3, H, W) float, already normalised, H and W multiples of the patch; other sizes than the native
        one resize the position embedding as the family's own code does.
        blocks: 0-based from the input, negative from the output. norm: apply the final norm (one flag, or one per block).
        Raises FeatureError where a block does not exist or the size is no multiple of the patch.
        """
        ...

    def project(self, tokens: Tokens, at: Literal["output", "bottleneck"] = "output") -> Tensor:
        """(B, D') output of the pretraining head. Raises NoProjection where the file holds none."""
        ...

    def attention(self, images: Tensor, queries: Sequence[str | int] = ("cls",)) -> Tensor:
        """(B, heads, Q, N) rows of the last block's attention, each summing to 1; N counts every token, class token
        first. queries: "cls" or the flat index of a patch. Raises Unsupported where there is no attention."""
        ...


@dataclass(frozen=True)
class PublishedAs:
    """Under which names papers print numbers of a checkpoint: the rows of reports/published/papers.csv whose columns say this.

    pretrain_epochs: as printed, "" for rows that state none; several where papers count differently (Mugs counts views);
    () takes every row. papers, tables: only of these, () of all; a table that ablates a method has rows of other networks.
    """

    method: str
    arch: str
    pretrain_data: str
    pretrain_epochs: tuple[str, ...] = ()
    papers: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """`model_zoo/<id>.toml`: one checkpoint.

    family: an adapter. arch: one of that adapter's names. file: a path beside the manifest, or a name in the cache when
    `url` is given ("": the last part of `url`). url: where it is fetched from, "" where only people can get it: then
    `origin` is the page and `notes` says how. sha256: of the whole file, only where its authors publish it; sha256_prefix,
    md5_prefix: the first digits, where they publish those. size: in bytes, 0 where not known. network: which network to
    take, "" for the family's default. seed: of an untrained control.
    published: rows of numbers that belong to it; published_as: the same by reference to reports/published.
    """

    id: str
    family: str
    arch: str
    title: str = ""
    file: str = ""
    url: str = ""
    sha256: str = ""
    sha256_prefix: str = ""
    md5_prefix: str = ""
    size: int = 0
    network: str = ""
    licence: str = ""
    origin: str = ""
    paper: str = ""
    notes: str = ""
    shipped: bool = False
    control: bool = False
    seed: int | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    published: tuple[Mapping[str, Any], ...] = ()
    published_as: PublishedAs | None = None
    training: Mapping[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------- data


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image, or one labelled region of an image.

    id: unique within the split, the same on every machine. group: the image (or clip) that it comes from: the unit of
    decoding and of the bootstrap. label: 0-based class, -1 where there is none. box: the region, None for the whole image.
    """

    id: str
    group: str
    label: int
    box: Box | None = None


class Dataset(Protocol):
    """A reader of one official on-disk layout; a sequence of samples, consecutive where they share a group.

    It can be pickled (workers get a copy) and opens no image before `image` is called.
    """

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]:
        """Names by label."""
        ...

    @property
    def digest(self) -> str:
        """sha256 over what decides the content: ids, labels, boxes and the bytes of the images (how: `describe`)."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...

    def image(self, group: str) -> Image:
        """The decoded image of a group: mode RGB, upright by its EXIF orientation. Raises BrokenImage."""
        ...

    def describe(self) -> dict[str, Any]:
        """Plain facts for the record: root, counts, classes, how the digest was made."""
        ...


@dataclass(frozen=True)
class Judgement:
    """What people said of a query's gallery: ids of images that show it plainly, hardly, or so that they do not count."""

    easy: tuple[str, ...]
    hard: tuple[str, ...]
    junk: tuple[str, ...]


class Judged(Dataset, Protocol):
    """Queries whose gallery was judged image by image."""

    @property
    def judgements(self) -> Mapping[str, Judgement]:
        """By the id of the query."""
        ...


class Segmented(Dataset, Protocol):
    """One sample per image, every pixel labelled. `classes` are the names of the labels; `Sample.label` is -1."""

    def pixels(self, index: int) -> np.ndarray:
        """(H, W) int32 of the sample's upright image: a class each, -1 where nothing counts. Raises BrokenImage."""
        ...


@dataclass(frozen=True, eq=False)
class Outlined:
    """One object of an image. id: unique within the split. label: its class. mask: (H, W) bool, its pixels."""

    id: str
    label: int
    mask: np.ndarray


class Instances(Dataset, Protocol):
    """One sample per image, whose objects are outlined one by one and may overlap. `Sample.label` is -1."""

    def objects(self, index: int) -> tuple[Outlined, ...]:
        """The objects of a sample, in the order of their ids. Raises BrokenImage."""
        ...


@dataclass(frozen=True)
class Skeleton:
    """The keypoints of a kind of body.

    names: (K,). mirrored: (K,) the number of the same keypoint on the other side, its own in the middle. upper: numbers
    of the upper body's. sigmas: (K,) of object keypoint similarity, () where none are published. torso, head: pairs of
    keypoints whose distance measures a person, the first that is labelled counts; () for none.
    """

    names: tuple[str, ...]
    mirrored: tuple[int, ...]
    upper: tuple[int, ...] = ()
    sigmas: tuple[float, ...] = ()
    torso: tuple[tuple[int, int], ...] = ()
    head: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, eq=False)
class Figure:
    """One annotated person of a photo. id: unique within the split. keypoints: (K, 3) float64: x, y in pixels, the centre
    of the first pixel at (0, 0), and visibility: 0 not labelled, 1 labelled and hidden, 2 visible. box: as annotated.
    area: of the outline in square pixels. crowd: several people outlined together."""

    id: int
    keypoints: np.ndarray
    box: Box
    area: float
    crowd: bool = False


class Posed(Dataset, Protocol):
    """One sample per person with a labelled keypoint; `Sample.box` is the region in which the pose is looked for."""

    @property
    def skeleton(self) -> Skeleton:
        """Which keypoints there are."""
        ...

    def figure(self, index: int) -> Figure:
        """The person of a sample."""
        ...

    def figures(self, group: str) -> tuple[Figure, ...]:
        """Everybody in a photo, those too who are no sample (crowds, people without a labelled keypoint)."""
        ...


class Clips(Dataset, Protocol):
    """One sample per video; `Sample.group` is its name, `image(group)` its first frame. `Sample.label` is -1."""

    def frames(self, index: int) -> tuple[str, ...]:
        """The names of a clip's frames, in order."""
        ...

    def frame(self, index: int, number: int) -> Image:
        """The decoded frame, mode RGB. Raises BrokenImage."""
        ...

    def truth(self, index: int, number: int) -> np.ndarray | None:
        """(H, W) uint8: 0 background, 1 ... the objects, 255 where nothing counts; None where the frame has no
        annotation. Raises BrokenImage."""
        ...


@dataclass(frozen=True)
class View:
    """How an image becomes a square input: fixed by recipe and manifest together, part of every feature key.

    size: side in pixels. resize: length of the short side before the centre crop (fit "crop"); with fit "squash"
    both sides go to `size` and `resize` is ignored. Pixels in [0, 1] are normalised by mean and std after resizing.
    border: what fills a box outside the image: "black", or "edge", the nearest pixel of the image.
    """

    size: int
    resize: int
    fit: Literal["crop", "squash"] = "crop"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    border: Border = "black"


@dataclass(frozen=True)
class Augmentation:
    """Random views for online training: RandomResizedCrop(size, scale, ratio) and a horizontal flip.

    Defaults are torchvision's, as DINO's eval_linear.py uses them (facebookresearch/dino 7c446df). fitting: what becomes
    of a drawn crop that is larger than the image: "again" draws another, ten times at most (torchvision); "cut" cuts it
    down to the image (facebookresearch/mae efb2a80 util/crop.py, after BYOL's).
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    fitting: Fitting = "again"
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


class Features(Protocol):
    """Stored features of one split, in sample order; skipped samples are absent from every column."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""
        ...

    @property
    def groups(self) -> Tensor:
        """(N,) int64: samples with the same number come from the same image."""
        ...

    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def skipped(self) -> Sequence[str]:
        """Ids of the samples that could not be decoded (only with --skip-broken)."""
        ...

    def __len__(self) -> int: ...

    def get(self, part: Part, block: int = -1) -> Tensor:
        """One representation in memory: (N, D), or (N, h, w, D) for "patches"; as stored, not L2-normalised."""
        ...

    def batches(self, part: Part, block: int = -1, size: int = 1024) -> Iterator[Tensor]:
        """The same rows in pieces of at most `size`, from mapped shards."""
        ...


@dataclass(frozen=True)
class Batch:
    """One augmented batch: images (B, 3, S, S) float32 normalised on the job's device; labels (B,) int64; positions
    (B,) int64 of the samples in their dataset, on the CPU."""

    images: Tensor
    labels: Tensor
    positions: Tensor
    epoch: int
    last_of_epoch: bool


# ---------------------------------------------------------------- results


@dataclass(frozen=True, eq=False)
class Score:
    """A name, a value, the sample count behind it and its 95 % confidence interval.

    value, low, high: in `unit` ("fraction" in [0, 1] is printed as a percentage). n: units behind the value; 0 means
    that value is NaN. outcomes: (n,) float32, one per unit, whose mean (or the runner's statistic) is the value.
    groups: (n,) int64, units with the same number are resampled together. labels: (n,) int64, the class of each unit: a
    headline with them is also told class by class, as "NAME/CLASS". note: "" for what may stand in a table, "best-on-test"
    and the like for extras that test data helped to choose.
    """

    name: str
    value: float
    n: int
    low: float
    high: float
    unit: str = "fraction"
    note: str = ""
    outcomes: np.ndarray | None = None
    groups: np.ndarray | None = None
    labels: np.ndarray | None = None


class Checkpoint(Protocol):
    """State of unfinished training; atomic, keyed by the job."""

    def load(self) -> dict[str, Any] | None: ...
    def save(self, state: dict[str, Any]) -> None: ...
    def clear(self) -> None: ...


class Job(Protocol):
    """What a runner is given. It opens no file and knows no model by name."""

    encoder: Encoder
    config: Any
    """The runner's own `Config`, resolved from the recipe."""
    device: torch.device
    seed: int
    checkpoint: Checkpoint

    def dataset(self, role: Role) -> Dataset: ...

    def features(
        self,
        role: Role,
        *,
        blocks: Sequence[int] = (-1,),
        norm: bool = True,
        parts: Sequence[Part] = ("cls",),
        positions: Sequence[int] | None = None,
    ) -> Features:
        """Stored features of the train or test split under the recipe's view. positions: of these samples only, in the
        order of the split."""
        ...

    def stream(
        self, role: Role, augmentation: Augmentation, *, epochs: int, batch_size: int, first_epoch: int = 0
    ) -> Iterator[Batch]:
        """Augmented batches, shuffled; epoch e is the same whichever epoch the stream began with."""
        ...

    def read(
        self, role: Role, reader: Callable[..., Read], items: Iterable[tuple[int, ...]], *, ahead: bool = True
    ) -> Iterator[tuple[tuple[int, ...], Read]]:
        """(item, reader(dataset, *item)) of each item in order, computed ahead in decoding workers; with ahead False in
        the thread that asks, when it asks: for threads that work side by side, where no process must be forked.

        The first number of an item is the position of a sample; others are the reader's own (a frame, a turn that
        seeds an augmentation). reader: a function of a module, or an object, that can be pickled. A sample whose image
        is broken is left out and put on record with --skip-broken, else BrokenImage is raised."""
        ...

    def encode(self, images: Tensor, blocks: Sequence[int] = (-1,), norm: bool = True) -> tuple[Tokens, ...]:
        """The encoder's tokens of a batch, in the arithmetic that stored features are computed in."""
        ...

    def rng(self, *names: str | int) -> torch.Generator:
        """A CPU generator seeded by the job's seed and these names; never the global one."""
        ...

    def track(self, steps: Iterable[Any], what: str, total: int | None = None) -> Iterable[Any]:
        """The same items, with progress shown."""
        ...

    def fact(self, name: str, value: Any) -> None:
        """A plain fact for the record (the chosen rate, how sizes were rounded)."""
        ...

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Tensors to lie beside the record (trained heads)."""
        ...

    def deliver(self, name: str, labels: np.ndarray) -> None:
        """A label map (H, W) uint8 for other tools, "<clip>/<frame>": written where somebody asked for it, else dropped."""
        ...


class Progress(Protocol):
    """Where long work says how far it is."""

    def track(self, steps: Iterable[Any], what: str, total: int | None = None) -> Iterable[Any]: ...
    def status(self, what: str) -> AbstractContextManager[None]: ...


# ---------------------------------------------------------------- catalog


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
