"""`evalkit show correspondence`: which patches of two views, or of two images, an encoder takes for each other."""

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
    PictureSize,
    Precision,
    PrecisionName,
    Prefix,
    Seed,
    grid_of,
)

if TYPE_CHECKING:
    from evalkit.metrics.maps import Matches

Line = tuple[tuple[float, float], tuple[float, float], bool | None]


def show(
    checkpoint: Checkpoint,
    image: Annotated[Path, typer.Argument(help="An image file.")],
    other: Annotated[Path | None, typer.Argument(help="A second one; without it, two random views of the first.")] = None,
    top: Annotated[int, typer.Option(help="How many matches, the most similar ones.", min=1)] = 20,
    size: PictureSize = 480,
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG to write.")] = Path("correspondence.png"),
    family: Family = "",
    arch: Arch = "",
    network: Network = "",
    prefix: Prefix = "",
    grid: Grid = "",
    device: DeviceName = Device.auto,
    precision: PrecisionName = Precision.auto,
    seed: Seed = 0,
) -> None:  # fmt: skip
    """Draw lines between patches that are each other's most similar one.

    Of two views of one image the truth is known: a match is right where the two centres lie within a patch's width.
    """
    from evalkit.engine.evaluate import load, resolve_device
    from evalkit.metrics import maps
    from evalkit.reporting import looking
    from evalkit.reporting.figures import canvas
    from evalkit.reporting.figures import maps as drawing

    canvas.check(out)
    wholes = [looking.opened(path) for path in (image, other) if path is not None]
    where = resolve_device(device.value)
    encoder = load(checkpoint, family=family, arch=arch, network=network, prefix=prefix, grid=grid_of(grid)).to(where)
    eyes = looking.Eyes(encoder, where, precision.value)
    right: list[bool | None]
    if other is None:
        cuts = _views(wholes[0], size, encoder.spec.patch, seed)
        seen = [eyes.see(cut.picture) for cut in cuts]
        found = maps.matches(seen[0].tokens, seen[1].tokens, top=top)
        right = _right(cuts, found, seen[0].grid)
        said = f"{sum(map(bool, right))} of {len(right)} right: within a patch's width"
    else:
        seen = [eyes.see(looking.fitted(whole, size, encoder.spec.patch)) for whole in wholes]
        found = maps.matches(seen[0].tokens, seen[1].tokens, top=top)
        right, said = [None] * len(found.first), f"{len(found.first)} matches"
    names = image.name if other is None else f"{image.name} and {other.name}"
    drawn = drawing.matched(
        (seen[0].picture, seen[1].picture), _lines(found, seen, right),
        title=f"{encoder.spec.id} · patches that choose each other", note=f"{names}; {said}",
    )  # fmt: skip
    typer.echo(f"{canvas.save(drawn, out)}: {said}")


def _views(whole: Any, size: int, patch: int, seed: int) -> list[Any]:
    import numpy as np

    from evalkit.reporting import looking

    side = looking.fitted(whole.crop((0, 0, min(whole.size), min(whole.size))), size, patch).width
    draws = np.random.default_rng(seed)
    return [looking.cut_of(whole, side, draws=draws) for _ in range(2)]


def _right(cuts: list[Any], found: Matches, grid: tuple[int, int]) -> list[bool | None]:
    """Whether the centres of each pair lie within the wider of the two patches, in the whole image."""
    import numpy as np

    first, second = cuts[0].origin(grid)[found.first.numpy()], cuts[1].origin(grid)[found.second.numpy()]
    width = max((cut.box[2] - cut.box[0]) / grid[1] for cut in cuts)
    return [bool(far <= width) for far in np.abs(first - second).max(axis=1)]


def _lines(found: Matches, seen: list[Any], right: list[bool | None]) -> list[Line]:
    from evalkit.reporting.looking import centres

    ends = [centres(n.tolist(), one.grid) for n, one in zip((found.first, found.second), seen, strict=True)]
    return [(a, b, ok) for a, b, ok in zip(*ends, right, strict=True)]
