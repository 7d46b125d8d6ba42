"""What is to be trained: a method, an architecture and their numbers, from presets, files and the command line."""

from __future__ import annotations

import importlib
import pkgutil
import tomllib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from evalkit.adapters.vit import ViTConfig
from evalkit.errors import PretrainError, UnknownName
from evalkit.files import WRITTEN_BY_HAND, read_regular
from evalkit.pretrain import methods
from evalkit.pretrain.method import Method
from evalkit.pretrain.run import Run
from evalkit.validation import parse


@dataclass(frozen=True)
class Experiment:
    """arch: of the method's family. pixels: side at which images are kept, 0 for the architecture's own. windows: squares
    that a large photograph gives. stream: decode images again and again instead of packing them. config: the method's."""

    method: str
    arch: str
    run: Run
    config: Any
    pixels: int = 0
    windows: int = 1
    stream: bool = False

    @property
    def vit(self) -> ViTConfig:
        """The architecture. Raises UnknownName."""
        return architecture(self.method, self.arch)

    @property
    def side(self) -> int:
        """Side of the corpus's images in pixels."""
        return self.pixels or self.vit.size

    def build(self) -> Method:
        """The method with its initial weights, which depend on the seed alone."""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*weight_norm.*", FutureWarning)  # lightly's heads
            torch.manual_seed(self.run.seed)
            made: Method = _module(self.method).METHOD(self.vit, self.config)
        return made

    def facts(self) -> dict[str, Any]:
        """All of it in plain values."""
        return {**asdict(self), "config": asdict(self.config)}


@dataclass(frozen=True)
class _Head:
    """The keys of a preset that belong to no table."""

    arch: str
    run: Run
    config: Mapping[str, Any] = field(default_factory=dict)
    pixels: int = 0
    windows: int = 1
    stream: bool = False


def names() -> tuple[str, ...]:
    """The methods that there are."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(methods.__path__)))


def _module(method: str) -> Any:
    if method not in names():
        raise UnknownName("pretraining method", method, names())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*expandable.*")
        return importlib.import_module(f"evalkit.pretrain.methods.{method}")


def summary(method: str) -> str:
    """The first sentence of what the method's file says of itself."""
    return str(_module(method).__doc__).split("\n\n")[0].replace("\n", " ")


def architecture(method: str, arch: str) -> ViTConfig:
    """Raises UnknownName where the method's family has none of that name."""
    family = _module(method).METHOD.family
    known: Mapping[str, ViTConfig] = importlib.import_module(f"evalkit.adapters.{family}").ARCHITECTURES
    if arch not in known:
        raise UnknownName(f"architecture of {family}", arch, known)
    return known[arch]


def presets(method: str) -> dict[str, dict[str, Any]]:
    """{name: its tables} of a method. Raises UnknownName."""
    _module(method)
    text = (resources.files("evalkit.pretrain") / "presets" / f"{method}.toml").read_text()
    return tomllib.loads(text)


def compose(method: str, preset: str = "", file: Path | None = None, changes: Iterable[str] = ()) -> Experiment:
    """preset, then the file's tables over it, then the changes `KEY.KEY=VALUE` (VALUE as TOML writes it, or a bare word).

    Raises UnknownName for a preset, PretrainError for a file or a change that cannot be read, CatalogError for wrong keys.
    """
    found: dict[str, Any] = {}
    if preset:
        known = presets(method)
        if preset not in known:
            raise UnknownName(f"preset of {method}", preset, known)
        found = known[preset]
    if file is not None:
        found = _merged(found, _read(file))
    for change in changes:
        found = _merged(found, _change(change))
    where = f"{method} ({preset or file})"
    head = parse(_Head, found, where)
    config = parse(_module(method).Config, head.config, f"{where}, table config")
    return Experiment(method, head.arch, head.run, config, head.pixels, head.windows, head.stream)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_regular(path, limit=WRITTEN_BY_HAND).decode("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PretrainError(f"{path}: no TOML file that can be read ({error})") from None


def _change(text: str) -> dict[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise PretrainError(f"--set {text!r}: it has the form KEY=VALUE, as in run.epochs=2 or config.prototypes=1024")
    try:
        nested: Any = tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        nested = value.strip()
    for key in reversed(name.strip().split(".")):
        nested = {key: nested}
    return dict(nested)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """above over below, tables merged key by key."""
    found = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = _merged(found[key], value) if both else value
    return found
