"""`evalkit fetch`: the weights of an encoder into the cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evalkit import catalog
from evalkit.cli.options import complete_encoder
from evalkit.errors import FetchError, UsageError

if TYPE_CHECKING:
    from evalkit.download import Conduct
    from evalkit.types import Manifest


def fetch(
    encoder: Annotated[list[str], typer.Argument(metavar="ID...", help="Zoo ids or manifest files.",
                                                 autocompletion=complete_encoder)],
    mirror: Annotated[str, typer.Option(envvar="EVALKIT_MIRROR",
        help="http://HOST/PATH, https://HOST/PATH or file:///PATH in place of scheme and host; the path of the manifest's "
             "address is appended unchanged.")] = "",
    from_: Annotated[Path | None, typer.Option("--from",
        help="A file that you have got yourself: it is checked and copied.")] = None,
    out: Annotated[Path | None, typer.Option(
        help="Put the file into this folder instead of the cache; give eval its path then.")] = None,
) -> None:  # fmt: skip
    """Download weights into the cache, where eval finds them; an interrupted download goes on where it stopped.

    The file is held to the digest that its authors publish; where they publish none, it has to open as a checkpoint of its
    family, and is held to the digest it had the first time.
    """
    if from_ is not None and len(encoder) > 1:
        raise UsageError("--from is one file: give one encoder")
    for name in encoder:
        try:
            _one(name, mirror, from_, out)
        except KeyboardInterrupt:
            typer.echo("evalkit: interrupted; what has arrived is kept, the same command goes on from there", err=True)
            raise typer.Exit(130) from None


def _one(name: str, mirror: str, given: Path | None, out: Path | None) -> None:
    from evalkit import download

    manifest = catalog.manifest(name)
    url = _address(name, manifest, mirror, given)
    if url is None:
        typer.echo(f"{manifest.id}: nothing to fetch ({_why(manifest)})")
        return
    place = catalog.cached(manifest)
    target = place if out is None else out / place.name
    stated = catalog.states_digest(name)
    wanted = download.Wanted(
        url, target, id=manifest.id, origin=manifest.origin, sha256=manifest.sha256 if stated else "",
        sha256_prefix=manifest.sha256_prefix, md5_prefix=manifest.md5_prefix, size=manifest.size, twin=place,
        opens=partial(_open, manifest), given=given,
    )  # fmt: skip
    with _watched(manifest.id) as conduct:
        fresh = download.fetch(wanted, conduct)
    digest = wanted.sha256 or download.recorded(wanted.held_by)
    how = "fetched" if fresh else "already there"
    kind = "its manifest names it" if stated else "recorded at the first download"
    typer.echo(f"{manifest.id}: {how}, {target.stat().st_size / 1e6:,.1f} MB, {target}\n  sha256 {digest} ({kind})")
    if manifest.licence:
        typer.echo(f"  licence of the weights: {manifest.licence}")


def _open(manifest: Manifest, path: Path) -> None:
    """Raises an EvalkitError where the file is no checkpoint of the manifest's family and architecture."""
    from evalkit import adapters

    adapters.load(replace(manifest, sha256=""), path)


def _address(name: str, manifest: Manifest, mirror: str, given: Path | None) -> str | None:
    """Where to fetch from; None where there is nothing to fetch. Raises FetchError where only people can."""
    if manifest.control or manifest.shipped or (manifest.file and not manifest.url and not catalog.by_hand(manifest)):
        return None
    if given is not None:
        if not given.is_file():
            raise UsageError(f"--from {given}: there is no such file")
        return given.resolve().as_uri()
    if not manifest.url:
        if manifest.file:  # got by hand, and copied into the cache before
            return None
        if catalog.by_hand(manifest):
            catalog.weights(name)
        raise FetchError(f"{manifest.id}: its manifest has no url, and no page in origin")
    from evalkit import download

    return download.mirrored(manifest.url, mirror) if mirror else manifest.url


def _why(manifest: Manifest) -> str:
    if manifest.control:
        return "a control has no weights"
    return "its weights travel with evalkit" if manifest.shipped else f"its weights are {manifest.file}"


@contextmanager
def _watched(name: str) -> Iterator[Conduct]:
    """A bar with bytes, rate and time on standard error, and lasting lines for what happens on the way."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from evalkit.download import Conduct

    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    task = bars.add_task(name, total=None)
    with bars:
        yield Conduct(
            report=lambda done, total: bars.update(task, completed=done, total=total),
            say=lambda line: console.print(f"{name}: {line}", highlight=False, markup=False, soft_wrap=True),
        )
