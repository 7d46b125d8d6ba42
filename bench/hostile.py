"""How long the reader of checkpoints takes over files that are built to keep it busy (`tests/adapters/hostile.py`): the slowest,
beside a list of ImageNet's labels, the largest honest pickle. No file should cost ten times as much.

    python bench/hostile.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from evalkit import adapters

SHOWN = 8


def honest(folder: Path) -> float:
    """Seconds for a file with 1,281,167 labels."""
    path = folder / "labels.pth"
    torch.save({"w": torch.ones(1), "labels": [1000] * 1_281_167}, path)
    begin = time.process_time()
    adapters.read(path)
    return time.process_time() - begin


def main() -> None:
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        reference = honest(folder)
        write = "import sys, pathlib; from tests.adapters import hostile; hostile.write_all(pathlib.Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", write, place], cwd=root, check=True)
        read = [sys.executable, "-m", "tests.adapters.hostile", place]
        done = subprocess.run(read, cwd=root, check=True, capture_output=True, text=True)
    lines = [line for line in map(json.loads, done.stdout.splitlines()) if "cpu" in line]
    print(f"the labels of ImageNet: {reference:.2f} s; {len(lines)} hostile files, the slowest:")
    for line in sorted(lines, key=lambda line: -line["cpu"])[:SHOWN]:
        print(f"{line['cpu']:6.2f} s {line['cpu'] / reference:5.1f}  {line['name']}")


if __name__ == "__main__":
    main()
