"""Similarities are a pure function of two rows, and every ranking that compares them: in any order, block, copy, thread."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch

from evalkit.errors import FeatureError
from evalkit.metrics import banks, maps, pairs, propagation, ranking, retrieval, similarity
from evalkit.metrics.neighbours import nearest
from evalkit.metrics.similarity import cosines, normalise, tolerance
from evalkit.reporting import search
from evalkit.runners import fewshot, hummingbird, knn, landmarks, prompt


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request):
    """Every test of this file runs with one and with two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def rng(seed):
    return torch.Generator().manual_seed(seed)


def copies(count, kinds, dim, seed):
    """Rows that mostly have copies, (count, dim)."""
    return torch.randn(kinds, dim, generator=rng(seed))[torch.randint(kinds, (count,), generator=rng(seed + 1))]


def exactly(queries, bank):
    """(Q, N) float32 similarities in whole numbers of any size, the last rounding by numpy."""
    whole = [(normalise(rows).double() / similarity.GRID).long().tolist() for rows in (queries, bank)]
    found = [[sum(a * b for a, b in zip(one, other, strict=True)) for other in whole[1]] for one in whole[0]]
    return torch.from_numpy(np.array(found, object).astype(np.float64) * similarity.GRID**2).float()


def order_of(queries, bank):
    """The rule: falling similarity, then rising row."""
    return exactly(queries, bank).sort(dim=1, descending=True, stable=True)


def test_unit_rows_lie_on_the_grid_and_have_length_one():
    rows = torch.randn(500, 193, generator=rng(0)) * torch.logspace(-20, 20, 500)[:, None]
    unit = normalise(rows).double()
    assert torch.equal((unit / similarity.GRID).round(), unit / similarity.GRID)
    expected = rows.double() / rows.double().norm(dim=1, keepdim=True)
    assert (unit - expected).abs().max() <= similarity.GRID / 2 * (1 + 1e-6)
    assert normalise(torch.zeros(2, 3)).abs().max() == 0
    assert normalise(torch.tensor([[0.0, -7e-39]])).tolist() == [[0.0, -1.0]]


@pytest.mark.parametrize("dim", [1, 2, 3, 37, 384, 1025])
def test_a_row_becomes_the_same_wherever_it_stands(dim):
    rows = torch.randn(700, dim, generator=rng(dim))
    unit, shuffle = normalise(rows), torch.randperm(700, generator=rng(1))
    assert torch.equal(normalise(rows[shuffle]), unit[shuffle])
    assert torch.equal(normalise(rows[3:4]), unit[3:4])
    assert torch.equal(normalise(rows.T.contiguous().T), unit)
    assert torch.equal(normalise(8 * rows), unit)
    assert torch.equal(normalise(rows.double()), unit)


def test_a_similarity_is_the_exact_product_rounded_once():
    a, b = torch.randn(9, 61, generator=rng(0)), torch.randn(11, 61, generator=rng(1))
    first, second = ([[Fraction(x) for x in row] for row in normalise(rows).double().tolist()] for rows in (a, b))
    found = cosines(normalise(a), normalise(b))
    assert torch.equal(found, exactly(a, b))
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            true = sum(x * y for x, y in zip(one, other, strict=True))
            assert abs(Fraction(float(found[i, j])) - true) <= Fraction(1, 2**25)


@pytest.mark.parametrize("dim", [1, 2, 16, 37, 384, 1536])
def test_products_and_pairs_of_copies_are_equal_in_any_place(dim):
    rows = normalise(copies(403, 20, dim, seed=dim))
    found, shuffle = cosines(rows, rows), torch.randperm(403, generator=rng(2))
    assert torch.equal(found, found.T)
    assert torch.equal(cosines(rows[shuffle], rows), found[shuffle])
    assert torch.equal(cosines(rows[:1], rows[5:70]), found[:1, 5:70])
    which, index = torch.randint(403, (2, 5000), generator=rng(3))
    assert torch.equal(similarity.of_pairs(rows, lambda some: rows[some], which, index), found[which, index])


@pytest.mark.parametrize("dim", [1, 3, 64, 384, 3000])
def test_float32_products_keep_within_the_tolerance(dim):
    """Also where every addition rounds to the same side: equal coordinates."""
    for rows in (torch.randn(200, dim, generator=rng(0)), torch.rand(200, dim, generator=rng(0)), torch.ones(200, dim)):
        unit = normalise(rows)
        assert ((unit @ unit.T).double() - unit.double() @ unit.double().T).abs().max() <= tolerance(dim)
    assert tolerance(10**5) < 2e-3


def test_rows_that_are_not_finite_are_named_wherever_they_stand():
    rows = torch.ones(5000, 40)
    rows[3001, 7], rows[4000, 0] = torch.inf, torch.nan
    with pytest.raises(FeatureError, match="2 of 5000 rows of the bank are not finite, the first is row 3001"):
        normalise(rows, "bank")


def inverted(queries, bank, *, k):
    return banks.Inverted(bank, probes=10**6)(queries, bank, k=k)


SEARCHES = {
    "whole": nearest,
    "one query at a time": partial(nearest, block=1),
    "blocks of 3": partial(nearest, block=3),
    "tiles of 50": partial(nearest, tile=50),
    "tiles of 7": partial(nearest, tile=7),
    "flat": banks.flat,
    "flat in tiles": partial(banks.flat, tile=50),
    "inverted": inverted,
}


@pytest.mark.parametrize("search_", SEARCHES.values(), ids=SEARCHES.keys())
@pytest.mark.parametrize("dim", [5, 129])
def test_every_search_keeps_the_rule_on_copies(search_, dim):
    bank, queries = copies(301, 40, dim, seed=0), torch.cat([copies(5, 40, dim, seed=0), copies(4, 9, dim, seed=7)])
    padded = torch.cat([bank, -queries.sum(0, keepdim=True).expand(20, -1), torch.zeros(3, dim)])
    shuffle = torch.randperm(301, generator=rng(5))
    for rows in (bank, bank[shuffle], bank.repeat(2, 1), padded):
        right = order_of(queries, rows)
        for k in (1, 4, 30, 290):
            values, index = (torch.cat(column) for column in zip(*search_(queries, rows, k=k), strict=True))
            assert torch.equal(index, right.indices[:, :k])
            assert torch.allclose(values, right.values[:, :k], rtol=0, atol=tolerance(dim))
            equal = right.values[:, : k - 1] == right.values[:, 1:k]
            assert torch.equal(values[:, :-1][equal], right.values[:, : k - 1][equal])
            assert torch.equal(values[:, 1:][equal], right.values[:, 1:k][equal])


def test_neighbours_closer_than_a_float32_product_can_tell_are_told_apart():
    """Rows a few grid steps apart: all are within the tolerance of one another."""
    bank = torch.randn(1, 384, generator=rng(0)).repeat(400, 1)
    bank += 2e-6 * torch.randn(400, 384, generator=rng(1))
    queries = torch.randn(6, 384, generator=rng(2)) + bank[:1]
    right = order_of(queries, bank)
    assert len(right.values[0].unique()) > 5
    for k in (1, 20, 399):
        values, index = (torch.cat(column) for column in zip(*nearest(queries, bank, k=k), strict=True))
        assert torch.equal(values, right.values[:, :k])
        assert torch.equal(index, right.indices[:, :k])


def test_a_search_stays_exact_where_float32_products_may_be_shortened():
    bank, queries = copies(300, 30, 64, seed=0), copies(5, 30, 64, seed=0)
    torch.set_float32_matmul_precision("medium")
    try:
        (_, index), *_ = nearest(queries, bank, k=40)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(index, order_of(queries, bank).indices[:, :40])


def plainly(queries, bank, labels, k, temperature, classes):
    """(Q, 5): classes by falling vote, then rising number; -1 where no more have one."""
    values, index = order_of(queries, bank)
    found = []
    for value, row in zip(values[:, :k].double().tolist(), index[:, :k].tolist(), strict=True):
        votes = dict.fromkeys(range(classes), 0.0)
        for one, place in zip(value, row, strict=True):
            votes[int(labels[place])] += math.exp((one - value[0]) / temperature)
        ranked = sorted((c for c in votes if votes[c]), key=lambda c: (-np.float32(votes[c]), c))
        found.append((ranked + [-1] * 5)[:5])
    return torch.tensor(found)


@pytest.mark.parametrize("search_", SEARCHES.values(), ids=SEARCHES.keys())
def test_knn_predicts_the_same_whatever_the_search(search_):
    """Every row has a copy of another class, so that votes tie everywhere."""
    bank, queries = copies(60, 30, 24, seed=0).repeat(2, 1), copies(8, 30, 24, seed=0)
    labels = torch.cat([torch.randint(4, (60,), generator=rng(2)), torch.randint(4, 8, (60,), generator=rng(3))])
    shuffle = torch.randperm(120, generator=rng(4))
    for rows, classes in ((bank, labels), (bank[shuffle], labels[shuffle])):
        found = knn.predict(queries, rows, classes, ks=[1, 2, 3, 30], temperature=0.1, search=search_)
        for k, one in zip((1, 2, 3, 30), found, strict=True):
            assert torch.equal(one, plainly(queries, rows, classes, k, 0.1, 8))


def test_votes_of_copies_in_two_classes_are_equal():
    rows = torch.randn(50, 131, generator=rng(0))
    shuffle = torch.randperm(100, generator=rng(1))
    bank, labels = rows.repeat(2, 1)[shuffle], torch.arange(2).repeat_interleave(50)[shuffle]
    votes = knn.vote(torch.randn(20, 131, generator=rng(2)), bank, labels, ks=[2, 10, 100], temperature=0.07)
    assert torch.equal(votes[..., 0], votes[..., 1])


def test_average_precision_does_not_see_order_copies_blocks_or_threads():
    rows, labels = copies(150, 20, 45, seed=0), torch.randint(4, (150,), generator=rng(9))
    same = labels[:, None] == labels
    right = ranking.average_precision(exactly(rows, rows), same)
    assert torch.allclose(ranking.leave_one_out(rows, labels, itself=True), right, rtol=0, atol=1e-12)
    shuffle = torch.randperm(150, generator=rng(3))
    for block in (1, 7, None):
        first = ranking.leave_one_out(rows, labels, block=block)
        assert torch.equal(first, ranking.leave_one_out(rows, labels))
        assert torch.equal(ranking.leave_one_out(rows[shuffle], labels[shuffle], block=block), first[shuffle])
    twice = ranking.leave_one_out(rows.repeat(2, 1), labels.repeat(2), itself=True)
    assert torch.equal(twice[:150], twice[150:])
    assert torch.allclose(twice[:150], right, atol=1e-12)
    assert torch.allclose(retrieval.average_precision(rows, labels, exclude_self=False).double(), right, atol=1e-7)


@pytest.mark.parametrize("count", [9, 64, 1001])
def test_features_that_are_all_alike_score_the_share_of_relevant_items(count):
    labels = torch.arange(count) % 2
    found = ranking.leave_one_out(torch.full((count, 6), 0.3), labels)
    share = (torch.bincount(labels)[labels] - 1) / (count - 1)
    assert torch.allclose(found, share.double(), atol=1e-7)


def test_landmarks_galleries_and_matches_rank_by_value_then_number():
    gallery, queries = copies(200, 30, 77, seed=0), copies(6, 30, 77, seed=0)
    assert torch.equal(landmarks.rankings(queries, gallery), order_of(queries, gallery).indices)
    ranked = search.ranked(gallery, 3, top=199)
    assert ranked.rows == tuple(row for row in order_of(gallery[3:4], gallery).indices[0].tolist() if row != 3)
    there, back = (exactly(a, b).argmax(1) for a, b in ((queries, gallery), (gallery, queries)))
    found = maps.matches(queries, gallery, top=9)
    kept = [(i, int(j)) for i, j in enumerate(there) if back[j] == i]
    assert sorted(zip(found.first.tolist(), found.second.tolist(), strict=True)) == kept


def test_few_shot_cosines_of_copies_are_equal():
    rows = copies(40, 8, 93, seed=0)
    shuffle = torch.randperm(40, generator=rng(1))
    place = torch.empty_like(shuffle).scatter_(0, shuffle, torch.arange(40))
    drawn = torch.randint(40, (5, 3, 6), generator=rng(2))
    first = fewshot.similarities(rows, fewshot.Episodes(drawn[..., :2], drawn[..., 2:]))
    moved = place[drawn]
    assert torch.equal(fewshot.similarities(rows[shuffle], fewshot.Episodes(moved[..., :2], moved[..., 2:])), first)
    right = exactly(rows, rows)
    for episode, (shown, asked) in enumerate(zip(drawn[..., :2], drawn[..., 2:], strict=True)):
        assert torch.equal(first[episode].flatten(), right[asked.flatten()][:, shown.flatten()].flatten())


def test_prompts_and_pairs_see_copies_as_equal():
    tokens = copies(63, 6, 50, seed=0)
    found = prompt.similarity(tokens.view(7, 9, 50), torch.arange(63)).view(63, 63)
    assert torch.equal(found, exactly(tokens, tokens))
    labels, shuffle = torch.arange(63) % 3, torch.randperm(63, generator=rng(1))
    first = pairs.within(normalise(tokens), labels, 4001)
    second = pairs.within(normalise(tokens[shuffle]), labels[shuffle], 4001)
    assert np.array_equal(first[0], second[0])


def test_transferred_labels_do_not_see_the_order_of_the_memory():
    """Copies carry the same shares: which of them are taken cannot show."""
    kinds = torch.randint(25, (90,), generator=rng(0))
    rows, shares = torch.randn(25, 66, generator=rng(1))[kinds], torch.rand(25, 7, generator=rng(2))[kinds]
    queries, shuffle = torch.randn(12, 66, generator=rng(3)), torch.randperm(90, generator=rng(4))
    mixed = []
    for order in (torch.arange(90), shuffle):
        ((values, index),) = nearest(queries, rows[order], k=17)
        mixed.append(hummingbird.transfer(values, index, shares[order], 0.02))
    assert torch.allclose(mixed[0], mixed[1], rtol=0, atol=1e-6)
    ((values, index),) = nearest(queries, torch.cat([rows, rows]), k=180)
    both = hummingbird.transfer(values, index, torch.cat([shares, shares.flip(1)]), 0.02)
    assert torch.equal(both, both.flip(1))


@pytest.mark.parametrize("rules", [propagation.Rules(), propagation.Rules(radius=2, neighbours=3)])
def test_propagation_does_not_see_where_a_patch_lies(rules):
    """Mirrored clips give mirrored labels; patches have copies all over, so that the last one taken always ties."""
    clip = copies(4 * 8 * 9, 12, 83, seed=0).view(4, 8, 9, 83)
    mask = torch.randint(3, (8, 9), generator=rng(1))
    found = propagation.propagate(clip, mask, rules=rules)
    for axis in (0, 1):
        mirrored = propagation.propagate(clip.flip(axis + 1), mask.flip(axis), rules=rules)
        assert torch.equal(mirrored.flip(axis + 2), found)
    right = plain_propagation(clip[:2], mask, rules)
    assert torch.allclose(found[1], right, atol=1e-6)


def test_propagation_takes_the_patches_that_are_nearest_by_less_than_a_float32_product_can_tell():
    """Of nine neighbours six are nearly alike, and five of them are taken."""
    rules = propagation.Rules(radius=1, neighbours=5)
    alike = torch.randn(384, generator=rng(0))
    first = alike + 2e-6 * torch.randn(9, 9, 384, generator=rng(1))
    first[:, ::3] = torch.randn(9, 3, 384, generator=rng(2))
    clip = torch.stack([first, alike + torch.randn(9, 9, 384, generator=rng(3))])
    mask = torch.randint(4, (9, 9), generator=rng(4))
    found = propagation.propagate(clip, mask, rules=rules)[1]
    assert torch.allclose(found, plain_propagation(clip, mask, rules), atol=1e-5)


def plain_propagation(clip, mask, rules):
    """(C, h, w) of the second frame: the k most similar of the first, and all that equal the last of them."""
    height, width, dim = clip.shape[1:]
    similar = exactly(clip[1].reshape(-1, dim), clip[0].reshape(-1, dim)).double().tolist()
    soft = torch.zeros(int(mask.max()) + 1, height, width)
    for place, row in enumerate(similar):
        y, x = divmod(place, width)
        near = {
            other: value
            for other, value in enumerate(row)
            if max(abs(other // width - y), abs(other % width - x)) <= (rules.radius or height * width)
        }
        last = sorted(near.values(), reverse=True)[: rules.neighbours][-1]
        taken = {other: math.exp((value - 1) / rules.temperature) for other, value in near.items() if value >= last}
        for other, weight in taken.items():
            soft[mask[other // width, other % width], y, x] += weight / sum(taken.values())
    return soft
