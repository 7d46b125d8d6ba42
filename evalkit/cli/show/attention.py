"""`evalkit show attention`: where the heads of the last block look."""

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
    grid_of,
    point,
)


def show(
    checkpoint: Checkpoint,
    image: Annotated[Path, typer.Argument(help="An image file.")],
    at: Annotated[str, typer.Option(help="X,Y: of the patch at this pixel; without it, of the class token.")] = "",
    mass: Annotated[float, typer.Option(help="Share of a head's attention that the mask holds; DINO's figure has 0.6.")] = 0.6,
    size: PictureSize = 480,
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG to write.")] = Path("attention.png"),
    family: Family = "",
    arch: Arch = "",
    network: Network = "",
    prefix: Prefix = "",
    grid: Grid = "",
    device: DeviceName = Device.auto,
    precision: PrecisionName = Precision.auto,
) -> None:  # fmt: skip
    """Draw the last block's attention, head by head, and the patches that hold most of it."""
    from evalkit.engine.evaluate import load, resolve_device
    from evalkit.metrics import maps
    from evalkit.reporting import looking
    from evalkit.reporting.figures import canvas
    from evalkit.reporting.figures import maps as drawing

    canvas.check(out)
    whole = looking.opened(image)
    where = resolve_device(device.value)
    encoder = load(checkpoint, family=family, arch=arch, network=network, prefix=prefix, grid=grid_of(grid)).to(where)
    picture = looking.fitted(whole, size, encoder.spec.patch)
    patches = (picture.height // encoder.spec.patch, picture.width // encoder.spec.patch)
    asked = looking.patch_at(whole.size, patches, point(at)) if at else None
    weights = looking.Eyes(encoder, where, precision.value).attention(picture, asked)
    kept = maps.attended(weights.flatten(1), mass=mass).view(weights.shape)
    drawn = drawing.attention(
        picture, weights.numpy(), kept.numpy(),
        title=f"{encoder.spec.id} · attention of the {'patch at ' + at if at else 'class token'}, last block",
        note=f"{image.name}, {grid[0]} x {grid[1]} patches; below, the patches with {100 * mass:g} % of each head's attention",
    )  # fmt: skip
    typer.echo(f"{canvas.save(drawn, out)}: {len(weights)} heads")
