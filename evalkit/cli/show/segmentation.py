"""`evalkit show segmentation`: predictions of a trained segmentation head beside the truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    grid_of,
    pairs,
)
from evalkit.errors import RecordError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from evalkit.engine.job import LocalJob
    from evalkit.records import Record
    from evalkit.types import Recipe


Which = Literal["worst", "best", "random"]


def show(
    checkpoint: Checkpoint,
    recipe: RecipeId = "mini-seg-linear-ccp",
    worst: Annotated[bool, typer.Option("--worst", help="Those with the smallest share of right pixels.")] = False,
    best: Annotated[bool, typer.Option("--best", help="Those with the largest.")] = False,
    images: Annotated[int, typer.Option(help="How many photos; without --worst or --best drawn at random.", min=1, max=24)] = 4,
    runs: Annotated[Path, typer.Option(help="Folder of the record whose head is shown.")] = Path("runs"),
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG to write.")] = Path("segmentation.png"),
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
    seed: Seed = 0,
) -> None:  # fmt: skip
    """Draw photos, truth, prediction and mistakes of a record that `evalkit eval` made with a segmentation recipe."""
    if worst and best:
        raise UsageError("--worst and --best were both given; one at a time")
    which: Which = "worst" if worst else "best" if best else "random"
    wanted = catalog.recipe(recipe)
    if wanted.runner != "segmentation":
        raise UsageError(
            f"{wanted.id} is a recipe of the runner {wanted.runner}; this picture is of the runner segmentation, "
            "whose recipes begin with seg-linear- or mini-seg-linear-"
        )

    from evalkit.engine.evaluate import Options, Session, load
    from evalkit.progress import RichProgress
    from evalkit.reporting.figures import canvas, segmentation

    canvas.check(out)
    encoder = load(checkpoint, family=family, arch=arch, network=network, prefix=prefix, grid=grid_of(grid))
    options = Options(data_root=data_root, data=pairs(data), device=device.value, precision=precision.value, limit=limit,
                      out=None, seed=seed)  # fmt: skip
    with RichProgress() as progress:
        job = Session(options, progress).job(encoder, wanted)
        record = _record(job, wanted, runs)
        chosen = _chosen(job, record, runs, which, images)
        score = next(score for score in record.scores if score["name"] == "mIoU")
        drawn = segmentation.sheet(
            _examples(job, record, runs, chosen),
            job.dataset("test").classes,
            title=f"{encoder.spec.id} · {wanted.id}",
            note=f"mIoU {100 * score['value']:.1f} % over {score['n']} photos; here {len(chosen)} of them, {which}; "
            "white: does not count",
        )
    typer.echo(f"{canvas.save(drawn, out)}: " + ", ".join(job.dataset("test")[position].id for position, _ in chosen))


def _record(job: LocalJob, recipe: Recipe, runs: Path) -> Record:
    """The newest record of this encoder with this recipe on these data."""
    from evalkit import records

    spec = job.encoder.spec
    fitting = [
        record
        for record in records.find(runs, spec.id, recipe.id)
        if record.status == "done"
        and record.encoder.get("digest") == spec.digest
        and record.recipe.get("digest") == recipe.digest
        and record.data["test"]["digest"] == job.dataset("test").digest
    ]
    if not fitting:
        raise RecordError(
            f"{runs} has no record of {spec.id} with {recipe.id} on these data; make one first: "
            f"evalkit eval ... --recipe {recipe.id} --out {runs}, with the same options"
        )
    return fitting[-1]


def _chosen(job: LocalJob, record: Record, runs: Path, which: Which, count: int) -> list[tuple[int, float]]:
    """(position, share of right pixels) of the photos to show, in the order to show them."""
    import torch

    from evalkit import records

    outcomes: npt.NDArray[np.float32] = records.outcomes(record, runs, "aAcc")[0][:, :, 0]
    shares = [float(right / all) for right, all in outcomes]
    gone = set(record.data["test"].get("skipped", ()))
    there = [p for p in range(len(job.dataset("test"))) if job.dataset("test")[p].id not in gone]
    if len(there) != len(shares):  # photos without a pixel that counts have no outcome
        there = [p for p in there if (job.dataset("test").pixels(p) >= 0).any()]  # type: ignore[attr-defined]
    found = list(zip(there, shares, strict=True))
    if which == "random":
        order = torch.randperm(len(found), generator=job.rng("show", "photos")).tolist()
        return sorted(found[number] for number in order[:count])
    return sorted(found, key=lambda one: (one[1] if which == "worst" else -one[1], one[0]))[:count]


def _examples(job: LocalJob, record: Record, runs: Path, chosen: list[tuple[int, float]]) -> list[Any]:
    """The photos with their label maps, predicted again with the head that lies beside the record."""
    from safetensors.torch import load_file

    from evalkit import records
    from evalkit.probing.dense_head import restored
    from evalkit.reporting.figures.segmentation import Example
    from evalkit.runners import module

    path = records.path_of(runs, record.encoder["id"], record.recipe["id"], record.key).with_suffix(".head.safetensors")
    if not path.exists():
        raise RecordError(f"{path} is not there; run evalkit eval again")
    head = restored(load_file(path)).to(job.device)
    dataset = job.dataset("test")
    found = {}
    for position, predicted, truth in module("segmentation").predictions(job, head, sorted(p for p, _ in chosen)):
        found[position] = (predicted.cpu().numpy(), truth.numpy())
    return [
        Example(
            dataset.image(dataset[position].group), found[position][1], found[position][0],
            f"{dataset[position].id}: {100 * share:.0f} % of its pixels right",
        )
        for position, share in chosen
    ]  # fmt: skip
