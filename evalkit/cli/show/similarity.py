"""`evalkit show similarity`: how alike patches of one kind are, and of two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
from evalkit.errors import UsageError


def show(
    checkpoint: Checkpoint,
    recipe: RecipeId = "mini-similarity-coco",
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG to write.")] = Path("similarity.png"),
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
    """Draw the histograms of cosine between patches of the same and of different categories, and objects."""
    wanted = catalog.recipe(recipe)
    if wanted.runner != "similarity":
        fitting = [name for name in catalog.recipes() if catalog.recipe(name).runner == "similarity"]
        raise UsageError(
            f"{wanted.id} is a recipe of the runner {wanted.runner}; similarities are of: {', '.join(fitting)}"
        )

    from evalkit import runners
    from evalkit.engine.evaluate import Options, Session, load
    from evalkit.metrics.pairs import means, overlap
    from evalkit.progress import RichProgress
    from evalkit.reporting.figures import canvas, similarity

    canvas.check(out)
    encoder = load(checkpoint, family=family, arch=arch, network=network, prefix=prefix, grid=grid_of(grid))
    options = Options(data_root=data_root, data=pairs(data), device=device.value, precision=precision.value, limit=limit,
                      seed=seed, out=None)  # fmt: skip
    with RichProgress() as progress:
        counted = runners.module("similarity").count(Session(options, progress).job(encoder, wanted))
    panels = {}
    for scope, spread in counted.spreads.items():
        counts, sums = spread.total
        intra, inter = means(counts, sums).tolist()
        where = {"category": "of all images", "across": "across images"}.get(scope, "within an image")
        note = f"pairs {where}: {counts[0].sum():,} same, {counts[1].sum():,} different; {counted.images[scope]} images"
        panels[scope] = similarity.Panel(counts, float(overlap(counts)), (intra, inter), note)
        typer.echo(f"{scope}: overlap {panels[scope].overlap:.3f}, mean {intra:.3f} within, {inter:.3f} across")
    typer.echo(f"{canvas.save(similarity.draw(panels, f'{encoder.spec.id} · {wanted.id}'), out)}")
