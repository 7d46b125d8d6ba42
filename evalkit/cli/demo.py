"""`evalkit demo`: a page to point at patches, for the browser of this machine."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from evalkit import catalog
from evalkit.cli.options import (
    Arch,
    Device,
    DeviceName,
    Family,
    Grid,
    Network,
    PictureSize,
    Precision,
    PrecisionName,
    Prefix,
    complete_encoder,
    grid_of,
)
from evalkit.errors import UsageError


def demo(
    checkpoint: Annotated[list[str] | None, typer.Argument(
        help="Zoo ids, manifest files or weights files to choose from; without any, those that travel with evalkit.",
        autocompletion=complete_encoder)] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; any but the default lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535)] = 7860,
    max_mb: Annotated[float, typer.Option(help="Larger files are refused, in 10^6 bytes.")] = 20,
    max_megapixels: Annotated[float, typer.Option(help="Images with more pixels are refused, in 10^6.")] = 50,
    size: PictureSize = 320,
    family: Family = "",
    arch: Arch = "",
    network: Network = "",
    prefix: Prefix = "",
    grid: Grid = "",
    device: DeviceName = Device.auto,
    precision: PrecisionName = Precision.auto,
) -> None:  # fmt: skip
    """Serve a page: click a patch of a photograph and see what an encoder takes for the same. Needs the extra 'demo'.

    Heat map, mask, nearest patches, attention heads, two photographs. It stays on this machine. Ctrl+C ends it.
    """
    from evalkit.engine.evaluate import load, resolve_device
    from evalkit.reporting.demo import server
    from evalkit.reporting.demo.looker import Looker
    from evalkit.reporting.demo.photos import Limits

    chosen = list(dict.fromkeys(checkpoint or catalog.shipped_encoders()))
    named_by: dict[str, Any] = {
        "family": family,
        "arch": arch,
        "network": network,
        "prefix": prefix,
        "grid": grid_of(grid),
    }
    if len(chosen) > 1 and any(named_by.values()):
        raise UsageError(f"--{', --'.join(named_by)} are for one weights file; describe several by manifests")
    for one in chosen:
        catalog.located(one)
    named = _named(chosen)
    looker = Looker(list(named), lambda name: load(named[name], **named_by),
                    device=resolve_device(device.value), precision=precision.value, size=size)  # fmt: skip
    signal.signal(signal.SIGTERM, _end)
    with server.serving(looker, server.Address(host, port), Limits(max_mb, max_megapixels)) as (url, blocks):
        typer.echo(f"demo: {url} (Ctrl+C ends it)")
        blocks.block_thread()


def _named(checkpoints: list[str]) -> dict[str, str]:
    """By what the page calls them: zoo ids, and files without their folder where no two are called the same."""
    short = {one: Path(one).name for one in checkpoints}
    names = list(short.values())
    return {name if names.count(name) == 1 else one: one for one, name in short.items()}


def _end(*_: Any) -> None:
    """As Ctrl+C, so that uploads are deleted."""
    raise KeyboardInterrupt
