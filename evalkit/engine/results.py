"""Masks that any tool wrote, scored: a folder or .zip of results in the official layout against the clips of a data set.

    <results>/<clip>/<frame>.png    indexed PNG, named as the frames; the first and last frame of a clip may be missing

What the DAVIS-2017 scorer accepts is accepted and gives its numbers (davisvideochallenge/davis2017-evaluation ac7c43f,
results.py and evaluation.py); nothing is written beside the results and nothing found there is reused. Where anything is
wrong, everything that is wrong is listed and there is no number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evalkit.datasets import indexed
from evalkit.datasets.files import Tree
from evalkit.errors import BrokenImage, DatasetError, ProtocolError, UsageError
from evalkit.metrics import video
from evalkit.types import Clips, Progress, Score

LISTED = 50
"""Problems that are told one by one; of more, their number."""

LAYOUT = "<results>/<clip>/<frame>.png, indexed PNG with the names and the size of the frames"


@dataclass(frozen=True)
class Scored:
    """What a folder of results is worth. clips: by name, in the order of the split. scores: as `metrics.video.scores`.
    left_out: why, by name, of clips of the data set that cannot be used."""

    clips: Mapping[str, video.ClipScore]
    scores: tuple[Score, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


def score(
    results: Path, clips: Clips, *, binary: bool, progress: Progress, seed: int = 0, skip_broken: bool = False
) -> Scored:
    """J and F of the masks in a folder or .zip.

    binary: everything above 0 is the one object, as in DAVIS-2016. seed: of the bootstrap over videos. skip_broken: leave
    out clips whose own frames or masks cannot be used (never those whose results cannot), instead of an error. Folders of clips
    that the split does not name are left alone. Raises UsageError where there are no results at all; DatasetError, which
    lists every absent or unusable mask and every id that the clip does not have; what reading the data set raises.
    """
    tree = Tree.open(results).rooted([clips[index].id for index in range(len(clips))])
    if not tree.names((".png",)):
        raise UsageError(f"{results} holds no masks; expected: {LAYOUT}")
    found: dict[str, video.ClipScore] = {}
    problems: list[str] = []
    left_out: dict[str, str] = {}
    for index in progress.track(range(len(clips)), "videos", len(clips)):
        name = clips[index].id
        try:
            truth = {frame: labels for frame, labels in _truth(clips, index) if labels is not None}
        except BrokenImage as error:
            if not skip_broken:
                raise BrokenImage(f"{error}. Mend it, or pass --skip-broken to leave the clip out") from None
            left_out[name] = str(error)
            continue
        predicted, wrong = _masks(tree, name, truth, binary)
        problems += wrong
        if wrong:
            continue
        try:
            found[name] = video.evaluate(predicted, np.stack(list(truth.values())))
        except ProtocolError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise DatasetError(_told(tree, problems))
    if not found:
        raise ProtocolError(f"no clip of {clips.name} ({clips.split}) can be used: {'; '.join(left_out.values())}")
    return Scored(found, tuple(video.scores(list(found.values()), seed=seed)), left_out)


def _truth(clips: Clips, index: int) -> list[tuple[str, npt.NDArray[np.uint8] | None]]:
    frames = clips.frames(index)
    return [(frame, clips.truth(index, number)) for number, frame in enumerate(frames)]


def _masks(
    tree: Tree, name: str, truth: Mapping[str, npt.NDArray[np.uint8]], binary: bool
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """(T, H, W) uint8 predicted labels, the ends empty, and what is wrong with the files."""
    masks = [np.zeros_like(labels) for labels in truth.values()]
    scored = list(enumerate(truth.items()))[1:-1]
    absent = [frame for _, (frame, _) in scored if not tree.exists(f"{name}/{frame}.png")]
    if absent and len(absent) == len(scored):
        return np.stack(masks), [f"{name}: no mask at all ({len(scored)} frames are scored)"]
    wrong = [f"{name} lacks {len(absent)} of {len(scored)} masks: {', '.join(absent)}"] if absent else []
    for number, (frame, labels) in scored:
        if frame in absent:
            continue
        file = f"{name}/{frame}.png"
        try:
            mask = indexed.decode(tree.read(file), file, binary=binary)
        except DatasetError as error:
            wrong.append(str(error))
            continue
        if mask.shape != labels.shape:
            wrong.append(f"{file}: is {mask.shape[::-1]} pixels, but the frame is {labels.shape[::-1]}")
        else:
            masks[number] = (mask > 0).astype(np.uint8) if binary else mask
    return np.stack(masks), wrong


def _told(tree: Tree, problems: list[str]) -> str:
    more = [f"... and {len(problems) - LISTED:,} more"] if len(problems) > LISTED else []
    lines = "\n  ".join([*problems[:LISTED], *more])
    return f"{tree}: {len(problems):,} problems, so there is no score:\n  {lines}\nExpected: {LAYOUT}"
