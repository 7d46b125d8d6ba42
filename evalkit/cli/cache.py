"""`evalkit cache ls | verify | prune`: the feature store from the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from evalkit import catalog, files
from evalkit.errors import StoreError, UsageError

if TYPE_CHECKING:
    from evalkit.features.store import FeatureStore

app = typer.Typer(help="Look after stored features ($EVALKIT_CACHE, else ~/.cache/evalkit).", no_args_is_help=True)


def _store() -> FeatureStore:
    from evalkit.features.store import FeatureStore

    return FeatureStore()


@app.command("ls")
def list_() -> None:
    """List what is stored: key, encoder, data, samples, size, last use."""
    store = _store()
    total = 0
    for entry in store.ls():
        total += entry.bytes
        typer.echo(f"{entry.key[:12]}  {entry.encoder:24} {entry.dataset:20} {entry.split:8} n {entry.n:<8}"
                   f" {entry.bytes / 1e6:9.1f} MB  {entry.last_used}")  # fmt: skip
    typer.echo(f"{store.root}: {total / 1e6:.1f} MB")


@app.command()
def verify() -> None:
    """Read every shard against its checksum; exit code 1 if any is damaged (it will be made again when needed)."""
    problems = _store().verify()
    if problems:
        raise StoreError("\n  ".join([f"{len(problems)} damaged:", *problems]))
    typer.echo("every shard is what its checksum says")


@app.command()
def prune(
    older_than: Annotated[float | None, typer.Option(help="Remove entries not used for so many days.")] = None,
    max_gb: Annotated[
        float | None, typer.Option(help="Remove the least recently used until the store is this small.")
    ] = None,
) -> None:
    """Remove stored features, which are made again when needed, and what killed runs left half written."""
    if older_than is None and max_gb is None:
        raise UsageError("say what to remove: --older-than DAYS, --max-gb GB (0 removes everything)")
    store = _store()
    freed = store.prune(older_than=older_than, max_bytes=None if max_gb is None else int(max_gb * 1e9))
    left = files.sweep_below(catalog.cache_root())
    also = f", and {len(left)} files that killed runs left half written" if left else ""
    typer.echo(f"{store.root}: {freed / 1e6:.1f} MB removed{also}")
