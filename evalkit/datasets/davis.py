"""DAVIS videos with a label per pixel: DAVIS-2017 (several objects), DAVIS-2016 (one), and any folder of that layout.

    JPEGImages/480p/<clip>/00000.jpg ...
    Annotations/480p/<clip>/00000.png ...      indexed PNG: 0 background, 1 2 ... objects, 255 void (2016: 0 and 255)
    ImageSets/2017/{train,val,test-dev}.txt    a clip a line (2016: ImageSets/2016/{train,val}.txt, or the lists of
                                               frames in ImageSets/480p/ of the first release)

One sample per clip, in the order of the list; split "all" takes every clip folder, sorted, and needs no list. The folder
480p may be left out or have another name. Frames are sorted by name, the numbers in it as numbers; a mask belongs to the
frame of the same name. Every frame needs a mask (`sparse` allows fewer: the first, and two more, since the first and the
last are not scored), of the frame's size. Objects are numbered from 1 in the first mask without gaps. <root> is a folder
or a .zip, which may hold a single top folder such as DAVIS/.

Source: Pont-Tuset et al., arXiv:1704.00675; Perazzi et al., CVPR 2016; davischallenge.org, "TrainVal - Images and
Annotations (480p)". With the annotations of 2017, year 2016 takes all objects of a clip together.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from evalkit.datasets import beside, images, indexed
from evalkit.datasets.files import Tree, in_number_order, missing
from evalkit.datasets.listing import Listing
from evalkit.errors import BrokenImage, DatasetError, MissingFiles
from evalkit.files import shown
from evalkit.types import Clips, Sample, SplitSize

if TYPE_CHECKING:
    from PIL.Image import Image

ALIASES = {
    "davis2017": ("DAVIS", "DAVIS2017", "DAVIS-2017", "davis"),
    "davis2016": ("DAVIS", "DAVIS2016", "DAVIS-2016", "davis", "davis16"),
}
LAYOUT = (
    "  <root>/JPEGImages/480p/<clip>/00000.jpg ...\n  <root>/Annotations/480p/<clip>/00000.png ...\n"
    "  <root>/ImageSets/{2017,2016}/<split>.txt"
)
FRAMES, MASKS, LISTS = "JPEGImages", "Annotations", "ImageSets"
ALL = "all"
VOID = 255


@dataclass(frozen=True)
class Config:
    """year: 2017 reads masks as ids, 2016 everything above 0 as the one object (Perazzi et al. 2016 have 0 and 255).

    resolution: the folder between JPEGImages and the clips; where there is none of this name, the clips may lie in
    JPEGImages itself. sparse: frames after the first may lack a mask, as where each fifth frame is annotated; such frames
    are never scored. A clip of fewer than three masks (test-dev has one) is broken: none of its frames would be.
    """

    year: Literal[2016, 2017] = 2017
    resolution: str = "480p"
    sparse: bool = False


class Clip(NamedTuple):
    """One video. frames: files in order; masks: of the same length, None where a frame has none."""

    name: str
    frames: tuple[str, ...]
    masks: tuple[str | None, ...]


@dataclass(frozen=True, eq=False)
class Reels:
    """The files of clips, by name of the clip (`Pictures` of a `Listing`)."""

    tree: Tree
    clips: Mapping[str, Clip]
    year: int

    @property
    def root(self) -> str:
        """The folder or zip, and the part inside."""
        return str(self.tree)

    def image(self, group: str) -> Image:
        """The first frame of a clip. Raises BrokenImage."""
        return self.frame(group, 0)

    def digest(self, groups: Sequence[str]) -> tuple[str, str]:
        """Over all frames and masks of these clips, and the year they are read as."""
        files = [file for group in groups for file in (*self.clips[group].frames, *self.clips[group].masks) if file]
        content, how = self.tree.digest(files)
        return hashlib.sha256(f"{content}\n{self.year}\n".encode()).hexdigest(), f"{how}, frames and masks"

    def frame(self, group: str, number: int) -> Image:
        """A decoded frame. Raises BrokenImage, for another size than the clip's first frame too."""
        name = self.clips[group].frames[number]
        picture = images.decode(self._bytes(name), self.tree.where(name))
        expected = self._size(group, 0)
        if picture.size != expected:
            raise BrokenImage(
                f"{self.tree.where(name)}: is {picture.size} pixels, but the first frame of {group!r} is {expected}"
            )
        return picture

    def truth(self, group: str, number: int) -> npt.NDArray[np.uint8] | None:
        """A label map, see `evalkit.types.Clips`. Raises BrokenImage, in the first frame for ids with gaps, for no object,
        and for a clip of fewer than three masks too."""
        name = self.clips[group].masks[number]
        if number == 0 and (problem := _too_short(self.clips[group])):
            raise BrokenImage(f"{self.tree}: {problem}")
        if name is None:
            return None
        where = self.tree.where(name)
        labels = indexed.decode(self._bytes(name), where, binary=self.year == 2016)
        size = self._size(group, number)
        if labels.shape != size[::-1]:
            raise BrokenImage(f"{where}: is {labels.shape[::-1]} pixels, but its frame is {size}")
        if self.year == 2016:
            labels = (labels > 0).astype(np.uint8)
        if number == 0 and (problem := numbering(labels)):
            raise BrokenImage(f"{where}: {problem}")
        return labels

    def _size(self, group: str, number: int) -> tuple[int, int]:
        name = self.clips[group].frames[number]
        return images.size(self._bytes(name), self.tree.where(name))

    def _bytes(self, name: str) -> bytes:
        try:
            return self.tree.read(name)
        except MissingFiles:
            raise
        except DatasetError as cause:
            raise BrokenImage(str(cause)) from cause


@dataclass(frozen=True, eq=False)
class Videos(Listing):
    """Clips of one split; see `evalkit.types.Clips`."""

    pictures: Reels = field(repr=False)

    def frames(self, index: int) -> tuple[str, ...]:
        """Names without folder and ending, as masks are named."""
        return tuple(PurePosixPath(file).stem for file in self._clip(index).frames)

    def frame(self, index: int, number: int) -> Image:
        """As `Reels.frame`."""
        return self.pictures.frame(self._clip(index).name, number)

    def truth(self, index: int, number: int) -> npt.NDArray[np.uint8] | None:
        """As `Reels.truth`."""
        return self.pictures.truth(self._clip(index).name, number)

    def _clip(self, index: int) -> Clip:
        return self.pictures.clips[self.samples[index].group]


def published(folder: str, config: Config) -> Mapping[str, SplitSize]:
    """Clips of train and val: Pont-Tuset et al., Table 1; Perazzi et al."""
    return {"train": SplitSize(0, 60 if config.year == 2017 else 30, "clips"),
            "val": SplitSize(0, 30 if config.year == 2017 else 20, "clips")}  # fmt: skip


def open(root: Path, split: str, config: Config) -> Clips:
    """The clips of a list, or of every folder for split "all".

    Raises MissingFiles, which lists every absent clip, frame folder and mask; DatasetError for a split without list, an
    empty list, and a clip named twice.
    """
    tree = Tree.open(root).rooted([FRAMES])
    found = _clips(tree, config.resolution)
    chosen = [found.get(name, Clip(name, (), ())) for name in _named(tree, split, config.year, found)]
    absent = [problem for clip in chosen for problem in _absent(clip, config)]
    if absent:
        raise missing(str(tree), absent, LAYOUT)
    facts: dict[str, Any] = {
        "year": config.year,
        "frames": sum(len(clip.frames) for clip in chosen),
        "annotated_frames": sum(mask is not None for clip in chosen for mask in clip.masks),
    }
    samples = tuple(Sample(clip.name, clip.name, -1) for clip in chosen)
    reels = Reels(tree, {clip.name: clip for clip in chosen}, config.year)
    return Videos("davis", split, (), samples, reels, facts)


def verify(root: Path) -> list[str]:
    """Clips that a list names and that are absent, first frames without mask, masks without frame, and every mask that
    holds no labels, has another size than its frame or numbers its objects with gaps. Every mask is decoded."""
    tree = Tree.open(root).rooted([FRAMES])
    found = _clips(tree, Config.resolution)
    if not found:
        return [str(missing(str(tree), [f"{FRAMES}/{Config.resolution}"], LAYOUT))]
    problems = []
    for name in sorted(found.keys() | {clip for file in _lists(tree) for clip in _lines(tree, file)}):
        clip = found.get(name, Clip(name, (), ()))
        problems += [f"{tree}: {name} lacks {file}" for file in _absent(clip, Config(sparse=True))]
        problems += [f"{tree}: {short}" for short in [_too_short(clip)] if short and clip.frames]
        problems += _mask_problems(tree, clip)
    strays = _masks(tree, Config.resolution).keys() - {_key(file) for clip in found.values() for file in clip.frames}
    lone = sorted(map("/".join, strays), key=in_number_order)
    return [*problems, *(f"{tree}: the mask {shown(key)} belongs to no frame" for key in lone)]


def numbering(labels: npt.NDArray[np.uint8]) -> str:
    """What is wrong with the ids of a first mask (H, W) uint8; "" where they are 1, 2, 3 ... beside 0 and 255."""
    ids = [int(label) for label in np.unique(labels) if label not in (0, VOID)]
    if ids == list(range(1, len(ids) + 1)) and ids:
        return ""
    if ids:
        return f"its objects are numbered {ids}; they must be 1 ... {len(ids)} without gaps"
    if (labels == VOID).any():
        return "has only 0 and 255, which is no object and void; masks of DAVIS-2016 are read with year = 2016"
    return "is the first mask of its clip and holds no object"


def _too_short(clip: Clip) -> str:
    """Why no frame of a clip is ever scored, "" where some are: the first and the last that have a mask do not count."""
    annotated = sum(mask is not None for mask in clip.masks)
    if annotated > 2:
        return ""
    frames = len(clip.frames)
    count = f"{frames} frame(s)" if frames < 3 else f"{annotated} annotated frame(s) of {frames}"
    return f"the clip {shown(clip.name)} has {count}; at least 3 are needed, the ends are not scored"


def _mask_problems(tree: Tree, clip: Clip) -> Iterator[str]:
    for number, mask in enumerate(clip.masks):
        if mask is None:
            continue
        try:
            labels = indexed.decode(tree.read(mask), tree.where(mask), binary=True)
            size = images.size(tree.read(clip.frames[number]), f"{tree}/{clip.frames[number]}")
        except DatasetError as error:
            yield str(error)
            continue
        if labels.shape != size[::-1]:
            yield f"{tree.where(mask)}: is {labels.shape[::-1]} pixels, but its frame is {size}"
        binary = set(np.unique(labels).tolist()) <= {0, VOID}
        if number == 0 and not (binary and labels.any()) and (problem := numbering(labels)):
            yield f"{tree.where(mask)}: {problem}"


def _absent(clip: Clip, config: Config) -> list[str]:
    """The files that a clip lacks."""
    if not clip.frames:
        return [f"{FRAMES}/{config.resolution}/{clip.name}/*.jpg"]
    needed = 1 if config.sparse else len(clip.frames)
    pairs = list(zip(clip.frames, clip.masks, strict=True))[:needed]
    return [f"{MASKS}/{'/'.join(PurePosixPath(f).with_suffix('.png').parts[1:])}" for f, mask in pairs if mask is None]


def _clips(tree: Tree, resolution: str) -> dict[str, Clip]:
    """Every folder of frames, by name."""
    masks = _masks(tree, resolution)
    frames: dict[str, list[str]] = {}
    for file in _files(tree, FRAMES, resolution, images.SUFFIXES):
        frames.setdefault(_key(file)[0], []).append(file)
    for name, files in frames.items():
        files.sort(key=in_number_order)
        if doubled := [key[1] for key, times in Counter(map(_key, files)).items() if times > 1]:
            raise DatasetError(f"{tree}: the clip {shown(name)} has {len(doubled)} frames twice: {doubled[:5]}")
    return {
        name: Clip(name, tuple(files), tuple(masks.get(_key(file)) for file in files))
        for name, files in sorted(frames.items())
    }


def _masks(tree: Tree, resolution: str) -> dict[tuple[str, str], str]:
    return {_key(file): file for file in _files(tree, MASKS, resolution, (".png",))}


def _files(tree: Tree, top: str, resolution: str, suffixes: Sequence[str]) -> Iterator[str]:
    """Files of clip folders in `top`/`resolution`, or in `top` itself where there is no such folder."""
    inner = f"{top}/{resolution}" if resolution and tree.exists(f"{top}/{resolution}") else top
    depth = len(PurePosixPath(inner).parts) + 2
    names = tree.names(suffixes, under=inner) if top == MASKS else beside.photos(tree, inner, suffixes)[0]
    return (file for file in names if len(PurePosixPath(file).parts) == depth)


def _key(file: str) -> tuple[str, str]:
    """(clip, frame) of a file."""
    path = PurePosixPath(file)
    return path.parent.name, path.stem


def _named(tree: Tree, split: str, year: int, found: Mapping[str, Clip]) -> list[str]:
    if split == ALL:
        return list(found)
    places = [f"{LISTS}/{year}/{split}.txt", *([f"{LISTS}/480p/{split}.txt"] if year == 2016 else [])]
    for place in places:
        if tree.exists(place):
            names = _lines(tree, place)
            if not names:
                raise DatasetError(f"{tree.where(place)} names no clip")
            return names
    lists = ", ".join(_lists(tree)) or "none"
    raise DatasetError(f"{tree} has no split {split!r}: there is no {places[0]}. Lists: {lists}; {ALL!r} needs none")


def _lists(tree: Tree) -> list[str]:
    return tree.names((".txt",), under=LISTS)


def _lines(tree: Tree, place: str) -> list[str]:
    """The clips of a list: a name a line, or in the first release the paths of a frame and its mask."""
    text = tree.read(place).decode("utf-8", "replace")
    words = [line.split()[0] for line in text.splitlines() if line.split()]
    paths = any("/" in word for word in words)
    names = [PurePosixPath(word).parent.name for word in words] if paths else words
    if not paths and len(set(names)) < len(names):
        raise DatasetError(f"{tree.where(place)} names {next(n for n in names if names.count(n) > 1)!r} twice")
    return list(dict.fromkeys(names))
