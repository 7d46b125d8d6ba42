"""L2 logistic regression on frozen features: semi-supervised evaluation with 1 % or 10 % of the labels.

What:   softmax regression without intercept on L2-normalised features. It minimises, over W (C, D),
            mean cross-entropy + lambda / (2 N) |W|^2,
        which is scikit-learn's LogisticRegression(C=1 / lambda, fit_intercept=False) for three classes and more (for two,
        scikit-learn keeps one weight vector; here there are always C).
Source: Mugs Table 3 (arXiv:2203.14415; sail-sg/mugs 10ab634, eval/eval_semi_supervised_learning: lambda 0.01 to 0.3 over
        N, cyanure, which minimises 1/N sum + lambda/2 |W|^2) after iBOT (bytedance/ibot da316d8,
        eval_logistic_regression.py) and DINO's authors (facebookresearch/dino, issue 121).
How:    L-BFGS in float64 from the strongest penalty to the weakest, each starting where the last ended; the optimum is
        unique, so the start changes nothing but the time.
Rule:   10 % of the labelled images, held out by group, choose lambda (DINOv2, eval/log_regression.py: 10 % too), or five
        folds where these are few (below `holdout.FEW`); the stronger penalty is listed first (see `probing.selection`). The
        reported weights are then fitted to all labelled images with it. The papers chose on the test set: that is
        "best-on-test".
Ties:   equal logits go to the lowest class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evalkit.errors import ProtocolError, UsageError
from evalkit.metrics import bootstrap, classification
from evalkit.metrics.similarity import normalise
from evalkit.probing import pooling as pool
from evalkit.probing import selection
from evalkit.probing.holdout import trials
from evalkit.types import Features, Job, Score

CHUNK = 1 << 24
"""Logits held at once (128 MB)."""


@dataclass(frozen=True)
class Config:
    """lambdas: penalties to choose from; Mugs' 0.01 0.03 0.06 0.1 0.15 0.2 0.3 (scikit-learn's C is 1 / lambda).

    pooling: "cls" (Mugs and DINO, ViT-S). normalise: features to length 1, as the released code. held_out: share of the
    labelled images that choose, where they are enough (see the module). tolerance: a fit ends when the largest entry of
    the gradient is this share of the one at zero weights; iterations: at most so many (DINOv2: 1000, but C = 1000 can need
    more); a fit that ends there is told as a fact. Raises UsageError for values that cannot be.
    """

    lambdas: tuple[float, ...] = (0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3)
    pooling: pool.Pooling = "cls"
    normalise: bool = True
    held_out: float = 0.1
    tolerance: float = 1e-6
    iterations: int = 5000

    def __post_init__(self) -> None:
        if not self.lambdas or min(self.lambdas) <= 0 or len(set(self.lambdas)) < len(self.lambdas):
            raise UsageError(f"lambdas is {list(self.lambdas)}; at least one is needed, each once and above 0")
        if not 0 < self.held_out < 1:
            raise UsageError(f"held_out is {self.held_out}; it is a share of the labelled images, between 0 and 1")
        if not self.tolerance > 0 or self.iterations < 1:
            raise UsageError(f"tolerance is {self.tolerance} and iterations {self.iterations}; both are above 0")


@dataclass(frozen=True)
class Fit:
    """weight: (C, D) float64, a row per class seen. classes: (C,) int64, ascending labels of the rows. steps: of L-BFGS.
    converged: whether the gradient met the tolerance."""

    weight: Tensor
    classes: Tensor
    steps: int
    converged: bool

    def scores(self, features: Tensor) -> Iterator[Tensor]:
        """Logits of (n, D) float64 features in pieces, each (b, C)."""
        for rows in torch.split(features, max(1, CHUNK // len(self.weight))):
            yield rows @ self.weight.T

    def predict(self, features: Tensor) -> Tensor:
        """(n,) int64 labels; among equal logits the lowest."""
        best = [classification.ranked(scores, 1)[:, 0] for scores in self.scores(features)]
        return self.classes[torch.cat(best)]

    def loss(self, features: Tensor, labels: Tensor) -> float:
        """Mean cross-entropy over the images whose class was seen; 0 where none was."""
        place = torch.searchsorted(self.classes, labels).clamp(max=len(self.classes) - 1)
        seen = self.classes[place] == labels
        if not bool(seen.any()):
            return 0.0
        logged = torch.cat([torch.log_softmax(scores, dim=1) for scores in self.scores(features[seen])])
        return float(-logged.gather(1, place[seen].unsqueeze(1)).mean())


def fit(
    features: Tensor,
    labels: Tensor,
    *,
    penalty: float,
    first: Tensor | None = None,
    tolerance: float = 1e-6,
    iterations: int = 5000,
) -> Fit:
    """The minimum of the objective of this module; a pure function on plain tensors of one device.

    features: (N, D) float64. labels: (N,) int64, gaps allowed; a class without an image has no row. penalty: lambda,
    above 0. first: (C, D) weights to start from, zeros without. Raises ProtocolError for N = 0.
    """
    from scipy.optimize import minimize  # only this function needs it, and it takes a third of a second

    if len(labels) == 0:
        raise ProtocolError("there is no image to fit to")
    classes, dense = torch.unique(labels, return_inverse=True)
    zeros = np.zeros(len(classes) * features.shape[1])
    small = max(1e-12, tolerance * float(np.abs(_objective(zeros, features, dense, penalty)[1]).max()))
    found = minimize(
        lambda flat: _objective(flat, features, dense, penalty),
        zeros if first is None else first.cpu().numpy().ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "maxfun": 2 * iterations, "gtol": small, "ftol": 0.0, "maxls": 50},
    )
    weight = torch.from_numpy(found.x).view(len(classes), -1).to(features.device)
    return Fit(weight, classes, int(found.nit), bool(np.abs(found.jac).max() <= small))


def _objective(flat: np.ndarray, features: Tensor, labels: Tensor, penalty: float) -> tuple[float, np.ndarray]:
    weight = torch.from_numpy(flat).to(features.device).view(-1, features.shape[1])
    piece = max(1, CHUNK // len(weight))
    value = 0.5 * penalty * weight.square().sum()
    slope = penalty * weight
    for start in range(0, len(labels), piece):
        rows, truth = features[start : start + piece], labels[start : start + piece]
        scores = torch.log_softmax(rows @ weight.T, dim=1)
        value -= scores.gather(1, truth.unsqueeze(1)).sum()
        scores.exp_()[torch.arange(len(truth), device=truth.device), truth] -= 1
        slope += scores.T @ rows
    return float(value) / len(labels), (slope / len(labels)).cpu().numpy().ravel()


def run(job: Job) -> Iterator[Score]:
    """Yield "top1" (headline) and "best-on-test" (note "best-on-test").

    Values are fractions in [0, 1], n the number of test images, intervals grouped by image with the weights held fixed.
    The weights are kept as "head": `weight` (C, D) float64, a row per class seen in training, and `classes` (C,) int64.
    Finished fits are taken up where a killed run left them. Raises ProtocolError where a split is empty, training has a
    single class, or all images of training are one group; FeatureError where features are not finite.
    """
    config: Config = job.config
    parts = pool.parts_of([config.pooling])
    train, test = job.features("train", parts=parts), job.features("test", parts=parts)
    _check(train, test)
    rows, labels, asked = _rows(job, train), train.labels.to(job.device), _rows(job, test)
    state = job.checkpoint.load() or {}
    tried, choice = _tried(
        job, state, rows, labels, trials(train.groups, config.held_out, job.rng("logreg", "held-out"))
    )
    chosen = sorted(config.lambdas, reverse=True)[choice.index]
    final = _path(job, state, "all", rows, labels)
    right = {penalty: (found.predict(asked).cpu() == test.labels) for penalty, found in final.items()}
    job.fact("chosen", {"lambda": chosen, "C": 1 / chosen})
    folds = len(tried) if len(tried) > 1 else 0
    job.fact("choices", {"top1": selection.fact("lambda", config.lambdas, chosen, choice, folds=folds)})
    every = tried | {"all": final}
    job.fact("fits_not_converged", [[n, p] for n, of in every.items() for p, f in of.items() if not f.converged])
    job.keep("head", {"weight": final[chosen].weight.cpu(), "classes": final[chosen].classes.cpu()})
    groups = test.groups.numpy()
    yield bootstrap.score("top1", right[chosen].numpy(), groups, labels=test.labels, seed=job.seed)
    best = max(right.values(), key=lambda row: int(row.sum()))
    yield bootstrap.score("best-on-test", best.numpy(), groups, note="best-on-test", seed=job.seed)


def _rows(job: Job, features: Features) -> Tensor:
    """(N, D) float64 on the job's device."""
    rows = pool.of_features(features, job.config.pooling).to(job.device)
    return (normalise(rows) if job.config.normalise else rows).double()


def _path(job: Job, state: dict[str, Any], name: str, rows: Tensor, labels: Tensor) -> dict[float, Fit]:
    """One fit per lambda, the strongest penalty first; each is saved when it is done."""
    config: Config = job.config
    done = state.setdefault(name, {})
    found: dict[float, Fit] = {}
    first = None
    for penalty in job.track(sorted(config.lambdas, reverse=True), f"logistic regression, {name}", len(config.lambdas)):
        if penalty in done:
            saved = {key: value.to(rows.device) for key, value in done[penalty]["tensors"].items()}
            found[penalty] = Fit(**saved, steps=done[penalty]["steps"], converged=done[penalty]["converged"])
        else:
            found[penalty] = now = fit(
                rows, labels, penalty=penalty, first=first, tolerance=config.tolerance, iterations=config.iterations
            )
            tensors = {"weight": now.weight.cpu(), "classes": now.classes.cpu()}
            done[penalty] = {"tensors": tensors, "steps": now.steps, "converged": now.converged}
            job.checkpoint.save(state)
        first = found[penalty].weight
    return found


def _tried(
    job: Job, state: dict[str, Any], rows: Tensor, labels: Tensor, held: Tensor
) -> tuple[dict[str, dict[float, Fit]], selection.Choice]:
    """The fits of each trial, and the lambda that they choose, by its place from the strongest. held: (K, N) bool."""
    tried, right, lost = {}, [], []
    for number, out in enumerate(held.to(rows.device)):
        name = "held-out" if len(held) == 1 else f"fold {number}"
        tried[name] = fits = _path(job, state, name, rows[~out], labels[~out])
        right.append(torch.stack([of.predict(rows[out]) == labels[out] for of in fits.values()]))
        lost.append(
            torch.tensor([of.loss(rows[out], labels[out]) for of in fits.values()], dtype=torch.float64)
            * int(out.sum())
        )
    return tried, selection.choose(torch.cat(right, dim=1), torch.stack(lost).sum(dim=0) / int(held.sum()))


def _check(train: Features, test: Features) -> None:
    if len(train) == 0 or len(test) == 0:
        raise ProtocolError(f"both splits need images: train has {len(train)}, test has {len(test)}")
    if classification.seen_classes(train.labels) < 2:
        raise ProtocolError("all training images have the same class: a classifier has nothing to tell apart")
