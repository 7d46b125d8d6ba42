"""`evalkit show video`: a clip with the masks that an encoder's features carry along."""

from __future__ import annotations

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
    Network,
    Precision,
    PrecisionName,
    Prefix,
    RecipeId,
    grid_of,
    pairs,
)
from evalkit.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from evalkit.reporting.figures.video import Followed
    from evalkit.types import Clips, Job, Recipe


def show(
    checkpoint: Checkpoint,
    recipe: RecipeId = "mini-video",
    clip: Annotated[str, typer.Option(help="Name of a clip; the first one of the split if empty.")] = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="A film (.mp4, .gif) or a strip of frames (.png).")] = Path("video.png"),
    frames: Annotated[int, typer.Option(help="How many frames a strip has.", min=1, max=48)] = 6,
    columns: Annotated[int, typer.Option(help="How many of them stand side by side.", min=1, max=12)] = 3,
    rate: Annotated[float, typer.Option(help="Frames per second of a film.", min=0.5, max=60)] = 8.0,
    family: Family = "",
    arch: Arch = "",
    network: Network = "",
    prefix: Prefix = "",
    grid: Grid = "",
    data_root: DataRoot = None,
    data: DataPaths = None,
    device: DeviceName = Device.auto,
    precision: PrecisionName = Precision.auto,
) -> None:  # fmt: skip
    """Draw a video whose first mask was carried along: predictions filled, the truth outlined, J of every frame."""
    wanted = catalog.recipe(recipe)
    if wanted.runner != "video":
        fitting = [name for name in catalog.recipes() if catalog.recipe(name).runner == "video"]
        raise UsageError(f"{wanted.id} is a recipe of the runner {wanted.runner}; videos are of: {', '.join(fitting)}")

    from evalkit.engine.evaluate import Options, Session, load
    from evalkit.progress import RichProgress
    from evalkit.reporting.figures import canvas
    from evalkit.reporting.figures import video as drawing

    drawing.check(out)
    encoder = load(checkpoint, family=family, arch=arch, network=network, prefix=prefix, grid=grid_of(grid))
    options = Options(data_root=data_root, data=pairs(data), device=device.value, precision=precision.value, out=None)
    with RichProgress() as progress:
        job: Any = Session(options, progress).job(encoder, wanted)
        followed = _followed(job, clip, wanted)
    if out.suffix.lower() == ".png":
        canvas.save(drawing.strip(followed, frames=frames, columns=columns), out)
    else:
        drawing.save(drawing.film(followed), out, rate=rate)
    typer.echo(f"{out}: {followed.title}, {followed.note}")


def _followed(job: Job, name: str, recipe: Recipe) -> Followed:
    import numpy as np

    from evalkit import runners
    from evalkit.metrics import video
    from evalkit.reporting.figures.video import Followed

    clips: Clips = job.dataset("test")  # type: ignore[assignment]
    names = [clips[index].id for index in range(len(clips))]
    if name and name not in names:
        raise UnknownName("clip", name, names)
    index = names.index(name) if name else 0
    maps: np.ndarray = runners.module(recipe.runner).predicted(job, index)
    frames = clips.frames(index)
    truth = [clips.truth(index, number) for number in range(len(frames))]
    known = [number for number, labels in enumerate(truth) if labels is not None]
    score = video.evaluate(maps[known], np.stack([labels for labels in truth if labels is not None]))
    values = (
        f"J&F {100 * score.per_object.mean():.1f} %, J {100 * score.j.mean():.1f} %, F {100 * score.f.mean():.1f} %"
    )
    return Followed(
        names=frames,
        images=[clips.frame(index, number) for number in range(len(frames))],
        predicted=maps,
        truth=truth,
        title=f"{job.encoder.spec.id} · {recipe.id} · {names[index]}",
        note=f"{values} over frames 2 to {len(frames) - 1} of {len(frames)}",
    )
