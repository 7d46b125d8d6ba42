"""What galleries show: the nearest neighbours of one query, and the patches of any folder of images as a data set.

Source: the pictures of Zhu et al. (arXiv:2301.11915, figures 2, 4, 6, 8) and their code (JiePKU/understand-ssl-part-aware
        ffea818, moco/loader.py:43-115): an image is resized to 256, its centre of 224 x 224 enlarged four times, and cut
        into 7 x 7 inputs of 224 x 224, each 56 x 56 of the centre, 28 apart.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evalkit.datasets import beside, images
from evalkit.datasets.files import Tree
from evalkit.datasets.listing import Listing, Photos
from evalkit.errors import NoProjection, ProtocolError, UsageError
from evalkit.features import view as views
from evalkit.metrics.similarity import cosines, normalise
from evalkit.probing.projection import of_class_tokens
from evalkit.types import Encoder, Part, Sample, View

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE, PATCH, STRIDE, ENLARGED = 224, 56, 28, 4
CENTRE = View(SIDE, 256)
GRID = (SIDE - PATCH) // STRIDE + 1
"""Patches per row and per column: 7."""


@dataclass(frozen=True)
class Ranked:
    """The nearest rows of a query. rows: numbers, the nearest first, equal similarities by number. similarity: cosines."""

    rows: tuple[int, ...]
    similarity: tuple[float, ...]


def ranked(rows: Tensor, query: int, *, top: int, left_out: Tensor | None = None) -> Ranked:
    """The `top` rows most similar to row `query`, itself left out; all of them where there are fewer.

    rows: (N, D) float, any norm. left_out: (N,) bool, rows that do not compete. Raises UsageError for a top below 1,
    FeatureError for rows that are not finite.
    """
    if top < 1:
        raise UsageError(f"{top} neighbours were asked for; at least 1")
    unit = normalise(rows, "gallery")
    similarity = cosines(unit[query : query + 1], unit)[0]
    gone = torch.zeros(len(rows), dtype=torch.bool) if left_out is None else left_out.clone()
    gone[query] = True
    order = torch.argsort(torch.where(gone, -torch.inf, similarity), descending=True, stable=True)
    kept = order[: min(top, int((~gone).sum()))]
    return Ranked(tuple(kept.tolist()), tuple(similarity[kept].tolist()))


def representations(
    encoder: Encoder, rows: Callable[[Part], Tensor], part: Part, *, projected: bool | None, device: torch.device
) -> list[tuple[str, Tensor]]:
    """(title, (N, D) rows) of what a gallery shows: as encoded, and beside it as the pretraining head projects.

    rows: gives class tokens or means. part: which of them is the encoded one. projected: None shows the projection where
    the checkpoint has the head, False never, True always: then NoProjection is raised where it has none.
    """
    words = {"cls": "class token", "mean": "mean of patch tokens"}[part]
    shown = [(f"Encoded ({words})", rows(part).float())]
    if projected is False:
        return shown
    try:
        if "cls" not in encoder.spec.offers:
            raise NoProjection(f"{encoder.spec.id} has no class token for a pretraining head to read")
        found = of_class_tokens(encoder, rows("cls").float(), "projection", device)
    except NoProjection:
        if projected:
            raise
        return shown
    return [*shown, ("Projected (pretraining head)", found)]


def parts_of(encoder: Encoder, by: str) -> tuple[Part, ...]:
    """The parts that `representations` needs, the encoded one first. by: "cls", "mean", or "auto" for the class token
    where there is one."""
    offers = "cls" in encoder.spec.offers
    first: Part = "mean" if by == "mean" or (by == "auto" and not offers) else "cls"
    return (first, "cls") if offers and first == "mean" else (first,)


def found(name: str, names: Sequence[str], what: str) -> int:
    """The place of a name. Raises UsageError with the nearest names, or some that there are."""
    if name in names:
        return list(names).index(name)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    inside = [other for other in names if name in other][:3] if name else []
    shown = near or inside or list(names[:3])
    raise UsageError(
        f"there is no {what} {name!r} among {len(names)}; {'nearest' if near else 'there are'}: {', '.join(shown)}"
    )


@dataclass(frozen=True)
class Centres(Photos):
    """Images as the patches are cut from them: the centre of 224 x 224 pixels, enlarged four times."""

    def image(self, group: str) -> Image:
        """The enlarged centre, mode RGB. Raises BrokenImage."""
        from PIL import Image

        pixels = views.apply(super().image(group), None, CENTRE)
        side = SIDE * ENLARGED
        return Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.BICUBIC)


def patches(folder: Path, *, query: str = "", limit: int | None = None) -> tuple[Listing, int]:
    """The patches of the images in a folder or zip and all below, and the position of one of them.

    Samples are named `FILE:ROW,COL`, 49 per image. query: such a name, "" for the first patch. limit: at most so many
    images, evenly spread over the sorted names, and the query's. Raises MissingFiles where there is no such folder,
    DatasetError for images that are not read, ProtocolError where it holds no image; UsageError for a query of another
    form, a row or column beyond 0 ... 6, an image that is not there (with the nearest names), or a limit below 1.
    """
    tree = Tree.open(folder)
    names, facts = beside.photos(tree, "")
    if not names:
        raise ProtocolError(f"{folder} holds no image; names that count end in {', '.join(images.SUFFIXES)}")
    asked, row, column = _place(query, names) if query else (names[0], 0, 0)
    if limit is not None:
        if limit < 1:
            raise UsageError(f"the limit is {limit} images; at least 1")
        taken = min(limit, len(names))
        chosen = {step * len(names) // taken for step in range(taken)}
        names = [name for at, name in enumerate(names) if at in chosen or name == asked]
    step, side = STRIDE * ENLARGED, PATCH * ENLARGED
    samples = tuple(
        Sample(f"{name}:{row},{column}", name, 0, (x, y, x + side, y + side))
        for name in names
        for row in range(GRID)
        for column in range(GRID)
        for x, y in [(float(column * step), float(row * step))]
    )
    position = names.index(asked) * GRID**2 + row * GRID + column
    return Listing("patches", "all", ("patch",), samples, Centres(tree), facts), position


def _place(query: str, names: Sequence[str]) -> tuple[str, int, int]:
    name, colon, place = query.rpartition(":")
    row, comma, column = place.partition(",")
    if not (colon and comma and row.strip().isdecimal() and column.strip().isdecimal()):
        raise UsageError(f"--query {query!r}: it is FILE:ROW,COL with row and column in 0 ... {GRID - 1}, or random")
    if max(int(row), int(column)) >= GRID:
        raise UsageError(f"--query {query!r}: an image has {GRID} x {GRID} patches, rows and columns 0 ... {GRID - 1}")
    return names[found(name, names, "image")], int(row), int(column)
