"""Object and part retrieval: every image or crop asks for all others, those of its class are what should be found.

What:   cosine similarity, average precision per query (the query itself left out), mean over queries; of the class
        token, of the mean of the patch tokens, and of what the pretraining head makes of the class token.
Source: Zhu et al., Understanding Self-Supervised Pretraining with Part-Aware Representation Learning (arXiv:2301.11915),
        Table 2 (objects) and Table 4 (parts). The code of part retrieval was released (JiePKU/understand-ssl-part-aware
        ffea818, pr_patch_retrieval.py:320-394; "projection" is the whole output of the head, "embedding" the mean of the
        patch tokens, both after the final norm); none of object retrieval was, which takes its arithmetic.
Names:  for objects "mAP" is the mean AP over queries. For parts the study's words hold: "AP" is the mean over queries,
        "mAP" the mean over parts (`per_class`).
Choice: the paper reports the better of class token and patch mean, which the test labels decide. Here the headline is the
        class token (the patch mean where there is none), and "@encoded", the better one, is an extra marked best-on-test.
Ties:   equal similarities enter together (`metrics.ranking`).
Expect: on CIFAR-10 with DINO ViT-B/16 31.3 encoded and 61.5 projected; on COCO 38.0 and 57.3 (Table 2). The COCO boxes are
        ours, since the paper does not say which are "approximately square".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from evalkit.errors import NoProjection, ProtocolError, UsageError
from evalkit.metrics import bootstrap, classification
from evalkit.metrics.ranking import LeaveOneOut
from evalkit.metrics.retrieval import over_classes
from evalkit.probing.projection import of_class_tokens
from evalkit.types import Features, Job, Part, Role, Score

NAMES = {"projection": "projected", "bottleneck": "bottleneck"}


LABELS_APART = True
"""Labels of one split are never held against those of the other, so the splits may have other classes."""


@dataclass(frozen=True)
class Config:
    """roles: images of these splits ask one another; the paper's CIFAR-10 is all 60,000 images, both splits.

    projections: of the pretraining head: its output, as the paper ("projected"), and what enters its last layer.
    itself: the query is ranked too, as its own first hit, as the released code does; the paper does not say.
    per_class: also the mean over classes and each class on its own, with the study's names for parts, see the module.
    Raises UsageError for no role or one named twice.
    """

    roles: tuple[Role, ...] = ("test",)
    projections: tuple[Literal["projection", "bottleneck"], ...] = ("projection", "bottleneck")
    itself: bool = False
    per_class: bool = False

    def __post_init__(self) -> None:
        for name in ("roles", "projections"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise UsageError(f"{name} is {list(given)}; each may be named once")
        if not self.roles:
            raise UsageError("roles is empty; at least one of train, test")


@dataclass(frozen=True)
class _Gallery:
    """All images of the roles. labels, groups: (N,); groups are numbered through. classes: names by label."""

    splits: Sequence[Features]
    labels: Tensor
    groups: Tensor
    classes: Sequence[str]

    def rows(self, part: Part) -> Tensor:
        """(N, D) float32."""
        return torch.cat([split.get(part).float() for split in self.splits])


def run(job: Job) -> Iterator[Score]:
    """Yield "mAP", then "mAP@cls", "mAP@mean", "mAP@encoded", "mAP@projected", "mAP@bottleneck", as far as there are any.

    With `per_class` the same means over queries are "AP", "AP@cls" ...; after each comes the mean over classes, "mAP",
    "mAP@cls" ..., and after those of a representation the single classes, "AP@cls/nose".
    Values are fractions in [0, 1], n the number of queries that have something to find (the others are the fact
    "queries_without_relevant"), intervals over queries with the gallery fixed, grouped by image. What the encoder lacks
    is the fact "absent", with the reason. Raises ProtocolError where there is one class only, or none with two images;
    FeatureError where features are not finite.
    """
    config: Config = job.config
    parts: tuple[Part, ...] = ("cls", "mean") if "cls" in job.encoder.spec.offers else ("mean",)
    gallery = _gallery(job, config.roles, parts)
    found = {part: _measured(job, gallery, gallery.rows(part), part) for part in parts}
    best = max(parts, key=lambda part: found[part][0].value)
    mean = "AP" if config.per_class else "mAP"
    job.fact("representation", {mean: parts[0], f"{mean}@encoded": best})
    absent = {} if "cls" in parts else {f"{mean}@cls": f"{job.encoder.spec.id} has no class token"}
    means = slice(2 if config.per_class else 1)
    yield from (_renamed(score, "") for score in found[parts[0]][means])
    for scores in found.values():
        yield from scores
    yield from (_renamed(score, "@encoded", "best-on-test") for score in found[best][means])
    for projection in config.projections:
        name = NAMES[projection]
        try:
            if "cls" not in parts:
                raise NoProjection(f"{job.encoder.spec.id} has no class token for a pretraining head to read")
            rows = of_class_tokens(job.encoder, gallery.rows("cls"), projection, job.device)
        except NoProjection as reason:
            absent[f"{mean}@{name}"] = str(reason)
        else:
            yield from _measured(job, gallery, rows, name)
    if absent:
        job.fact("absent", absent)


def _gallery(job: Job, roles: Sequence[Role], parts: Sequence[Part]) -> _Gallery:
    splits = [job.features(role, parts=parts) for role in roles]
    labels = torch.cat([split.labels for split in splits])
    groups, first = [], 0
    for split in splits:
        groups.append(split.groups + first)
        first += 1 + int(split.groups.max()) if len(split) else 0
    gallery = _Gallery(splits, labels, torch.cat(groups), job.dataset(roles[0]).classes if job.config.per_class else ())
    if not len(labels):
        raise ProtocolError(f"retrieval needs images; the splits {', '.join(roles)} hold none")
    if classification.seen_classes(labels) < 2:
        raise ProtocolError("all images have the same class: every ranking would be perfect by definition")
    alone = int((torch.unique(labels, return_counts=True)[1] == 1).sum())
    if alone == classification.seen_classes(labels):
        raise ProtocolError("no class has two images: there is nothing to be found")
    job.fact("queries_without_relevant", 0 if job.config.itself else alone)
    return gallery


def _measured(job: Job, gallery: _Gallery, rows: Tensor, name: str) -> list[Score]:
    """The mean over queries; with `per_class` also that over classes, and each class."""
    config: Config = job.config
    rankings = LeaveOneOut.of(rows.to(job.device), gallery.labels.to(job.device), itself=config.itself)
    precision = torch.empty(len(rows), dtype=torch.float64)
    for index, of_block in job.track(rankings, f"retrieval, {name}", total=len(rankings)):
        precision[index.cpu()] = of_block.cpu()
    asked = ~precision.isnan()  # the labels alone decide which have something to find
    precision, labels, groups = precision[asked], gallery.labels[asked], gallery.groups[asked].numpy()
    if not config.per_class:
        return [bootstrap.score(f"mAP@{name}", precision.numpy(), groups, seed=job.seed)]
    scores = [bootstrap.score(f"AP@{name}", precision.numpy(), groups, seed=job.seed)]
    scores.append(bootstrap.score(f"mAP@{name}", over_classes(precision, labels).numpy(), groups, seed=job.seed))
    for label in torch.unique(labels).tolist():
        own = labels == label
        title = f"AP@{name}/{gallery.classes[label]}"
        scores.append(bootstrap.score(title, precision[own].numpy(), groups[own.numpy()], seed=job.seed))
    return scores


def _renamed(score: Score, place: str, note: str = "") -> Score:
    """The same score as "mAP" + place."""
    return replace(score, name=score.name.split("@")[0] + place, note=note)
