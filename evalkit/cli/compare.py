"""`evalkit compare`: is one encoder better than another, or was it luck."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evalkit.cli.options import complete_encoder

if TYPE_CHECKING:
    from evalkit.reporting.compare import Difference


def compare(
    one: Annotated[str, typer.Argument(help="An encoder with records.", autocompletion=complete_encoder)],
    other: Annotated[str, typer.Argument(help="Another one.", autocompletion=complete_encoder)],
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="Only this recipe.")] = "*",
    score: Annotated[str, typer.Option(help="Another score than the recipe's headline.")] = "",
    out: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("runs"),
) -> None:
    """Difference of two encoders on the same test images, with its paired 95 % bootstrap interval."""
    from evalkit.reporting.compare import differences
    from evalkit.reporting.intervals import printed_in

    for d in differences(one, other, out, recipe=recipe, score=score):
        scale, digits, unit = printed_in(d.unit)
        low, high, gap = (scale * v for v in (d.difference.low, d.difference.high, d.difference.difference))
        bounds = "(no interval)" if math.isnan(low) else f"[{low:+.{digits}f}, {high:+.{digits}f}]"
        mine, theirs = (f"{name} {scale * value:.{digits}f} {unit}" for name, value in ((one, d.one), (other, d.other)))
        typer.echo(f"{d.recipe} {d.score}: {mine}, {theirs}, difference {gap:+.{digits}f} {bounds} {_verdict(d)}")


def _verdict(found: Difference) -> str:
    from evalkit.metrics.intervals import FEWEST

    apart = found.difference.apart
    if apart is None:
        return f"(n {found.n}): whether they differ cannot be told with {found.units} ({FEWEST} are the fewest)"
    return f"(p {found.difference.p:.3f}, n {found.n}): they {'differ' if apart else 'cannot be told apart'}"
