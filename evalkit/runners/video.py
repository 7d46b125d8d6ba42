"""Video object segmentation by label propagation: the first frame's mask follows its objects by similar patch features.

What:   patch tokens of the last block of every frame; labels go from frame to frame (`metrics.propagation`); label maps at
        the original size are scored by J and F (`metrics.video`), as davis2017-evaluation does, without files between.
Source: DINO (arXiv:2104.14294, Table 5; facebookresearch/dino 7c446df, eval_video_segmentation.py). Mugs Table 11, MMC
        Table 2 and SelfPatch Tables 3 to 5 use it (alinlab/SelfPatch 81aef14 has it with two lines changed: no class token,
        no final norm). DINOv3's form: facebookresearch/dinov3 6876159, notebooks/segmentation_tracking.ipynb.
Rule:   nothing is trained and nothing chosen. Released code normalises with 0.228 where ImageNet's std is 0.229 (line 244):
        here the encoder's own mean and std, and `-dino-released` has the quirk. 255 (void) in a first mask is background,
        as davis2017-evaluation has it (davis.py, get_all_masks); the released script makes it a channel of its own (lines
        176-188), whose label 255 the scorer refuses where it reaches a frame.
How:    on a CPU clips are followed side by side, one to a thread, with the results of one after another (`probing.lanes`);
        a GPU takes them one after another.
Memory: for each clip at work the features of the 8 contexts and of one batch of frames, whatever its length; label maps as
        bytes.
Expect: on DAVIS-2017 val J&F 61.8 for DINO ViT-S/16, 62.3 for ViT-B/16, 69.9 for ViT-S/8 (Table 5).
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from evalkit.errors import FeatureError, ProtocolError, UsageError
from evalkit.features.view import scale
from evalkit.metrics import video
from evalkit.metrics.propagation import Rules, Tracker, label_map, nearest_label_map, propagate
from evalkit.probing.frames import Frame, Geometry, Reader, Size, Style, nearest
from evalkit.probing.lanes import lanes
from evalkit.probing.resume import taken_up
from evalkit.state import Each, Sized
from evalkit.types import Clips, Job, Score

__all__ = ["Config", "predicted", "propagate", "run"]

DELIVERS = "label maps"
"""What `--save-masks` can write of this runner."""

TOKENS = {"cpu": 4096, "cuda": 65536}
"""Patch tokens that the encoder is given at once: 2 frames at patch 16 of 480p on a CPU, 42 on a GPU."""

AT_ONCE = 8
"""Clips followed side by side at most, on a CPU with as many threads: each needs memory of its own."""


LABELS_APART = True
"""Labels of one split are never held against those of the other, so the splits may have other classes."""


@dataclass(frozen=True)
class Config:
    """How labels propagate; the defaults are DINO's (eval_video_segmentation.py:129, 197-263), with a clean std.

    style: how frames and masks change their size, see `probing.frames`; "dinov3" also takes the nearest label instead of
    interpolating. short: side in pixels, 480 (DINOv3: 960). multiple: 64, of which the long side is one. context: 7
    frames before, and the first. radius: 12 patches. window: "square" ("circle" in DINOv3). neighbours: 5. temperature:
    0.1 (DINOv3: 0.2). norm: the final norm; SelfPatch's script has none. mean, std: None for the encoder's own; the
    released script's std begins with 0.228. labels: what soft labels wait in; "float16" moves J&F by less than 0.001 and
    halves memory that is small beside the features (ours). Raises UsageError for values that cannot be.
    """

    style: Style = "dino"
    short: int = 480
    multiple: int = 64
    context: int = 7
    radius: int = 12
    window: Literal["square", "circle"] = "square"
    neighbours: int = 5
    temperature: float = 0.1
    norm: bool = True
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    labels: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        self.geometry(1)
        self.rules()
        if self.std is not None and min(self.std) <= 0:
            raise UsageError(f"std is {list(self.std)}; every channel's must be above 0")

    def geometry(self, patch: int) -> Geometry:
        """How sizes change for an encoder of this patch."""
        return Geometry(patch, self.style, self.short, self.multiple)

    def rules(self) -> Rules:
        """How labels propagate."""
        return Rules(self.context, self.radius, self.window, self.neighbours, self.temperature, self.labels)


@dataclass(eq=False)
class Followed:
    """A clip whose labels were followed. maps: (H, W) uint8 of each frame, the first as given. truth: as the data set says
    it, None where a frame has none."""

    maps: list[np.ndarray] = field(default_factory=list)
    truth: list[np.ndarray | None] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def run(job: Job) -> Iterator[Score]:
    """Yield "J&F" (headline), "J", "J-recall", "J-decay", "F", "F-recall", "F-decay", as the official scorer prints them.

    Values are means over the objects of all clips (n objects), fractions; intervals resample clips, so that a clip weighs
    as many objects as it has. Facts: "videos", a row per clip; "sizes", where the input is not the size asked for. Label
    maps are delivered as "<clip>/<frame>". A killed run goes on at the next clip. Clips with a broken frame are left out
    (only with --skip-broken). Raises ProtocolError for a clip that cannot be scored, FeatureError for features that are
    not finite.
    """
    clips: Clips = job.dataset("test")  # type: ignore[assignment]
    names = [clips[index].id for index in range(len(clips))]
    done: dict[str, Any] = (taken_up(job.checkpoint, {"clips": Each(names, _SCORED)}) or {"clips": {}})["clips"]
    todo = [index for index, name in enumerate(names) if name not in done]
    with closing(_followed(job, clips, todo)) as found:  # an error here ends what is still being followed
        for index, followed in job.track(found, "videos", total=len(todo)):
            for frame, labels in zip(clips.frames(index), followed.maps, strict=True):
                job.deliver(f"{names[index]}/{frame}", labels)
            done[names[index]] = _scored(names[index], followed)
            job.checkpoint.save({"clips": done})
    scored = [name for name in names if name in done]
    if not scored:
        raise ProtocolError("no clip could be read, so there is nothing to score")
    _tell(job, {name: done[name]["facts"] for name in scored}, [name for name in names if name not in done])
    results = [video.ClipScore(done[name]["j"].numpy(), done[name]["f"].numpy()) for name in scored]
    yield from video.scores(results, seed=job.seed)


def predicted(job: Job, index: int) -> np.ndarray:
    """(T, H, W) uint8 label maps of a clip at its original size, the first frame's as given; for pictures.

    index: of the clip in the test split. Raises as `run`.
    """
    clips: Clips = job.dataset("test")  # type: ignore[assignment]
    for _, followed in _followed(job, clips, [index]):
        return np.stack(followed.maps)
    raise ProtocolError(f"{clips[index].id}: a frame is broken, and was left out")


def _followed(job: Job, clips: Clips, indices: Sequence[int]) -> Generator[tuple[int, Followed]]:
    """Each clip whose frames can all be read: in order, or as they are done where several are followed at once."""
    at_once = 1 if job.device.type == "cuda" else min(torch.get_num_threads(), len(indices), AT_ONCE)
    if at_once < 2:
        yield from _in_turn(job, clips, indices)
        return

    def alone(index: int, stop: Event) -> list[tuple[int, Followed]]:
        return list(_in_turn(job, clips, [index], stop))

    with closing(lanes(alone, indices, at_once)) as found:
        yield from itertools.chain.from_iterable(found)


def _in_turn(
    job: Job, clips: Clips, indices: Sequence[int], stop: Event | None = None
) -> Iterator[tuple[int, Followed]]:
    """The same in this thread, in order. stop: set to read no further frame; what is unfinished then never comes. Without
    it, frames are read ahead by workers."""
    config: Config = job.config
    reader = Reader(config.geometry(job.encoder.spec.patch))
    items: Iterator[tuple[int, ...]] = itertools.takewhile(
        lambda _: stop is None or not stop.is_set(),
        ((index, number) for index in indices for number in range(len(clips.frames(index)))),
    )
    answers = job.read("test", reader, items, ahead=stop is None)
    for index, frames in itertools.groupby(answers, key=lambda answer: answer[0][0]):
        read = ((item[1], frame) for item, frame in frames)
        try:
            yield index, _follow(job, reader.geometry, _whole(read, len(clips.frames(index))))
        except _Incomplete:
            continue
        except (ProtocolError, FeatureError) as error:
            raise type(error)(f"{clips[index].id}: {error}") from None


class _Incomplete(Exception):
    """A frame of the clip was broken, and left out because broken images may be skipped."""


def _whole(read: Iterable[tuple[int, Frame]], count: int) -> Iterator[Frame]:
    """The frames of a clip. Raises _Incomplete as soon as one of the numbers 0 ... count - 1 is missing."""
    expected = 0
    for number, frame in read:
        if number != expected:
            raise _Incomplete
        expected += 1
        yield frame
    if expected < count:
        raise _Incomplete


def _follow(job: Job, geometry: Geometry, frames: Iterator[Frame]) -> Followed:
    """The label maps of one clip. Raises ProtocolError, FeatureError, and what `frames` raises."""
    config: Config = job.config
    first = next(frames)
    truth, (height, width) = _first_mask(first), geometry.fitted(first.size)
    patch, found, tracker = geometry.patch, Followed(), None
    found.facts = {
        "original": list(first.size),
        "asked": list(geometry.asked(first.size)),
        "size": [height, width],
        "objects": int(truth.max()),
    }
    at_once = max(1, TOKENS["cuda" if job.device.type == "cuda" else "cpu"] * patch * patch // (height * width))
    for batch in _batches(itertools.chain([first], frames), at_once):
        for features, frame in zip(_features(job, batch), batch, strict=True):
            if tracker is None:
                mask = geometry.mask(truth).to(features.device)
                tracker, labels = Tracker(features, mask, config.rules(), int(truth.max())), truth
            else:
                labels = _labels(tracker.step(features), geometry, first.size)
            found.maps.append(labels)
            found.truth.append(frame.truth)
    found.facts["frames"] = len(found.maps)
    return found


def _first_mask(first: Frame) -> np.ndarray:
    if first.truth is None:
        raise ProtocolError("the first frame has no mask to propagate")
    known = np.where(first.truth == video.VOID, np.uint8(0), first.truth)
    if not known.any():
        raise ProtocolError("the first frame's mask holds no object")
    return known


def _batches(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """Lists of at most `size` frames. Raises ProtocolError where a frame differs in size from the first."""
    rest = iter(frames)
    seen: Size | None = None
    while batch := list(itertools.islice(rest, size)):
        for frame in batch:
            seen = seen or frame.size
            if frame.size != seen:
                raise ProtocolError(f"a frame is {frame.size}, the first one {seen} (height, width)")
        yield batch


def _features(job: Job, batch: Sequence[Frame]) -> Tensor:
    """(B, h, w, D) float32."""
    config: Config = job.config
    own = job.encoder.spec.preprocessing
    pixels = torch.stack([frame.pixels for frame in batch]).to(job.device, non_blocking=True)
    images = scale(pixels, config.mean or own.mean, config.std or own.std)
    features = job.encode(images, norm=config.norm)[0].patches.float()
    if not bool(features.isfinite().all()):
        raise FeatureError(
            f"{job.encoder.spec.id} gave patch tokens that are not finite; check the weights, or try --precision fp32"
        )
    return features


def _labels(soft: Tensor, geometry: Geometry, size: Size) -> np.ndarray:
    """(H, W) uint8 at the original size."""
    if geometry.style == "dinov3":
        return nearest_label_map(soft, size).cpu().numpy()
    return nearest(label_map(soft, geometry.patch).cpu().numpy(), size)


_SIDES = (int, int)
_SCORED = {
    "j": Sized(torch.float64, (None, None)),
    "f": Sized(torch.float64, (None, None)),
    "facts": {
        **dict.fromkeys(("J&F", "J", "F"), float),
        **dict.fromkeys(("original", "asked", "size"), _SIDES),
        **dict.fromkeys(("objects", "frames", "scored_frames"), int),
    },
}
"""The form of what `_scored` gives."""


def _scored(name: str, followed: Followed) -> dict[str, Any]:
    """What the checkpoint holds of a clip: J and F (objects, frames) float64, and its row of facts."""
    known = [(maps, truth) for maps, truth in zip(followed.maps, followed.truth, strict=True) if truth is not None]
    try:
        score = video.evaluate(
            np.stack([maps for maps, _ in known]),
            np.stack([truth for _, truth in known]),
            objects=followed.facts["objects"],
        )
    except ProtocolError as error:
        raise ProtocolError(f"{name}: {error}") from None
    row = {"J&F": float(score.per_object.mean()), "J": float(score.j.mean()), "F": float(score.f.mean())}
    row |= followed.facts | {"scored_frames": score.j.shape[1]}
    return {"j": torch.from_numpy(score.j), "f": torch.from_numpy(score.f), "facts": row}


def _tell(job: Job, rows: dict[str, dict[str, Any]], left_out: Sequence[str]) -> None:
    job.fact("videos", {name: {key: row[key] for key in row if key != "asked"} for name, row in rows.items()})
    patch = job.encoder.spec.patch
    changed = {tuple(row["asked"]): tuple(row["size"]) for row in rows.values() if row["asked"] != row["size"]}
    if changed:
        pairs = [f"{a[0]} x {a[1]}: {b[0]} x {b[1]}" for a, b in sorted(changed.items())]
        job.fact("sizes", f"no multiple of the patch ({patch}): {'; '.join(pairs)}")
    if left_out:
        job.fact("left_out", {"videos": list(left_out), "because": "a frame or mask is broken, or too few frames"})
