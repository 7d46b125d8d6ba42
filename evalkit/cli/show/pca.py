"""`evalkit show pca`: patch tokens as colours, alike where the encoder sees the same."""

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
)


def show(
    checkpoint: Checkpoint,
    images: Annotated[list[Path], typer.Argument(help="Image files, which share their colours.")],
    size: PictureSize = 480,
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG to write.")] = Path("pca.png"),
    family: Family = "",
    arch: Arch = "",
    network: Network = "",
    prefix: Prefix = "",
    grid: Grid = "",
    device: DeviceName = Device.auto,
    precision: PrecisionName = Precision.auto,
) -> None:
    """Draw the first three principal components of patch tokens as red, green and blue."""
    import torch

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
    seen = [
        eyes.see(looking.fitted(picture, size, encoder.spec.patch), path.name)
        for path, picture in zip(images, pictures, strict=True)
    ]
    colours = maps.colours(torch.cat([one.tokens for one in seen]))
    tops, bottoms, first = [drawing.shown(one.picture) for one in seen], [], 0
    for one, top in zip(seen, tops, strict=True):
        own = colours[first : first + len(one.tokens)].reshape(*one.grid, 3)
        bottoms.append(drawing.coloured(own, top))
        first += len(one.tokens)
    drawn = drawing.rows(
        tops, bottoms, [one.name for one in seen],
        title=f"{encoder.spec.id} · principal components of patch tokens",
        note="the first three, fitted on all images together, as red, green, blue",
    )  # fmt: skip
    typer.echo(f"{canvas.save(drawn, out)}: {len(images)} image(s)")
