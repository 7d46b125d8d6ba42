"""Options that several commands have, said once."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from evalkit import catalog
from evalkit.errors import UsageError

SHIPPED = "shipped"
"""Stands for every encoder that travels with evalkit."""


class Device(enum.StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(enum.StrEnum):
    """In which arithmetic the encoder runs."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


def _begins(names: list[str], incomplete: str) -> list[str]:
    return [n for n in names if n.startswith(incomplete)]


def complete_recipe(incomplete: str) -> list[str]:
    """Recipe ids for the shell."""
    return _begins(catalog.recipes(), incomplete)


def complete_suite(incomplete: str) -> list[str]:
    """Suite ids for the shell."""
    return _begins(catalog.suites(), incomplete)


def encoders_of(names: Iterable[str], suite: str | None) -> list[str]:
    """Ids and paths of the encoders that a command is about: those named, else the suite's own. Raises UsageError for none."""
    found = list(names) or list(catalog.suite(suite).encoders if suite else ())
    if not found:
        raise UsageError(
            "no encoder to measure: name a zoo id (evalkit list encoders), a manifest or weights file, 'shipped', or a "
            "--suite with encoders of its own"
        )
    return [each for name in found for each in (catalog.shipped_encoders() if name == SHIPPED else [name])]


def complete_encoder(incomplete: str) -> list[str]:
    """Encoder ids for the shell."""
    return _begins([*catalog.manifests(), SHIPPED], incomplete)


Checkpoint = Annotated[
    str, typer.Argument(help="A zoo id, a manifest file or a weights file.", autocompletion=complete_encoder)
]
RecipeId = Annotated[str, typer.Option("--recipe", "-r", help="A recipe id or file.", autocompletion=complete_recipe)]
Family = Annotated[str, typer.Option(help="Family of a weights file: dino, timm ...")]
Arch = Annotated[str, typer.Option(help="Architecture of a weights file, as its family names it.")]
Network = Annotated[
    str, typer.Option(help="Which network of the file: teacher, student ... (the family's own if empty).")
]
Prefix = Annotated[
    str, typer.Option(help="The network's keys begin with this, where the file leaves open which is meant.")
]
Grid = Annotated[str, typer.Option(help="HxW: patches of the position table, where it is no square.")]
DataRoot = Annotated[Path | None, typer.Option(envvar="EVALKIT_DATA", help="Folder that holds the datasets.")]
DataPaths = Annotated[list[str] | None, typer.Option(help="NAME=PATH: where one dataset lies.")]
DeviceName = Annotated[Device, typer.Option(help="auto: cuda where there is one.")]
PrecisionName = Annotated[Precision, typer.Option(help="auto: bf16 on cuda, fp32 on the CPU.")]
Limit = Annotated[int | None, typer.Option(help="At most N samples of each split, evenly spread.")]
SkipBroken = Annotated[bool, typer.Option(help="Leave out images that cannot be decoded, and record which.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random in the protocol.")]
PictureSize = Annotated[
    int, typer.Option(help="Longer side in pixels that the encoder is shown, rounded to whole patches.")
]


def grid_of(text: str) -> tuple[int, int] | None:
    """(h, w) from a text HxW, None from "". Raises UsageError for any other text."""
    if not text:
        return None
    sides = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if sides is None:
        raise UsageError(f"--grid {text[:80]!r}: it is HxW in whole patches, for instance --grid 14x28")
    return int(sides[1]), int(sides[2])


def point(text: str) -> tuple[int, int]:
    """A pixel from a text X,Y. Raises UsageError for any other text."""
    try:
        x, y = (int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--at {text!r}: it is X,Y in whole pixels, for instance --at 120,80") from None
    return x, y


def pairs(texts: list[str] | None) -> dict[str, Path]:
    """Paths by name from texts NAME=PATH. Raises UsageError for any other text."""
    found = {}
    for text in texts or []:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise UsageError(f"--data {text!r}: it is NAME=PATH, for instance --data cifar10=/data/cifar10.zip")
        found[name] = Path(path)
    return found
