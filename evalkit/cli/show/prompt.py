"""`evalkit show prompt`: what looks like the patch that a person points at."""

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
    complete_recipe,
    grid_of,
    pairs,
    point,
)
from evalkit.errors import UnknownName, UsageError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from evalkit.types import Encoder, View


def show(
    checkpoint: Checkpoint,
    image: Annotated[str, typer.Argument(help="An image file; with --recipe, the id of a photo of its test data.")],
    at: Annotated[str, typer.Option(help="X,Y: the prompt in pixels of the image, from its upper left corner.")],
    threshold: Annotated[float, typer.Option(
        help="The mask is where the cosine exceeds it; encoders differ in what is much.", min=-1, max=1)] = 0.3,
    size: Annotated[int, typer.Option(help="Side in pixels that the image is resized to (as the recipe, with one).")] = 480,
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="A recipe of the runner prompt, whose data know the objects.",
                                        autocompletion=complete_recipe)] = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG to write.")] = Path("prompt.png"),
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
    """Draw how similar every patch of an image is to one of them: heat map, mask, and the mask over the image."""
    from evalkit import runners
    from evalkit.engine.evaluate import Options, Session, load
    from evalkit.reporting.figures import canvas
    from evalkit.reporting.figures import prompt as drawing

    where = point(at)
    canvas.check(out)
    options = Options(data_root=data_root, data=pairs(data), device=device.value, precision=precision.value, out=None)
    session, encoder = (
        Session(options),
        load(checkpoint, family=family, arch=arch, network=network, prefix=prefix, grid=grid_of(grid)),
    )
    if recipe:
        picture, view, truth, said = _of_recipe(session, encoder, recipe, image, where)
    else:
        picture, view, truth, said = _of_file(encoder, image, size, where)
    cosines, prompt = _cosines(session, encoder, runners.module("prompt"), (picture, view), where)
    made = drawing.Prompted(
        picture, where, cosines, threshold, prompt, truth,
        title=f"{encoder.spec.id} · {Path(image).name}",
        note=f"{view.size} x {view.size} pixels, {cosines.shape[0]} x {cosines.shape[1]} patches{said}",
    )  # fmt: skip
    canvas.save(drawing.draw(made), out)
    score = "" if made.iou is None else f", IoU {100 * made.iou:.1f} %"
    typer.echo(f"{out}: {100 * made.mask.mean():.1f} % of the image are above {threshold:g}{score}{said}")


def _inside(image: Image, point: tuple[int, int], name: str) -> None:
    if not all(0 <= value < length for value, length in zip(point, image.size, strict=True)):
        raise UsageError(
            f"the prompt {point[0]},{point[1]} lies outside {name}, which is {image.width} x {image.height} pixels: "
            f"x is 0 to {image.width - 1}, y is 0 to {image.height - 1}"
        )


def _of_file(
    encoder: Encoder, name: str, size: int, point: tuple[int, int]
) -> tuple[Image, View, np.ndarray | None, str]:
    from evalkit.features.view import resolve
    from evalkit.reporting.looking import opened
    from evalkit.types import ViewRef

    picture = opened(Path(name))
    _inside(picture, point, name)
    return picture, resolve(ViewRef(size=size, fit="squash"), encoder.spec)[0], None, ""


def _of_recipe(
    session: Any, encoder: Encoder, name: str, group: str, point: tuple[int, int]
) -> tuple[Image, View, np.ndarray | None, str]:
    """The photo, the recipe's view, the object at the prompt (the smallest of several), and what there is to say."""
    wanted = catalog.recipe(name)
    if wanted.runner != "prompt":
        fitting = [r for r in catalog.recipes() if catalog.recipe(r).runner == "prompt"]
        raise UsageError(f"{wanted.id} is a recipe of the runner {wanted.runner}; prompts are of: {', '.join(fitting)}")
    job = session.job(encoder, wanted)
    dataset: Any = job.dataset("test")
    ids = [dataset[position].id for position in range(len(dataset))]
    if group not in ids:
        raise UnknownName(f"photo of {dataset.name} ({dataset.split})", group, ids)
    picture = dataset.image(dataset[ids.index(group)].group)
    _inside(picture, point, group)
    objects = [one for one in dataset.objects(ids.index(group)) if one.mask[point[1], point[0]]]
    if not objects:
        return picture, job.view, None, ", the prompt lies on the background"
    smallest = min(objects, key=lambda one: int(one.mask.sum()))
    return picture, job.view, smallest.mask, f", the prompt lies on: {dataset.classes[smallest.label]}"


def _cosines(
    session: Any, encoder: Encoder, runner: Any, shown: tuple[Image, View], point: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """(h, w) cosines to the prompt's patch, and its row and column."""
    import torch

    from evalkit.features import view as views
    from evalkit.features.forward import casting

    picture, view = shown
    batch = views.normalise(views.apply(picture, None, view)[None].to(session.device), view)
    with torch.no_grad(), casting(session.device, session.precision):
        tokens = encoder.to(session.device).encode(batch)[0].patches[0].float()
    height, width = tokens.shape[:2]
    row, column = (2 * point[1] + 1) * height // (2 * picture.height), (2 * point[0] + 1) * width // (2 * picture.width)
    cosines = runner.similarity(tokens, torch.tensor([row * width + column], device=tokens.device))
    return cosines[0].cpu().numpy(), (row, column)
