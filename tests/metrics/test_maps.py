"""Clusters, colours, attended patches and matches against what can be said of them beforehand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evalkit.errors import FeatureError, UsageError
from evalkit.metrics import maps


def test_clusters_are_directions_numbered_by_size():
    kinds = torch.eye(4)[:3]
    tokens = torch.cat([kinds[[2]].repeat(2, 1), kinds[[0]].repeat(5, 1), kinds[[1]].repeat(2, 1)])
    lengths = torch.arange(1.0, 10.0)[:, None]  # cosine does not see them
    found = maps.clusters((tokens * lengths).half(), count=3)
    assert found.tolist() == [1, 1, 0, 0, 0, 0, 0, 2, 2]
    assert set(maps.clusters(tokens, count=4).tolist()) == {0, 1, 2}  # there are no four kinds


@pytest.mark.parametrize("count", [0, 10])
def test_clusters_that_cannot_be(count):
    with pytest.raises(UsageError, match="clusters of 9"):
        maps.clusters(torch.rand(9, 4), count=count)


def test_colours_are_the_principal_components():
    from sklearn.decomposition import PCA

    tokens = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 5, 3, 1, 1, 1, 1, 1])
    found = maps.colours(tokens)
    values = PCA(3, svd_solver="full").fit(tokens.double().numpy())
    axes = values.components_ * np.sign(
        np.take_along_axis(values.components_, np.abs(values.components_).argmax(1)[:, None], 1)
    )
    wanted = (tokens.double().numpy() - values.mean_) @ axes.T
    wanted = (wanted - wanted.min(0)) / (wanted.max(0) - wanted.min(0))
    assert np.allclose(found, wanted, atol=1e-9)
    assert found.min() == 0 and found.max() == 1


def test_colours_of_tokens_that_say_little():
    line = torch.arange(6.0)[:, None] * torch.tensor([[1.0, 2.0, 0.0]])
    found = maps.colours(line)
    assert np.allclose(found[:, 0], np.linspace(0, 1, 6)) and (found[:, 1:] == 0.5).all()
    with pytest.raises(UsageError, match="3 components of 2 patches"):
        maps.colours(torch.rand(2, 8))
    with pytest.raises(FeatureError, match="finite"):
        maps.colours(torch.full((4, 4), torch.nan))


def test_attended_holds_the_mass_with_the_fewest():
    weights = torch.tensor([[0.1, 0.5, 0.3, 0.1], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 0.0, 2.0]])
    assert maps.attended(weights, mass=0.6).tolist() == [
        [False, True, True, False], [True, True, True, False], [False, False, False, True],
    ]  # fmt: skip
    assert maps.attended(weights, mass=0.5)[1].tolist() == [True, True, False, False]
    assert maps.attended(weights, mass=1.0).tolist() == (weights > 0).tolist()
    assert not maps.attended(torch.zeros(1, 3)).any()
    for wrong in (0.0, 1.1):
        with pytest.raises(UsageError, match="share of attention"):
            maps.attended(weights, mass=wrong)


def test_matches_equal_a_loop():
    rng = torch.Generator().manual_seed(1)
    first, second = torch.randn(30, 6, generator=rng), torch.randn(40, 6, generator=rng)
    cosines = torch.nn.functional.normalize(first, dim=1) @ torch.nn.functional.normalize(second, dim=1).T
    wanted = []
    for i in range(30):
        j = max(range(40), key=lambda j: (float(cosines[i, j]), -j))
        if max(range(30), key=lambda k: (float(cosines[k, j]), -k)) == i:
            wanted.append((-float(cosines[i, j]), i, j))
    found = maps.matches(first, second, top=5)
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [
        (i, j) for _, i, j in sorted(wanted)[:5]
    ]
    assert len(maps.matches(first, second, top=100).first) == len(wanted)
    same = maps.matches(torch.ones(3, 2), torch.ones(4, 2), top=9)
    assert same.first.tolist() == [0] and same.second.tolist() == [0]
    with pytest.raises(UsageError, match="at least 1"):
        maps.matches(first, second, top=0)
