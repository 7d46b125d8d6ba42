"""Two processes with half the batch each against one with the whole: gradients, then parameters and buffers.

    compare("dino", Config(...), ViTConfig(dim=16, depth=2, heads=2, patch=8, size=32))

Everything in float64, so that only the order of sums differs. Drop path must be off: it draws from the global generator.
Views are drawn once, from the whole batch; each process gets its half of every tensor in them.
"""

from __future__ import annotations

import dataclasses
import importlib
import tempfile
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from tests.waiting import HANG

TOLERANCE = 1e-9
STEPS = 2
LR = 0.02


def compare(name: str, config: Any, arch: Any, *, batch: int = 8, size: int = 40) -> None:
    """Asserts that two steps of the method `name` come out alike. batch: images, even. size: of the square images.

    The views' tensors have the images as their first axis, or several views of all images after each other along it.
    """
    with tempfile.TemporaryDirectory() as folder:
        method = made(name, config, arch)
        images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=rng(5))
        batches = [doubled(method.views(images, rng(7 + step))) for step in range(STEPS)]
        question = (folder, name, config, arch, [half(views, rank, batch) for rank in range(2) for views in batches])
        context = mp.start_processes(_process, question, nprocs=2, join=False, start_method="forkserver")
        whole = trained(method, batches)
        while not context.join():
            pass
        for rank in range(2):
            found = torch.load(f"{folder}/{rank}.pt", weights_only=True)
            for what, expected in whole.items():
                _same(f"rank {rank}, {what}", found[what], expected)


def made(name: str, config: Any, arch: Any) -> Any:
    """The method, in float64, from a fixed seed."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # lightly's heads use a torch function that torch wants renamed
        module = importlib.import_module(f"evalkit.pretrain.methods.{name}")
        torch.manual_seed(3)
        return module.METHOD(arch, config).double()


def trained(method: Any, batches: list[Any]) -> dict[str, dict[str, Tensor]]:
    """Plain gradient descent. Returns the gradients of the first step, and parameters and buffers after the last."""
    from evalkit.pretrain.method import Now

    network = method
    if dist.is_initialized():
        network = nn.parallel.DistributedDataParallel(method, forward_sync_buffers=False)
    gradients: dict[str, Tensor] = {}
    for step, views in enumerate(batches):
        now = Now(step=4 + step, steps=8, epoch=2.0 + step / 4, epochs=4.0)
        losses, _ = network(views, now)
        method.zero_grad()
        sum(losses.values()).backward()
        for parameter in method.frozen(now):
            parameter.grad = None
        gradients = gradients or {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
        with torch.no_grad():
            for parameter in method.parameters():
                if parameter.grad is not None:
                    parameter -= LR * parameter.grad
        method.after_step(now)
    assert gradients
    return {"gradient": gradients, "state": {k: v.clone() for k, v in method.state_dict().items()}}


def _process(rank: int, folder: str, name: str, config: Any, arch: Any, halves: list[Any]) -> None:
    torch.set_num_threads(1)
    store = Path(folder, "store").as_uri()
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=HANG))
    try:
        found = trained(made(name, config, arch), halves[rank * STEPS : (rank + 1) * STEPS])
        torch.save(found, f"{folder}/{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def rng(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def doubled(views: Any) -> Any:
    """Floating tensors in float64."""
    return mapped(views, lambda x: x.double() if x.is_floating_point() else x)


def half(views: Any, rank: int, batch: int) -> Any:
    """The first or second half of the images in every tensor."""

    def cut(x: Tensor) -> Tensor:
        assert x.ndim and len(x) % batch == 0, f"no axis of images in {tuple(x.shape)}"
        return x.unflatten(0, (-1, batch)).chunk(2, 1)[rank].flatten(0, 1)

    return mapped(views, cut)


def mapped(views: Any, change: Any) -> Any:
    """The same structure with every tensor changed."""
    if isinstance(views, Tensor):
        return change(views)
    if dataclasses.is_dataclass(views):
        fields = {f.name: mapped(getattr(views, f.name), change) for f in dataclasses.fields(views)}
        return dataclasses.replace(views, **fields)  # type: ignore[type-var]
    if isinstance(views, dict):
        return {key: mapped(value, change) for key, value in views.items()}
    if isinstance(views, (list, tuple)):
        return type(views)(mapped(value, change) for value in views)
    return views


def _same(what: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys(), what
    for key, value in expected.items():
        apart = (found[key].double() - value.double()).abs().max().item() if value.numel() else 0.0
        assert apart <= TOLERANCE, f"{what} {key}: {apart:.3g} apart, largest value {value.abs().max():.3g}"


mp.get_context("forkserver").set_forkserver_preload(
    ["torch", "lightly.loss", "lightly.models.modules", "evalkit.pretrain.method"]
)
