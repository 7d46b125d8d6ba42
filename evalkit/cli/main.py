"""The command `evalkit`: argument parsing only. Heavy libraries are imported by the commands that need them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from evalkit.cli import (
    cache,
    catalogue,
    compare,
    data,
    demo,
    fetch,
    inspect,
    measure,
    pretrain,
    regress,
    report,
    score,
    show,
    table,
)
from evalkit.cli.strict import Strict, printable
from evalkit.errors import EvalkitError
from evalkit.version import __version__

app = typer.Typer(
    name="evalkit",
    cls=Strict,
    help="How good is this frozen vision encoder, from whole scenes to single patches? Numbers with n, interval and record.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("inspect")(inspect.inspect)
app.command("fetch")(fetch.fetch)
app.command("eval")(measure.evaluate)
app.command("repeat")(measure.repeat)
app.command("table")(table.table)
app.command("regress")(regress.regress)
app.command("report")(report.report)
app.command("compare")(compare.compare)
app.command("demo")(demo.demo)
app.command("pretrain")(pretrain.pretrain)
app.command("list")(catalogue.list_)
app.command("describe")(catalogue.describe)
app.add_typer(score.app, name="score")
app.add_typer(show.app, name="show")
app.add_typer(data.app, name="data")
app.add_typer(cache.app, name="cache")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"evalkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line: an EvalkitError, or what a file system refuses, is one message and exit code 1, a wrong option
    exit code 2."""
    try:
        app()
    except EvalkitError as error:
        typer.echo(f"evalkit: {printable(str(error))}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        typer.echo(f"evalkit: {printable(place + (error.strerror or str(error)))}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
