"""The batch norm in front of heads against torch's module."""

from __future__ import annotations

import pytest
import torch

from evalkit.errors import ProtocolError
from evalkit.probing.norm import BatchNorm

RNG = torch.Generator().manual_seed(0)


def batches(count=5, size=9):
    return [torch.randn(size, 4, generator=RNG, dtype=torch.float64) * 3 + 1 for _ in range(count)]


def test_equals_torchs_module():
    mine, module = BatchNorm(4, torch.zeros(0).double()), torch.nn.BatchNorm1d(4, eps=1e-6, affine=False).double()
    for batch in batches():
        assert torch.allclose(mine.learn(batch), module(batch), rtol=1e-12, atol=1e-14)
    assert torch.allclose(mine.mean, module.running_mean, rtol=1e-12)
    assert torch.allclose(mine.var, module.running_var, rtol=1e-12)
    module.eval()
    asked = batches(1)[0]
    assert torch.allclose(mine(asked), module(asked), rtol=1e-12)


def test_written_out():
    """Centred, divided by the biased deviation; running statistics move a tenth of the way, by the unbiased variance."""
    batch, norm = batches(1)[0], BatchNorm(4, torch.zeros(0).double())
    found = norm.learn(batch)
    centred = batch - batch.mean(0)
    assert torch.allclose(found, centred / (centred.square().mean(0) + 1e-6).sqrt(), rtol=1e-12)
    assert torch.allclose(norm.mean, 0.1 * batch.mean(0), rtol=1e-12)
    assert torch.allclose(norm.var, 0.9 + 0.1 * centred.square().sum(0) / 8, rtol=1e-12)


def test_pieces_have_their_own_statistics_and_the_first_is_remembered():
    batch = batches(1, size=10)[0]
    mine, module = BatchNorm(4, torch.zeros(0).double(), images=4), torch.nn.BatchNorm1d(4, eps=1e-6, affine=False)
    found = mine.learn(batch)
    module = module.double()
    assert torch.allclose(found[:4], module(batch[:4]), rtol=1e-12)
    assert torch.allclose(mine.mean, module.running_mean, rtol=1e-12)
    assert torch.allclose(found[4:8], module(batch[4:8]), rtol=1e-12)
    assert torch.allclose(found[8:], module(batch[8:]), rtol=1e-12)


def test_applied_row_by_row_and_nothing_is_learnt():
    norm = BatchNorm(4, torch.zeros(0).double())
    norm.learn(batches(1)[0])
    before, asked = norm.mean.clone(), batches(1)[0]
    together = norm(asked)
    assert torch.equal(torch.cat([norm(row[None]) for row in asked]), together)
    assert torch.equal(norm(asked[[3, 0]]), together[[3, 0]])
    assert torch.equal(norm.mean, before)


@pytest.mark.parametrize(("size", "images"), [(1, 0), (9, 4)])
def test_one_image_has_no_deviation(size, images):
    with pytest.raises(ProtocolError, match="at least two images"):
        BatchNorm(4, torch.zeros(0).double(), images).learn(batches(1, size)[0])
