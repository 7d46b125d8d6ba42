"""`evalkit regress`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evalkit import catalog
from evalkit.cli.options import (
    DataPaths,
    DataRoot,
    Device,
    DeviceName,
    Limit,
    Precision,
    PrecisionName,
    complete_encoder,
    complete_suite,
    encoders_of,
    pairs,
)
from evalkit.errors import UsageError

if TYPE_CHECKING:
    from evalkit.reporting.regress import Moved


def regress(
    encoder: Annotated[list[str] | None, typer.Argument(
        help="Zoo ids.", show_default="those of the suite", autocompletion=complete_encoder)] = None,
    suite: Annotated[str, typer.Option("--suite", "-s", help="A suite id or file.", autocompletion=complete_suite)] = "mini",
    baseline: Annotated[Path | None, typer.Option(help="Folder of the baselines.", show_default="the zoo's own")] = None,
    update: Annotated[bool, typer.Option(help="Write what is measured as the new baseline.")] = False,
    reason: Annotated[str, typer.Option(help="Why the baseline changes; kept in its file.")] = "",
    seeds: Annotated[int, typer.Option(min=2, help="With --update: seeds from which tolerances are found.")] = 4,
    data_root: DataRoot = None,
    data: DataPaths = None,
    limit: Limit = None,
    device: DeviceName = Device.auto,
    precision: PrecisionName = Precision.auto,
    as_json: Annotated[bool, typer.Option("--json", help="Print what moved as JSON on standard output.")] = False,
) -> None:  # fmt: skip
    """Measure a suite anew and fail where a score moved by more than rounding, one unit or another seed can move it."""
    from evalkit.engine.evaluate import Options
    from evalkit.progress import RichProgress
    from evalkit.reporting import regress as gate

    if update and not reason.strip():
        raise UsageError("--update needs --reason TEXT: why the numbers may change, for whoever reads the baseline")
    if reason and not update:
        raise UsageError("--reason is for --update; nothing is written without it")
    found = catalog.suite(suite)
    encoders = encoders_of(encoder or [], suite)
    path = gate.path_of(baseline or catalog.root() / "model_zoo" / "baselines", found.id)
    options = Options(
        data_root=data_root, data=pairs(data), limit=limit, device=device.value, precision=precision.value
    )
    with RichProgress(quiet=as_json) as progress:
        if update:
            before = gate.read(path) if path.exists() else None
            repeats = gate.repeat(found, encoders, options, seeds, progress)
            gate.write(gate.updated(before, found.id, repeats, reason), path)
            typer.echo(f"{len(repeats)} cells of {len(encoders)} encoders written to {path}")
            return
        held = gate.read(path)
        now = gate.once(found, encoders, options, progress)
    moved = gate.compare(held, now)
    if as_json:
        typer.echo(json.dumps([{k: _known(v) for k, v in asdict(m).items()} for m in moved], indent=2))
    elif moved:
        _draw(moved, path)
    else:
        typer.echo(f"{len(now)} cells of {len(encoders)} encoders are as {path} says")
    if moved:
        raise typer.Exit(1)


def _known(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value


def _draw(moved: list[Moved], path: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "encoder", "recipe", "score", "was", "is", "by", "allowed", "", title=f"moved against {path}", box=None
    )
    for m in moved:
        numbers = (m.was, m.now, m.now - m.was, m.tolerance)
        cells = ("" if math.isnan(v) else f"{v:{sign}.5g}" for v, sign in zip(numbers, ("", "", "+", ""), strict=True))
        table.add_row(m.encoder, m.recipe, m.score, *cells, m.what)
    Console(stderr=True).print(table)
