"""Average precision within a gallery against scikit-learn, and the mean over classes with its influence values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from evalkit.errors import FeatureError, ProtocolError
from evalkit.metrics import bootstrap
from evalkit.metrics.retrieval import average_precision, over_classes


def gallery(rows, classes, seed, dim=8):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=rng)
    return torch.randn(rows, dim, generator=rng) + torch.randn(classes, dim, generator=rng)[labels], labels


def slow(features, labels, exclude_self):
    unit = torch.nn.functional.normalize(features.double()).numpy()
    found = []
    for query, label in enumerate(labels.numpy()):
        keep = np.arange(len(unit)) != query if exclude_self else np.ones(len(unit), dtype=bool)
        relevant = (labels.numpy() == label)[keep]
        found.append(average_precision_score(relevant, (unit @ unit[query])[keep]) if relevant.any() else np.nan)
    return np.array(found)


@pytest.mark.parametrize("exclude_self", [True, False])
@pytest.mark.parametrize(("rows", "classes", "dtype"), [(90, 4, torch.float32), (40, 30, torch.float64)])
def test_against_scikit_learn(exclude_self, rows, classes, dtype):
    features, labels = gallery(rows, classes, seed=rows)
    mine = average_precision(features.to(dtype), labels, exclude_self=exclude_self)
    assert mine.dtype == torch.float32
    assert mine.shape == (rows,)
    assert np.allclose(mine, slow(features, labels, exclude_self), atol=1e-6, equal_nan=True)
    assert bool(mine.isnan().any()) == (exclude_self and classes == 30)


def test_the_order_of_the_rows_changes_nothing():
    features, labels = gallery(60, 3, seed=1)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(average_precision(features, labels)[order], average_precision(features[order], labels[order]))


def test_counting_the_query_raises_every_score():
    features, labels = gallery(60, 3, seed=3)
    with_it, without = (average_precision(features, labels, exclude_self=flag) for flag in (False, True))
    assert (with_it[without < 1] > without[without < 1]).all()
    assert (without < 1).sum() > 50


def test_data_that_cannot_be_ranked_are_refused():
    features, labels = gallery(10, 2, seed=0)
    with pytest.raises(ProtocolError, match="one label"):
        average_precision(features, labels[:9])
    with pytest.raises(ProtocolError, match="one label"):
        average_precision(features[:0], labels[:0])
    features[3, 2] = torch.nan
    with pytest.raises(FeatureError, match="row"):
        average_precision(features, labels)


def test_the_mean_over_classes_and_its_derivative():
    """The influence of a unit is what a little more weight on it does to the statistic."""
    rng = torch.Generator().manual_seed(5)
    labels = torch.tensor([0] * 9 + [2] * 4 + [5] * 2)
    precision = torch.rand(15, generator=rng, dtype=torch.float64)
    outcomes = over_classes(precision, labels)

    def statistic(weight):
        means = [(weight * precision)[labels == c].sum() / weight[labels == c].sum() for c in (0, 2, 5)]
        return torch.stack(means).mean()

    value = statistic(torch.ones(15, dtype=torch.float64))
    assert torch.isclose(outcomes.mean(), value)
    for unit in range(15):
        weight = torch.ones(15, dtype=torch.float64)
        weight[unit] += 1e-6
        slope = (statistic(weight) - value) / 1e-6 * 15
        assert torch.isclose(outcomes[unit] - value, slope, atol=1e-5)


def test_its_interval_is_that_of_resampled_class_means():
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.choice(3, 600, p=[0.7, 0.2, 0.1]))
    precision = torch.from_numpy(rng.uniform(0, 1, 600) * np.array([0.3, 0.6, 0.9])[labels.numpy()])
    mine = bootstrap.interval(over_classes(precision, labels), resamples=4000)
    drawn = []
    for _ in range(4000):
        index = rng.integers(0, 600, 600)
        of, value = labels.numpy()[index], precision.numpy()[index]
        drawn.append(np.mean([value[of == c].mean() for c in range(3)]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (mine.low, mine.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_means_over_nothing_are_refused():
    with pytest.raises(ProtocolError, match="one label"):
        over_classes(torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ProtocolError, match="one label"):
        over_classes(torch.zeros(3), torch.zeros(2, dtype=torch.int64))
