"""`evalkit inspect`: what a checkpoint file is, without running anything from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from evalkit.cli.options import Grid, Prefix, grid_of


def inspect(
    file: Annotated[Path, typer.Argument(help="A checkpoint file, or a Hugging Face folder.")],
    family: Annotated[str, typer.Option(help="Read it as this family.")] = "",
    arch: Annotated[str, typer.Option(help="Read it as this architecture of the family.")] = "",
    network: Annotated[str, typer.Option(help="Which network of the file: teacher, student ...")] = "",
    prefix: Prefix = "",
    grid: Grid = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Say what is in a checkpoint file: family, architecture, networks, every key used or dropped and why.

    Ends with 0 where the file loads, 1 where it does not or where it fits several families and --family must choose.
    """
    from dataclasses import replace

    from evalkit import adapters
    from evalkit.adapters import inspection

    wish = inspection.Wish(family, arch, network, prefix, grid_of(grid))
    if family and not (hasattr(adapters.module(family), "FAMILY") or hasattr(adapters.module(family), "of_file")):
        facts, problem = _by_loading(file, wish)
    else:
        seen = inspection.inspect(file, wish)
        facts, problem = inspection.file_facts(seen), None
        if seen.chosen is None:
            facts["candidates"] = [f"{c.family} {c.fit.arch}, {c.fit.parts.network}" for c in seen.candidates]
            problem = inspection.undecided(seen)
        else:
            manifest = replace(inspection.manifest(seen.chosen, wish), id=file.stem)
            facts |= inspection.network_facts(seen.chosen, adapters.load(manifest, file).spec)
    typer.echo(json.dumps(facts, indent=1) if as_json else "\n".join(_lines(facts)))
    if problem is not None:
        raise problem


def _by_loading(file: Path, wish: Any) -> tuple[dict[str, Any], None]:
    """For families that are no `ViTFamily`: what loading the file tells."""
    from dataclasses import asdict

    from evalkit import adapters
    from evalkit.types import Manifest

    asked = Manifest(file.stem, wish.family, wish.arch, network=wish.network, prefix=wish.prefix, grid=wish.grid)
    spec = adapters.load(asked, file).spec
    facts = asdict(spec) | {"offers": sorted(spec.offers), "file": str(file)}
    return {key: value for key, value in facts.items() if key not in ("id", "seed")}, None


def _lines(facts: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """`name  value`, one a line; nested tables indented, long lists shortened."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        label = f"{indent}{name.replace('_', ' '):{width}}  "
        if isinstance(value, Mapping) and value:
            yield label.rstrip()
            yield from _lines({str(k): v for k, v in value.items()}, indent + "  ")
        elif isinstance(value, (list, tuple)):
            shown = ", ".join(map(str, value[:6])) + (f" and {len(value) - 6} more" if len(value) > 6 else "")
            yield label + (shown or "none")
        else:
            yield label + (str(value) if value not in ({}, "") else "none")
