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
from tests.datasets import dense_makers as dense
from tests.datasets import part_makers as parts


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


def _pets(tmp: Path) -> Data:
    root = make.pets(tmp / "pets")
    return Data(root, train="trainval", image=root / "images/Bengal_1.jpg")


def _flowers(tmp: Path) -> Data:
    root = make.flowers(tmp / "flowers")
    return Data(root, image=root / "jpg/image_00001.jpg")


def _cars(tmp: Path) -> Data:
    root = make.cars(tmp / "cars")
    return Data(root, image=root / "cars_train/00001.jpg")


def _inaturalist(tmp: Path) -> Data:
    root = make.inaturalist(tmp / "inaturalist18")
    return Data(root, test="val", image=root / "train_val2018/Plantae/2/1000.jpg")


def _revisited(tmp: Path) -> Data:
    root = make.revisited(tmp / "roxford5k")
    return Data(root, train="gallery", test="query", image=root / "jpg/a.jpg")


def _miniimagenet(tmp: Path) -> Data:
    root = make.miniimagenet(tmp / "miniimagenet")
    return Data(root, image=root / "images/n0100000001.jpg")


def _davis(tmp: Path) -> Data:
    root = make.davis(tmp / "DAVIS", sets={"train": ["goat"], "val": ["cows", "bear"]})
    return Data(root, test="val", image=root / "JPEGImages/480p/goat/00001.jpg")


def _masked_folder(tmp: Path) -> Data:
    root = dense.masked_folder(tmp / "masked")
    return Data(root, image=root / "images/train/a.jpg")


def _ccp_segments(tmp: Path) -> Data:
    root = make.ccp(tmp / "ccp", {f"{n:04d}": make.ccp_mask() for n in (1, 2, 3, 4)})
    return Data(root, config={"ranges": {"train": [1, 2], "test": [3, 4]}}, image=root / "photos/0001.jpg")


def _coco_instances(tmp: Path) -> Data:
    root = make.coco(tmp / "coco", dense.coco_outlines(), dense.coco_outlines(first=5))
    return Data(root, test="val", image=root / "train2017/000000000001.jpg")


def _coco_keypoints(tmp: Path) -> Data:
    root = parts.people(tmp / "coco")
    return Data(root, test="val", image=root / "train2017/000000000001.jpg")


def _cub_parts(tmp: Path) -> Data:
    root = parts.cub(tmp / "CUB_200_2011")
    return Data(root, image=root / "images/001.Bird/Bird_0001.jpg")


def _lsp(tmp: Path) -> Data:
    root = parts.lsp(tmp / "lsp", parts.joints_matrix(1002).transpose(1, 0, 2) * [[[1]], [[1]], [[0]]])
    return Data(root, image=root / "images/im0001.jpg")


def _ade20k(tmp: Path) -> Data:
    root = dense.ade20k(tmp / "ade20k")
    return Data(root, "training", "validation", image=root / "images/training/ADE_train_1.jpg")


def _ade20k_parts(tmp: Path) -> Data:
    from evalkit.datasets import ade20k_parts

    root = dense.ade20k_parts(tmp / "ADE20K_2021_17_01")
    ade20k_parts.write_classes(root, tmp / "list.json")
    config = {"classes": str(tmp / "list.json")}
    return Data(root, "training", "validation", config, root / "images/ADE/training/home/bedroom/T1.jpg")


def _cityscapes(tmp: Path) -> Data:
    root = dense.cityscapes(tmp / "cityscapes")
    return Data(root, test="val", image=root / "leftImg8bit/train/ulm/ulm_1_leftImg8bit.png")


def _lip(tmp: Path) -> Data:
    root = dense.lip(tmp / "LIP")
    return Data(root, test="val", image=root / "TrainVal_images/train_images/a_1.jpg")


def _pascal_part(tmp: Path) -> Data:
    root = dense.pascal_part(tmp / "VOC2010")
    return Data(root, test="val", image=root / "JPEGImages/b.jpg")


def _voc_segmentation(tmp: Path) -> Data:
    root = dense.voc(tmp / "VOC2012")
    return Data(root, test="val", image=root / "JPEGImages/b.jpg")


DATASETS: dict[str, Callable[[Path], Data] | Exempt] = {
    "coco_keypoints": _coco_keypoints,
    "cub_parts": _cub_parts,
    "lsp": _lsp,
    "image_folder": _folder,
    "cifar": _cifar,
    "coco_objects": _coco,
    "ccp_items": _ccp,
    "pets": _pets,
    "flowers": _flowers,
    "cars": _cars,
    "inaturalist": _inaturalist,
    "revisited": _revisited,
    "miniimagenet": _miniimagenet,
    "coco_pose": _coco_keypoints,
    "lsp_pose": _lsp,
    "davis": _davis,
    "masked_folder": _masked_folder,
    "ccp_segments": _ccp_segments,
    "coco_instances": _coco_instances,
    "ade20k": _ade20k,
    "ade20k_parts": _ade20k_parts,
    "cityscapes": _cityscapes,
    "lip": _lip,
    "pascal_part": _pascal_part,
    "voc_segmentation": _voc_segmentation,
    "fake": lambda tmp: Data(tmp),
}


RUNNERS: dict[str, dict[str, Any] | Exempt] = {
    "video": Exempt(
        "it follows masks through clips, and the data set `fake` has labels only; see tests/runners/test_video.py"
    ),
    "attentive": {"mode": "cached", "rate": 0.3, "rate_batch": 16, "batch_size": 16, "epochs": 12, "warmup_epochs": 1},
    "logreg": {"lambdas": [0.01, 1.0], "held_out": 0.2},
    "fewshot": Exempt("its n counts episodes and not images; tests/runners/test_fewshot.py has certainty and chance"),
    "variance": Exempt(
        "it scores how features move and not whether they are right; see tests/runners/test_variance.py"
    ),
    "landmarks": Exempt("its queries are judged photo by photo, and the data set `fake` has labels only"),
    "retrieval": {"roles": ["test"]},
    "pose": Exempt("it needs people with keypoints, and `fake` has labels only; see tests/runners/test_pose.py"),
    "prompt": Exempt(
        "it needs outlined objects, and the data set `fake` has labels only; see tests/runners/test_prompt.py"
    ),
    "similarity": Exempt("it needs labelled pixels, and `fake` has none; see tests/runners/test_similarity.py"),
    "hummingbird": Exempt("it needs labelled pixels, and `fake` has none; see tests/runners/test_hummingbird.py"),
    "segmentation": Exempt("it needs labelled pixels, and `fake` has none; see tests/runners/test_segmentation.py"),
    "knn": {"ks": [1, 5], "pooling": ["cls", "mean"]},
    "linear": {"rates": [0.1, 1.0], "epochs": 5, "batch_size": 16, "seeds": [0, 1]},
}
"""Options that fit a training split of some thirty samples."""
