"""The words of reports/published/papers.csv as papers print them; a word that is not here is printed as it is."""

from __future__ import annotations

NAMES = {
    "beit": "BEiT",
    "byol": "BYOL",
    "cae": "CAE",
    "deepcluster": "DeepCluster",
    "deit": "DeiT",
    "dino": "DINO",
    "dtop": "DToP",
    "ibot": "iBOT",
    "infomin": "InfoMin",
    "irt_o": "IRT-O",
    "irt_r": "IRT-R",
    "mae": "MAE",
    "mc_ssl": "MC-SSL",
    "mmc": "MMC",
    "moby": "MoBY",
    "moco_v3": "MoCo v3",
    "msn": "MSN",
    "mugs": "Mugs",
    "selfpatch": "SelfPatch",
    "simclr": "SimCLR",
    "simclr_v2": "SimCLR v2",
    "simsiam": "SimSiam",
    "sit": "SiT",
    "swav": "SwAV",
    "resnet50": "ResNet-50",
    "vit_small_16": "ViT-S/16",
    "vit_base": "ViT-B",
    "vit_base_16": "ViT-B/16",
    "vit_base+resnet50": "ViT-B + ResNet-50",
    "vit_large_16": "ViT-L/16",
    "unspecified": "not stated",
    "imagenet1k": "ImageNet-1K",
    "imagenet22k": "ImageNet-22K",
    "imagenet100": "ImageNet-100",
    "imagenet10": "ImageNet-10",
    "sfm": "SfM",
    "cls": "CLS",
    "pat": "patches",
    "hybrid": "CLS and patches",
    "rec": "reconstruction",
    "full": "full Mugs",
    "without_instance": "without instance",
    "without_local_group": "without local group",
    "without_group": "without group",
    "pretrain_data": "pretraining",
    "pretrain_epochs": "epochs",
    "arch": "architecture",
    "positives": "positive patches",
}


def name(word: str) -> str:
    """As a paper prints it."""
    return NAMES.get(word) or " + ".join(NAMES.get(part, part) for part in word.split("+"))
