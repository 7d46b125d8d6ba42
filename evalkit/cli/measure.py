"""`evalkit eval` and `evalkit repeat`."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from evalkit import catalog
from evalkit.cli.options import (
    Arch,
    DataPaths,
    DataRoot,
    Device,
    DeviceName,
    Family,
    Grid,
    Limit,
    Network,
    Precision,
    PrecisionName,
    Prefix,
    Seed,
    SkipBroken,
    complete_encoder,
    complete_recipe,
    complete_suite,
    encoders_of,
    grid_of,
    pairs,
)
from evalkit.errors import EvalkitError, RecordError, UsageError

if TYPE_CHECKING:
    from evalkit.engine.evaluate import Outcome, Session
    from evalkit.engine.naming import Named
    from evalkit.progress import RichProgress
    from evalkit.records import Record
    from evalkit.types import Encoder, Recipe


def evaluate(
    checkpoint: Annotated[list[str] | None, typer.Argument(
        help="Zoo ids, manifest files or weights files; random:ENCODER is the untrained twin of one, 'shipped' means every "
        "encoder that travels with evalkit, none the suite's own.", autocompletion=complete_encoder)] = None,
    recipe: Annotated[list[str] | None, typer.Option("--recipe", "-r", help="A recipe id or file; may be given again.",
                                                     autocompletion=complete_recipe)] = None,
    suite: Annotated[str | None, typer.Option("--suite", "-s", help="All recipes of a suite.",
                                              autocompletion=complete_suite)] = None,
    family: Family = "",
    arch: Arch = "",
    network: Network = "",
    prefix: Prefix = "",
    grid: Grid = "",
    data_root: DataRoot = None,
    data: DataPaths = None,
    device: DeviceName = Device.auto,
    precision: PrecisionName = Precision.auto,
    limit: Limit = None,
    skip_broken: SkipBroken = False,
    out: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("runs"),
    seed: Seed = 0,
    name: Annotated[str, typer.Option(
        help="Id of a weights file in records and tables (else its file name; digits of its digest where that is taken).")] = "",
    controls: Annotated[bool | None, typer.Option(
        "--controls/--no-controls", help="Measure pixels and the untrained twin of each network too.",
        show_default="with --suite")] = None,
    save_masks: Annotated[Path | None, typer.Option(
        help="Folder for the label maps of one video recipe: indexed PNGs in the layout of DAVIS results.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as JSON on standard output.")] = False,
) -> None:  # fmt: skip
    """Measure frozen encoders with recipes, and write one record per encoder and recipe.

    What was measured before is found again; an interrupted command goes on where it stopped.
    """
    given = {k: _plain(v) for k, v in locals().items() if k not in ("checkpoint", "recipe", "suite")}
    targets = encoders_of(checkpoint or [], suite)
    for target in targets:
        catalog.located(target)
    wanted = {target: _recipes(recipe or [], suite, target) for target in targets}
    if save_masks is not None and (len(targets) > 1 or controls):
        raise UsageError(f"--save-masks is for one encoder at a time, without controls; {len(targets)} were given")
    if name and len(targets) > 1:
        raise UsageError(f"--name is for one encoder; {len(targets)} were given")

    from evalkit.engine import naming
    from evalkit.engine.controls import Beside
    from evalkit.engine.evaluate import Options, Outcome, Session, load
    from evalkit.progress import RichProgress

    options = Options(
        data_root=data_root, data=pairs(data), device=device.value, precision=precision.value, limit=limit,
        skip_broken=skip_broken, out=out, seed=seed, save_masks=save_masks,
    )  # fmt: skip
    asks: dict[str, Any] = {
        "family": family, "arch": arch, "network": network, "prefix": prefix, "grid": grid_of(grid),
    }  # fmt: skip
    with RichProgress(quiet=as_json) as progress:
        session = Session(options, progress)
        outcomes: list[Outcome] = []
        beside = Beside()
        try:
            for target in targets:
                asked = given | {"checkpoint": target, "suite": suite}
                try:
                    encoder = load(target, **asks)
                    called = naming.Named(target, network, name, alone=naming.alone(target, targets))
                    encoder = _settled(encoder, called, out, progress)
                except EvalkitError as error:
                    if len(targets) == 1:
                        raise
                    outcomes.append(Outcome(target, error=error))
                else:
                    beside.saw(encoder, target, wanted[target])
                    outcomes += _measure(session, encoder, wanted[target], asked, progress)
            if suite is not None and save_masks is None if controls is None else controls:
                for line in beside.said():
                    progress.say(escape(line))
                for control in beside.missing().values():
                    asked = given | {"checkpoint": control.checkpoint, "suite": suite}
                    encoder = load(control.checkpoint, **(asks if control.of else {}))
                    outcomes += _measure(session, encoder, list(control.recipes.values()), asked, progress)
        except KeyboardInterrupt:
            typer.echo("evalkit: interrupted; what was computed is kept, the same command goes on from there", err=True)
            raise typer.Exit(130) from None
    _finish(outcomes, out, as_json)
    if not as_json and len({outcome.recipe for outcome in outcomes}) == 1:
        for outcome in outcomes:
            _videos(outcome.record)


def _videos(record: Record | None) -> None:
    """The table per video of a record that has one: told where one recipe was asked for, among many it would be lost."""
    if record is None or not (found := record.facts.get("videos")):
        return
    from evalkit.reporting import intervals
    from evalkit.reporting.videos import Mean, Row, draw

    rows = [Row(k, r["objects"], r["scored_frames"], r["J&F"], r["J"], r["F"]) for k, r in found.items()]
    means = [Mean(s["name"], s["value"], s["low"], s["high"], s["n"], intervals.method(s)) for s in record.scores]
    draw(f"{record.encoder['id']}   {record.recipe['id']}", rows, means)


def _settled(encoder: Encoder, named: Named, out: Path, progress: RichProgress) -> Encoder:
    """Under its own id; an id that is not the file's name is told."""
    from evalkit.engine import naming

    before = encoder.spec.id
    encoder = naming.settle(encoder, named, out)
    if encoder.spec.id not in (before, named.name):
        progress.say(
            escape(
                f"{named.checkpoint}: called {encoder.spec.id}, as another network is called {before}; --name chooses"
            )
        )
    return encoder


def _measure(
    session: Session, encoder: Encoder, recipes: list[Recipe], given: dict[str, Any], progress: RichProgress
) -> list[Outcome]:
    from evalkit.reporting import choices

    outcomes = []
    for outcome in session.run(encoder, recipes, given):
        progress.say(_line(encoder.spec.id, outcome))
        for line in [] if outcome.record is None else choices.told(outcome.record):
            progress.say(f"  [yellow]{line}[/]")
        outcomes.append(outcome)
    return outcomes


def _line(encoder: str, outcome: Outcome) -> str:
    name = f"[bold]{escape(encoder)}[/] {escape(outcome.recipe)}"
    if outcome.record is None:
        return f"{name}: [red]failed[/], see below"
    if outcome.record.status == "n/a":
        return f"{name}: n/a, {escape(outcome.record.reason)}"
    how = "record reused" if outcome.reused else f"{outcome.record.seconds:.1f} s"
    return f"{name}: {describe_score(outcome.record)} ({how})"


def describe_score(record: Record) -> str:
    """`top1@k=10 51.2 % ± 4.1 (n 533)`: the headline of a record."""
    score = record.score()
    if score is None:
        raise RecordError(f"{record.recipe['id']}: no score {record.recipe['headline']!r} in the record")
    from evalkit.reporting import intervals

    scale, digits, unit = intervals.printed_in(score["unit"])
    spread = intervals.spread(score, scale=scale, digits=digits)
    n = "" if "(n " in spread else f" (n {score['n']})"
    return f"{score['name']} {score['value'] * scale:.{digits}f} {unit}{spread}{n}"


def _finish(outcomes: list[Outcome], out: Path, as_json: bool) -> None:
    if as_json:
        import dataclasses

        typer.echo(json.dumps([dataclasses.asdict(o.record) for o in outcomes if o.record], indent=1, default=str))
    else:
        kept, fresh = sum(o.reused for o in outcomes), sum(o.record is not None and not o.reused for o in outcomes)
        typer.echo(f"{fresh} measured now, {kept} reused; records in {out}/")
    failed = [o for o in outcomes if o.error is not None]
    for o in failed:
        typer.echo(f"evalkit: {o.recipe}: {o.error}", err=True)
    if failed:
        raise typer.Exit(1)


def _recipes(names: list[str], suite: str | None, target: str) -> list[Recipe]:
    if suite is not None:
        names = [*names, *_of_suite(suite, target)]
    if not names:
        raise UsageError("nothing to measure: give --recipe or --suite (evalkit list recipes, evalkit list suites)")
    return [catalog.recipe(n) for n in dict.fromkeys(names)]


def _of_suite(suite: str, target: str) -> list[str]:
    """A suite's recipes; of a paper's table those of the encoder's row, or all where it has none."""
    every = [column.recipe for column in catalog.suite(suite).columns]
    if not catalog.is_paper_table(suite):
        return every
    from evalkit.reporting.printed import recipes_of

    table = catalog.paper_table(suite)
    if found := recipes_of(table, target):
        return found
    typer.echo(f"{target} has no row in {table.id}: every recipe of the table is measured", err=True)
    return every


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, (Path, enum.Enum)) else value


def repeat(
    record: Annotated[Path, typer.Argument(help="A record file.")],
) -> None:
    """Measure a record's question again from the record alone, and say whether the numbers agree."""
    from evalkit import records
    from evalkit.engine.repeat import again

    old = records.read(record)
    new, rows = again(old)
    moved = [name for name, before, after in rows if str(before) != str(after)]
    for name, before, after in rows:
        typer.echo(f"{name}: {before:.6g} then, {after:.6g} now" + ("  MOVED" if name in moved else ""))
    if moved:
        changed = {k: (v, new.environment.get(k)) for k, v in old.environment.items() if new.environment.get(k) != v}
        typer.echo(f"evalkit: numbers moved; what differs: {changed or 'nothing that the record holds'}", err=True)
        raise typer.Exit(1)
