"""The loop that every method shares: one process or many (Lightning Fabric), float32 or bfloat16, resumed exactly.

Deterministic from the seed on a CPU: the order of the images, their views and stochastic depth depend on seed, step and
process alone. A run can be stopped at any time (SIGTERM, Ctrl-C: after the step; a kill: at its last checkpoint) and goes
on as if it had not been.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evalkit.adapters.vit import VisionTransformer
from evalkit.errors import PretrainError
from evalkit.pretrain import state, watch
from evalkit.pretrain.corpus import Corpus
from evalkit.pretrain.distributed import average
from evalkit.pretrain.method import Method, Now
from evalkit.pretrain.run import Plan, Run, clip, mixed, optimiser, seeded, set_rates
from evalkit.progress import RichProgress

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Probe = Callable[[Path], Mapping[str, float]]
"""From the manifest of an exported encoder to numbers for the log."""


@dataclass(frozen=True)
class Options:
    """What changes how a run is carried out, and not what comes of it.

    max_steps: stop after this step of the run, None at its end. save_steps: a checkpoint every so many steps, beside the
    one after each epoch. log_steps: between two rows of the log. probe_epochs: between two probes. compile: the networks
    by torch.compile.
    """

    max_steps: int | None = None
    save_steps: int = 200
    log_steps: int = 20
    probe_epochs: float = 1.0
    compile: bool = False


class Trainer:
    """One run of a method over a corpus, in `out`. question: all that makes the run what it is, also told in the export."""

    def __init__(
        self, method: Method, corpus: Corpus, run: Run, out: Path, *, fabric: Fabric, question: Mapping[str, Any],
        options: Options = Options(),
    ) -> None:  # fmt: skip
        self.method, self.corpus, self.run, self.out, self.fabric = method, corpus, run, out, fabric
        self.options = options
        self.plan = Plan(run, len(corpus), fabric.world_size)
        self.facts = {**question, "run": asdict(run), "corpus_digest": corpus.digest, "images": len(corpus)}
        if options.compile:
            for module in method.modules():
                if isinstance(module, VisionTransformer):
                    module.compile()
        cuda = fabric.device.type == "cuda"
        self.module, self.optimizer = fabric.setup(method, optimiser(method, run, fused=cuda))
        self.learning = [p for p in method.parameters() if p.requires_grad]
        self.stopped = False

    @property
    def question(self) -> str:
        return json.dumps(self.facts, sort_keys=True)

    def resume(self) -> int:
        """The step from which the run goes on, 0 where it has no checkpoint yet."""
        path = self.out / state.CHECKPOINT
        return state.restore(path, self.method, self.optimizer, self.question, self.plan.steps) if path.exists() else 0

    def train(self, first: int, *, progress: RichProgress, probe: Probe | None = None) -> Path:
        """Train from step `first` to the last one, or until a signal comes. Returns the exported file.

        Raises PretrainError where a loss is not finite; the last good checkpoint stays.
        """
        last = min(self.plan.steps, self.options.max_steps or self.plan.steps)
        if first >= last:
            return self.out / state.ENCODER
        rank, parts = self.fabric.global_rank, self.run.accumulate
        order = (rows for step in range(first, last) for rows in self.plan.rows(step, rank))
        batches = self.corpus.batches(order)
        record = _Record(self, first, progress)
        steps = progress.track(range(first, last), "pretraining", last - first, images=self.run.batch)
        with _signals(self):
            for step in steps:
                now = self.plan.now(step)
                record.window.add(self._step(now, [next(batches) for _ in range(parts)]))
                if self._ends(step + 1, last):
                    record.look(step + 1)
                    self._keep(step + 1, record.last, last, probe, progress)
                    if self.stopped:
                        break
                elif (step + 1) % self.options.log_steps == 0:
                    record.look(step + 1)
        return self.out / state.ENCODER

    def _ends(self, done: int, last: int) -> bool:
        """Whether a checkpoint is due after so many steps. Processes agree on a signal that one of them got."""
        if self.fabric.world_size > 1:
            flag = torch.tensor(float(self.stopped), device=self.fabric.device)
            self.stopped = bool(average(flag) > 0)
        due = done % self.plan.per_epoch == 0 or done % self.options.save_steps == 0
        return self.stopped or due or done == last

    def _step(self, now: Now, parts: list[Tensor]) -> dict[str, Tensor]:
        """One step of the optimiser. Returns what is logged, on the device."""
        set_rates(self.optimizer, self.run, now)
        rank, logged = self.fabric.global_rank, dict[str, Tensor]()
        for i, images in enumerate(parts):
            rng = seeded(self.run.seed, now.step, rank, i, device=images.device)
            torch.manual_seed(mixed(self.run.seed, now.step, rank, i, 1))
            with torch.no_grad():
                views = self.method.views(images, rng)
            with self.fabric.no_backward_sync(self.module, enabled=i + 1 < len(parts)):
                losses, watched = self.module(views, now)
                total = torch.stack([loss.float() for loss in losses.values()]).sum() / len(parts)
                self.fabric.backward(total)
            scalars = {"loss": total * len(parts), **losses, **{k: v for k, v in watched.items() if v.ndim == 0}}
            for name, value in scalars.items():
                logged[name] = logged.get(name, 0) + value.detach().float() / len(parts)  # type: ignore[operator]
        self.features = watched["features"].detach()
        for parameter in self.method.frozen(now):
            parameter.grad = None
        clip(self.learning, self.run)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.method.after_step(now)
        return logged

    def _keep(
        self, done: int, logged: Mapping[str, float], last: int, probe: Probe | None, progress: RichProgress
    ) -> None:
        """Checkpoint and export; at the end of an epoch that asks for it, the probe."""
        if self.fabric.is_global_zero:
            state.save(self.out / state.CHECKPOINT, done, self.method, self.optimizer, self.question)
            state.export(self.method, self.out, self.facts["arch"], {**self.facts, "step": done, "last": dict(logged)})
            epochs = done / self.plan.per_epoch
            if probe and (done == last or (epochs % self.options.probe_epochs == 0 and epochs.is_integer())):
                found = dict(probe(self.out / state.MANIFEST))
                watch.Log(self.out / "probe.csv", done).write({"step": done, **found})
                progress.say(f"probe after {epochs:g} epochs: " + ", ".join(f"{k} {v:.4g}" for k, v in found.items()))
        self.fabric.barrier()


class _Record:
    """The log of one process group: CSV, TensorBoard, and alarms on the terminal; only the first process writes."""

    def __init__(self, trainer: Trainer, first: int, progress: RichProgress) -> None:
        self.trainer, self.progress, self.window = trainer, progress, watch.Window()
        self.at, self.since, self.last = first, time.perf_counter(), dict[str, float]()
        self.writes = trainer.fabric.is_global_zero
        self.alarmed = set[str]()
        if self.writes:
            self.csv = watch.Log(trainer.out / "log.csv", first)
            self.board = _board(trainer.out, first)

    def look(self, step: int) -> None:
        """Write the means since the last look. Raises PretrainError where one is not finite."""
        trainer, found = self.trainer, self.window.take()
        if bad := [name for name, value in found.items() if not math.isfinite(value)]:
            raise PretrainError(
                f"{', '.join(bad)} is not finite between steps {self.at} and {step}; the last good checkpoint is in "
                f"{trainer.out}. Lower the learning rate (--set run.lr=...) or clip harder (run.clip)"
            )
        found |= watch.signs(trainer.features)
        now, seconds = trainer.plan.now(step - 1), time.perf_counter() - self.since
        self.last = found
        row = {"step": step, "epoch": round(step / trainer.plan.per_epoch, 4)}
        row |= {name: float(f"{value:.6g}") for name, value in found.items()}
        row |= {
            "lr": trainer.run.rate(now),
            "weight_decay": trainer.run.decay(now),
            "momentum": trainer.method.momentum(now),
        }
        speed = (step - self.at) * trainer.run.batch / seconds
        if self.writes:
            self.csv.write({**row, "images_per_s": round(speed, 1)})
            for name, value in row.items():
                self.board(name, value, step)
            self._tell(step, found, speed, now)
        self.at, self.since = step, time.perf_counter()

    def _tell(self, step: int, found: Mapping[str, float], speed: float, now: Now) -> None:
        if not self.progress.interactive:
            self.progress.say(f"step {step} of {now.steps}: loss {found['loss']:.4f}, {speed:.0f} images/s")
        prototypes = getattr(self.trainer.method.config, "prototypes", None)
        for alarm in watch.alarms(found, prototypes) if now.epoch >= self.trainer.run.warmup else ():
            if alarm.split("(")[0] not in self.alarmed:
                self.alarmed.add(alarm.split("(")[0])
                self.progress.say(f"step {step}: collapse? {alarm}")


def _board(out: Path, first: int) -> Callable[[str, float, int], None]:
    """Writes scalars for TensorBoard."""
    from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

    writer = SummaryWriter(str(out / "tensorboard"), purge_step=first, flush_secs=10)
    return writer.add_scalar  # type: ignore[no-any-return]


@contextmanager
def _signals(trainer: Trainer) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the run after the step in hand; a second Ctrl-C at once."""

    def stop(number: int, _: object) -> None:
        if trainer.stopped and number == signal.SIGINT:
            raise KeyboardInterrupt
        trainer.stopped = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
