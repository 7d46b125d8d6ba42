"""`evalkit show kmeans`: which patches of an image an encoder takes for the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evalkit.cli.options import (
    Arch,
    Checkpoint,
    Device,
    DeviceName,
    Family,
    Grid,
    Network,
    PictureSize,
    Precision,
    PrecisionName,
    Prefix,
    Seed,
    grid_of,
)


def show(
    checkpoint: Checkpoint,
    images: Annotated[list[Path], typer.Argument(help="Image files, each clustered on its own.")],
    clusters: Annotated[int, typer.Option(help="How many; MMC's figure has 3.", min=1)] = 3,
    size: PictureSize = 480,
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG to write.")] = Path("kmeans.png"),
    family: Family = "",
    arch: Arch = "",
    network: Network = "",
    prefix: Prefix = "",
    grid: Grid = "",
    device: DeviceName = Device.auto,
    precision: PrecisionName = Precision.auto,
    seed: Seed = 0,
) -> None:
    """Draw the clusters of an image's patch tokens, by k-means on their directions."""
    from evalkit.engine.evaluate import load, resolve_device
    from evalkit.metrics import maps
    from evalkit.reporting import looking
    from evalkit.reporting.figures import canvas
    from evalkit.reporting.figures import maps as drawing

    canvas.check(out)
    pictures = [looking.opened(path) for path in images]
    where = resolve_device(device.value)
    encoder = load(checkpoint, family=family, arch=arch, network=network, prefix=prefix, grid=grid_of(grid)).to(where)
    eyes = looking.Eyes(encoder, where, precision.value)
    tops, bottoms = [], []
    for path, picture in zip(images, pictures, strict=True):
        seen = eyes.see(looking.fitted(picture, size, encoder.spec.patch), path.name)
        labels = maps.clusters(seen.tokens, count=clusters, seed=seed).reshape(seen.grid)
        tops.append(drawing.shown(seen.picture))
        bottoms.append(drawing.clustered(labels, tops[-1]))
    drawn = drawing.rows(
        tops, bottoms, [path.name for path in images],
        title=f"{encoder.spec.id} · k-means of patch tokens, {clusters} clusters",
        note="colours by the cluster's size, and of no meaning from one image to the next",
    )  # fmt: skip
    typer.echo(f"{canvas.save(drawn, out)}: {len(images)} image(s)")
