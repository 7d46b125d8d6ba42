"""`evalkit pretrain`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evalkit.cli.options import DataRoot, Device, DeviceName, Limit, Precision, PrecisionName
from evalkit.errors import ExtraMissing, PretrainError, UsageError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from evalkit.pretrain.experiment import Experiment

LIST = "list"


def pretrain(
    method: Annotated[str, typer.Argument(help="A method, or 'list' for all of them with their presets.")],
    preset: Annotated[str, typer.Option(help="micro, or a paper's: see 'evalkit pretrain list'.")] = "",
    config: Annotated[Path | None, typer.Option(help="TOML file with the tables of a preset; stands over --preset.")] = None,
    change: Annotated[list[str] | None, typer.Option(
        "--set", help="KEY=VALUE over preset and file, as run.epochs=2; may be given again.")] = None,
    data: Annotated[list[str] | None, typer.Option(
        help="Folder or zip of images (PATH:PATTERN takes only some members), or one packed .safetensors; may be given "
             "again. Where it has a folder for training, only that is taken.")] = None,
    out: Annotated[Path | None, typer.Option(
        help="Folder of checkpoint, log and encoder.", show_default="pretrained/METHOD")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in --out.")] = False,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop after this step; --resume goes on.")] = None,
    devices: Annotated[int, typer.Option(min=1, help="Processes that share a batch: GPUs, or CPU processes.")] = 1,
    device: DeviceName = Device.auto,
    precision: PrecisionName = Precision.auto,
    compile: Annotated[bool | None, typer.Option(help="torch.compile the networks.", show_default="on a GPU")] = None,
    probe: Annotated[list[str] | None, typer.Option(help="Recipe that is measured on the way; may be given again.")] = None,
    no_probe: Annotated[bool, typer.Option("--no-probe", help="Measure nothing on the way.")] = False,
    probe_epochs: Annotated[int, typer.Option(min=1, help="Epochs between two probes.")] = 1,
    data_root: DataRoot = None,
    limit: Limit = None,
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between checkpoints, beside the one of each epoch.")] = 200,
    log_steps: Annotated[int, typer.Option(min=1, help="Steps between rows of the log.")] = 20,
) -> None:  # fmt: skip
    """Pretrain an encoder. What comes out loads through the method's family: evalkit eval OUT/encoder.toml.

    A run goes on where it stopped, bit for bit on a CPU. --data-root and --limit are the probe's.
    """
    if method == LIST:
        _list()
        return
    from evalkit.pretrain.experiment import compose
    from evalkit.pretrain.trainer import Options

    if not preset and config is None:
        raise UsageError(f"what to train: --preset NAME (see 'evalkit pretrain {LIST}') or --config FILE")
    experiment = compose(method, preset, config, change or [])
    folder = out or Path("pretrained") / method
    _check_folder(folder, resume)
    fabric = _fabric(device.value, devices, precision.value)
    options = Options(
        max_steps=max_steps, save_steps=save_steps, log_steps=log_steps, probe_epochs=probe_epochs,
        compile=fabric.device.type == "cuda" if compile is None else compile,
    )  # fmt: skip
    watcher = None if no_probe else _probe(probe or ["mini-knn-ccp-items"], data_root, limit, fabric.device.type)
    _run(experiment, fabric, folder, data or [], options, watcher, resume)


def _list() -> None:
    from rich.console import Console
    from rich.table import Table

    from evalkit.pretrain.experiment import names, presets, summary

    table = Table("method", "presets", "what it is", box=None)
    for name in names():
        table.add_row(name, ", ".join(presets(name)), summary(name))
    Console().print(table)


def _check_folder(folder: Path, resume: bool) -> None:
    from evalkit.pretrain.state import CHECKPOINT

    there = (folder / CHECKPOINT).exists()
    if there and not resume:
        raise UsageError(f"{folder} holds a run already: go on with --resume, or choose another --out")
    if resume and not there:
        raise UsageError(f"{folder} holds no {CHECKPOINT} to go on from: leave --resume out, or name its --out")


def _fabric(device: str, devices: int, precision: str) -> Fabric:
    import torch

    try:
        from lightning.fabric import Fabric
        from lightning.fabric.strategies.ddp import DDPStrategy
    except ImportError as error:
        raise ExtraMissing("pretraining", "pretrain") from error
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise PretrainError("device cuda was asked for, but this machine or this torch has none; use --device cpu")
    kind = ("cuda" if cuda else "cpu") if device == "auto" else device
    if kind == "cuda" and devices > torch.cuda.device_count():
        raise PretrainError(f"{devices} GPUs were asked for; there are {torch.cuda.device_count()}")
    low = precision == "bf16" or (precision == "auto" and kind == "cuda")
    strategy: Any = DDPStrategy(broadcast_buffers=False) if devices > 1 else "auto"
    fabric = Fabric(accelerator=kind, devices=devices, strategy=strategy, precision="bf16-mixed" if low else "32-true")
    fabric.launch()
    if kind == "cuda" and low:
        torch.set_float32_matmul_precision("high")
    return fabric


def _probe(recipes: list[str], data_root: Path | None, limit: int | None, device: str) -> Any:
    from evalkit.pretrain.probe import RecipeProbe

    found = RecipeProbe(tuple(recipes), data_root, limit, device)
    found.check()
    return found


def _run(
    experiment: Experiment, fabric: Fabric, out: Path, data: list[str], options: Any, probe: Any, resume: bool
) -> None:  # fmt: skip
    from evalkit.catalog import cache_root
    from evalkit.pretrain.corpus import open_corpus
    from evalkit.pretrain.trainer import Trainer
    from evalkit.progress import RichProgress

    with RichProgress(quiet=not fabric.is_global_zero) as progress:
        with progress.status("reading the training images"), fabric.rank_zero_first():
            corpus = open_corpus(
                data,
                experiment.side,
                cache_root() / "corpora",
                windows=experiment.windows,
                stream=experiment.stream,
                device=fabric.device,
            )
        progress.say(f"{experiment.method}: {len(corpus):,} images of {experiment.side} px, {fabric.device}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Fabric's advice on loaders that it is not given
            trainer = Trainer(experiment.build(), corpus, experiment.run, out, fabric=fabric,
                              question=experiment.facts(), options=options)  # fmt: skip
        path = trainer.train(trainer.resume() if resume else 0, progress=progress, probe=probe)
    if trainer.stopped:
        typer.echo(f"evalkit: stopped; the checkpoint is in {out}, the same command with --resume goes on", err=True)
        raise typer.Exit(143)
    if fabric.is_global_zero:
        typer.echo(path)
