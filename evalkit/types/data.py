"""Samples, kinds of data sets, how their pixels are shown, and the features that come of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from evalkit.types.words import IMAGENET_MEAN, IMAGENET_STD, Border, Box, Fitting, Interpolation, Part

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor


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
class SplitSize:
    """How large a split is as it was published: what printed numbers were measured on.

    classes: None where the recipe's options decide. photos: as the release has them, whether each gives a sample or not;
    `unit` is what they are.
    """

    classes: int | None
    photos: int
    unit: Literal["photos", "clips"] = "photos"

    def told(self) -> str:
        """`1,000 classes, 50,000 photos`."""
        return (f"{self.classes:,} classes, " if self.classes else "") + f"{self.photos:,} {self.unit}"


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
