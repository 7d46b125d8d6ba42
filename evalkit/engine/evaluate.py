"""From an encoder and recipes to records, in this process.

Everything that can be wrong with the question (names, options, folders, the weights file) is found before the first image
is decoded. Each recipe's record is written as soon as it is measured; a recipe that fails does not take others with it.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from evalkit import adapters, catalog, datasets, records, runners
from evalkit.datasets.subset import Subset
from evalkit.engine.delivery import Delivery
from evalkit.engine.job import FileCheckpoint, LocalJob
from evalkit.errors import EvalkitError, FeatureError, OutOfMemory, ProtocolError, Unsupported, UsageError
from evalkit.features.extract import ExtractOptions, resolve_precision
from evalkit.features.store import FeatureStore
from evalkit.features.view import resolve, training
from evalkit.metrics import bootstrap
from evalkit.progress import RichProgress
from evalkit.records import Record
from evalkit.types import Dataset, Encoder, EncoderSpec, Manifest, Precision, Progress, Recipe, Role, Score
from evalkit.version import __version__


@dataclass(frozen=True)
class Options:
    """How to measure, as the command line says it.

    data_root: folder of datasets; data: paths of single ones by name. limit: at most so many samples of each split, evenly
    spread. out: folder of records; None writes none. seed: of everything random in the protocol. save_masks: folder for
    the label maps of one recipe that makes some; they are made anew, whatever was measured before.
    """

    data_root: Path | None = None
    data: Mapping[str, Path] = field(default_factory=dict)
    device: str = "auto"
    precision: Precision = "auto"
    limit: int | None = None
    skip_broken: bool = False
    out: Path | None = Path("runs")
    seed: int = 0
    cache: Path | None = None
    save_masks: Path | None = None

    def __post_init__(self) -> None:
        for name in ("data_root", "out", "cache", "save_masks"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, Path(value))
        object.__setattr__(self, "data", {k: Path(v) for k, v in self.data.items()})
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"limit is {self.limit}: it must be at least 1 sample")
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"seed is {self.seed}: it must be in 0 ... {2**31 - 1}")


@dataclass(frozen=True)
class Outcome:
    """What came of one recipe: a record (measured now, or found), or the error that stopped it."""

    recipe: str
    record: Record | None = None
    reused: bool = False
    error: EvalkitError | None = None
    path: Path | None = None


class Session:
    """Encoders and options stay the same over several recipes; opened data are shared."""

    def __init__(self, options: Options, progress: Progress | None = None) -> None:
        self.options = options
        self.progress = progress or RichProgress(quiet=True)
        self.device = resolve_device(options.device)
        self.precision = resolve_precision(options.precision, self.device)
        self.cache = options.cache or catalog.cache_root()
        self._opened: dict[str, Dataset] = {}

    def run(self, encoder: Encoder, recipes: Sequence[Recipe], given: Mapping[str, Any]) -> Iterator[Outcome]:
        """Measure each recipe. Raises before the first one when any of them cannot begin."""
        self._check(recipes)
        configs = [runners.configure(r.runner, r.config) for r in recipes]
        paths = [self._locate(r) for r in recipes]
        encoder = encoder.to(self.device)
        for recipe, config, path in zip(recipes, configs, paths, strict=True):
            try:
                yield self._one(encoder, recipe, config, path, given)
            except EvalkitError as error:
                yield Outcome(recipe.id, error=error)
            except (torch.OutOfMemoryError, MemoryError) as error:
                yield Outcome(
                    recipe.id, error=OutOfMemory(f"{self.device} has not enough memory: {_first_line(error)}")
                )

    def _check(self, recipes: Sequence[Recipe]) -> None:
        known = {name for r in recipes for name in (r.dataset.folder, r.dataset.name)}
        if unknown := sorted(set(self.options.data) - known):
            raise UsageError(
                f"--data names {', '.join(unknown)}, which no recipe asked for uses; they use {', '.join(sorted(known))}"
            )
        if self.options.out is not None:
            records.check_writable(self.options.out)
        if self.options.save_masks is not None:
            self._check_delivery(recipes, self.options.save_masks)

    def _check_delivery(self, recipes: Sequence[Recipe], folder: Path) -> None:
        if len(recipes) != 1:
            raise UsageError(f"--save-masks is for one recipe at a time; {len(recipes)} were asked for")
        if not getattr(runners.module(recipes[0].runner), "DELIVERS", ""):
            raise UsageError(f"--save-masks: {recipes[0].id} makes no label maps; recipes of the runner video do")
        Delivery(folder).check()

    def _locate(self, recipe: Recipe) -> Path:
        o = self.options
        return datasets.locate(recipe.dataset, o.data_root, dict(o.data), catalog.shipped_data())

    def _open(self, recipe: Recipe, role: Role, path: Path) -> Dataset:
        name = catalog.digest([dataclasses.asdict(recipe.dataset), role, str(path)])
        if name not in self._opened:
            with self.progress.status(f"opening {recipe.dataset.folder} ({role})"):
                found = datasets.open_dataset(recipe.dataset, role, path)
            self._opened[name] = found if self.options.limit is None else Subset(found, self.options.limit)
        return self._opened[name]

    def job(self, encoder: Encoder, recipe: Recipe) -> LocalJob:
        """What the recipe's runner would be given, for pictures: same data, same view, same stored features.

        Raises Unsupported where the encoder lacks what the recipe needs, and whatever keeps `run` from beginning.
        """
        self._check([recipe])
        config = runners.configure(recipe.runner, recipe.config)
        measure = self._measurement(encoder.to(self.device), recipe, config, self._locate(recipe), {})
        measure.check_needs()
        return measure.job()

    def _measurement(
        self, encoder: Encoder, recipe: Recipe, config: Any, path: Path, given: Mapping[str, Any]
    ) -> _Measurement:
        data: dict[Role, Dataset] = {
            "train": self._open(recipe, "train", path),
            "test": self._open(recipe, "test", path),
        }
        return _Measurement(self, encoder, recipe, config, data, given, path.resolve())

    def _one(self, encoder: Encoder, recipe: Recipe, config: Any, path: Path, given: Mapping[str, Any]) -> Outcome:
        measure = self._measurement(encoder, recipe, config, path, given)
        found = measure.find()
        if found is not None:
            return Outcome(recipe.id, found, reused=True, path=measure.path)
        return Outcome(recipe.id, measure.run(), path=measure.path)


class _Measurement:
    """One encoder, one recipe."""

    def __init__(
        self, session: Session, encoder: Encoder, recipe: Recipe, config: Any, data: dict[Role, Dataset], given: Any,
        where: Path,
    ) -> None:  # fmt: skip
        self.session, self.encoder, self.recipe, self.config, self.data = session, encoder, recipe, config, data
        self.given, self.where, self.view = given, where, resolve(recipe.view, encoder.spec)
        self.identity = self._identity()
        self.key = records.key_of(self.identity)

    @property
    def path(self) -> Path | None:
        out = self.session.options.out
        return None if out is None else records.path_of(out, self.encoder.spec.id, self.recipe.id, self.key)

    def _identity(self) -> dict[str, Any]:
        spec, s = self.encoder.spec, self.session
        return {
            "encoder": [spec.digest, spec.network, spec.seed, spec.family, spec.arch, spec.adapter_version],
            "preprocessing": dataclasses.asdict(spec.preprocessing) | {"source": ""},
            "recipe": [self.recipe.id, self.recipe.version, self.recipe.digest],
            "config": dataclasses.asdict(self.config),
            "data": {role: d.digest for role, d in self.data.items()},
            "skip_broken": s.options.skip_broken,
            "seed": s.options.seed,
            "device": s.device.type,
            "precision": s.precision,
            "evalkit": __version__,
        }

    def find(self) -> Record | None:
        """The record of the same question, where it lies in the output folder."""
        if self.path is None or not self.path.exists() or self.session.options.save_masks is not None:
            return None
        found = records.read(self.path)
        return found if found.key == self.key else None

    def run(self) -> Record:
        started, created = time.perf_counter(), records.now()
        job = self.job()
        if job.checkpoint.path.exists():
            job.fact("resumed", "from an interrupted run; seconds cover what came after")
        self._forget_peak()
        try:
            self.check_needs()
            scores = list(runners.module(self.recipe.runner).run(job))
            self._check_headline([s.name for s in scores], job.facts)
            scores += self._by_class(next(s for s in scores if s.name == self.recipe.headline))
            status, reason = "done", ""
        except Unsupported as error:
            scores, status, reason = [], "n/a", str(error)
        spec, o = self.encoder.spec, self.session.options
        record = Record(
            key=self.key,
            comparable=catalog.digest({k: self.identity[k] for k in ("recipe", "config", "data")})[:16],
            created=created,
            encoder=describe_spec(spec),
            recipe=describe_recipe(self.recipe, self.config, self.view[0]),
            data=self._data(job),
            arguments={"given": dict(self.given), "resolved": self._resolved()},
            environment=records.environment(_device_name(self.session.device), torch.get_num_threads()),
            identity=self.identity,
            scores=tuple(_plain(score) for score in scores),
            facts=self.view[1] | job.facts,
            status=status,  # type: ignore[arg-type]
            reason=reason,
            seconds=round(time.perf_counter() - started, 3),
            peak_memory_bytes=records.peak_memory(),
            peak_gpu_memory_bytes=torch.cuda.max_memory_allocated() if self.session.device.type == "cuda" else 0,
            kept=tuple(job.kept),
        )
        if o.out is not None:
            records.save(record, scores, job.kept, o.out)
        job.checkpoint.clear()
        return record

    def _forget_peak(self) -> None:
        records.forget_peak()
        if self.session.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def job(self) -> LocalJob:
        """What the runner is given."""
        s = self.session
        extraction = ExtractOptions(
            device=s.device, precision=s.precision, skip_broken=s.options.skip_broken,
            store=FeatureStore(s.cache / "features"), progress=s.progress,
        )  # fmt: skip
        delivery = None if s.options.save_masks is None else Delivery(s.options.save_masks)
        apart = "" if delivery is None else "-" + catalog.digest(str(delivery.folder.resolve()))[:8]
        checkpoint = FileCheckpoint(s.cache / "checkpoints" / f"{self.key}{apart}.pt")
        return LocalJob(self.encoder, self.config, s.device, s.options.seed, self.data, self.view[0], extraction,
                        s.progress, checkpoint, train_view=training(self.recipe.view, self.encoder.spec),
                        delivery=delivery)  # fmt: skip

    def _check_headline(self, names: Sequence[str], facts: Mapping[str, Any]) -> None:
        if self.recipe.headline not in names:
            raise ProtocolError(
                f"{self.recipe.id} has no score {self.recipe.headline!r} on these data; there are {', '.join(names)} ({facts})"
            )

    def _by_class(self, headline: Score) -> list[Score]:
        classes = self.data["test"].classes if headline.labels is not None else ()
        return list(bootstrap.by_class(headline, classes, seed=self.session.options.seed))

    def check_needs(self) -> None:
        """Raise Unsupported where the encoder lacks what the recipe needs."""
        lacking = [n for n in self.recipe.needs if n not in self.encoder.spec.offers]
        if lacking:
            raise Unsupported(f"{self.encoder.spec.id} has no {', '.join(lacking)}; {self.recipe.id} needs it")

    def _resolved(self) -> dict[str, Any]:
        s = self.session
        return {
            "device": str(s.device), "precision": s.precision, "limit": s.options.limit, "seed": s.options.seed,
            "skip_broken": s.options.skip_broken, "cache": str(s.cache),
        }  # fmt: skip

    def _data(self, job: LocalJob) -> dict[str, Any]:
        splits = {
            role: {"digest": d.digest, "split": d.split, "n": len(d), **d.describe()} for role, d in self.data.items()
        }
        skipped = {role: {"skipped": ids} for role, ids in job.skipped.items()}
        return {"name": self.recipe.dataset.name, "folder": self.recipe.dataset.folder, "path": str(self.where),
                **{role: facts | skipped.get(role, {}) for role, facts in splits.items()}}  # fmt: skip


def _plain(score: Any) -> dict[str, Any]:
    return {
        f.name: getattr(score, f.name)
        for f in dataclasses.fields(score)
        if f.name not in ("outcomes", "groups", "labels")
    }


def describe_spec(spec: EncoderSpec) -> dict[str, Any]:
    """The encoder as plain values for the record."""
    return {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)} | {
        "offers": sorted(spec.offers), "audit": dict(spec.audit), "preprocessing": dataclasses.asdict(spec.preprocessing),
    }  # fmt: skip


def describe_recipe(recipe: Recipe, config: Any, view: Any) -> dict[str, Any]:
    """The recipe as plain values for the record, its parameters as resolved."""
    resolved = {"config": dataclasses.asdict(config), "view": dataclasses.asdict(view)}
    return dataclasses.asdict(recipe) | {"resolved": resolved}


def resolve_device(name: str) -> torch.device:
    """ "auto" is cuda where there is one. Raises UsageError for a device that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is unknown; allowed: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda was asked for, but this machine or this torch has none; use --device cpu")
    return torch.device(name)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def load(
    checkpoint: str | Path,
    *,
    family: str = "",
    arch: str = "",
    network: str = "",
    prefix: str = "",
    grid: tuple[int, int] | None = None,
) -> Encoder:
    """An encoder by zoo id, manifest file, or path of a weights file; `family`, `arch`, `prefix` (of the network's keys) and
    `grid` ((h, w) of the position table) where its keys leave them open.

    Raises UnknownName, NotFetched, CheckpointError (the file), UsageError (a bare file that fits several families).
    """
    text = str(checkpoint)
    path = catalog.located(text)
    if path is None or text in catalog.manifests() or text.endswith(".toml"):
        manifest = catalog.manifest(text)
        if family or arch or prefix or grid:
            raise UsageError(
                f"{text} is an encoder of the zoo: its manifest names family, architecture, prefix and grid; drop the options"
            )
        manifest = dataclasses.replace(manifest, network=network or manifest.network)
        return adapters.load(manifest, path)
    if family:
        adapters.module(family)
    if not family or (not arch and family != "timm"):
        from evalkit.adapters.inspection import Wish, identify

        found = identify(path, Wish(family, arch, network, prefix, grid))
        family, arch = found.family, found.arch
    found_in = Manifest(_file_id(path), family, arch, network=network, prefix=prefix, grid=grid, file=text)
    return adapters.load(found_in, path)


def _file_id(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-.") or "checkpoint"


def evaluate(encoder: Encoder | str | Path, recipe: Recipe | str, **options: Any) -> Record:
    """Measure one recipe on one encoder and return its record; the Python form of `evalkit eval`.

    encoder: a loaded encoder, a zoo id, or a manifest file. options: the fields of `Options`; out=None writes no record.
    Raises the EvalkitError of whatever is wrong.
    """
    loaded = load(encoder) if isinstance(encoder, (str, Path)) else encoder
    wanted = catalog.recipe(recipe) if isinstance(recipe, str) else recipe
    session = Session(Options(**{"out": None, **options}))
    named = {"checkpoint": str(encoder)} if isinstance(encoder, (str, Path)) else {}
    given = {"encoder": loaded.spec.id, "recipe": wanted.id, **named, **_texts(options)}
    outcome = next(session.run(loaded, [wanted], given))
    if outcome.record is None:
        raise outcome.error or FeatureError("nothing was measured")
    return outcome.record


def _texts(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, (int, float, bool, type(None))) else str(v) for k, v in options.items()}
