"""How a run goes on in time: batches, learning rate, weight decay, clipping; and which images a step sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evalkit.errors import PretrainError
from evalkit.pretrain.method import Method, Now
from evalkit.pretrain.schedules import cosine, warmed


@dataclass(frozen=True)
class Run:
    """epochs: passes over the data, also fractional. batch: images per step, over all devices and accumulated parts.

    lr: the peak rate at a batch of `lr_batch`, scaled linearly; lr_batch 0: as it stands. warmup: epochs of linear growth,
    then half a cosine to min_lr. weight_decay: of matrices, on half a cosine to weight_decay_end; vectors have none.
    clip: largest norm of the gradient, 0 for none; clip_each: of every parameter's by itself, as DINO's code does
    (utils.py:59-69 at 7c446df). accumulate: parts that a device's share of the batch is split into; methods that contrast
    within a batch then see a part only.
    """

    epochs: float
    batch: int
    lr: float
    lr_batch: int = 256
    min_lr: float = 1e-6
    warmup: float = 10.0
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 3.0
    clip_each: bool = False
    accumulate: int = 1
    seed: int = 0

    def rate(self, now: Now) -> float:
        """The learning rate of a step."""
        peak = self.lr * (self.batch / self.lr_batch if self.lr_batch else 1.0)
        return warmed(peak, self.min_lr, at=now.epoch, warmup=min(self.warmup, now.epochs), total=now.epochs)

    def decay(self, now: Now) -> float:
        """The weight decay of a step."""
        return cosine(self.weight_decay, self.weight_decay_end, now.done)


@dataclass(frozen=True)
class Plan:
    """A run over `images` images by `world` processes.

    Every epoch is a permutation of its own; what fills no batch is left out of it. Raises PretrainError where a batch is
    larger than the corpus or cannot be shared out.
    """

    run: Run
    images: int
    world: int = 1

    def __post_init__(self) -> None:
        parts = self.world * self.run.accumulate
        if self.run.batch > self.images:
            raise PretrainError(f"a batch of {self.run.batch} of {self.images} images: choose at most {self.images}")
        if self.run.batch < 1 or self.run.batch % parts:
            raise PretrainError(
                f"a batch of {self.run.batch} over {self.world} processes and {self.run.accumulate} accumulated parts: "
                f"choose a multiple of {parts}"
            )
        if not self.run.epochs > 0:
            raise PretrainError(f"{self.run.epochs} epochs: choose more than 0")

    @property
    def per_epoch(self) -> int:
        """Steps of a whole epoch."""
        return self.images // self.run.batch

    @property
    def steps(self) -> int:
        """Steps of the run, at least one."""
        return max(1, round(self.run.epochs * self.per_epoch))

    def now(self, step: int) -> Now:
        """Where the run stands before this step."""
        return Now(step, self.steps, step / self.per_epoch, self.steps / self.per_epoch)

    def rows(self, step: int, rank: int = 0) -> tuple[Tensor, ...]:
        """The numbers of the images that a process sees in a step, one tensor for each accumulated part."""
        epoch, position = divmod(step, self.per_epoch)
        order = torch.randperm(self.images, generator=seeded(self.run.seed, epoch))
        batch = order[position * self.run.batch :][: self.run.batch]
        return batch.chunk(self.world)[rank].chunk(self.run.accumulate)


def seeded(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on the numbers alone."""
    return torch.Generator(device).manual_seed(mixed(*numbers))


def mixed(*numbers: int) -> int:
    """A seed in [0, 2^63) out of several numbers (splitmix64, Steele et al. 2014): near numbers give unlike seeds."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state >> 1


def optimiser(method: Method, run: Run, *, fused: bool = False) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101); its first group decays, its second (vectors) does not."""
    learn = [p for p in method.parameters() if p.requires_grad]
    groups = [{"params": [p for p in learn if p.ndim > 1]}, {"params": [p for p in learn if p.ndim <= 1]}]
    return torch.optim.AdamW(groups, lr=run.lr, betas=run.betas, weight_decay=0.0, fused=fused)


def set_rates(optimizer: torch.optim.Optimizer, run: Run, now: Now) -> None:
    """Learning rate and weight decay of this step."""
    decays, others = optimizer.param_groups
    decays["lr"] = others["lr"] = run.rate(now)
    decays["weight_decay"] = run.decay(now)


def clip(parameters: list[nn.Parameter], run: Run) -> None:
    """Shorten the gradients as the run says; those that are absent are passed by."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if not run.clip or not grads:
        return
    if not run.clip_each:
        nn.utils.clip_grad_norm_(parameters, run.clip)
        return
    norms = torch._foreach_norm(grads)
    torch._foreach_mul_(grads, [(run.clip / (norm + 1e-6)).clamp(max=1) for norm in norms])
