"""What the page's touches are answered with: plain functions of what is chosen, for a page and for tests without one."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evalkit.errors import Unsupported
from evalkit.reporting.demo import answers, drawing
from evalkit.reporting.demo.looker import Looker
from evalkit.reporting.demo.photos import Limits, Photo, uploaded

CLASS_TOKEN, PATCH = "the class token", "the patch you pointed at"
"""Whose attention is shown."""


@dataclass(frozen=True)
class Desk:
    """What the handlers work with. examples: photographs to choose from. folder: where uploads lie."""

    looker: Looker
    examples: tuple[Photo, ...]
    limits: Limits
    folder: Path

    def take(self, path: str) -> Photo:
        """The photograph that somebody uploaded. Raises UsageError, see photos.uploaded."""
        return uploaded(path, self.folder, self.limits)

    def click(self, encoder: str, photo: Photo, at: tuple[int, int], threshold: float) -> tuple[Any, ...]:
        """The photograph with the patch framed, the heat map, the mask over the photograph, and what there is to say."""
        found = answers.similar(self.looker, answers.Question(encoder, photo, at))
        return drawing.pointed(photo, found), drawing.heat(photo, found), *_masked(photo, found, threshold)

    def slide(self, encoder: str, photo: Photo, at: tuple[int, int], threshold: float) -> tuple[Any, ...]:
        """The mask at another threshold, and what there is to say."""
        return _masked(photo, answers.similar(self.looker, answers.Question(encoder, photo, at)), threshold)

    def nearest(self, encoder: str, photo: Photo, at: tuple[int, int], own: bool) -> list[Any]:
        """Tiles with captions."""
        asked = answers.Question(encoder, photo, at)
        bank, found = answers.nearest(self.looker, asked, self.examples, own=own)
        return [drawing.tile(bank, near) for near in found]

    def heads(self, encoder: str, photo: Photo, at: tuple[int, int], asks: str) -> tuple[list[Any], str]:
        """A tile per head and what there is to say; no tile where the encoder has no attention."""
        asked = answers.Question(encoder, photo, at)
        try:
            found = answers.heads(self.looker, asked, of_patch=asks == PATCH)
        except Unsupported as error:
            return [], f"Nothing to show: {_plain(str(error).replace('give a patch with --at', 'let a patch ask'))}."
        said = f"Last block, {len(found.weights)} heads. Bright is much; the line holds 60 % of a head's attention."
        return drawing.attention(photo, found), said

    def pair(self, encoder: str, photo: Photo, at: tuple[int, int], other: Photo) -> tuple[Any, ...]:
        """Lines between the photographs, what the patch finds in the other one, and what there is to say."""
        found = answers.pair(self.looker, answers.Question(encoder, photo, at), other)
        best = float(found.cosines.max())
        said = (
            f"{len(found.matches.first)} lines join patches that are each other's most similar. The patch that you "
            f"pointed at finds its most similar one, framed, at cosine {best:.2f}."
        )
        return drawing.lines(found), drawing.partner(found, photo, other), said


def _masked(photo: Photo, found: answers.Similar, threshold: float) -> tuple[Any, str]:
    inside = drawing.mask(photo, found, threshold)
    share = 100 * float((found.cosines > threshold).mean())
    low, middle = float(found.cosines.min()), float(np.median(found.cosines))
    said = (
        f"**{share:.0f} %** of the patches are more similar than {threshold:.2f}. Cosines here: lowest {low:.2f}, "
        f"median {middle:.2f}. Encoders differ in what is much: move the threshold."
    )
    return drawing.over(photo, inside), said


def _plain(text: str) -> str:
    """Names of files are written by anybody: nothing in them may become markup."""
    return html.escape(text).replace("*", "&#42;").replace("_", "&#95;").replace("[", "&#91;")
