"""What the tests of several methods do: train on a few images, and load what comes out through the family's adapter."""

from __future__ import annotations

import contextlib
import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from evalkit import adapters
from evalkit.adapters.vit import ViTConfig
from evalkit.pretrain.augment import normalised as by_imagenet
from evalkit.pretrain.method import Now
from evalkit.pretrain.multicrop import MultiCrop
from evalkit.pretrain.schedules import warmed
from evalkit.pretrain.watch import signs
from evalkit.types import Manifest

TINY = ViTConfig(dim=16, depth=2, heads=2, patch=8, size=32)
CROPS = MultiCrop(size=32, scale=(0.4, 1.0), small=2, small_size=16, small_scale=(0.2, 0.6))
PLAIN = replace(CROPS, jitter_p=0.0, grey_p=0.0, blur_p=(0.0, 0.0, 0.0), solarise_p=(0.0, 0.0, 0.0))
"""Colours as they are: what is left to tell 32 small images apart."""


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int, size: int = 40, seed: int = 0) -> Tensor:
    """(n, 3, size, size) uint8: smooth fields of colour, unlike each other."""
    fields = torch.rand(n, 3, 4, 4, generator=rng(seed))
    return (F.interpolate(fields, size=(size, size), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


@contextlib.contextmanager
def in_double():
    """Tensors that lightly's losses make of their temperatures are float64 inside."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def differences(loss, parameters, *, entries: int = 3, seed: int = 4) -> list[tuple[float, float]]:
    """(gradient by autograd, central difference) of random entries of the parameters; loss: () -> scalar, float64."""
    gradients, found = torch.autograd.grad(loss(), parameters), []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        flat = parameter.data.view(-1)
        for at in torch.randint(len(flat), (entries,), generator=rng(seed)).tolist():
            value, sides = flat[at].item(), []
            for step in (1e-5, -1e-5):
                flat[at] = value + step
                sides.append(loss().item())
            flat[at] = value
            found.append((gradient.reshape(-1)[at].item(), (sides[0] - sides[1]) / 2e-5))
    return found


def made(module: Any, config: Any, arch: ViTConfig = TINY, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return module.METHOD(arch, config)


def fitted(method: Any, *, steps: int, lr: float = 2e-3) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Train on the same 32 images, with fresh views in each step. Returns (losses and watched scalars of every step, signs
    of collapse in the features at the end)."""
    data = pictures(32)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], weight_decay=0.01)
    told = []
    for step in range(steps):
        now = Now(step=step, steps=steps, epoch=step / 10, epochs=steps / 10)
        for group in optimizer.param_groups:
            group["lr"] = warmed(lr, 0.0, at=step + 1, warmup=steps / 10, total=steps)
        losses, watched = method(method.views(data, rng(step)), now)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        for parameter in method.frozen(now):
            parameter.grad = None
        optimizer.step()
        method.after_step(now)
        told.append({k: v.detach().item() for k, v in (losses | watched).items() if v.ndim == 0})
    with torch.no_grad():
        return told, signs(method.encode(normalised(data)))


def mean(told: list[dict[str, float]], *names: str) -> float:
    """Of the first value less the others, over the steps."""
    return sum(t[names[0]] - sum(t[name] for name in names[1:]) for t in told) / len(told)


def normalised(images: Tensor, size: int = 32) -> Tensor:
    """Whole images at the tiny network's size."""
    return by_imagenet(F.interpolate(images.float() / 255, size=(size, size), mode="bilinear"))


def loaded(method: Any, path: Path, monkeypatch: Any) -> Any:
    """The encoder that the family's adapter makes of the exported file, in half precision as it is shipped."""
    family = importlib.import_module(f"evalkit.adapters.{method.family}")
    monkeypatch.setitem(family.ARCHITECTURES, "tiny", TINY if method.arch.positions == "dino" else method.arch)
    state = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in method.export().items()}
    save_file(state, path)
    return adapters.load(Manifest(id="x", family=method.family, arch="tiny"), path)
