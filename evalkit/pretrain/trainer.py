"""The loop: AdamW with warm-up and cosine, clipping, a CSV log, an atomic checkpoint to resume from, an export at the end.

Small on purpose: one device, one process. On the CPU a run is a pure function of its seed, its data and its options; on a
GPU it runs under bf16 autocast.
"""

from __future__ import annotations

import csv
import json
import math
import pickle
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms.v2 import Normalize

from evalkit.errors import PretrainError
from evalkit.pretrain.dino import DINO
from evalkit.types import IMAGENET_MEAN, IMAGENET_STD, Progress
from evalkit.version import __version__


@dataclass(frozen=True)
class Run:
    """steps of `batch` images; lr at batch 256, scaled linearly; weight decay on matrices only; clip: gradient norm."""

    steps: int
    batch: int = 128
    lr: float = 1e-3
    min_lr: float = 1e-5
    warmup: int = 200
    weight_decay: float = 0.04
    clip: float = 1.0
    seed: int = 0
    save_every: int = 100

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then half a cosine down to min_lr."""
        peak = self.lr * self.batch / 256
        if step < self.warmup:
            return peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.min_lr + (peak - self.min_lr) * (1 + math.cos(math.pi * done)) / 2


def train(
    method: DINO,
    corpus: Tensor,
    run: Run,
    out: Path,
    *,
    facts: dict[str, Any],
    progress: Progress,
    device: torch.device | str = "cpu",
) -> Path:
    """Train to the last step, resuming from `out/checkpoint.pt` where there is one. Returns the exported file.

    corpus: (N, 3, H, W) uint8. facts: what the training manifest beside the export should tell.
    Raises PretrainError when the loss is not finite; the last good checkpoint stays.
    """
    out.mkdir(parents=True, exist_ok=True)
    place = _place(device)
    corpus, method = corpus.to(place), method.to(place)
    optimizer = _optimizer(method, run)
    first = _resume(out / "checkpoint.pt", method, optimizer, _question(run, facts))
    normalise = Normalize(IMAGENET_MEAN, IMAGENET_STD)
    seconds = time.perf_counter()
    for step in progress.track(range(first, run.steps), "pretraining", run.steps - first):
        loss = _step(method, optimizer, corpus, run, step, normalise)
        if not math.isfinite(loss):
            raise PretrainError(f"the loss of step {step} is {loss}; the last good checkpoint is in {out}")
        if (step + 1) % 20 == 0:
            _log(out / "log.csv", step=step + 1, loss=round(loss, 5), lr=run.rate(step),
                 seconds=round(time.perf_counter() - seconds, 1))  # fmt: skip
        if (step + 1) % run.save_every == 0 or step + 1 == run.steps:
            _save(out / "checkpoint.pt", {"step": step + 1, "method": method.state_dict(),
                                          "optimizer": optimizer.state_dict(), "question": _question(run, facts)})  # fmt: skip
            export(method, out / "teacher.safetensors", facts | {"steps": step + 1, "run": asdict(run)})
    return out / "teacher.safetensors"


def _place(device: torch.device | str) -> torch.device:
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise PretrainError("device cuda was asked for, but this machine or this torch has none; use --device cpu")
    return place


def _optimizer(method: nn.Module, run: Run) -> torch.optim.Optimizer:
    learn = [p for p in method.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learn if p.ndim > 1], "weight_decay": run.weight_decay},
        {"params": [p for p in learn if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups)


def _step(
    method: DINO, optimizer: torch.optim.Optimizer, corpus: Tensor, run: Run, step: int, norm: nn.Module
) -> float:
    place = corpus.device
    rng = torch.Generator(place).manual_seed(hash((run.seed, step)) & 0x7FFFFFFF)
    images = corpus[_rows(len(corpus), run, step).to(place)]
    for group in optimizer.param_groups:
        group["lr"] = run.rate(step)
    with torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda"):
        loss = method(*method.views(images, norm, rng))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for p in method.parameters() if p.grad is not None], run.clip)
    optimizer.step()
    method.after_step(step / run.steps)
    return float(loss.detach())


def _rows(n: int, run: Run, step: int) -> Tensor:
    """The images of a step: every epoch is its own permutation; the remainder that fills no batch is left out."""
    per_epoch = max(1, n // run.batch)
    epoch, position = divmod(step, per_epoch)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(run.seed * 100_003 + epoch))
    return order[position * run.batch : (position + 1) * run.batch]


def _question(run: Run, facts: dict[str, Any]) -> str:
    """What a checkpoint belongs to: the options of the run, its data and its method."""
    return json.dumps({"run": asdict(run), "facts": facts}, sort_keys=True)


def _resume(path: Path, method: DINO, optimizer: torch.optim.Optimizer, question: str) -> int:
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        if state["question"] != question:
            raise PretrainError(f"{path} belongs to a run with other options or data; choose another --out")
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise PretrainError(f"{path}: damaged or of another version ({error}); delete it to begin anew") from None
    return int(state["step"])


def _save(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".part")
    torch.save(state, partial)
    partial.replace(path)


def export(method: DINO, path: Path, facts: dict[str, Any]) -> None:
    """Write the teacher in half precision as safetensors, with its training manifest as JSON in the metadata."""
    state = {k: v.detach().cpu().half().contiguous() for k, v in method.export().items()}
    partial = path.with_suffix(".part")
    save_file(state, partial, {"format": "pt", "evalkit": __version__, "training": json.dumps(facts)})
    partial.chmod(0o644)  # safetensors writes for the owner alone
    partial.replace(path)


def _log(path: Path, **row: Any) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
