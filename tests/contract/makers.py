"""How to make the smallest honest member of each plug-in. A new plug-in adds one entry; the battery finds it by name.

An entry may be `Exempt("reason")` where the battery cannot apply, and the reason is printed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from evalkit import adapters
from evalkit.types import Encoder, Manifest
from tests.adapters import oracles
from tests.adapters.written import load, saved
from tests.datasets import dataset_makers as make


@dataclass(frozen=True)
class Exempt:
    reason: str


def _control(family: str) -> Callable[[Path], Encoder]:
    arch = sorted(adapters.module(family).ARCHITECTURES)[-1] if family != "fake" else "fake_patch8"
    return lambda tmp: adapters.load(Manifest(family, family, arch, seed=0 if family == "random" else None))


def _family(name: str) -> Callable[[Path], Encoder]:
    """The first file layout that the family's oracle writes, on an architecture of its depth."""

    def make_encoder(tmp: Path) -> Encoder:
        oracle = oracles.module(name)
        file = oracles.files(name)[0]
        with pytest.MonkeyPatch.context() as patch:
            return load(oracle, file, saved(file, tmp), patch)

    return make_encoder


def _timm(tmp: Path) -> Encoder:
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = timm.create_model("test_vit", num_classes=0).state_dict()
    torch.save(state, tmp / "timm.pth")
    return adapters.load(Manifest("timm", "timm", "test_vit"), tmp / "timm.pth")


ENCODERS: dict[str, Callable[[Path], Encoder] | Exempt] = {
    **{name: _family(name) for name in oracles.names()},
    "timm": _timm,
    "random": _control("random"),
    "pixels": _control("pixels"),
    "fake": _control("fake"),
}


@dataclass(frozen=True)
class Data:
    """Files on disk, options under which they hold samples, splits, and one image file to change (None: no files)."""

    root: Path
    train: str = "train"
    test: str = "test"
    config: dict[str, Any] = field(default_factory=dict)
    image: Path | None = None


def _folder(tmp: Path) -> Data:
    root = make.folder(tmp / "tree", make.class_tree())
    return Data(root, image=root / "train/cat/0.png")


def _cifar(tmp: Path) -> Data:
    root = make.folder(tmp / "cifar10", make.cifar10_files())
    return Data(root, image=root / "cifar-10-batches-py/data_batch_1")


def _coco(tmp: Path) -> Data:
    root = make.coco(tmp / "coco")
    return Data(
        root,
        test="val",
        config={"min_train": 1, "min_test": 1, "min_side": 10},
        image=root / "train2017/000000000001.jpg",
    )


def _ccp(tmp: Path) -> Data:
    root = make.ccp(tmp / "ccp", {f"{n:04d}": make.ccp_mask() for n in (1, 2, 3, 4)})
    return Data(
        root,
        config={"min_train": 1, "min_test": 1, "ranges": {"train": [1, 2], "test": [3, 4]}},
        image=root / "photos/0001.jpg",
    )


DATASETS: dict[str, Callable[[Path], Data] | Exempt] = {
    "image_folder": _folder,
    "cifar": _cifar,
    "coco_objects": _coco,
    "ccp_items": _ccp,
    "fake": lambda tmp: Data(tmp),
}


RUNNERS: dict[str, dict[str, Any] | Exempt] = {
    "knn": {"ks": [1, 5], "pooling": ["cls", "mean"]},
    "linear": {"rates": [0.1, 1.0], "epochs": 5, "batch_size": 16, "seeds": [0, 1]},
}
"""Options that fit a training split of some thirty samples."""
