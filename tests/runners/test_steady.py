"""Choices that neither an image nor a rounding decides: features move in their sixth digit, as between processors, and every
runner that chooses takes the same head, penalty or threshold and prints the same score.

The data are made so that the rule of before, most right on one small share, is decided by the rounding.
"""

from __future__ import annotations

import numpy as np
import torch

from evalkit.probing import holdout, selection, sweep
from evalkit.runners import fewshot, linear, logreg, prompt
from tests.runners.fakes import FakeJob, features
from tests.runners.test_prompt import image

DRAWS = 5
NOISE = 1e-6


def made(count, seed):
    """Ten classes that overlap, of crops that come in pairs from one photo, all on one side of the origin, as features of
    networks lie: at all but the lowest rates a head oscillates, and a rounding grows from step to step."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) // 2 % 10
    rows = 3 + 2 * (torch.eye(32)[labels] + 1.2 * torch.randn(count, 32, generator=rng))
    return features(labels, rows, groups=torch.arange(count) // 2)


def rounded(split, draw):
    """The same features, as another processor would round them."""
    rng = torch.Generator().manual_seed(draw)
    rows = {part: of * (1 + NOISE * torch.randn(of.shape, generator=rng)) for part, of in split.rows.items()}
    return features(split.labels, rows["cls"], rows["mean"], groups=split.groups)


def outcomes(runner, config):
    """What was chosen and what is printed, of each draw."""
    found = []
    for draw in range(DRAWS):
        job = FakeJob(config, rounded(made(240, 10), draw), rounded(made(150, 11), draw))
        scores = {score.name: score for score in runner.run(job)}
        chosen = {name: (one["chosen"], one.get("input")) for name, one in job.facts["choices"].items()}
        found.append((chosen, {name: f"{100 * scores[name].value:.1f}" for name in chosen}))
    return found


LINEAR = {"epochs": 40, "batch_size": 16, "seeds": (0,), "held_out": 0.1,
          "rates": tuple(0.003 * 1.6**step for step in range(18))}  # fmt: skip


def most_right(outcomes, loss=None, alive=None):
    """The rule of before: most right, then lower loss, then lower rate."""
    ranks = [(-float(row.sum()), float(loss[index]), index) for index, row in enumerate(outcomes)]
    return selection.Choice(min(ranks)[-1], 0.0, 0.0, outcomes.shape[1], 1, len(ranks))


def test_linear_cached(monkeypatch):
    found = outcomes(linear, linear.Config(**LINEAR))
    assert all(one == found[0] for one in found)
    monkeypatch.setattr(holdout, "FEW", 1)
    monkeypatch.setattr(sweep, "choose", most_right)
    before = outcomes(linear, linear.Config(**LINEAR))
    assert len({one["top1"] for _, one in before}) > 1


def test_linear_online():
    found = outcomes(linear, linear.Config(mode="online", size=8, **LINEAR | {"epochs": 15}))
    assert all(one == found[0] for one in found)


def test_logreg():
    found = outcomes(logreg, logreg.Config(lambdas=(0.1, 0.3, 1.0, 3.0, 10.0)))
    assert all(one == found[0] for one in found)


def test_fewshot():
    found = outcomes(fewshot, fewshot.Config(queries=5, episodes=60))
    assert all(one == found[0] for one in found)


def test_prompt():
    """Tokens of some images, rounded: the same threshold and mean IoU. No FakeJob: the runner reads a real split."""
    config, found = prompt.Config(candidates=tuple(step / 20 for step in range(20))), []
    for draw in range(DRAWS):
        rng, parts = torch.Generator().manual_seed(draw), []
        for seed in range(6):
            _, tokens, outlined = image(seed)
            tokens = tokens * (1 + NOISE * torch.randn(tokens.shape, generator=rng))
            parts.append(prompt._of_image(config, tokens, outlined, rng=torch.Generator(), group=seed))
        table = prompt._Table(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
        best = prompt._best(table, "", config)
        found.append((best.index, f"{100 * best.score:.1f}"))
    assert all(one == found[0] for one in found)
