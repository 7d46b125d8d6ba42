"""Put pretrained encoders into the zoo: `python model_zoo/ship.py DEVICE pretrained/mugs pretrained/dino ...`.

Of each run: the weights as weights/micro-METHOD.safetensors, without the heads that no protocol can read, the log and the
probe beside them, and a manifest with the digest and what the training manifest in the file tells.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

ZOO = Path(__file__).resolve().parent
TITLES = {
    "cae": "CAE", "dino": "DINO", "ibot": "iBOT", "mae": "MAE", "mgc": "MGC", "mmc": "MMC", "moco_v3": "MoCo v3",
    "mugs": "Mugs", "selfpatch": "SelfPatch",
}  # fmt: skip
PAPERS = {
    "cae": "2202.03026", "dino": "2104.14294", "ibot": "2111.07832", "mae": "2111.06377", "mgc": "2407.02014",
    "mmc": "2308.11448", "moco_v3": "2104.02057", "mugs": "2203.14415", "selfpatch": "2206.07990",
}  # fmt: skip

UNREAD = re.compile(r"(^|\.)(relation_blocks|local_group_head|p_head)\.")
"""Of Mugs, which needs other images beside its own, and of SelfPatch, which reads patches: the adapters leave them out."""


def manifest(facts: dict[str, Any], digest: str, device: str) -> str:
    """The zoo's file on a run."""
    method, run = facts["method"], facts["run"]
    passes = facts["step"] * run["batch"]
    name = f"micro-{method.replace('_', '-')}"
    return f"""title = "{TITLES[method]} at micro size, pretrained by this project ({passes:,} image passes on {device})"
family = "{method}"
arch = "{facts["arch"]}"
file = "weights/{name}.safetensors"
sha256 = "{digest}"
licence = "Apache-2.0"
origin = "evalkit pretrain {method} --preset micro, see weights/README.md"
paper = "arXiv:{PAPERS[method]}"
shipped = true

[preprocessing]
size = 64
source = "evalkit pretrain: ImageNet mean and std at 64 px"

[training]
method = "{method}"
corpus_digest = "{facts["corpus_digest"]}"
images = {facts["images"]}
steps = {facts["step"]}
batch = {run["batch"]}
image_passes = {passes}
seed = {run["seed"]}
device = "{device}"
"""


def ship(run: Path, device: str) -> str:
    """Copies one run; returns the encoder's id."""
    weights = run / "encoder.safetensors"
    with safe_open(weights, "pt") as file:
        told = file.metadata()
        keys = list(file.keys())
        kept = {key: file.get_tensor(key) for key in keys if not UNREAD.search(key)}
    facts = json.loads(told["training"])
    name = f"micro-{facts['method'].replace('_', '-')}"
    target = ZOO / "weights" / f"{name}.safetensors"
    if len(kept) == len(keys):
        shutil.copyfile(weights, target)
    else:
        save_file(kept, target, told)
    shutil.copyfile(run / "log.csv", ZOO / "weights" / f"{name}.log.csv")
    if (run / "probe.csv").exists():
        shutil.copyfile(run / "probe.csv", ZOO / "weights" / f"{name}.probe.csv")
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    (ZOO / f"{name}.toml").write_text(manifest(facts, digest, device))
    return name


if __name__ == "__main__":
    device, *runs = sys.argv[1:]
    for run in runs:
        print(ship(Path(run), device))
