"""`evalkit score`: numbers for what other tools predicted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evalkit.cli.options import DataPaths, DataRoot, Seed, SkipBroken, pairs
from evalkit.types import DatasetRef

if TYPE_CHECKING:
    from evalkit.engine.results import Scored

app = typer.Typer(help="Score what another tool predicted.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def davis(
    results: Annotated[Path, typer.Argument(help="Folder or .zip: CLIP/FRAME.png, indexed, as the official scorer wants.")],
    data_root: DataRoot = None,
    data: DataPaths = None,
    year: Annotated[int, typer.Option(min=2016, max=2017, help="2017: several objects; 2016: one, masks 0 and 255.")] = 2017,
    split: Annotated[str, typer.Option(help="A list of ImageSets/YEAR/, or all for every clip folder.")] = "val",
    skip_broken: SkipBroken = False,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:  # fmt: skip
    """J and F of video masks that any tool wrote, per video and as means over objects with 95 % intervals over videos."""
    from evalkit import datasets
    from evalkit.engine import results as scoring
    from evalkit.progress import RichProgress

    reference = DatasetRef("davis", f"davis{year}", split, split, config={"year": year})
    path = data_root
    if data_root is None or data or not (data_root / "Annotations").is_dir():
        path = datasets.locate(reference, data_root, pairs(data), Path())
    assert path is not None
    clips: Any = datasets.open_dataset(reference, "test", path)
    with RichProgress(quiet=as_json) as progress:
        found = scoring.score(
            results, clips, binary=year == 2016, progress=progress, seed=seed, skip_broken=skip_broken
        )
    for name, why in found.left_out.items():
        typer.echo(f"evalkit: {name} is left out: {why}", err=True)
    if as_json:
        typer.echo(json.dumps(_plain(found, results, path, clips.describe()), indent=2))
    else:
        _draw(found, f"{results}   DAVIS-{year} {split}")


def _plain(found: Scored, results: Path, data: Path, facts: dict[str, Any]) -> dict[str, Any]:
    scores = [
        {
            "name": s.name,
            "value": s.value,
            "low": _known(s.low),
            "high": _known(s.high),
            "n": s.n,
            "interval": s.interval,
        }
        for s in found.scores
    ]
    return {
        "results": str(results),
        "data": str(data),
        "split": facts["split"],
        "digest": facts["digest"],
        "scores": scores,
        "left_out": dict(found.left_out),
        "videos": {
            clip: {"J&F": score.per_object.tolist(), "J": score.j.mean(axis=1).tolist(), "F": score.f.mean(axis=1).tolist()}
            for clip, score in found.clips.items()
        },
    }  # fmt: skip


def _known(bound: float) -> float | None:
    """None for the bounds of few videos: JSON has no NaN."""
    return None if math.isnan(bound) else bound


def _draw(found: Scored, title: str) -> None:
    from evalkit.reporting.videos import Mean, Row, draw

    rows = [
        Row(
            name,
            clip.j.shape[0],
            clip.j.shape[1],
            float(clip.per_object.mean()),
            float(clip.j.mean()),
            float(clip.f.mean()),
        )
        for name, clip in found.clips.items()
    ]
    draw(title, rows, [Mean(s.name, s.value, s.low, s.high, s.n, s.interval) for s in found.scores])
