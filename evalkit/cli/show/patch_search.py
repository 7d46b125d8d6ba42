"""`evalkit show patch-search`: the patches of any folder of images that are nearest to one of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evalkit.cli.options import (
    Arch,
    Checkpoint,
    Device,
    DeviceName,
    Family,
    Grid,
    Network,
    Precision,
    PrecisionName,
    Prefix,
    Seed,
    SkipBroken,
    grid_of,
)
from evalkit.cli.show.part_retrieval import Representation

if TYPE_CHECKING:
    import torch

    from evalkit.reporting.figures.gallery import Block
    from evalkit.types import Dataset, Encoder, Features


def show(
    checkpoint: Checkpoint,
    folder: Annotated[Path, typer.Argument(help="A folder or zip of images, searched with all below.")],
    query: Annotated[str, typer.Option(help="FILE:ROW,COL with row and column in 0 ... 6, or random.")] = "random",
    top: Annotated[int, typer.Option(help="How many neighbours.", min=1, max=48)] = 24,
    other_images: Annotated[bool, typer.Option(
        "--other-images", help="Leave out the patches of the query's own image, which overlap it.")] = False,
    projected: Annotated[bool | None, typer.Option(
        "--projected/--encoded", help="Beside them, or not, the neighbours by the pretraining head's output; "
        "without either: where the checkpoint has the head.")] = None,
    by: Annotated[Representation, typer.Option(help="Class token or mean of the patch tokens.")] = Representation.auto,
    limit: Annotated[int, typer.Option(help="At most N images, evenly spread; each has 49 patches.", min=1)] = 100,
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG to write.")] = Path("patch-search.png"),
    family: Family = "",
    arch: Arch = "",
    network: Network = "",
    prefix: Prefix = "",
    grid: Grid = "",
    device: DeviceName = Device.auto,
    precision: PrecisionName = Precision.auto,
    skip_broken: SkipBroken = False,
    seed: Seed = 0,
) -> None:  # fmt: skip
    """Draw the patches nearest to one patch: 49 of 56 x 56 pixels, 28 apart, from the 224 x 224 centre of each image."""
    from evalkit import catalog
    from evalkit.datasets.agreement import notes
    from evalkit.engine.evaluate import load, resolve_device
    from evalkit.features.extract import ExtractOptions
    from evalkit.features.store import FeatureStore
    from evalkit.progress import RichProgress
    from evalkit.reporting import search
    from evalkit.reporting.figures import canvas, gallery

    canvas.check(out)
    found, asked = search.patches(folder, query="" if query == "random" else query, limit=limit)
    asked = _random(len(found), seed) if query == "random" else asked
    where = resolve_device(device.value)
    encoder = load(checkpoint, family=family, arch=arch, network=network, prefix=prefix, grid=grid_of(grid)).to(where)
    with RichProgress() as progress:
        for note in notes(found.describe()):
            progress.say(note)
        options = ExtractOptions(device=where, precision=precision.value, skip_broken=skip_broken,
                                 store=FeatureStore(catalog.cache_root() / "features"), progress=progress)  # fmt: skip
        searched = _Search(encoder, found, by, options)
        row = search.found(found[asked].id, searched.features.ids, "patch that could be read:")
        drawn = gallery.gallery(
            searched.image(row), searched.blocks(row, top, projected, other_images),
            title=f"{encoder.spec.id} · patches of {folder.name}",
            note=f"{len(searched.features)} patches of {len(found.groups)} images, the query left out",
            caption=found[asked].id, whole=searched.whole(row),
        )  # fmt: skip
    typer.echo(f"{canvas.save(drawn, out)}: query {found[asked].id}")


def _random(count: int, seed: int) -> int:
    import torch

    return int(torch.randint(count, (), generator=torch.Generator().manual_seed(seed)))


class _Search:
    """The patches that could be read, and their features."""

    def __init__(self, encoder: Encoder, dataset: Dataset, by: Representation, options: Any) -> None:
        from evalkit.features.extract import extract
        from evalkit.features.key import Request
        from evalkit.features.view import resolve
        from evalkit.reporting import search
        from evalkit.types import ViewRef

        parts = search.parts_of(encoder, by.value)
        self.part = parts[0]
        self.encoder, self.dataset, self.device = encoder, dataset, options.device
        self.view = resolve(ViewRef(at_most=224, fit="squash"), encoder.spec)[0]
        self.features: Features = extract(encoder, dataset, self.view, Request(parts=parts), options=options)
        self._positions = {dataset[position].id: position for position in range(len(dataset))}

    def blocks(self, row: int, top: int, projected: bool | None, other_images: bool) -> list[Block]:
        """The neighbours as encoded, and where wanted and possible as projected."""
        from evalkit.reporting import search

        gone = self.features.groups == self.features.groups[row] if other_images else None
        shown = search.representations(
            self.encoder, self.features.get, self.part, projected=projected, device=self.device
        )
        return [self._block(title, rows, row, top, gone) for title, rows in shown]

    def _block(self, title: str, rows: torch.Tensor, row: int, top: int, gone: torch.Tensor | None) -> Block:
        from evalkit.reporting import search
        from evalkit.reporting.figures.gallery import Block, Neighbour

        near = search.ranked(rows, row, top=top, left_out=gone)
        pairs = zip(near.rows, near.similarity, strict=True)
        return Block(title, [Neighbour(self.image(other), cosine, self._place(other)) for other, cosine in pairs])

    def _place(self, row: int) -> str:
        return Path(self.features.ids[row].rpartition(":")[0]).stem

    def _sample(self, row: int) -> Any:
        return self.dataset[self._positions[self.features.ids[row]]]

    def whole(self, row: int) -> Any:
        """The image of a row, with its patch marked."""
        from evalkit.reporting.figures import gallery

        sample = self._sample(row)
        return gallery.marked(self.dataset.image(sample.group), sample.box)

    def image(self, row: int) -> Any:
        """The patch of a row."""
        from evalkit.features import view

        sample = self._sample(row)
        return view.cut(self.dataset.image(sample.group), sample.box)
