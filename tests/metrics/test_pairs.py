"""Histograms of pairs against loops, the overlap against its closed form, the interval against pairs drawn one by one."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
import torch

from evalkit.errors import ProtocolError
from evalkit.metrics import pairs
from evalkit.metrics.similarity import normalise


def rows(count, seed=0, labels=4, dim=6):
    rng = torch.Generator().manual_seed(seed)
    label = torch.randint(labels, (count,), generator=rng)
    centres = torch.randn(labels, dim, generator=rng)
    return normalise(centres[label] + torch.randn(count, dim, generator=rng)), label


def by_loop(vectors, labels, bins):
    counts, sums = np.zeros((2, bins), int), np.zeros(2)
    for i in range(len(vectors)):
        for j in range(i + 1, len(vectors)):
            cosine = float(vectors[i].double() @ vectors[j].double())
            kind = int(labels[i] != labels[j])
            counts[kind, min(bins - 1, max(0, int((cosine + 1) / 2 * bins)))] += 1
            sums[kind] += cosine
    return counts, sums


@pytest.mark.parametrize("distance", [0.0, 0.05, 0.1, 0.3])
def test_overlap_of_gaussians_has_its_closed_form(distance):
    low, high = NormalDist(0.1, 0.08), NormalDist(0.1 + distance, 0.08)
    edges = np.linspace(-1, 1, 401)
    counts = [np.diff([one.cdf(edge) for edge in edges]) for one in (low, high)]
    assert pairs.overlap(counts) == pytest.approx(2 * NormalDist().cdf(-distance / 2 / 0.08), abs=2e-4)


def test_overlap_of_drawn_gaussians():
    drawn = np.random.default_rng(0).normal([[0.0], [0.12]], 0.1, (2, 200_000))
    counts = torch.stack([pairs.histogram(torch.from_numpy(one).float(), 200) for one in drawn])
    assert pairs.overlap(counts) == pytest.approx(2 * NormalDist().cdf(-0.6), abs=0.01)


def test_overlap_of_equal_apart_and_empty_histograms():
    assert pairs.overlap([[2, 4, 0], [1, 2, 0]]) == pytest.approx(1)
    assert pairs.overlap([[2, 4, 0], [0, 0, 9]]) == 0
    assert np.isnan(pairs.overlap([[2, 4, 0], [0, 0, 0]]))


def test_values_fall_into_bins_with_their_lower_edges():
    values = torch.tensor([-1.0, -0.5, -0.51, 0.0, 0.499, 1.0, 1.0000001, -1.0000001])
    assert pairs.histogram(values, 4).tolist() == [3, 1, 2, 2]


@pytest.mark.parametrize("labels", [1, 4])
def test_pairs_within_are_a_loop_over_pairs(labels):
    vectors, label = rows(40, labels=labels)
    counts, sums = pairs.within(vectors, label, 50)
    expected = by_loop(vectors, label, 50)
    assert np.array_equal(counts, expected[0]) and sums == pytest.approx(expected[1], abs=1e-4)


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_pairs_between_blocks_are_all_pairs_whatever_the_chunks(chunk, monkeypatch):
    monkeypatch.setattr(pairs, "CHUNK", chunk)
    vectors, label = rows(50)
    blocks = torch.arange(50) * 5 // 50
    spread = pairs.between_blocks(vectors, label, blocks, bins=40)
    counts, sums = spread.total
    expected = by_loop(vectors, label, 40)
    assert np.array_equal(counts, expected[0]) and sums == pytest.approx(expected[1], abs=1e-4)
    mine = pairs.within(vectors[blocks == 2], label[blocks == 2], 40)
    assert np.array_equal(spread.counts[2, 2], mine[0])
    assert (spread.counts[3, 1] == 0).all()


def test_means_are_exact_from_the_sums_of_vectors():
    """The mean over all pairs follows from sums alone: (|sum|^2 - n) / (n^2 - n)."""
    vectors, label = rows(300, labels=3)
    spread = pairs.between_blocks(vectors, label, torch.zeros(300, dtype=torch.int64), bins=10)
    of_label = torch.stack([vectors[label == one].double().sum(0) for one in range(3)])
    sizes = torch.bincount(label).double()
    intra = (of_label.square().sum() - 300) / (sizes.square().sum() - 300)
    inter = (of_label.sum(0).square().sum() - of_label.square().sum()) / (300**2 - sizes.square().sum())
    assert pairs.means(*spread.total).tolist() == pytest.approx([intra.item(), inter.item()], abs=1e-6)


def test_resamples_count_pairs_by_the_draws_of_their_units():
    vectors, label = rows(60)
    blocks = torch.arange(60) * 6 // 60
    spread = pairs.between_blocks(vectors, label, blocks, bins=8)
    found = [np.concatenate(part) for part in zip(*spread.resampled(40, seed=3), strict=True)]
    drawn = np.random.default_rng(3).multinomial(6, np.full(6, 1 / 6), size=40)
    for number, times in enumerate(drawn):
        counts = sum(
            (times[a] if a == b else times[a] * times[b]) * spread.counts[a, b] for a in range(6) for b in range(a, 6)
        )
        sums = sum(
            (times[a] if a == b else times[a] * times[b]) * spread.sums[a, b] for a in range(6) for b in range(a, 6)
        )
        assert np.allclose(found[0][number], counts) and np.allclose(found[1][number], sums)


def test_resampling_leaves_the_counts_and_works_in_pieces(monkeypatch):
    counts, sums = np.random.default_rng(0).integers(0, 9, (5, 2, 4)), np.random.default_rng(1).random((5, 2))
    spread = pairs.Spread(counts, sums)
    whole = np.concatenate([c for c, _ in spread.resampled(30, 0)])
    monkeypatch.setattr(pairs, "RESAMPLED", 100)
    pieces = [c for c, _ in spread.resampled(30, 0)]
    assert len(pieces) > 1 and np.allclose(np.concatenate(pieces), whole)
    drawn = np.random.default_rng(0).multinomial(5, np.full(5, 0.2), size=30)
    assert np.allclose(whole, np.einsum("ru,ukb->rkb", drawn, counts))


def test_blocks_must_rise():
    with pytest.raises(ProtocolError, match="sorted"):
        pairs.between_blocks(*rows(3), torch.tensor([1, 0, 1]), bins=4)
