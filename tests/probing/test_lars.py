"""LARS against its closed form, row by row."""

from __future__ import annotations

import pytest
import torch

from evalkit.probing import lars

RNG = torch.Generator().manual_seed(0)


def test_each_row_gets_the_length_of_its_own_weights():
    weights, gradients = (torch.randn(3, 7, generator=RNG, dtype=torch.float64) for _ in range(2))
    found = lars.scaled(gradients * 50, weights)
    for row in range(3):
        assert found[row].norm().item() == pytest.approx(0.001 * weights[row].norm().item(), rel=1e-12)
        direction = gradients[row] / gradients[row].norm()
        assert torch.allclose(found[row] / found[row].norm(), direction, rtol=1e-12)
    assert torch.allclose(lars.scaled(gradients, weights, trust=0.02), found * 20, rtol=1e-12)


def test_lengths_of_zero_scale_nothing():
    weights = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]])
    gradients = torch.tensor([[3.0, 1.0], [0.0, 0.0], [0.0, 10.0]])
    found = lars.scaled(gradients, weights)
    assert found.tolist() == [[3.0, 1.0], [0.0, 0.0], [0.0, pytest.approx(0.005)]]


def test_a_row_that_is_not_finite_stays_alone():
    weights, gradients = torch.ones(2, 3), torch.ones(2, 3)
    gradients[0, 1] = torch.inf
    found = lars.scaled(gradients, weights)
    assert not torch.isfinite(found[0]).all()
    assert found[1].tolist() == [pytest.approx(0.001)] * 3
