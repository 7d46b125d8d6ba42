"""The pictures of docs/images that no `evalkit show` draws: `python docs/_make/plots.py RUNS`, records in RUNS.

evalkit eval micro-mgc random --recipe mini-fewshot-5way1shot-ccp-items --out RUNS
"""

from __future__ import annotations

import csv
import sys
import tomllib
from pathlib import Path

import torch
from PIL import Image

from evalkit import records
from evalkit.runners.variance import corrupt

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
PHOTO = ROOT / "mini/coco/val2017/000000058636.jpg"
SIDE, GAP = 88, 6


def fewshot(runs: Path) -> None:
    """F1 over the threshold, with intervals and the floor of saying "same" of every pair."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.2, 2.8), layout="constrained")
    for encoder, colour, marker in (("micro-mgc", "#0072b2", "o"), ("random", "#d55e00", "s")):
        (record, *_) = records.find(runs, encoder, "mini-fewshot-5way1shot-ccp-items")
        rows = sorted((float(s["name"].split("=")[1]), s) for s in record.scores if s["name"].startswith("f1@T="))
        x = [threshold for threshold, _ in rows]
        axes.plot(x, [s["value"] for _, s in rows], color=colour, marker=marker, ms=4, label=encoder)
        axes.fill_between(
            x, [s["low"] for _, s in rows], [s["high"] for _, s in rows], color=colour, alpha=0.2, linewidth=0
        )
    axes.axhline(1 / 3, color="#555555", lw=1, ls="--", label='"same" of every pair')
    axes.set(xlabel="threshold T on the cosine", ylabel="F1", ylim=(0, 0.4))
    axes.legend(frameon=False, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(IMAGES / "fewshot.svg", metadata={"Date": None})


def variance() -> None:
    """A photo, eight random crops of it, and eight times its centre with half of the blocks noise."""
    whole = Image.open(PHOTO).convert("RGB")
    short = min(whole.size)
    left, top = (whole.width - short) // 2, (whole.height - short) // 2
    centre = whole.crop((left, top, left + short, top + short)).resize((SIDE, SIDE))
    rng = torch.Generator().manual_seed(3)
    crops = []
    for _ in range(8):
        side = round(short * (0.4 + 0.6 * torch.rand(1, generator=rng).item()) ** 0.5)
        x, y = (int(torch.rand(1, generator=rng).item() * (edge - side)) for edge in whole.size)
        crops.append(whole.crop((x, y, x + side, y + side)).resize((SIDE, SIDE)))
    pixels = torch.frombuffer(bytearray(centre.tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3).permute(2, 0, 1)
    normalised = (pixels.float()[None] / 255 - 0.45) / 0.23
    noisy = [corrupt(normalised, 8, 0.5, rng)[0] * 0.23 + 0.45 for _ in range(8)]
    shown = [Image.fromarray((n.clamp(0, 1) * 255).byte().permute(1, 2, 0).contiguous().numpy(), "RGB") for n in noisy]
    sheet = Image.new("RGB", (9 * SIDE + 8 * GAP, 2 * SIDE + GAP), "white")
    for row, tiles in enumerate(([centre, *crops], [centre, *shown])):
        for column, tile in enumerate(tiles):
            sheet.paste(tile, (column * (SIDE + GAP), row * (SIDE + GAP)))
    sheet.save(IMAGES / "variance.jpg", quality=72, optimize=True)


def pretraining() -> None:
    """For each encoder of the micro zoo, loss and effective rank of the features over the images that it saw."""
    import matplotlib.pyplot as plt

    logs = sorted((ROOT / "model_zoo/weights").glob("micro-*.log.csv"))
    figure, grid = plt.subplots(3, 3, figsize=(8.4, 5.4), sharex=True, layout="constrained")
    for axes, path in zip(grid.flat, logs, strict=True):
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(path.open())]
        name = path.name.removesuffix(".log.csv")
        training = tomllib.loads((ROOT / f"model_zoo/{name}.toml").read_text("utf-8"))["training"]
        passes = [row["step"] * training["batch"] / 1000 for row in rows]
        axes.plot(passes, [row["loss"] for row in rows], color="#0072b2")
        axes.set_title(name, fontsize=9)
        rank = axes.twinx()
        rank.plot(passes, [row["effective_rank"] for row in rows], color="#d55e00", lw=0.9)
        rank.set_ylim(0, 20)
        for side, colour in ((axes, "#0072b2"), (rank, "#d55e00")):
            side.tick_params(axis="y", colors=colour, labelsize=7)
            side.spines["top"].set_visible(False)
    figure.supxlabel("images seen, thousands", fontsize=9)
    figure.supylabel("loss", fontsize=9, color="#0072b2")
    figure.savefig(IMAGES / "pretraining.svg", metadata={"Date": None})


if __name__ == "__main__":
    pretraining()
    variance()
    fewshot(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
