"""`evalkit show part-retrieval`: the gallery of one query of a retrieval recipe."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evalkit import catalog
from evalkit.cli.options import (
    Arch,
    Checkpoint,
    DataPaths,
    DataRoot,
    Device,
    DeviceName,
    Family,
    Grid,
    Limit,
    Network,
    Precision,
    PrecisionName,
    Prefix,
    RecipeId,
    Seed,
    SkipBroken,
    grid_of,
    pairs,
)
from evalkit.errors import ProtocolError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from evalkit.engine.job import LocalJob
    from evalkit.reporting.figures.gallery import Block
    from evalkit.types import Features, Part, Role


class Representation(enum.StrEnum):
    """What the encoder says of a crop."""

    auto = "auto"
    cls = "cls"
    mean = "mean"


def show(
    checkpoint: Checkpoint,
    recipe: RecipeId = "mini-part-retrieval-ccp",
    query: Annotated[str, typer.Option(help="Id of a sample (with several splits also SPLIT:ID), or random.")] = "random",
    top: Annotated[int, typer.Option(help="How many neighbours.", min=1, max=48)] = 24,
    projected: Annotated[bool | None, typer.Option(
        "--projected/--encoded", help="Beside them, or not, the neighbours by the pretraining head's output; "
        "without either: where the checkpoint has the head.")] = None,
    by: Annotated[Representation, typer.Option(help="Class token or mean of the patch tokens.")] = Representation.auto,
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG to write.")] = Path("part-retrieval.png"),
    family: Family = "",
    arch: Arch = "",
    network: Network = "",
    prefix: Prefix = "",
    grid: Grid = "",
    data_root: DataRoot = None,
    data: DataPaths = None,
    device: DeviceName = Device.auto,
    precision: PrecisionName = Precision.auto,
    limit: Limit = None,
    skip_broken: SkipBroken = False,
    seed: Seed = 0,
) -> None:  # fmt: skip
    """Draw the nearest neighbours of one crop: right ones framed and ticked, wrong ones dashed and crossed.

    Works with every recipe of the runner "retrieval", of parts and of objects. The query itself is left out.
    """
    wanted = catalog.recipe(recipe)
    if wanted.runner != "retrieval":
        fitting = [
            name for name in catalog.recipes() if "retrieval" in name and catalog.recipe(name).runner == "retrieval"
        ]
        raise UsageError(
            f"{wanted.id} is a recipe of the runner {wanted.runner}; galleries are of: {', '.join(fitting)}"
        )

    from evalkit.engine.evaluate import Options, Session, load
    from evalkit.progress import RichProgress
    from evalkit.reporting.figures import canvas, gallery

    canvas.check(out)
    encoder = load(checkpoint, family=family, arch=arch, network=network, prefix=prefix, grid=grid_of(grid))
    options = Options(data_root=data_root, data=pairs(data), device=device.value, precision=precision.value, limit=limit,
                      skip_broken=skip_broken, out=None, seed=seed)  # fmt: skip
    with RichProgress() as progress:
        job = Session(options, progress).job(encoder, wanted)
        found = _Gallery(job, by)
        row = found.row(query)
        blocks = found.blocks(row, top, projected)
        drawn = gallery.gallery(
            found.image(row), blocks, title=f"{encoder.spec.id} · {wanted.title}",
            note=f"{len(found.ids)} crops, the query left out; each tile is what the encoder sees",
            caption=f"{found.name(row)}\n{found.ids[row]}",
        )  # fmt: skip
    typer.echo(f"{canvas.save(drawn, out)}: query {found.ids[row]}")


class _Gallery:
    """The crops of a recipe's roles, their features and their pictures."""

    def __init__(self, job: LocalJob, by: Representation) -> None:
        import torch

        from evalkit.reporting import search

        parts = search.parts_of(job.encoder, by.value)
        self.part, self.job, self.roles = parts[0], job, job.config.roles
        splits: list[Features] = [job.features(role, parts=parts) for role in self.roles]
        self.splits = splits
        self.labels = torch.cat([split.labels for split in splits])
        self.places: list[tuple[Role, str]] = [
            (role, one) for role, split in zip(self.roles, splits, strict=True) for one in split.ids
        ]
        self.ids = [one for _, one in self.places]
        self._positions: dict[Role, dict[str, int]] = {}

    def row(self, query: str) -> int:
        """The row of a query's id, or a random one of those that have something to find."""
        import torch

        from evalkit.reporting import search

        if query != "random":
            full = [f"{role}:{one}" for role, one in self.places]
            if query in full:
                return full.index(query)
            if self.ids.count(query) > 1:
                raise UsageError(
                    f"--query {query!r} is in several splits: say {' or '.join(f'{r}:{query}' for r in self.roles)}"
                )
            return search.found(query, self.ids, "query")
        fellows = torch.bincount(self.labels)[self.labels]
        able = torch.nonzero(fellows > 1)[:, 0]
        if not len(able):
            raise ProtocolError("no class has two crops: no query has anything to find")
        return int(able[int(torch.randint(len(able), (), generator=self.job.rng("show", "query")))])

    def blocks(self, row: int, top: int, projected: bool | None) -> list[Block]:
        """The neighbours as encoded, and where wanted and possible as projected."""
        from evalkit.reporting import search

        shown = search.representations(
            self.job.encoder, self.rows, self.part, projected=projected, device=self.job.device
        )
        return [self._block(title, rows, row, top) for title, rows in shown]

    def rows(self, part: Part) -> Tensor:
        """(N, D) of all splits."""
        import torch

        return torch.cat([split.get(part) for split in self.splits])

    def _block(self, title: str, rows: Tensor, row: int, top: int) -> Block:
        from evalkit.metrics.ranking import average_precision
        from evalkit.reporting import search
        from evalkit.reporting.figures.gallery import Block, Neighbour

        near = search.ranked(rows, row, top=top)
        every = search.ranked(rows, row, top=len(rows))
        relevant = self.labels == self.labels[row]
        precision = average_precision(_tensor(every.similarity), relevant[list(every.rows)][None])
        neighbours = [
            Neighbour(self.image(other), cosine, self.name(other), bool(relevant[other]))
            for other, cosine in zip(near.rows, near.similarity, strict=True)
        ]
        right = sum(bool(n.right) for n in neighbours)
        note = f"{right} of {len(neighbours)} right · average precision of this query {100 * float(precision):.1f} %"
        return Block(title, neighbours, note)

    def name(self, row: int) -> str:
        """The class of a row."""
        return self.job.dataset(self.roles[0]).classes[int(self.labels[row])]

    def image(self, row: int) -> Any:
        """What the encoder sees of a row."""
        from PIL import Image

        from evalkit.features import view

        role, one = self.places[row]
        dataset = self.job.dataset(role)
        if role not in self._positions:
            self._positions[role] = {dataset[position].id: position for position in range(len(dataset))}
        sample = dataset[self._positions[role][one]]
        pixels = view.apply(dataset.image(sample.group), sample.box, self.job.view)
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def _tensor(values: tuple[float, ...]) -> Tensor:
    import torch

    return torch.tensor(values)[None]
