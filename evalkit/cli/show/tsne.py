"""`evalkit show tsne`: a data set's features in the plane, coloured by class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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


def show(
    checkpoint: Checkpoint,
    recipe: RecipeId,
    by: Annotated[Literal["cls", "mean"], typer.Option(help="Class token, or mean of the patch tokens.")] = "cls",
    perplexity: Annotated[float, typer.Option(help="How many neighbours a point has, about.", min=1)] = 30.0,
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG to write.")] = Path("tsne.png"),
    family: Family = "",
    arch: Arch = "",
    network: Network = "",
    prefix: Prefix = "",
    grid: Grid = "",
    data_root: DataRoot = None,
    data: DataPaths = None,
    device: DeviceName = Device.auto,
    precision: PrecisionName = Precision.auto,
    limit: Limit = 2000,
    skip_broken: SkipBroken = False,
    seed: Seed = 0,
) -> None:
    """Draw a recipe's test images by t-SNE of their features' directions, each class its colour and shape.

    Distances between far groups mean nothing in such a picture, and their sizes neither.
    """
    from sklearn.manifold import TSNE

    from evalkit.engine.evaluate import Options, Session, load
    from evalkit.metrics.neighbours import normalise
    from evalkit.progress import RichProgress
    from evalkit.reporting.figures import canvas, scatter

    canvas.check(out)
    wanted = catalog.recipe(recipe)
    options = Options(data_root=data_root, data=pairs(data), device=device.value, precision=precision.value, limit=limit,
                      skip_broken=skip_broken, out=None, seed=seed)  # fmt: skip
    encoder = load(checkpoint, family=family, arch=arch, network=network, prefix=prefix, grid=grid_of(grid))
    if by == "cls" and "cls" not in encoder.spec.offers:
        raise UsageError(f"{encoder.spec.id} has no class token; give --by mean")
    with RichProgress() as progress:
        job = Session(options, progress).job(encoder, wanted)
        features = job.features("test", parts=(by,))
        labels = features.labels.numpy()
        if len(labels) < 3 or labels.min() < 0:
            raise ProtocolError(f"{wanted.id}: {len(labels)} labelled test images; a picture needs at least three")
        rows = normalise(features.get(by)).numpy()
        with progress.status("t-SNE"):
            near = min(perplexity, (len(rows) - 1) / 3)
            places = TSNE(perplexity=near, init="pca", random_state=seed).fit_transform(rows.astype("float64"))
    drawn = scatter.points(
        places, labels, job.dataset("test").classes,
        title=f"{encoder.spec.id} · t-SNE of {'class tokens' if by == 'cls' else 'mean patch tokens'}",
        note=f"{wanted.id}, {len(rows)} test images, perplexity {near:g}",
    )  # fmt: skip
    typer.echo(f"{canvas.save(drawn, out)}: {len(rows)} images")
