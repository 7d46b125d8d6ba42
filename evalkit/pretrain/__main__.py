"""`python -m evalkit.pretrain --data ZIP[:PATTERN] ... --out DIR`: train the micro encoder with DINO.

The shipped `micro-dino` is made by this command; its manifest holds the options. Resumes where it was stopped.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from evalkit.adapters.vit import ViTConfig
from evalkit.errors import EvalkitError
from evalkit.pretrain.corpus import pack, split_source
from evalkit.progress import RichProgress

MICRO = ViTConfig(dim=192, depth=6, heads=3, patch=8, size=64)


def main(
    data: Annotated[list[str], typer.Option(help="Folder or zip of images; PATH:PATTERN takes only some members.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, log and the exported teacher.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 2000,
    windows: Annotated[int, typer.Option(help="Random squares that a large photograph gives.")] = 1,
    batch: Annotated[int, typer.Option(help="Images per step.")] = 128,
    lr: Annotated[float, typer.Option(help="Learning rate at batch 256.")] = 3e-3,
    global_size: Annotated[int, typer.Option(help="Side of the two large crops, pixels.")] = 48,
    local_crops: Annotated[int, typer.Option(help="Small crops per image.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, or cuda: then in bf16 autocast.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of weights, order and views.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads, 0 for all.")] = 0,
) -> None:
    """Pretrain the micro encoder with DINO on packed images."""
    if threads:
        torch.set_num_threads(threads)
    try:
        from evalkit.pretrain.dino import DINO, Config
        from evalkit.pretrain.trainer import Run, train

        corpus, digest = pack(data, MICRO.size, out, windows=windows)
        method = DINO(MICRO, Config(local_crops=local_crops, global_size=global_size), seed)
        run = Run(steps=steps, batch=batch, lr=lr, seed=seed)
        facts = {
            "method": "dino",
            "corpus": [f"{path.name}:{pattern}" for path, pattern in map(split_source, data)],
            "windows": windows,
            "images": len(corpus),
            "corpus_digest": digest,
            "config": asdict(method.config),
        }
        with RichProgress() as progress:
            print(train(method, corpus, run, out, facts=facts, device=device, progress=progress))
    except EvalkitError as error:
        raise SystemExit(f"evalkit: {error}") from None


if __name__ == "__main__":
    typer.run(main)
